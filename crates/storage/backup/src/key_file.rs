//! The file with the key that a backup's objects are encrypted with.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use borealis_archive::sealing::{KeyFileError, SealingKey};

/// A key and a line's end; what is longer is no key.
pub(crate) const FILE_BYTES_MAX: u64 = 256;

/// Why a file gives no key. It never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the key file {}: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Others than its owner may read or change it.
    #[error("the key file {} has mode {mode:03o}: others could read it; chmod 600 it", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It has no key.
    #[error("{}: {error}", file.display())]
    NoKey {
        /// The file.
        file: PathBuf,
        /// What a key file has.
        error: KeyFileError,
    },
}

/// Reads a key from a file that its owner alone may read.
///
/// # Errors
/// When it cannot be read, is open to others, or has no key.
pub fn read(file: &Path) -> Result<SealingKey, KeyError> {
    let unreadable = |error| KeyError::Unreadable { file: file.to_owned(), error };
    let opened = File::open(file).map_err(unreadable)?;
    let mode = opened.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { file: file.to_owned(), mode });
    }
    let mut text = String::new();
    opened.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    SealingKey::of_text(&text).map_err(|error| KeyError::NoKey { file: file.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_read_from_a_file_that_nobody_else_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        assert!(matches!(read(&file), Err(KeyError::Unreadable { .. })));
        let digits = "0f".repeat(32);
        std::fs::write(&file, format!("{digits}\n")).unwrap();
        let close = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        close(0o640);
        let error = read(&file).unwrap_err();
        assert!(matches!(error, KeyError::Open { mode: 0o640, .. }), "{error}");
        close(0o600);
        assert!(read(&file).is_ok());
        std::fs::write(&file, "0f0f").unwrap();
        let error = read(&file).unwrap_err();
        assert!(
            error.to_string().contains("64 hexadecimal digits") && !error.to_string().contains("0f0f"),
            "{error}"
        );
    }
}
