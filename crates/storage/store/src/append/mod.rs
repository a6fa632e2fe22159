//! Taking redo.

mod offer;
mod write;

use std::ops::Range;

use borealis_quorum::Promise;
use borealis_types::{GroupId, GroupSet, MAX_GROUPS, RecordSpan, ServerVersion};
use borealis_wal::{Effect, Record};
use borealis_wire::{BatchHeader, BatchReader, GroupLink, Refusal, SegmentProgress};

use crate::append::offer::check_release;
use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::log::payload::PositionsEntry;
use crate::metrics::count;
use crate::segment::record_effects::RecordEffects;
use crate::store::Sequence;
use crate::{Policy, Store, StoreError};

/// The longest batch accepted: as much as a frame can carry.
const BATCH_BYTES_MAX: usize = borealis_wire::frame::MAX_PAYLOAD_BYTES;

/// An ordinary short record, with its header in the batch.
const SHORT_RECORD_BYTES: usize = 80;

/// Room made at once, however long a batch claims to be.
const LIKELY_RECORDS_MAX: usize = 512;

/// Who brings redo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The live writer, which holds this promise. Only its positions count.
    Writer(Promise),
    /// A peer of this group; only its segment is offered the records.
    Peer(GroupId),
    /// A recovery that holds this promise brings records of this group.
    Recovery(Promise, GroupId),
}

impl Origin {
    /// Whether a segment of `group` is offered the records.
    pub(super) fn concerns(self, group: GroupId) -> bool {
        match self {
            Origin::Writer(_) => true,
            Origin::Peer(only) | Origin::Recovery(_, only) => only == group,
        }
    }
}

/// What an append did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// [`Store::sync`] to here before anything of this is told to anyone.
    pub sequence: Sequence,
    /// The SCL of every segment the batch concerned, moved or not; true once `sequence` is durable.
    pub progress: Vec<SegmentProgress>,
    /// How many records some segment took.
    pub taken: usize,
    /// Segments that could not take all: too many records wait for a predecessor. Fill the gap first.
    pub too_far_ahead: Vec<GroupId>,
}

/// A batch that was taken apart, and everything checked that can be without the state.
pub(super) struct OfferedBatch<'a> {
    pub bytes: &'a [u8],
    pub header: BatchHeader,
    /// The release that writes in the batch's epoch; `None` if no segment here knows the epoch, and then none takes
    /// anything of it.
    pub server_version: Option<ServerVersion>,
    pub records: Vec<OfferedRecord<'a>>,
    /// Of all records, one after another.
    pub links: Vec<GroupLink>,
    pub effects: Vec<Effect>,
}

/// One record of it.
pub(super) struct OfferedRecord<'a> {
    pub span: RecordSpan,
    pub bytes: &'a [u8],
    /// Where `bytes` begin in the batch.
    pub offset: usize,
    /// Its part of the batch's links.
    pub links: Range<usize>,
    pub record_effects: RecordEffects,
    /// The segments that took it.
    pub taken: GroupSet,
}

impl OfferedBatch<'_> {
    pub(super) fn links(&self, at: usize) -> &[GroupLink] {
        &self.links[self.records[at].links.clone()]
    }

    /// The record's groups that are also in `groups`.
    pub(super) fn groups_of(&self, at: usize, groups: GroupSet) -> GroupSet {
        let linked = self.links(at).iter().filter(|link| groups.contains(link.group));
        linked.fold(GroupSet::EMPTY, |set, link| set.with(link.group))
    }
}

pub(super) fn misuse(what: impl Into<String>) -> StoreError {
    Refusal::Misuse(what.into()).into()
}

impl Store {
    /// Takes the records of a batch that are new here into the log, not yet durable. An empty batch only
    /// brings positions. Blocks while the memory for records that are not applied is used up and applying
    /// them is possible.
    ///
    /// # Errors
    /// [`Refusal::Misuse`] when the batch is malformed or contradicts what is held (nothing of it was taken, or
    /// only what came before); [`Refusal::Fenced`] when its epoch is over; [`StoreError::NeedsHistory`] when
    /// its epoch is not known yet; [`StoreError::Poisoned`].
    pub fn append(&self, batch: &[u8], origin: Origin) -> Result<Appended, StoreError> {
        self.check_poison()?;
        let (mut batch, mut state) = loop {
            let batch = self.parse_batch(batch)?;
            self.wait_for_room()?;
            let state = self.lock_to_change()?;
            // The history that says who writes in this epoch may have come in between.
            if batch.server_version.is_some() || state.release_in(batch.header.volume_epoch).is_none() {
                break (batch, state);
            }
        };
        check_release(&state, &batch)?;
        self.check_origin(&state, &batch, origin)?;
        let positions_count = matches!(origin, Origin::Writer(_));
        let news = positions_count && state.observe(&batch.header);
        let outcome = self.offer(&mut state, &mut batch, origin);
        let taken = batch.records.iter().filter(|record| !record.taken.is_empty()).count();
        count(&self.counters.records_taken, taken as u64);
        if taken > 0 {
            self.write(&mut state, batch, positions_count)?;
        } else if news {
            let positions = PositionsEntry::from(&batch.header);
            self.append_entry(&mut state, EntryKind::Positions, &[&encode(&positions)])?;
        }
        if let Some(error) = outcome.refused {
            return Err(error);
        }
        let progress = |group: GroupId| {
            let segment_complete_lsn = state.segments.get(&group)?.segment.segment_complete_lsn();
            Some(SegmentProgress { group, segment_complete_lsn })
        };
        Ok(Appended {
            sequence: Sequence(state.log.end()),
            progress: outcome.concerned.iter().filter_map(progress).collect(),
            taken,
            too_far_ahead: outcome.too_far_ahead.iter().collect(),
        })
    }

    /// Checks everything that can be checked without the state, and finds out what each record does: once, and
    /// while nobody waits for the lock.
    fn parse_batch<'a>(&self, bytes: &'a [u8]) -> Result<OfferedBatch<'a>, StoreError> {
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(misuse(format!("a batch of {} bytes (limit {BATCH_BYTES_MAX})", bytes.len())));
        }
        let (header, mut reader) = BatchReader::new(bytes).map_err(|error| misuse(error.to_string()))?;
        let server_version = self.lock().release_in(header.volume_epoch);
        let group_count = self.identity.placement.group_count();
        let context = self.context();
        // Records are seldom much shorter, so these seldom grow.
        let likely = (bytes.len() / SHORT_RECORD_BYTES + 1).min(LIKELY_RECORDS_MAX);
        let (mut links, mut effects) = (Vec::with_capacity(likely), Vec::with_capacity(likely));
        let mut records = Vec::with_capacity(likely);
        loop {
            let first_link = links.len();
            let Some(record) = reader.next_into(&mut links) else { break };
            let (span, bytes) = record.map_err(|error| misuse(error.to_string()))?;
            if links[first_link..].iter().any(|link| link.group.0 >= group_count) {
                let start = span.start;
                return Err(misuse(format!("the record at {start} is of a group the volume does not have")));
            }
            self.environment.redo.verify(bytes, span.start).map_err(|error| misuse(error.to_string()))?;
            let record_effects = match server_version {
                Some(server_version) => {
                    let parsed = Record::parse(server_version, span, bytes);
                    let parsed = parsed.map_err(|error| misuse(error.to_string()))?;
                    RecordEffects::of(context, &parsed, &mut effects)
                }
                None => RecordEffects::of_unknown_release(),
            };
            let offset = reader.offset() - bytes.len();
            let links = first_link..links.len();
            records.push(OfferedRecord {
                span,
                bytes,
                offset,
                links,
                record_effects,
                taken: GroupSet::EMPTY,
            });
        }
        Ok(OfferedBatch { bytes, header, server_version, records, links, effects })
    }

    /// Applies redo in the caller's place while too much of it waits, and that can make it less. No longer: others
    /// go on appending, and there would always be more to apply.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        let is_too_much = || self.backlog().share(&self.options) > 1.0;
        if is_too_much() {
            count(&self.counters.appends_held_back, 1);
            self.materialize_while(Policy::Now, is_too_much)?;
        }
        Ok(())
    }

    /// Notes positions that came without a batch, as a writer of `epoch` says; not durable by itself.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn note_positions(&self, header: &BatchHeader) -> Result<(), StoreError> {
        let mut state = self.lock_to_change()?;
        if header.tails.iter().any(|tail| tail.group.0 >= MAX_GROUPS) {
            return Err(misuse("a group number in the header"));
        }
        if state.observe(header) {
            let positions = PositionsEntry::from(header);
            self.append_entry(&mut state, EntryKind::Positions, &[&encode(&positions)])?;
        }
        Ok(())
    }
}
