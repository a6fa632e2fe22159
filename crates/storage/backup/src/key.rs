//! Where the key comes from that a backup's objects are encrypted with.

use std::path::Path;

use borealis_archive::sealing::Sealing;

use crate::key_command::{self, CommandError};
use crate::key_file::{self, KeyError};

/// Where a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource<'a> {
    /// There is none: objects are not encrypted.
    Nowhere,
    /// A file has it.
    File(&'a Path),
    /// A command prints it.
    Command(&'a str),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file has none.
    #[error(transparent)]
    File(#[from] KeyError),
    /// The command printed none.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file and a command might have two.
    #[error("a key file and a key command are given; choose one of the two")]
    Two,
}

impl<'a> KeySource<'a> {
    /// The one of the two that is given, if one is.
    ///
    /// # Errors
    /// When both are.
    pub fn of(file: Option<&'a Path>, command: Option<&'a str>) -> Result<KeySource<'a>, SourceError> {
        match (file, command) {
            (None, None) => Ok(KeySource::Nowhere),
            (Some(file), None) => Ok(KeySource::File(file)),
            (None, Some(command)) => Ok(KeySource::Command(command)),
            (Some(_), Some(_)) => Err(SourceError::Two),
        }
    }

    /// How objects are encrypted by whoever has this key. A command is run, and killed once `is_wanted` says no.
    ///
    /// # Errors
    /// When there is no key where it should be.
    pub fn sealing(self, is_wanted: &dyn Fn() -> bool) -> Result<Sealing, SourceError> {
        Ok(match self {
            KeySource::Nowhere => Sealing::Plain,
            KeySource::File(file) => key_file::read(file)?.into(),
            KeySource::Command(command) => {
                key_command::read(command, key_command::TIMEOUT, is_wanted)?.into()
            }
        })
    }
}
