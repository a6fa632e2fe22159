//! Redo objects: records of one group, written in one epoch, without a gap.
//!
//! ```text
//! facts   = group epoch previous_end last_end complete_through node records
//! block   = a redo batch (borealis_wire::batch), of about a mebibyte; its header brings the epoch and nothing else
//! ```
//!
//! An object never spans epochs: what a recovery cut is then of another object than what came after it, or behind a position
//! that the history names, and a listing suffices to leave it out. `previous_end` is the link to the object before: the end of the
//! group's last record before this object's first.

use borealis_types::{GroupId, Lsn, MAX_GROUPS, NodeId, VolumeEpoch, VolumeId};
use borealis_wire::{BatchBuilder, BatchHeader, BatchReader, BatchRecord};
use serde::{Deserialize, Serialize};

use crate::chain::{Chain, ChainBreak, Step};
use crate::error::FormatError;
use crate::name::RedoName;
use crate::object::{BLOCK_BYTES_MAX, Digest, Facts, Kind, Object, ObjectWriter};
use crate::sealing::Sealing;

/// A block is full when it has so many bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// What a record's header and links may take at most beyond its bytes: each of at most 64 groups, and a few numbers.
const RECORD_OVERHEAD_BYTES: usize = 2048;

/// What a redo object says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RedoFacts {
    /// The group whose records it has.
    pub group: GroupId,
    /// The epoch in which they were written.
    pub epoch: VolumeEpoch,
    /// End of the group's record before the first one; zero if there is none.
    pub previous_end: Lsn,
    /// End of the last record.
    pub last_end: Lsn,
    /// The group has no record that ends between `last_end` and here, and the volume was durable to here.
    pub complete_through: Lsn,
    /// Who made it.
    pub node: NodeId,
    /// How many records it has.
    pub records: u64,
}

impl Facts for RedoFacts {
    const KIND: Kind = Kind::Redo;

    fn check(&self) -> Result<(), &'static str> {
        if self.group.0 >= MAX_GROUPS {
            return Err("a group that there cannot be");
        }
        let ascend = self.previous_end < self.last_end && self.last_end <= self.complete_through;
        if ascend && self.records > 0 { Ok(()) } else { Err("positions of a redo object out of order") }
    }
}

impl RedoFacts {
    /// The name of the object with these facts.
    #[must_use]
    pub fn name(&self, digest: Digest) -> RedoName {
        let RedoFacts { group, epoch, previous_end, last_end, complete_through, node, records: _ } = *self;
        RedoName { group, last_end, previous_end, epoch, complete_through, node, digest }
    }
}

/// Why a record was not added to a redo object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdded {
    /// It does not follow the last one.
    #[error(transparent)]
    Break(#[from] ChainBreak),
    /// It is of another epoch: the object has to end before it.
    #[error("the record that ends at {end} is of epoch {found}, those before it of {expected}")]
    OtherEpoch {
        /// The object's epoch.
        expected: VolumeEpoch,
        /// The record's.
        found: VolumeEpoch,
        /// End of the record.
        end: Lsn,
    },
    /// It is longer than any that a writer makes.
    #[error("the record that ends at {end} has {bytes} bytes, more than a block of an archive holds")]
    TooLong {
        /// End of the record.
        end: Lsn,
        /// Its length.
        bytes: usize,
    },
}

/// Collects records for one redo object.
#[derive(Debug)]
pub struct RedoBuilder {
    writer: ObjectWriter,
    batch: BatchBuilder,
    chain: Chain,
    facts: RedoFacts,
}

impl RedoBuilder {
    /// An object for the records of a group that follow the one that ends at `previous_end`, written in `epoch`.
    #[must_use]
    pub fn new(
        volume: VolumeId,
        group: GroupId,
        node: NodeId,
        epoch: VolumeEpoch,
        previous_end: Lsn,
    ) -> RedoBuilder {
        let facts = RedoFacts {
            group,
            epoch,
            previous_end,
            last_end: previous_end,
            complete_through: previous_end,
            node,
            records: 0,
        };
        RedoBuilder {
            writer: ObjectWriter::new(volume),
            batch: empty_batch(epoch),
            chain: Chain::new(group, previous_end),
            facts,
        }
    }

    /// Adds the next record, which was written in `epoch`. One that it has is passed over.
    ///
    /// # Errors
    /// When it is not the next one of the group, or of another epoch.
    pub fn push(&mut self, epoch: VolumeEpoch, record: &BatchRecord<'_>) -> Result<Step, NotAdded> {
        let end = record.span.end;
        if epoch != self.facts.epoch && end > self.chain.at() {
            return Err(NotAdded::OtherEpoch { expected: self.facts.epoch, found: epoch, end });
        }
        let bytes = record.bytes.len();
        if bytes > BLOCK_BYTES_MAX - BLOCK_BYTES - RECORD_OVERHEAD_BYTES {
            return Err(NotAdded::TooLong { end, bytes });
        }
        let step = self.chain.take(record)?;
        if step == Step::Next {
            self.batch.push_form(record.span, record.form, &record.links, record.bytes);
            self.facts.last_end = end;
            self.facts.records += 1;
            if self.batch.size_bytes() >= BLOCK_BYTES {
                self.end_block();
            }
        }
        Ok(step)
    }

    fn end_block(&mut self) {
        let batch = std::mem::replace(&mut self.batch, empty_batch(self.facts.epoch));
        self.writer.push(&batch.finish());
    }

    /// Whether it has no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.facts.records == 0
    }

    /// End of the last record, or of the one before the object.
    #[must_use]
    pub fn last_end(&self) -> Lsn {
        self.facts.last_end
    }

    /// End of the group's record before the first one.
    #[must_use]
    pub fn previous_end(&self) -> Lsn {
        self.facts.previous_end
    }

    /// The epoch of its records.
    #[must_use]
    pub fn epoch(&self) -> VolumeEpoch {
        self.facts.epoch
    }

    /// How much memory its content takes: full blocks as they are stored, and what the last one has so far.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.writer.size_bytes() + self.batch.size_bytes()
    }

    /// The object; `None` if it has no record. The caller knows that the volume is durable to `durable_through`, and that the
    /// group has no record between the last one and there.
    #[must_use]
    pub fn finish(mut self, durable_through: Lsn, sealing: &Sealing) -> Option<(RedoName, Vec<u8>)> {
        if self.is_empty() {
            return None;
        }
        if self.batch.record_count() > 0 {
            self.end_block();
        }
        self.facts.complete_through = durable_through.max(self.facts.last_end);
        let encoded = self.writer.finish(self.facts, sealing);
        Some((self.facts.name(encoded.digest), encoded.bytes))
    }
}

fn empty_batch(volume_epoch: VolumeEpoch) -> BatchBuilder {
    BatchBuilder::new(&BatchHeader { volume_epoch, ..BatchHeader::default() })
}

/// Calls `take` with each record of a redo object, in order. The object is what its name says, and its records follow one another
/// from `previous_end` to `last_end`, or this fails; what was taken before it failed was in order.
///
/// # Errors
/// When the object is damaged, cut, of another volume or another name, or one of its records does not follow.
pub fn for_each_record(
    bytes: &[u8],
    volume: VolumeId,
    name: &RedoName,
    sealing: &Sealing,
    mut take: impl FnMut(&BatchRecord<'_>),
) -> Result<RedoFacts, FormatError> {
    let object = Object::<RedoFacts>::decode_named(bytes, volume, name.digest, sealing)?;
    let facts = *object.facts();
    if facts.name(name.digest) != *name {
        return Err(FormatError::Name);
    }
    let mut chain = Chain::new(facts.group, facts.previous_end);
    let mut records = 0;
    for block in object.blocks() {
        let block = block?;
        let (header, reader) =
            BatchReader::new(&block).map_err(|_| FormatError::Malformed("a block is no redo batch"))?;
        if header.volume_epoch != facts.epoch {
            return Err(FormatError::Malformed("a block is of another epoch than the object"));
        }
        for record in reader {
            let record = record.map_err(|_| FormatError::Malformed("a record does not decode"))?;
            if chain.take(&record) != Ok(Step::Next) {
                return Err(FormatError::Malformed("a record does not follow the one before it"));
            }
            records += 1;
            take(&record);
        }
    }
    if chain.at() != facts.last_end || records != facts.records {
        return Err(FormatError::Malformed("records are missing at its end"));
    }
    Ok(facts)
}
