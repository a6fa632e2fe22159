//! A damaged entry of the log: its records are got again from peers, and the entry is made void.
//!
//! Records that are in page images already are of use only to peers, which have other peers. Every other record of the
//! entry was acknowledged from here, so nothing is given up before it is here again: the records are appended anew and
//! synced, a checkpoint knows the segments' chains, and only then is the damaged entry overwritten by a void one of its
//! length, which connects the entries before and after it. A crash before that leaves the entry as it was: damaged.
//!
//! What the entry held is known from where the segments' chains have their records ([`crate::segment::entries`]). An
//! entry of redo that is not materialized, and of which no segment knows a record, is left damaged.
//!
//! A record's own checksum says nothing of its place: its links and its form. So it is taken when two peers say the same
//! of it, and nothing here contradicts them.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use borealis_types::{GroupId, GroupSet, Lsn, NodeId, RecordForm, VolumeEpoch};
use borealis_wire::{BatchBuilder, BatchHeader, BatchReader, GroupLink};

use crate::log::batch_locations::BatchLocation;
use crate::log::entry::{ENTRY_HEADER_BYTES, EntryKind, encode_entry, entry_bytes, file_seed};
use crate::log::payload::{BATCH_PREFIX_BYTES, BatchPrefix};
use crate::log::position::{LogPosition, RecordRef};
use crate::log::scan::{Checked, check_entry};
use crate::metrics::count;
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::segment::trouble::Cause;
use crate::space::Purpose;
use crate::store::Sequence;
use crate::{Store, StoreError};

/// A damaged entry of the log, and the redo that replaces it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryToRepair {
    /// Where its payload begins.
    position: LogPosition,
    /// The groups whose records are needed again; empty if none are.
    pub groups: Vec<GroupId>,
    /// The records end above this LSN.
    pub above: Lsn,
    /// And not after this one.
    pub through: Lsn,
}

/// The records that a damaged entry held, by their start.
type Lost = BTreeMap<Lsn, LostRecord>;

/// A record that a damaged entry held, and what is known of it without the entry.
struct LostRecord {
    reference: RecordRef,
    /// The segments that have it, and where the record before it in their chain may end.
    links: Vec<(GroupId, RangeInclusive<Lsn>)>,
}

impl LostRecord {
    fn groups(&self) -> GroupSet {
        self.links.iter().fold(GroupSet::EMPTY, |set, (group, _)| set.with(*group))
    }
}

/// A record from a peer.
struct Found<'a> {
    peer: NodeId,
    epoch: VolumeEpoch,
    links: Vec<GroupLink>,
    form: RecordForm,
    bytes: &'a [u8],
}

impl Found<'_> {
    fn says_the_same_as(&self, other: &Found<'_>) -> bool {
        (self.epoch, self.form, self.bytes) == (other.epoch, other.form, other.bytes)
            && self.links == other.links
    }
}

/// Records from peers by their start and end.
type FoundRecords<'a> = BTreeMap<(Lsn, Lsn), Vec<Found<'a>>>;

/// Records to append again as one batch.
struct Run {
    groups: GroupSet,
    batch: Vec<u8>,
    /// Each record, and where in the batch its bytes begin.
    records: Vec<(RecordRef, usize)>,
}

impl Store {
    /// The damaged entries of the log that are known.
    #[must_use]
    pub fn entries_to_repair(&self) -> Vec<EntryToRepair> {
        let state = self.lock();
        let entry = |&position: &LogPosition| {
            let lost = state.lost_records(position);
            let groups = lost.values().fold(GroupSet::EMPTY, |all, lost| all.union(lost.groups()));
            let starts = lost.first_key_value().map_or(Lsn::ZERO, |(start, _)| *start);
            let through = lost.last_key_value().map_or(Lsn::ZERO, |(_, lost)| lost.reference.span.end);
            EntryToRepair { position, groups: groups.iter().collect(), above: starts, through }
        };
        state.damaged_entries.keys().map(entry).collect()
    }

    /// Replaces a damaged entry. `batches` are redo of its groups, with whatever else, each with the peer that it is from.
    /// Returns false if not every record that is needed is there from two peers that agree; nothing changes then.
    ///
    /// # Errors
    /// When the log cannot be read or written, or has no room now; when the entry may hold records that nobody here knows.
    pub fn repair_entry(
        &self,
        entry: &EntryToRepair,
        batches: &[(NodeId, Vec<u8>)],
    ) -> Result<bool, StoreError> {
        // No round begins a checkpoint of its own meanwhile, and no file is released.
        let _working = self.maintenance.enter();
        let position = entry.position;
        let found = self.verified_records(batches);
        let sequence = {
            let mut state = self.lock_to_change()?;
            let lost = state.lost_records(position);
            state.check_accounted_for(position, &lost)?;
            let Some(chosen) = choose(&state, &lost, &found) else { return Ok(false) };
            self.append_again(&mut state, &runs(&chosen))?;
            state.forget_entry(position);
            Sequence(state.log.end())
        };
        self.sync(sequence)?;
        self.write_checkpoint(&BTreeMap::new())?;
        self.void_entry(position)?;
        self.lock().damaged_entries.remove(&position);
        count(&self.counters.log_entries_repaired, 1);
        let (file, offset) = (position.file(), position.offset());
        tracing::warn!(file, offset, groups = ?entry.groups, "a damaged log entry was replaced");
        Ok(true)
    }

    /// The records of batches from peers whose own checksums are right.
    fn verified_records<'a>(&self, batches: &'a [(NodeId, Vec<u8>)]) -> FoundRecords<'a> {
        let mut found = FoundRecords::new();
        for (peer, batch) in batches {
            let Ok((header, reader)) = BatchReader::new(batch) else { continue };
            for record in reader.flatten() {
                let start = record.span.start;
                let verified = match record.form.part.is_piece() {
                    true => borealis_wal::piece::open(record.bytes, start).map(|_| ()),
                    false => self.environment.redo.verify(record.bytes, start),
                };
                if verified.is_ok() {
                    let one = Found {
                        peer: *peer,
                        epoch: header.volume_epoch,
                        links: record.links,
                        form: record.form,
                        bytes: record.bytes,
                    };
                    found.entry((start, record.span.end)).or_default().push(one);
                }
            }
        }
        found
    }

    /// Appends records that segments have already, and lets the segments know them there.
    fn append_again(&self, state: &mut State, runs: &[Run]) -> Result<(), StoreError> {
        let payload_bytes = |run: &Run| BATCH_PREFIX_BYTES + run.batch.len();
        let total_bytes: u64 = runs.iter().map(|run| entry_bytes(payload_bytes(run))).sum();
        if total_bytes > 0 {
            // A lack of room must be found before anything is written: then it passes.
            self.reserve(state, total_bytes as usize, Purpose::Repair)?;
        }
        let mut moved = BTreeMap::new();
        for run in runs {
            let prefix = BatchPrefix { groups: run.groups, positions_count: false }.encode();
            let position = self.append_entry(state, EntryKind::Batch, &[&prefix, &run.batch])?;
            let spans = run.records.iter().map(|(reference, _)| reference.span);
            state.note_batch(position, payload_bytes(run), run.groups, spans);
            for (reference, offset) in &run.records {
                moved.insert(reference.position, position.plus(BATCH_PREFIX_BYTES).plus(*offset));
            }
        }
        for hosted in state.segments.values_mut() {
            hosted.repoint(&moved);
            let materialized = hosted.materialized.lsn;
            // Pages that needed the lost records can be made again.
            let is_otherwise = |cause, since| cause == Cause::Redo || since <= materialized;
            hosted.troubles.pages.retain(|_, trouble| is_otherwise(trouble.cause, trouble.since));
            hosted.stalled = None;
        }
        Ok(())
    }

    /// Overwrites an entry by one that says nothing. The checkpoint must not need it any more.
    pub(crate) fn void_entry(&self, position: LogPosition) -> Result<(), StoreError> {
        let Some(file) = self.files.get(position.file()) else { return Ok(()) };
        let seed = file_seed(self.seal, file.number);
        let offset = position.offset() - ENTRY_HEADER_BYTES as u32;
        let next = match check_entry(&file, seed, offset)? {
            Checked::Damaged { next } => next,
            // It can be read after all, or is the last one and its header is lost: then the next opening truncates it.
            Checked::Whole { .. } | Checked::End => return Ok(()),
        };
        let length = (next - offset) as usize - ENTRY_HEADER_BYTES;
        let mut bytes = Vec::new();
        let here = LogPosition::new(file.number, offset);
        encode_entry(&mut bytes, seed, offset, EntryKind::Void, here, &[&vec![0; length]]);
        file.file.write_at(&bytes, u64::from(offset)).map_err(StoreError::io("write", &file.path))?;
        // Appends may have written to the same file, and whoever syncs first is told that they are lost.
        file.sync().map_err(|error| self.poisoned(&error))
    }
}

/// A record to append again.
struct Chosen<'a> {
    reference: RecordRef,
    groups: GroupSet,
    found: &'a Found<'a>,
}

/// The lost records as two peers have them; `None` if some are missing.
fn choose<'a>(state: &State, lost: &Lost, found: &'a FoundRecords<'a>) -> Option<Vec<Chosen<'a>>> {
    let choose_one = |lost: &LostRecord| {
        let RecordRef { span, length, part, .. } = lost.reference;
        let fits = |one: &&Found<'_>| {
            let is_admitted = lost.links.iter().all(|(group, previous_end)| {
                let history = state.segments.get(group).map(|hosted| hosted.segment.history());
                let linked = one
                    .links
                    .iter()
                    .any(|link| link.group == *group && previous_end.contains(&link.previous_end));
                linked && history.is_some_and(|history| history.admits(one.epoch, span.end))
            });
            is_admitted && one.form.part == part && one.bytes.len() == length as usize
        };
        let candidates: Vec<&Found<'_>> = found.get(&(span.start, span.end))?.iter().filter(fits).collect();
        let is_confirmed = |one: &&&Found<'_>| {
            candidates.iter().any(|other| other.peer != one.peer && other.says_the_same_as(one))
        };
        let found = *candidates.iter().find(is_confirmed)?;
        Some(Chosen { reference: lost.reference, groups: lost.groups(), found })
    };
    lost.values().map(choose_one).collect()
}

/// Batches of the chosen records: an entry names one epoch and one set of groups.
fn runs(chosen: &[Chosen<'_>]) -> Vec<Run> {
    let together = |one: &Chosen<'_>, next: &Chosen<'_>| {
        (one.found.epoch, one.groups) == (next.found.epoch, next.groups)
    };
    let runs = chosen.chunk_by(together).map(|run| {
        let header = BatchHeader { volume_epoch: run[0].found.epoch, ..BatchHeader::default() };
        let mut builder = BatchBuilder::new(&header);
        let mut records = Vec::with_capacity(run.len());
        for Chosen { reference, found, .. } in run {
            builder.push_form(reference.span, found.form, &found.links, found.bytes);
            records.push((*reference, builder.size_bytes() - found.bytes.len()));
        }
        Run { groups: run[0].groups, batch: builder.finish(), records }
    });
    runs.collect()
}

impl State {
    /// The records of an entry that are not in page images, and the segments that have them.
    fn lost_records(&self, position: LogPosition) -> Lost {
        let mut lost = Lost::new();
        let Some(range) = self.batch_locations.containing(position).as_ref().map(range_of) else {
            return lost;
        };
        for (&group, hosted) in &self.segments {
            for (reference, previous_end) in lost_by(hosted, &range) {
                let record =
                    lost.entry(reference.span.start).or_insert(LostRecord { reference, links: Vec::new() });
                record.links.push((group, previous_end));
            }
        }
        lost
    }

    /// Fails if the entry has redo that is not materialized, and no segment knows what.
    fn check_accounted_for(&mut self, position: LogPosition, lost: &Lost) -> Result<(), StoreError> {
        let Some(location) = self.batch_locations.containing(position).filter(|_| lost.is_empty()) else {
            return Ok(());
        };
        let may_need = |hosted: &HostedSegment| {
            let end = location.last_end;
            let is_of_chain = end <= hosted.segment.segment_complete_lsn()
                || hosted.segment.uncertain().any(|record| record.link.span.end == end);
            // What is not of its chain was truncated.
            location.groups.contains(hosted.group()) && end > hosted.materialized.lsn && is_of_chain
        };
        let Some(hosted) = self.segments.values().find(|hosted| may_need(hosted)) else { return Ok(()) };
        let what = format!(
            "it is damaged, and may hold redo of group {} through {} that is not applied to pages yet and of which nothing \
             else is known here: it is left as it is until that is applied",
            hosted.group(),
            location.last_end
        );
        self.damaged_entries.insert(position, what.clone());
        Err(StoreError::corrupt(format!("log entry at {position:?}"), what))
    }

    /// Peers are given nothing from an entry any more.
    fn forget_entry(&mut self, position: LogPosition) {
        if let Some(file) = self.batch_locations.files.get_mut(&position.file())
            && let Some(batches) = &mut file.batches
        {
            batches.retain(|location| location.position != position);
        }
    }
}

/// The records of a segment whose bytes are in a part of the log, each with where the one before it may end.
fn lost_by(hosted: &HostedSegment, range: &Range<LogPosition>) -> Vec<(RecordRef, RangeInclusive<Lsn>)> {
    let (entries, materialized) = (hosted.chain_entries(), hosted.materialized.lsn);
    let in_range = |reference: &RecordRef| range.contains(&reference.position);
    let mut lost = Vec::new();
    for (at, &reference) in entries.iter().enumerate().filter(|(_, reference)| in_range(reference)) {
        let before = at.checked_sub(1).map(|before| entries[before].span.end);
        // The materialized LSN may lie beyond the group's last record before it.
        lost.push((reference, before.unwrap_or(Lsn::ZERO)..=before.unwrap_or(materialized)));
    }
    for &reference in hosted.pending.values().filter(|reference| in_range(reference)) {
        let known = hosted.segment.uncertain().find(|record| record.link.span == reference.span);
        let previous_end = known.map(|record| record.link.previous_end);
        let bounds = previous_end.unwrap_or(Lsn::ZERO)..=previous_end.unwrap_or(reference.span.start);
        lost.push((reference, bounds));
    }
    lost
}

fn range_of(location: &BatchLocation) -> Range<LogPosition> {
    location.position..location.position.plus(location.length as usize)
}
