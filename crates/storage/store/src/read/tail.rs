//! Reading redo back for peers and recoveries.

use std::collections::{BTreeMap, BTreeSet};

use borealis_quorum::segment::Segment;
use borealis_types::{EpochHistory, GroupId, Lsn, RecordForm, RecordSpan, VolumeEpoch, invariant};
use borealis_wire::{BatchBuilder, BatchHeader, BatchReader, GroupLink, Refusal};

use crate::log::batch_locations::{BatchLocation, BatchLocations};
use crate::log::entry::EntryKind;
use crate::log::payload::{BatchPrefix, decode_entry};
use crate::log::scan::{read_payload, scan_old_file};
use crate::read::hold::is_damage;
use crate::store::Sequence;
use crate::{Store, StoreError};

/// Most bytes in an answer whatever the caller's limit, so that it fits a frame. The last record may go
/// beyond.
const TAIL_BYTES_MAX: usize = 32 << 20;

/// Records of one group, in LSN order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// Redo batches, one for each run of records of one epoch. Their headers bring no positions.
    pub batches: Vec<Vec<u8>>,
    /// The limit was reached: ask again above the last record.
    pub more: bool,
}

/// Orders the records of a tail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TailKey {
    pub start: Lsn,
    pub epoch: VolumeEpoch,
}

struct TailRecord {
    span: RecordSpan,
    form: RecordForm,
    links: Vec<GroupLink>,
    bytes: Vec<u8>,
}

impl Store {
    /// Records of a group that end above `above`, in LSN order, whether or not they connect, of about
    /// `limit_bytes` (at least one if there is one). Only records that the segment holds (the log may have
    /// more) and that are durable here. Records in released log files are missing.
    ///
    /// # Errors
    /// [`Refusal::NoSegment`], or when the log cannot be read.
    pub fn read_tail(&self, group: GroupId, above: Lsn, limit_bytes: u32) -> Result<Tail, StoreError> {
        let mut read = BTreeMap::new();
        loop {
            let sources = self.tail_sources(group, above, &read)?;
            let tail = self.tail_of(group, above, limit_bytes, &sources)?;
            let Some((_, number)) = sources.unread else { return Ok(tail) };
            if !tail.batches.is_empty() {
                return Ok(Tail { more: true, ..tail });
            }
            read.insert(number, self.read_old_file(number)?);
        }
    }

    /// Looks up what a tail is made from. `read` has the batch locations of old files that were read for this
    /// tail: those in the state may be dropped again at any checkpoint.
    fn tail_sources(
        &self,
        group: GroupId,
        above: Lsn,
        read: &BTreeMap<u32, Vec<BatchLocation>>,
    ) -> Result<TailSources, StoreError> {
        let state = self.lock_to_change()?;
        let hosted = state.segments.get(&group).ok_or(Refusal::NoSegment(group))?;
        let mut entries: Vec<BatchLocation> = Vec::new();
        let mut unread: Option<(Lsn, u32)> = None;
        for (number, file) in &state.batch_locations.files {
            let range = file.ranges.iter().find(|range| range.group == group && range.last_end > above);
            let Some(range) = range else { continue };
            match file.batches.as_ref().or_else(|| read.get(number)) {
                Some(known) => entries.extend(
                    known.iter().filter(|entry| entry.groups.contains(group) && entry.last_end > above),
                ),
                None => {
                    let this = (range.first_start, *number);
                    unread = Some(unread.map_or(this, |first| first.min(this)));
                }
            }
        }
        entries.sort_by_key(|entry| entry.first_start);
        let holding = Holding::of(&hosted.segment);
        Ok(TailSources { entries, unread, holding, sequence: Sequence(state.log.end()) })
    }

    /// The part of the tail before the first file whose batch locations are unknown.
    fn tail_of(
        &self,
        group: GroupId,
        above: Lsn,
        limit_bytes: u32,
        sources: &TailSources,
    ) -> Result<Tail, StoreError> {
        let TailSources { entries, unread, holding, sequence } = sources;
        self.sync(*sequence)?;
        let unread_start = unread.map_or(Lsn::MAX, |(start, _)| start);
        let limit = (limit_bytes as usize).min(TAIL_BYTES_MAX);
        let mut found = BTreeMap::new();
        let mut chosen = Vec::new();
        let mut chosen_bytes = 0;
        for (at, entry) in entries.iter().enumerate() {
            if entry.first_start >= unread_start {
                break;
            }
            let payload = read_payload(&self.files, self.seal, entry.position);
            if let Err(error) = &payload
                && is_damage(error)
            {
                self.lock().note_damaged_entry(entry.position, error);
            }
            let Some(payload) = payload? else { continue };
            collect(&payload, group, above, holding, &mut found);
            // Entries are sorted by their first record, so no later entry has a record before this one's
            // successor.
            let next_start = entries.get(at + 1).map_or(Lsn::MAX, |next| next.first_start);
            let settled = next_start.min(unread_start);
            while let Some(first) = found.first_entry() {
                if first.key().start >= settled {
                    break;
                }
                let (key, record): (TailKey, TailRecord) = first.remove_entry();
                if !chosen.is_empty() && chosen_bytes + record.bytes.len() > limit {
                    return Ok(Tail { batches: encode(&chosen), more: true });
                }
                chosen_bytes += record.bytes.len();
                hand_out(&mut chosen, key.epoch, record);
            }
        }
        Ok(Tail { batches: encode(&chosen), more: false })
    }

    /// Reads the batch locations of an old file, and keeps them in the state until the next checkpoint. Empty
    /// if the file has been released.
    fn read_old_file(&self, number: u32) -> Result<Vec<BatchLocation>, StoreError> {
        let mut batch_locations = BatchLocations::default();
        let scanned = scan_old_file(&self.files, self.seal, number, &mut |entry| {
            if entry.kind != EntryKind::Batch {
                return Ok(());
            }
            let (prefix, _, records) = decode_entry(entry.position, &entry.payload)?;
            let spans = || records.iter().map(|record| record.reference.span);
            if let (Some(first_start), Some(last_end)) =
                (spans().map(|span| span.start).min(), spans().map(|span| span.end).max())
            {
                let (position, length) = (entry.position, entry.payload.len() as u32);
                batch_locations.push(BatchLocation {
                    position,
                    length,
                    groups: prefix.groups,
                    first_start,
                    last_end,
                });
            }
            Ok(())
        });
        let mut state = self.lock();
        let Some(file) = state.batch_locations.files.get_mut(&number) else {
            // The file was released while it was read.
            return Ok(Vec::new());
        };
        scanned?;
        let read = batch_locations.files.remove(&number).and_then(|file| file.batches).unwrap_or_default();
        file.batches.get_or_insert_with(|| read.clone());
        Ok(read)
    }
}

/// What a tail is made from.
struct TailSources {
    /// Sorted by their first record.
    entries: Vec<BatchLocation>,
    /// Among files whose batch locations are unknown, the one with the lowest first record: that record's
    /// start, and the file's number.
    unread: Option<(Lsn, u32)>,
    holding: Holding,
    /// Must be durable before anything is sent.
    sequence: Sequence,
}

/// Which records a segment has.
///
/// The log alone does not say it. A recovery that did not finish may have truncated a record, and the history
/// that replaced its own may admit that record again. The segment no longer holds it, and a recovery must not
/// count it as a copy.
struct Holding {
    history: EpochHistory,
    /// Everything admitted up to here is complete and certain.
    certain_through: Lsn,
    /// Records it has beyond that.
    uncertain: BTreeSet<(VolumeEpoch, Lsn, Lsn)>,
}

impl Holding {
    fn of(segment: &Segment) -> Holding {
        Holding {
            history: segment.history().clone(),
            certain_through: segment.known_durable().volume.end.min(segment.segment_complete_lsn()),
            uncertain: segment
                .uncertain()
                .map(|record| (record.epoch, record.link.span.start, record.link.span.end))
                .collect(),
        }
    }

    fn has(&self, epoch: VolumeEpoch, span: RecordSpan) -> bool {
        self.uncertain.contains(&(epoch, span.start, span.end))
            || (span.end <= self.certain_through && self.history.admits(epoch, span.end))
    }
}

/// Adds the next record of a tail.
fn hand_out(chosen: &mut Vec<(VolumeEpoch, TailRecord)>, epoch: VolumeEpoch, record: TailRecord) {
    let (start, last) = (record.span.start, chosen.last().map(|(_, last)| last.span.start));
    invariant!(
        "tail-ascends",
        last.is_none_or(|last| last <= start),
        "a record that starts at {start} after one that starts at {last:?}"
    );
    chosen.push((epoch, record));
}

fn collect(
    payload: &[u8],
    group: GroupId,
    above: Lsn,
    holding: &Holding,
    found: &mut BTreeMap<TailKey, TailRecord>,
) {
    // The payload's checksum was verified, and it was decoded before it was appended.
    let Some((prefix, batch)) = BatchPrefix::decode(payload) else { return };
    let Ok((header, reader)) = BatchReader::new(batch) else { return };
    if !prefix.groups.contains(group) {
        return;
    }
    let epoch = header.volume_epoch;
    for record in reader.flatten() {
        let span = record.span;
        if span.end <= above || record.link(group).is_none() || !holding.has(epoch, span) {
            continue;
        }
        let key = TailKey { start: span.start, epoch };
        found.entry(key).or_insert_with(|| TailRecord {
            span,
            form: record.form,
            links: record.links.clone(),
            bytes: record.bytes.to_vec(),
        });
    }
}

fn encode(records: &[(VolumeEpoch, TailRecord)]) -> Vec<Vec<u8>> {
    let runs = records.chunk_by(|(epoch, _), (next, _)| epoch == next);
    runs.map(|run| {
        let mut builder =
            BatchBuilder::new(&BatchHeader { volume_epoch: run[0].0, ..BatchHeader::default() });
        for (_, record) in run {
            builder.push_form(record.span, record.form, &record.links, &record.bytes);
        }
        builder.finish()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_quorum::segment::Source;
    use borealis_quorum::{ChainLink, DurablePoint, Promise};
    use borealis_types::{EpochOpening, ServerVersion, WriterId};

    fn span(start: u64, end: u64) -> RecordSpan {
        RecordSpan { start: Lsn(start), end: Lsn(end) }
    }

    fn history(openings: &[(u64, RecordSpan)]) -> EpochHistory {
        let mut history = EpochHistory::default();
        for &(epoch, last) in openings {
            history.push(EpochOpening {
                epoch: VolumeEpoch(epoch),
                last,
                server_version: ServerVersion::NEWEST_TESTED,
            });
        }
        history
    }

    #[test]
    #[should_panic(expected = "invariant tail-ascends is broken")]
    fn a_record_is_not_handed_out_after_a_later_one() {
        let record = |start| TailRecord {
            span: span(start, start + 8),
            form: RecordForm::default(),
            links: Vec::new(),
            bytes: Vec::new(),
        };
        let mut chosen = Vec::new();
        hand_out(&mut chosen, VolumeEpoch(1), record(200));
        hand_out(&mut chosen, VolumeEpoch(1), record(100));
    }

    #[test]
    fn what_an_unfinished_recovery_cut_is_not_handed_out_when_a_later_history_admits_it_again() {
        let point = |volume| DurablePoint { volume, group_tail: Lsn::ZERO };
        let mut segment = Segment::new(GroupId(0));
        segment.fence(Promise { epoch: VolumeEpoch(1), writer: WriterId(1) }).expect("fresh");
        let first = history(&[(1, RecordSpan::NONE)]);
        segment.install(Some(WriterId(1)), &first, point(RecordSpan::NONE)).expect("installed");
        let written = span(100, 160);
        let link = ChainLink { previous_end: Lsn::ZERO, span: written };
        assert!(segment.offer(Source::Writer, VolumeEpoch(1), link).must_persist());
        assert!(Holding::of(&segment).has(VolumeEpoch(1), written));

        // Epoch 2's recovery did not see the record, cut it here, and stopped.
        segment.fence(Promise { epoch: VolumeEpoch(2), writer: WriterId(2) }).expect("newer");
        let second = history(&[(1, RecordSpan::NONE), (2, RecordSpan::NONE)]);
        segment.install(Some(WriterId(2)), &second, point(RecordSpan::NONE)).expect("installed");
        assert!(!Holding::of(&segment).has(VolumeEpoch(1), written));

        // Epoch 3's recovery saw the record, not epoch 2's opening.
        segment.fence(Promise { epoch: VolumeEpoch(3), writer: WriterId(3) }).expect("newer");
        let third = history(&[(1, RecordSpan::NONE), (3, written)]);
        let durable = DurablePoint { volume: written, group_tail: written.end };
        segment.install(Some(WriterId(3)), &third, durable).expect("installed");
        assert!(third.admits(VolumeEpoch(1), written.end));
        assert!(!Holding::of(&segment).has(VolumeEpoch(1), written), "it was cut here and is not held");
    }
}
