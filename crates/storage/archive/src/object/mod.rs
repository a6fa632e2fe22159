//! The one envelope of all objects.
//!
//! ```text
//! object   = preamble header checksum block*
//! preamble = magic[8] kind[1] format[1] sealing[1] zero[1] header_bytes[4]
//! header   = postcard(volume, salt, facts, block*)        what it is; for each block its lengths, stored and plain
//! checksum = crc32c(preamble header)
//! block    = crc32c(stored) stored                        stored = zstd(plain), or AES-256-GCM of that
//! ```
//!
//! Numbers outside of postcard are little-endian. The header comes first, so that a reader who wants one block of many asks
//! for the first bytes of an object and then for that block. Each block is compressed by itself, and is at most
//! [`BLOCK_BYTES_MAX`] long when it is unpacked: a reader knows before it allocates.
//!
//! The name of an object has the first half of the SHA-256 of all its bytes ([`Digest`]), so a store cannot hand out other bytes
//! under that name unnoticed, and the same content has the same name whoever uploads it.

mod reading;
mod writing;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use borealis_types::VolumeId;

pub use reading::{Head, Object};
pub use writing::{Encoded, ObjectWriter};

/// The first bytes of every object.
pub(crate) const MAGIC: [u8; 8] = *b"BOREALAR";

/// Bytes before an object's header.
pub(crate) const PREAMBLE_BYTES: usize = 16;

/// A checksum's length.
pub(crate) const CHECKSUM_BYTES: usize = 4;

/// The longest block, unpacked, in bytes. A redo record or a piece of one, and an extent of pages, are about a mebibyte.
pub const BLOCK_BYTES_MAX: usize = 8 << 20;

/// The most blocks of an object.
pub const BLOCKS_MAX: usize = 1 << 16;

/// The longest header, in bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 1 << 20;

/// The longest object, in bytes. Writers stay far below it; no reader takes more.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// How many of the first bytes of an object have its header, unless it has thousands of blocks.
pub const HEAD_BYTES: usize = 16 << 10;

/// What an object is. The number stands in its first bytes and is never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Records of one group ([`crate::redo`]).
    Redo = 1,
    /// Pages of one group as of one LSN ([`crate::pages`]).
    Pages = 2,
    /// What makes pages a snapshot ([`crate::manifest`]).
    Manifest = 3,
    /// All openings of the volume ([`crate::history`]).
    History = 4,
    /// Durable positions against the clock ([`crate::marks`]).
    Marks = 5,
    /// What the volume is ([`crate::settings`]).
    Volume = 6,
    /// A point that somebody gave a name ([`crate::settings`]).
    Snapshot = 7,
    /// How long points are kept ([`crate::settings`]).
    Retention = 8,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Redo,
        Kind::Pages,
        Kind::Manifest,
        Kind::History,
        Kind::Marks,
        Kind::Volume,
        Kind::Snapshot,
        Kind::Retention,
    ];

    pub(crate) fn of_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Redo => "redo object",
            Kind::Pages => "page object",
            Kind::Manifest => "manifest",
            Kind::History => "history",
            Kind::Marks => "list of marks",
            Kind::Volume => "volume descriptor",
            Kind::Snapshot => "named snapshot",
            Kind::Retention => "retention setting",
        })
    }
}

/// What one kind of object says of itself in its header.
pub trait Facts: Serialize + DeserializeOwned {
    /// The kind.
    const KIND: Kind;
    /// The newest format, which is written. Older ones are read; decision 31 says how a format changes.
    const FORMAT: u8 = 1;

    /// What cannot be although it decodes.
    ///
    /// # Errors
    /// Says what.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// The first half of the SHA-256 of an object's bytes, or of a part of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Of these bytes, all of the object.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::of_parts(&[bytes])
    }

    /// Of these bytes, one after the other.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Digest {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        parts.iter().for_each(|part| context.update(part));
        let whole = context.finish();
        let half = whole.as_ref().first_chunk().expect("a SHA-256 has 32 bytes");
        Digest(*half)
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Of one block: how many bytes it takes in the object, after its checksum, and how many when it is unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct BlockLengths {
    pub stored: u32,
    pub plain: u32,
}

/// What every header has beside the facts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(bound = "F: Facts")]
pub(crate) struct Header<F> {
    pub volume: VolumeId,
    /// What the object's key was derived with ([`crate::sealing`]); nothing if it is not encrypted.
    pub salt: Option<[u8; 32]>,
    pub facts: F,
    #[serde(deserialize_with = "borealis_types::bounded::list::<_, _, BLOCKS_MAX>")]
    pub blocks: Vec<BlockLengths>,
}
