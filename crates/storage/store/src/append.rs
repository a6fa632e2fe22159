//! Taking redo.

use std::ops::Range;

use borealis_quorum::segment::{Offer, Source};
use borealis_quorum::{ChainLink, Promise};
use borealis_types::{GroupId, GroupSet, MAX_GROUPS, RecordSpan, ServerVersion};
use borealis_wal::{Effect, Record};
use borealis_wire::{BatchBuilder, BatchHeader, BatchReader, GroupLink, Refusal, SegmentProgress};

use crate::catalog::{BATCH_PREFIX_BYTES, BatchPrefix};
use crate::directory::encode;
use crate::facts::Facts;
use crate::index::RecordRef;
use crate::log::LogPosition;
use crate::log::entry::EntryKind;
use crate::metrics::count;
use crate::state::{EnteredRecord, PositionsEntry, State};
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

/// A batch that was taken apart, and everything checked that can be without the state.
struct OfferedBatch<'a> {
    bytes: &'a [u8],
    header: BatchHeader,
    /// The release that writes in the batch's epoch; `None` if no segment here knows the epoch, and then none takes
    /// anything of it.
    server_version: Option<ServerVersion>,
    records: Vec<OfferedRecord<'a>>,
    /// Of all records, one after another.
    links: Vec<GroupLink>,
    effects: Vec<Effect>,
}

/// One record of it.
struct OfferedRecord<'a> {
    span: RecordSpan,
    bytes: &'a [u8],
    /// Where `bytes` begin in the batch.
    offset: usize,
    /// Its part of the batch's links.
    links: Range<usize>,
    facts: Facts,
    /// The segments that took it.
    taken: GroupSet,
}

impl OfferedBatch<'_> {
    fn links(&self, at: usize) -> &[GroupLink] {
        &self.links[self.records[at].links.clone()]
    }

    /// The record's groups that are also in `groups`.
    fn groups_of(&self, at: usize, groups: GroupSet) -> GroupSet {
        let linked = self.links(at).iter().filter(|link| groups.contains(link.group));
        linked.fold(GroupSet::EMPTY, |set, link| set.with(link.group))
    }
}

/// What offering a batch to the segments came to, besides what each record says of itself.
#[derive(Default)]
struct Outcome {
    concerned: GroupSet,
    too_far_ahead: GroupSet,
    /// Why the rest of the batch was not looked at.
    refused: Option<StoreError>,
}

/// Every segment that knows the batch's epoch must name the same release as its writer's: a recovery opens an epoch in
/// all groups alike.
fn check_release(state: &State, batch: &OfferedBatch<'_>) -> Result<(), StoreError> {
    let epoch = batch.header.volume_epoch;
    for hosted in state.segments.values() {
        let known = hosted.segment.history().server_version_of(epoch);
        if known.is_some() && known != batch.server_version {
            let group = hosted.group();
            return Err(misuse(format!(
                "group {group} knows another writer of epoch {epoch} than other groups here"
            )));
        }
    }
    Ok(())
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
        let (mut batch, mut state) = loop {
            let batch = self.take_apart(batch)?;
            self.hold_back()?;
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
    fn take_apart<'a>(&self, bytes: &'a [u8]) -> Result<OfferedBatch<'a>, StoreError> {
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
            self.rules.verify(bytes, span.start).map_err(|error| misuse(error.to_string()))?;
            let facts = match server_version {
                Some(server_version) => {
                    let parsed = Record::parse(server_version, span, bytes);
                    let parsed = parsed.map_err(|error| misuse(error.to_string()))?;
                    Facts::of(context, &parsed, &mut effects)
                }
                None => Facts::of_unknown_writer(),
            };
            let offset = reader.offset() - bytes.len();
            let links = first_link..links.len();
            records.push(OfferedRecord { span, bytes, offset, links, facts, taken: GroupSet::EMPTY });
        }
        Ok(OfferedBatch { bytes, header, server_version, records, links, effects })
    }

    /// Applies redo in the caller's place while too much of it waits, and that can make it less. No longer: others
    /// go on appending, and there would always be more to apply.
    fn hold_back(&self) -> Result<(), StoreError> {
        let is_too_much = || self.backlog().share(&self.options) > 1.0;
        if is_too_much() {
            count(&self.counters.appends_held_back, 1);
            self.fold(Policy::Now, is_too_much)?;
        }
        Ok(())
    }

    fn check_origin(
        &self,
        state: &State,
        batch: &OfferedBatch<'_>,
        origin: Origin,
    ) -> Result<(), StoreError> {
        let promise = match origin {
            Origin::Peer(_) => return Ok(()),
            Origin::Writer(promise) => {
                if batch.header.volume_epoch != promise.epoch {
                    let what = "a writer sends records of its own epoch only";
                    return Err(misuse(what));
                }
                promise
            }
            Origin::Recovery(promise, _) => promise,
        };
        let concerned = batch.links.iter().fold(GroupSet::EMPTY, |set, link| set.with(link.group));
        for hosted in state.segments.values() {
            // An empty batch concerns every segment.
            let named = batch.records.is_empty() || concerned.contains(hosted.group());
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

    /// Offers each record to its segments, and notes which of them took it.
    fn offer(&self, state: &mut State, batch: &mut OfferedBatch<'_>, origin: Origin) -> Outcome {
        let source = match origin {
            Origin::Writer(_) => Source::Writer,
            Origin::Peer(_) => Source::Peer,
            Origin::Recovery(..) => Source::Recovery,
        };
        let epoch = batch.header.volume_epoch;
        let mut offered = Outcome::default();
        for record in &mut batch.records {
            for &GroupLink { group, previous_end } in &batch.links[record.links.clone()] {
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
                    false => hosted.segment.offer(source, epoch, link),
                };
                match outcome {
                    Offer::Complete | Offer::Held => {
                        let known = hosted.segment.history().server_version_at(record.span.end);
                        assert!(
                            known.is_some() && known == batch.server_version,
                            "invariant \"one release per record\": group {group} takes the record at {} as of {known:?}, \
                             and it was looked at as of {:?}",
                            record.span.start,
                            batch.server_version
                        );
                        record.taken = record.taken.with(group);
                    }
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
        mut batch: OfferedBatch<'_>,
        positions_count: bool,
    ) -> Result<(), StoreError> {
        // An entry has one set of groups: each of its records was taken by those of them that it links to.
        let everyone = batch.records.iter().fold(GroupSet::EMPTY, |set, record| set.union(record.taken));
        let fits = |at: usize| batch.groups_of(at, everyone) == batch.records[at].taken;
        let new: Vec<usize> =
            (0..batch.records.len()).filter(|&at| !batch.records[at].taken.is_empty()).collect();
        // Where each record's bytes came to stand.
        let mut positions = vec![LogPosition(0); batch.records.len()];
        if (0..batch.records.len()).all(fits) {
            let start = self.write_entry(state, everyone, positions_count, batch.bytes, || {
                batch.records.iter().map(|record| record.span)
            })?;
            for (position, record) in positions.iter_mut().zip(&batch.records) {
                *position = start.plus(record.offset);
            }
        } else {
            let mut entries: Vec<(GroupSet, Vec<usize>)> = Vec::new();
            for at in new.iter().copied() {
                let groups = batch.records[at].taken;
                match entries.iter_mut().find(|(of, _)| *of == groups) {
                    Some((_, members)) => members.push(at),
                    None => entries.push((groups, vec![at])),
                }
            }
            if new.iter().all(|&at| fits(at)) {
                entries = vec![(everyone, new.clone())];
            }
            for (groups, members) in entries {
                let mut builder = BatchBuilder::new(&batch.header);
                let mut offsets = Vec::with_capacity(members.len());
                for &at in &members {
                    builder.push(batch.records[at].span, batch.links(at), batch.records[at].bytes);
                    offsets.push(builder.size_bytes() - batch.records[at].bytes.len());
                }
                let start = self.write_entry(state, groups, positions_count, &builder.finish(), || {
                    members.iter().map(|&at| batch.records[at].span)
                })?;
                for (&at, offset) in members.iter().zip(offsets) {
                    positions[at] = start.plus(offset);
                }
            }
        }
        // Only now: the index takes a chain's records one after another, and entries of different groups
        // interleave.
        let effects = std::mem::take(&mut batch.effects);
        let records = batch.records.into_iter().zip(positions).filter(|(record, _)| !record.taken.is_empty());
        let entered: Vec<EnteredRecord> = records
            .map(|(record, position)| EnteredRecord {
                reference: RecordRef { span: record.span, position, length: record.bytes.len() as u32 },
                groups: record.taken,
                facts: record.facts,
            })
            .collect();
        let entered = state.enter(self.context(), &self.files, entered, &effects);
        // The segments count on what is in the log; if it cannot be read back, nothing can be promised.
        entered.map_err(|error| self.poisoned(&error))
    }

    /// Writes an entry with records at `spans` that `groups` took, and returns where its batch begins.
    fn write_entry<S: Iterator<Item = RecordSpan>>(
        &self,
        state: &mut State,
        groups: GroupSet,
        positions_count: bool,
        batch: &[u8],
        spans: impl FnOnce() -> S,
    ) -> Result<LogPosition, StoreError> {
        let prefix = BatchPrefix { groups, positions_count }.encode();
        let position = self.append_entry(state, EntryKind::Batch, &[&prefix, batch])?;
        state.catalog_batch(position, BATCH_PREFIX_BYTES + batch.len(), groups, spans());
        Ok(position.plus(BATCH_PREFIX_BYTES))
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
