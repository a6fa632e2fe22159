//! Taking redo.

use borealis_proto::{
    BatchBuilder, BatchHeader, BatchReader, BatchRecord, GroupLink, Refusal, SegmentProgress,
};
use borealis_quorum::segment::{Offer, Source};
use borealis_quorum::{ChainLink, Promise};
use borealis_types::{GroupId, GroupSet, MAX_GROUPS, PAGE_SIZE};
use borealis_wal::Record;

use crate::catalog::{BATCH_PREFIX_BYTES, BatchPrefix};
use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::metrics::count;
use crate::state::{PositionsEntry, State, decode_batch};
use crate::store::Sequence;
use crate::{Policy, Store, StoreError};

/// The longest batch accepted: as much as a frame can carry.
const BATCH_BYTES_MAX: usize = borealis_proto::frame::MAX_PAYLOAD_BYTES;

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
    fn concerns(self, group: GroupId) -> bool {
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

/// What offering a batch to the segments came to.
struct Offered {
    /// For each record, the segments that took it.
    taken: Vec<GroupSet>,
    concerned: GroupSet,
    too_far_ahead: GroupSet,
    /// Why the rest of the batch was not looked at.
    refused: Option<StoreError>,
}

fn misuse(what: impl Into<String>) -> StoreError {
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
        let (header, records) = self.validate(batch)?;
        self.hold_back()?;
        let mut state = self.lock_to_change()?;
        self.check_origin(&state, &header, origin, &records)?;
        let positions = PositionsEntry::from(&header);
        let positions_count = matches!(origin, Origin::Writer(_));
        let news = positions_count && state.observe(&positions);
        let offered = self.offer(&mut state, &header, origin, &records);
        let taken = offered.taken.iter().filter(|groups| !groups.is_empty()).count();
        count(&self.counters.records_taken, taken as u64);
        if taken > 0 {
            self.write(&mut state, batch, &header, &records, &offered.taken, positions_count)?;
        } else if news {
            self.append_entry(&mut state, EntryKind::Positions, &[&encode(&positions)])?;
        }
        if let Some(error) = offered.refused {
            return Err(error);
        }
        let progress = |group: GroupId| {
            let segment_complete_lsn = state.segments.get(&group)?.segment.segment_complete_lsn();
            Some(SegmentProgress { group, segment_complete_lsn })
        };
        Ok(Appended {
            sequence: Sequence(state.log.end()),
            progress: offered.concerned.iter().filter_map(progress).collect(),
            taken,
            too_far_ahead: offered.too_far_ahead.iter().collect(),
        })
    }

    /// Checks everything that can be checked without the state.
    fn validate<'a>(&self, batch: &'a [u8]) -> Result<(BatchHeader, Vec<BatchRecord<'a>>), StoreError> {
        if batch.len() > BATCH_BYTES_MAX {
            return Err(misuse(format!("a batch of {} bytes (limit {BATCH_BYTES_MAX})", batch.len())));
        }
        let (header, reader) = BatchReader::new(batch).map_err(|error| misuse(error.to_string()))?;
        let group_count = self.identity.placement.group_count();
        let mut records = Vec::new();
        for record in reader {
            let record = record.map_err(|error| misuse(error.to_string()))?;
            let start = record.span.start;
            if record.links.iter().any(|link| link.group.0 >= group_count) {
                return Err(misuse(format!("the record at {start} is of a group the volume does not have")));
            }
            self.rules.verify(record.bytes, start).map_err(|error| misuse(error.to_string()))?;
            let parsed = Record::parse(self.identity.version, record.span, record.bytes);
            parsed.map_err(|error| misuse(error.to_string()))?;
            records.push(record);
        }
        Ok((header, records))
    }

    /// Applies redo in the caller's place while the index is too large and that can make it smaller.
    fn hold_back(&self) -> Result<(), StoreError> {
        let bound = self.options.memory_limit_bytes / 2;
        loop {
            let over = {
                let state = self.lock();
                let possible = state.segments.values().any(|hosted| {
                    hosted.index.record_bytes > 0
                        && hosted.materialization_target() > hosted.base.materialized
                });
                possible && state.applicable_memory_bytes() > bound.max(PAGE_SIZE as u64)
            };
            if !over {
                return Ok(());
            }
            count(&self.counters.appends_held_back, 1);
            if !self.materialize(Policy::Now)?.advanced {
                return Ok(());
            }
        }
    }

    fn check_origin(
        &self,
        state: &State,
        header: &BatchHeader,
        origin: Origin,
        records: &[BatchRecord<'_>],
    ) -> Result<(), StoreError> {
        let promise = match origin {
            Origin::Peer(_) => return Ok(()),
            Origin::Writer(promise) => {
                if header.volume_epoch != promise.epoch {
                    let what = "a writer sends records of its own epoch only";
                    return Err(misuse(what));
                }
                promise
            }
            Origin::Recovery(promise, _) => promise,
        };
        let concerned = records.iter().fold(GroupSet::EMPTY, |set, record| set.union(record.groups()));
        for hosted in state.segments.values() {
            // An empty batch concerns every segment.
            let named = records.is_empty() || concerned.contains(hosted.group());
            if !named || !origin.concerns(hosted.group()) {
                continue;
            }
            let standing = hosted.segment.promise();
            if standing == promise {
                continue;
            }
            if standing.epoch < promise.epoch {
                return Err(StoreError::NeedsHistory { group: hosted.group(), epoch: promise.epoch });
            }
            // A promise learned from a peer does not say to whom: the epoch's writer is the one who comes.
            let unnamed = standing.epoch == promise.epoch && standing.writer.0 == 0;
            if !unnamed {
                return Err(Refusal::Fenced(standing.epoch).into());
            }
        }
        Ok(())
    }

    fn offer(
        &self,
        state: &mut State,
        header: &BatchHeader,
        origin: Origin,
        records: &[BatchRecord<'_>],
    ) -> Offered {
        let source = match origin {
            Origin::Writer(_) => Source::Writer,
            Origin::Peer(_) => Source::Peer,
            Origin::Recovery(..) => Source::Recovery,
        };
        let mut offered = Offered {
            taken: vec![GroupSet::EMPTY; records.len()],
            concerned: GroupSet::EMPTY,
            too_far_ahead: GroupSet::EMPTY,
            refused: None,
        };
        for (at, record) in records.iter().enumerate() {
            for &GroupLink { group, previous_end } in &record.links {
                if !origin.concerns(group) {
                    continue;
                }
                let Some(hosted) = state.segments.get_mut(&group) else { continue };
                offered.concerned = offered.concerned.with(group);
                let link = ChainLink { previous_end, span: record.span };
                // Whoever said that the group has no more records up to the materialized LSN was believed.
                let complete = hosted.segment.segment_complete_lsn();
                let denied = link.span.end > complete && link.span.end <= hosted.base.materialized;
                let outcome = match denied {
                    true => Offer::Conflict,
                    false => hosted.segment.offer(source, header.volume_epoch, link),
                };
                match outcome {
                    Offer::Complete | Offer::Held => offered.taken[at] = offered.taken[at].with(group),
                    Offer::Duplicate => count(&self.counters.records_duplicate, 1),
                    Offer::TooFarAhead => {
                        count(&self.counters.records_too_far_ahead, 1);
                        offered.too_far_ahead = offered.too_far_ahead.with(group);
                    }
                    Offer::Stale => {
                        count(&self.counters.records_stale, 1);
                        if source == Source::Writer {
                            let epoch = hosted.segment.promise().epoch;
                            offered.refused = Some(Refusal::Fenced(epoch).into());
                        }
                    }
                    Offer::NeedsHistory => {
                        let epoch = header.volume_epoch;
                        offered.refused = Some(StoreError::NeedsHistory { group, epoch });
                    }
                    Offer::Conflict => {
                        count(&self.counters.records_conflicting, 1);
                        tracing::error!(group = group.0, start = %record.span.start, "conflicting record");
                        let what = format!(
                            "the record at {} contradicts what the segment of group {group} holds",
                            record.span.start
                        );
                        offered.refused = Some(misuse(what));
                    }
                }
            }
            if offered.refused.is_some() {
                break;
            }
        }
        offered
    }

    /// Writes what was taken, as it came if all of it was, and enters it into the index.
    fn write(
        &self,
        state: &mut State,
        batch: &[u8],
        header: &BatchHeader,
        records: &[BatchRecord<'_>],
        taken: &[GroupSet],
        positions_count: bool,
    ) -> Result<(), StoreError> {
        // An entry has one set of groups: each of its records was taken by those of them that it links to.
        let everyone = taken.iter().fold(GroupSet::EMPTY, |set, groups| set.union(*groups));
        let of = |record: &BatchRecord<'_>, groups: GroupSet| {
            let linked = record.links.iter().filter(|link| groups.contains(link.group));
            linked.fold(GroupSet::EMPTY, |set, link| set.with(link.group))
        };
        let fits = |at: usize| of(&records[at], everyone) == taken[at];
        if (0..records.len()).all(fits) {
            return self.write_entry(state, BatchPrefix { groups: everyone, positions_count }, batch);
        }
        let new: Vec<usize> = (0..records.len()).filter(|&at| !taken[at].is_empty()).collect();
        let build = |chosen: &[usize]| {
            let mut builder = BatchBuilder::new(header);
            for &at in chosen {
                builder.push(records[at].span, &records[at].links, records[at].bytes);
            }
            builder.finish()
        };
        if new.iter().all(|&at| fits(at)) {
            return self.write_entry(state, BatchPrefix { groups: everyone, positions_count }, &build(&new));
        }
        for at in new {
            self.write_entry(state, BatchPrefix { groups: taken[at], positions_count }, &build(&[at]))?;
        }
        Ok(())
    }

    fn write_entry(&self, state: &mut State, prefix: BatchPrefix, batch: &[u8]) -> Result<(), StoreError> {
        let prefix_bytes = prefix.encode();
        let position = self.append_entry(state, EntryKind::Batch, &[&prefix_bytes, batch])?;
        let (_, records) = decode_batch(position.plus(BATCH_PREFIX_BYTES), prefix.groups, batch)?;
        state.catalog_batch(position, BATCH_PREFIX_BYTES + batch.len(), prefix.groups, &records);
        let records: Vec<_> = records.into_iter().map(|(record, _)| record).collect();
        let entered = state.enter(self.context(), &self.files, &records);
        // The segments count on what is in the log; if it cannot be read back, nothing can be promised.
        entered.map_err(|error| self.poisoned(&error))
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
        let positions = PositionsEntry::from(header);
        if state.observe(&positions) {
            self.append_entry(&mut state, EntryKind::Positions, &[&encode(&positions)])?;
        }
        Ok(())
    }
}
