//! History objects: every opening of the volume.
//!
//! ```text
//! facts = epoch openings
//! block = postcard(EpochHistory)
//! ```
//!
//! A history that is longer replaces a shorter one, and one with a newer epoch an older one (decision 7): of those that are
//! there the one with the highest epoch says what every restore may use.

use borealis_types::{EpochHistory, VolumeEpoch, VolumeId};
use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::name::HistoryName;
use crate::object::{Facts, Kind, Object, ObjectWriter};
use crate::sealing::Sealing;

/// What a history object says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HistoryFacts {
    /// Epoch of the newest opening.
    pub epoch: VolumeEpoch,
    /// How many openings there are.
    pub openings: u64,
}

impl Facts for HistoryFacts {
    const KIND: Kind = Kind::History;
}

/// The object of a history, which has an opening.
#[must_use]
pub fn encode(volume: VolumeId, history: &EpochHistory, sealing: &Sealing) -> (HistoryName, Vec<u8>) {
    let mut writer = ObjectWriter::new(volume);
    writer.push(&postcard::to_stdvec(history).expect("a list of numbers always encodes"));
    let facts = HistoryFacts { epoch: history.newest_epoch(), openings: history.openings().len() as u64 };
    let encoded = writer.finish(facts, sealing);
    (HistoryName { epoch: facts.epoch, digest: encoded.digest }, encoded.bytes)
}

/// The history in an object.
///
/// # Errors
/// When the object is not the one with that name, or its openings are out of order.
pub fn decode(
    bytes: &[u8],
    volume: VolumeId,
    name: &HistoryName,
    sealing: &Sealing,
) -> Result<EpochHistory, FormatError> {
    let object = Object::<HistoryFacts>::decode_named(bytes, volume, name.digest, sealing)?;
    let facts = *object.facts();
    let block = object.block(0)?;
    let (history, rest): (EpochHistory, _) = postcard::take_from_bytes(&block)
        .map_err(|_| FormatError::Malformed("the openings do not decode, or are out of order"))?;
    if !rest.is_empty() || object.head().block_count() != 1 {
        return Err(FormatError::Malformed("bytes after the openings"));
    }
    let same = facts.epoch == history.newest_epoch() && facts.openings == history.openings().len() as u64;
    if same && facts.epoch == name.epoch { Ok(history) } else { Err(FormatError::Name) }
}
