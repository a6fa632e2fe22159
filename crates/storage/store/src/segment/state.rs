//! What a store changes under its one lock: the log's end, the segments, and where batches are in the log.

use std::collections::BTreeMap;

use borealis_quorum::segment::{Installed, Offer, Segment, Source};
use borealis_quorum::{ChainLink, DurablePoint};
use borealis_types::{
    GroupId, GroupSet, Lsn, MembershipEpoch, RecordSpan, ServerVersion, VolumeEpoch, invariant,
};
use borealis_wal::Effect;
use borealis_wire::BatchHeader;

use crate::StoreError;
use crate::log::batch_locations::{BatchLocation, BatchLocations};
use crate::log::files::LogFiles;
use crate::log::payload::decode_entry;
use crate::log::position::{LogPosition, RecordRef};
use crate::log::writer::Log;
use crate::redo_engine::RedoContext;
use crate::segment::hosted::HostedSegment;
use crate::segment::learned::LearnedRecord;
use crate::segment::record_effects::RecordEffects;

/// The part of a store that its lock protects.
pub(crate) struct State {
    pub log: Log,
    /// The segments that are here, also those that are joining.
    pub segments: BTreeMap<GroupId, HostedSegment>,
    /// What is left of segments whose node is no member of their group: the membership that it knows.
    pub absent: BTreeMap<GroupId, Segment>,
    /// The folders of segments that have left since the newest checkpoint: it may name them.
    pub left_folders: Vec<(GroupId, MembershipEpoch)>,
    pub batch_locations: BatchLocations,
    /// From where the newest durable checkpoint needs the log.
    pub replay_from: LogPosition,
    /// The SCL of the slowest peer of each group, as far as gossip knows. Log above it is kept for that peer.
    pub peer_floors: BTreeMap<GroupId, Lsn>,
    /// Where a backup has each group's redo to, if there is one; a group that is missing here has nothing in it yet. Log above it
    /// is kept for the backup.
    pub backup_floors: Option<BTreeMap<GroupId, Lsn>>,
    /// Log entries that cannot be read back, by the position of their payload, and what was found.
    pub damaged_entries: BTreeMap<LogPosition, String>,
}

/// A record whose bytes are in the log.
pub(crate) struct EnteredRecord {
    pub reference: RecordRef,
    /// The groups whose segments took it.
    pub groups: GroupSet,
    pub record_effects: RecordEffects,
}

impl State {
    /// Notes positions; returns whether any segment learned something.
    pub(crate) fn observe(&mut self, positions: &BatchHeader) -> bool {
        let epoch = positions.volume_epoch;
        let mut news = false;
        for tail in &positions.tails {
            let Some(hosted) = self.segments.get_mut(&tail.group) else { continue };
            let point = DurablePoint { volume: positions.durable, group_tail: tail.last_end };
            news |= hosted.segment.observe_durable(epoch, point);
        }
        for hosted in self.segments.values_mut() {
            let point = positions.minimum_read_point;
            news |= hosted.segment.observe_minimum_read_point(epoch, point);
        }
        news
    }

    /// The release that writes in an epoch, if any segment here knows it.
    pub(crate) fn release_in(&self, epoch: VolumeEpoch) -> Option<ServerVersion> {
        self.segments.values().find_map(|hosted| hosted.segment.history().server_version_of(epoch))
    }

    /// Adds records that segments took to the index, as far as chains reach. Their bytes are in the log
    /// already. `effects` is the list that their effects refer to, and `learned` what is known of records in pieces.
    pub(crate) fn enter(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        mut records: Vec<EnteredRecord>,
        effects: &[Effect],
        learned: &[LearnedRecord],
    ) -> Result<(), StoreError> {
        if let Some(last) = records.iter().map(|record| record.reference.position).max() {
            invariant!(
                "indexed-is-in-log",
                last < self.log.end(),
                "a record at {last:?}, and the log ends at {:?}",
                self.log.end()
            );
        }
        // A batch may have its records in any order; the index needs them in LSN order.
        if !records.is_sorted_by_key(|record| record.reference.span.start) {
            records.sort_by_key(|record| record.reference.span.start);
        }
        let mut touched = GroupSet::EMPTY;
        for record in &records {
            let span = record.reference.span;
            for group in record.groups.iter() {
                let Some(hosted) = self.segments.get_mut(&group) else { continue };
                touched = touched.with(group);
                let complete = span.end <= hosted.segment.segment_complete_lsn();
                let next = hosted.pending.first_key_value().is_none_or(|(start, _)| span.start < *start);
                if complete && next {
                    let (reference, record_effects) = (record.reference, &record.record_effects);
                    let indexed =
                        hosted.index_record(context, files, reference, record_effects, effects, learned);
                    indexed.or_else(|error| hosted.put_off(reference, error))?;
                } else {
                    hosted.pending.insert(span.start, record.reference);
                }
            }
        }
        for group in touched.iter() {
            self.index_pending(context, files, group)?;
        }
        Ok(())
    }

    pub(crate) fn index_pending(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        group: GroupId,
    ) -> Result<(), StoreError> {
        let Some(hosted) = self.segments.get_mut(&group) else { return Ok(()) };
        hosted.index_pending(context, files)
    }

    /// Replays a batch entry after the checkpoint.
    pub(crate) fn replay_batch(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        position: LogPosition,
        payload: &[u8],
    ) -> Result<(), StoreError> {
        let (prefix, header, records) = decode_entry(position, payload)?;
        if prefix.positions_count {
            self.observe(&header);
        }
        let mut entered = Vec::with_capacity(records.len());
        let mut effects = Vec::new();
        for record in &records {
            let mut groups = GroupSet::EMPTY;
            for &(group, previous_end) in &record.previous_ends {
                let Some(hosted) = self.segments.get_mut(&group) else { continue };
                let link = ChainLink { previous_end, span: record.reference.span };
                match hosted.segment.offer(Source::Replay, header.volume_epoch, link) {
                    Offer::Complete | Offer::Held if link.span.end <= hosted.indexed_through => {
                        let what = format!(
                            "group {group} took the record at {}, which its checkpoint covers",
                            link.span.start
                        );
                        return Err(StoreError::corrupt(format!("log entry at {position:?}"), what));
                    }
                    Offer::Complete | Offer::Held => groups = groups.with(group),
                    Offer::Duplicate | Offer::Stale | Offer::TooFarAhead => {}
                    Offer::NeedsHistory | Offer::Conflict => {
                        let what = format!(
                            "group {group} took the record at {} before, and does not now",
                            link.span.start
                        );
                        return Err(StoreError::corrupt(format!("log entry at {position:?}"), what));
                    }
                }
            }
            // A record that no segment took is skipped; its release may be unknown.
            let Some(taker) = groups.iter().next().and_then(|group| self.segments.get(&group)) else {
                continue;
            };
            let span = record.reference.span;
            let record_effects = match record.reference.part.is_piece() {
                true => RecordEffects::of_piece(),
                false => {
                    RecordEffects::of_bytes(context, taker.release_of(span), span, record.bytes, &mut effects)
                }
            };
            entered.push(EnteredRecord { reference: record.reference, groups, record_effects });
        }
        let spans = records.iter().map(|record| record.reference.span);
        self.note_batch(position, payload.len(), prefix.groups, spans);
        self.enter(context, files, entered, &effects, &[])
    }

    /// Notes where a batch entry with records at `spans` is in the log.
    pub(crate) fn note_batch(
        &mut self,
        position: LogPosition,
        length: usize,
        groups: GroupSet,
        spans: impl Iterator<Item = RecordSpan>,
    ) {
        let whole = spans.reduce(|whole, span| RecordSpan {
            start: whole.start.min(span.start),
            end: whole.end.max(span.end),
        });
        let Some(RecordSpan { start: first_start, end: last_end }) = whole else { return };
        self.batch_locations.push(BatchLocation {
            position,
            length: length as u32,
            groups,
            first_start,
            last_end,
        });
    }

    /// Drops the records that a history truncated, and indexes those that connect now.
    pub(crate) fn after_install(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        group: GroupId,
        installed: &Installed,
    ) -> Result<(), StoreError> {
        if let Some(hosted) = self.segments.get_mut(&group) {
            hosted.drop_truncated(installed);
        }
        self.index_pending(context, files, group)
    }

    /// About how much memory the indexes take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let of = |hosted: &HostedSegment| hosted.index.memory_bytes() + hosted.pending.len() as u64 * 64;
        self.segments.values().map(of).sum()
    }

    /// Approximate index memory that materializing now would free, in bytes. Not counted is what it would not
    /// free: batch locations, records that wait for a predecessor, and the index of a segment that cannot
    /// advance.
    pub(crate) fn applicable_memory_bytes(&self) -> u64 {
        let applicable =
            self.segments.values().filter(|hosted| hosted.materialization_target() > hosted.materialized.lsn);
        applicable.map(|hosted| hosted.index.memory_bytes()).sum()
    }

    /// Total length of the records that materializing now would apply, in bytes.
    pub(crate) fn applicable_record_bytes(&self) -> u64 {
        let applicable =
            self.segments.values().filter(|hosted| hosted.materialization_target() > hosted.materialized.lsn);
        applicable.map(|hosted| hosted.index.record_bytes).sum()
    }
}
