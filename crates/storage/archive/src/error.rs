//! Bytes that are not what they should be.

use borealis_types::VolumeId;

use crate::object::Kind;

/// Why the bytes of an object cannot be believed. A store, and whoever may write to it, is outside: nothing here is asserted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as an object does.
    #[error("is no object of a Borealis archive")]
    NotAnObject,
    /// It is one of another kind than its name says.
    #[error("is a {found}, where a {expected} should be")]
    OtherKind {
        /// What was wanted.
        expected: Kind,
        /// What its first bytes say.
        found: Kind,
    },
    /// A later version of Borealis wrote it.
    #[error(
        "is a {kind} of format {found}; this version of Borealis reads up to format {supported}: use a newer one"
    )]
    Format {
        /// What it is.
        kind: Kind,
        /// The format that wrote it.
        found: u8,
        /// The newest format that this version reads.
        supported: u8,
    },
    /// It ends too early.
    #[error("ends after {have} bytes, where {needed} are needed: it was cut")]
    Cut {
        /// Bytes that it should have.
        needed: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// It goes on after its end.
    #[error("has {0} bytes after its end")]
    TooLong(u64),
    /// A checksum is not that of the bytes before it.
    #[error("is damaged: the checksum of {0} does not match")]
    Checksum(Part),
    /// The hash in its name is not that of its bytes.
    #[error(
        "is damaged or was put in the place of another: its bytes are not those that its name was made of"
    )]
    Digest,
    /// Its name and its header say different things.
    #[error("was put in the place of another: its header is not that of its name")]
    Name,
    /// It is of another volume.
    #[error("is of volume {found}, where volume {expected} is kept")]
    OtherVolume {
        /// The volume that was asked for.
        expected: VolumeId,
        /// The volume in the header.
        found: VolumeId,
    },
    /// Checksums match, and what it says is impossible.
    #[error("is malformed: {0}")]
    Malformed(&'static str),
    /// It is encrypted, and there is no key.
    #[error("is encrypted, and no key was given")]
    Sealed,
    /// A key is given, and the object is not encrypted: somebody without the key may have made it.
    #[error("is not encrypted, although a key was given")]
    NotSealed,
    /// The key is another, or the object was changed.
    #[error("does not open with this key: the key is another, or the object was changed")]
    WrongKey,
}

/// A part of an object that has a checksum of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What says what it is, and where its blocks are.
    Header,
    /// A block, by its number from zero.
    Block(u32),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Header => write!(f, "the header"),
            Part::Block(block) => write!(f, "block {block}"),
        }
    }
}
