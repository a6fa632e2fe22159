//! Small objects that have facts and no blocks: what the volume is, named snapshots, and how long points are kept.
//!
//! They are made with create-if-absent like all others. A setting is changed by making the next revision, so two who change it at once
//! do not both succeed, in any store that can refuse to overwrite.

use borealis_types::{Lsn, PAGE_SIZE, Placement, PostgresVersion, VolumeEpoch, VolumeId};
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::name::SnapshotName;
use crate::object::{Facts, Kind, Object, ObjectWriter};
use crate::sealing::Sealing;

/// What a restore must know of a volume before it reads anything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// Which group has which pages: how many groups there are.
    pub placement: Placement,
    /// The major version of its server.
    pub version: PostgresVersion,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// When the backup began, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Facts for VolumeFacts {
    const KIND: Kind = Kind::Volume;

    fn check(&self) -> Result<(), &'static str> {
        if self.page_bytes as usize == PAGE_SIZE { Ok(()) } else { Err("pages of another size") }
    }
}

/// A point that somebody gave a name: it can be restored until the name is removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NamedSnapshot {
    /// Its name, which is also that of the object.
    pub name: SnapshotName,
    /// The point.
    pub lsn: Lsn,
    /// The epoch in which it was durable.
    pub epoch: VolumeEpoch,
    /// When the name was given, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Facts for NamedSnapshot {
    const KIND: Kind = Kind::Snapshot;
}

/// How long what is there must stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retention {
    /// Every point that was reached within so many milliseconds can be restored.
    pub window_ms: u64,
    /// An object that no snapshot is built on stays so long: it may be of one that is still being uploaded. Whoever uploads gives up in half
    /// of that.
    pub unfinished_ms: u64,
}

impl Default for Retention {
    /// Seven days, and three.
    fn default() -> Retention {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        Retention { window_ms: 7 * DAY_MS, unfinished_ms: 3 * DAY_MS }
    }
}

impl Facts for Retention {
    const KIND: Kind = Kind::Retention;
}

/// The object with these facts.
#[must_use]
pub fn encode<F: Facts>(volume: VolumeId, facts: F, sealing: &Sealing) -> Vec<u8> {
    ObjectWriter::new(volume).finish(facts, sealing).bytes
}

/// The facts of an object without blocks.
///
/// # Errors
/// When it is not such an object of this volume.
pub fn decode<F: Facts + Clone>(bytes: &[u8], volume: VolumeId, sealing: &Sealing) -> Result<F, FormatError> {
    let object = Object::<F>::decode(bytes, volume, sealing)?;
    if object.head().block_count() != 0 {
        return Err(FormatError::Malformed("blocks in an object that has none"));
    }
    Ok(object.facts().clone())
}
