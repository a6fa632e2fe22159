//! A damaged entry of the log: its records are got again from peers, and the entry is made void.
//!
//! Records that are in page images already are of use only to peers, which have other peers. Every other record of the
//! entry was acknowledged from here, so nothing is given up before it is here again: the records are appended anew and
//! synced, a checkpoint knows the segments' chains, and only then is the damaged entry overwritten by a void one of its
//! length, which connects the entries before and after it. A crash before that leaves the entry as it was: damaged.

use std::collections::BTreeMap;
use std::ops::Range;

use borealis_types::{GroupId, GroupSet, Lsn, VolumeEpoch};
use borealis_wire::{BatchBuilder, BatchHeader, BatchReader, GroupLink};

use crate::log::batch_locations::BatchLocation;
use crate::log::entry::{ENTRY_HEADER_BYTES, EntryKind, encode_entry, file_seed};
use crate::log::payload::{BATCH_PREFIX_BYTES, BatchPrefix};
use crate::log::position::{LogPosition, RecordRef};
use crate::log::scan::{Checked, check_entry};
use crate::metrics::count;
use crate::segment::state::State;
use crate::segment::trouble::Cause;
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

/// A record that a damaged entry held.
type Lost = BTreeMap<Lsn, (RecordRef, GroupSet)>;

/// A record from a peer.
struct Found<'a> {
    epoch: VolumeEpoch,
    links: Vec<GroupLink>,
    bytes: &'a [u8],
}

impl Store {
    /// The damaged entries of the log that are known.
    #[must_use]
    pub fn entries_to_repair(&self) -> Vec<EntryToRepair> {
        let state = self.lock();
        let entry = |&position: &LogPosition| {
            let lost = state.lost_records(position);
            let groups = lost.values().fold(GroupSet::EMPTY, |all, (_, groups)| all.union(*groups));
            let starts = lost.first_key_value().map_or(Lsn::ZERO, |(start, _)| *start);
            let through = lost.last_key_value().map_or(Lsn::ZERO, |(_, (reference, _))| reference.span.end);
            EntryToRepair { position, groups: groups.iter().collect(), above: starts, through }
        };
        state.damaged_entries.keys().map(entry).collect()
    }

    /// Replaces a damaged entry. `batches` are redo of its groups from peers, with whatever else. Returns false if that
    /// lacks records which are needed; nothing changes then.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub fn repair_entry(&self, entry: &EntryToRepair, batches: &[Vec<u8>]) -> Result<bool, StoreError> {
        // No round begins a checkpoint of its own meanwhile, and no file is released.
        let _working = self.maintenance.enter();
        let position = entry.position;
        let found = self.verified_records(batches);
        let sequence = {
            let mut state = self.lock_to_change()?;
            let lost = state.lost_records(position);
            let Some(chosen) = choose(&state, &lost, &found) else { return Ok(false) };
            self.append_again(&mut state, &chosen)?;
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

    /// The records of batches from peers, by their start and epoch, whose own checksums are right.
    fn verified_records<'a>(&self, batches: &'a [Vec<u8>]) -> BTreeMap<(Lsn, Lsn), Vec<Found<'a>>> {
        let mut found: BTreeMap<(Lsn, Lsn), Vec<Found<'a>>> = BTreeMap::new();
        for batch in batches {
            let Ok((header, reader)) = BatchReader::new(batch) else { continue };
            for record in reader.flatten() {
                if self.environment.redo.verify(record.bytes, record.span.start).is_ok() {
                    let key = (record.span.start, record.span.end);
                    let one = Found { epoch: header.volume_epoch, links: record.links, bytes: record.bytes };
                    found.entry(key).or_default().push(one);
                }
            }
        }
        found
    }

    /// Appends records that segments have already, and lets the segments know them there.
    fn append_again(&self, state: &mut State, chosen: &[Chosen<'_>]) -> Result<(), StoreError> {
        let mut moved = BTreeMap::new();
        for run in chosen.chunk_by(|one, next| (one.epoch, one.groups) == (next.epoch, next.groups)) {
            let (epoch, groups) = (run[0].epoch, run[0].groups);
            let header = BatchHeader { volume_epoch: epoch, ..BatchHeader::default() };
            let mut builder = BatchBuilder::new(&header);
            let mut offsets = Vec::with_capacity(run.len());
            for record in run {
                builder.push(record.reference.span, record.links, record.bytes);
                offsets.push(builder.size_bytes() - record.bytes.len());
            }
            let batch = builder.finish();
            let prefix = BatchPrefix { groups, positions_count: false }.encode();
            let position = self.append_entry(state, EntryKind::Batch, &[&prefix, &batch])?;
            let spans = run.iter().map(|record| record.reference.span);
            state.note_batch(position, BATCH_PREFIX_BYTES + batch.len(), groups, spans);
            for (record, offset) in run.iter().zip(offsets) {
                let at = position.plus(BATCH_PREFIX_BYTES).plus(offset);
                moved.insert(record.reference.position, at);
            }
        }
        for hosted in state.segments.values_mut() {
            hosted.index.repoint(&moved);
            for reference in hosted.pending.values_mut() {
                if let Some(position) = moved.get(&reference.position) {
                    reference.position = *position;
                }
            }
            let materialized = hosted.materialized.lsn;
            // Pages that needed the lost records can be made again.
            let is_otherwise = |cause, since| cause == Cause::Redo || since <= materialized;
            hosted.troubles.pages.retain(|_, trouble| is_otherwise(trouble.cause, trouble.since));
            hosted.stalled = None;
            // Whoever looked up where a record was must look again.
            hosted.version += 1;
        }
        Ok(())
    }

    /// Overwrites an entry by one that says nothing. The checkpoint must not need it any more.
    fn void_entry(&self, position: LogPosition) -> Result<(), StoreError> {
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
        file.file.sync_data().map_err(StoreError::io("sync", &file.path))
    }
}

/// A record to append again.
struct Chosen<'a> {
    reference: RecordRef,
    groups: GroupSet,
    epoch: VolumeEpoch,
    links: &'a [GroupLink],
    bytes: &'a [u8],
}

/// The lost records as peers have them; `None` if some are missing.
fn choose<'a>(
    state: &State,
    lost: &Lost,
    found: &'a BTreeMap<(Lsn, Lsn), Vec<Found<'a>>>,
) -> Option<Vec<Chosen<'a>>> {
    let choose_one = |(reference, groups): &(RecordRef, GroupSet)| {
        let span = reference.span;
        let fits = |one: &&Found<'_>| {
            let is_admitted = groups.iter().all(|group| {
                let history = state.segments.get(&group).map(|hosted| hosted.segment.history());
                let linked = one.links.iter().any(|link| link.group == group);
                linked && history.is_some_and(|history| history.admits(one.epoch, span.end))
            });
            is_admitted && one.bytes.len() == reference.length as usize
        };
        let one = found.get(&(span.start, span.end))?.iter().find(fits)?;
        let (epoch, links, bytes) = (one.epoch, &one.links[..], one.bytes);
        Some(Chosen { reference: *reference, groups: *groups, epoch, links, bytes })
    };
    lost.values().map(choose_one).collect()
}

impl State {
    /// The records of an entry that are not in page images, and the segments that have them.
    fn lost_records(&self, position: LogPosition) -> Lost {
        let mut lost = Lost::new();
        let Some(range) = self.batch_locations.containing(position).as_ref().map(range_of) else {
            return lost;
        };
        for (&group, hosted) in &self.segments {
            let pending = hosted.pending.values().filter(|reference| range.contains(&reference.position));
            for reference in hosted.index.records_in(&range).chain(pending.copied()) {
                let entry = lost.entry(reference.span.start).or_insert((reference, GroupSet::EMPTY));
                entry.1 = entry.1.with(group);
            }
        }
        lost
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

fn range_of(location: &BatchLocation) -> Range<LogPosition> {
    location.position..location.position.plus(location.length as usize)
}
