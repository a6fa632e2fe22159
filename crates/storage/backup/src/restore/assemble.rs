//! A store of redo: it is told what a writer told its nodes, epoch by epoch, so that it has what they had.
//!
//! Groups that begin with a snapshot are told first what the history was through the newest of these; a group whose snapshot is older, or that
//! has none, gets its redo up to there as a node does that was away: from a peer.

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::snapshot::SnapshotPoint;
use borealis_quorum::Promise;
use borealis_store::{Origin, Sequence, Store, StoreError};
use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, PostgresVersion, RecordSpan, VolumeEpoch, WriterId,
};
use borealis_wal::record::previous_start;
use borealis_wire::{BatchBuilder, BatchHeader, BatchRecord, GroupTail};

use super::RestoreError;
use super::base::durable_in;

/// Redo appended at a time, in bytes.
const BATCH_BYTES: usize = 1 << 20;
/// Redo after which the store is synced, and told that all of it is durable, in bytes.
const SYNC_BYTES: usize = 16 << 20;
/// Who writes to a store that nobody else has.
const WRITER: WriterId = WriterId(1);

/// Brings the stream of a volume to a store, record by record.
#[derive(Debug)]
pub(super) struct Assembly<'s> {
    store: &'s Store,
    history: EpochHistory,
    /// How many of its openings the store has.
    opened: usize,
    promise: Promise,
    /// The last record of the volume that is here: that was brought, or that is in a snapshot.
    last: RecordSpan,
    /// The last record that was brought.
    brought: RecordSpan,
    /// End of each group's last record.
    tails: BTreeMap<GroupId, Lsn>,
    batch: BatchBuilder,
    /// The epoch in which the records of the batch were written.
    batch_epoch: VolumeEpoch,
    /// Groups of these records.
    batch_groups: BTreeSet<GroupId>,
    appended: Option<Sequence>,
    unsynced_bytes: usize,
    /// What the store was told to be durable.
    positions: BatchHeader,
}

impl<'s> Assembly<'s> {
    /// Into an empty store of all groups. `history` is what the volume's recoveries decided, to the point that is restored; `points` as of
    /// what the snapshots are that groups begin with. Their pages are to be brought before the first record.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub(super) fn begin(
        store: &'s Store,
        history: EpochHistory,
        points: &[SnapshotPoint],
    ) -> Result<Assembly<'s>, RestoreError> {
        let groups = store.identity().placement.groups();
        let tails = groups.map(|group| (group, durable_in(points, group).group_tail)).collect();
        let mut assembly = Assembly {
            store,
            history,
            opened: 0,
            promise: Promise::default(),
            last: RecordSpan::NONE,
            brought: RecordSpan::NONE,
            tails,
            batch: BatchBuilder::new(&BatchHeader::default()),
            batch_epoch: VolumeEpoch::default(),
            batch_groups: BTreeSet::new(),
            appended: None,
            unsynced_bytes: 0,
            positions: BatchHeader::default(),
        };
        if let Some(newest) = points.iter().max_by_key(|point| point.last.end) {
            assembly.begin_after(newest.last, points)?;
        }
        Ok(assembly)
    }

    /// Tells the segments what was decided through the newest snapshot, and what is durable in each.
    fn begin_after(&mut self, last: RecordSpan, points: &[SnapshotPoint]) -> Result<(), RestoreError> {
        let openings = self.history.openings();
        self.opened = openings.partition_point(|opening| opening.last.end <= last.end);
        let history = history_of(&openings[..self.opened]);
        self.promise = Promise { epoch: history.newest_epoch(), writer: WRITER };
        self.last = last;
        for group in self.store.identity().placement.groups() {
            self.store.install_as_of(group, &history, durable_in(points, group))?;
        }
        self.positions = self.header();
        self.begin_batch(self.promise.epoch);
        Ok(())
    }

    fn begin_batch(&mut self, epoch: VolumeEpoch) -> BatchBuilder {
        let header = match epoch == self.promise.epoch {
            true => self.positions.clone(),
            false => BatchHeader { volume_epoch: epoch, ..BatchHeader::default() },
        };
        self.batch_epoch = epoch;
        std::mem::replace(&mut self.batch, BatchBuilder::new(&header))
    }

    /// End of the last record.
    pub(super) fn at(&self) -> Lsn {
        self.last.end
    }

    /// Brings the next record of the volume, which was written in `epoch`, to all of its groups.
    ///
    /// # Errors
    /// When the history does not have it there, or the store cannot take it.
    pub(super) fn take(&mut self, epoch: VolumeEpoch, record: &BatchRecord<'_>) -> Result<(), RestoreError> {
        let span = record.span;
        if !self.history.admits(epoch, span.end) || span.start < self.brought.end {
            let what = format!(
                "the record that ends at {} in epoch {epoch} is not of the volume's history",
                span.end
            );
            return Err(RestoreError::Contradiction(what));
        }
        // Its groups' chains show what they lack of their own; this shows a record that only other groups have. Up to the newest snapshot
        // redo is here of some groups only.
        if span.end > self.last.end {
            self.check_follows(record)?;
        }
        if epoch > self.promise.epoch {
            self.open_through(epoch)?;
        } else if epoch != self.batch_epoch {
            self.append()?;
            self.begin_batch(epoch);
        }
        self.batch.push_form(span, record.form, &record.links, record.bytes);
        self.brought = span;
        if span.end > self.last.end {
            self.last = span;
        }
        for link in &record.links {
            self.batch_groups.insert(link.group);
            let tail = self.tails.entry(link.group).or_default();
            *tail = span.end.max(*tail);
        }
        if self.batch.size_bytes() >= BATCH_BYTES {
            self.append()?;
        }
        if self.unsynced_bytes >= SYNC_BYTES {
            self.settle()?;
        }
        Ok(())
    }

    /// Opens the epochs up to this one, as the recovery did that opened it.
    fn open_through(&mut self, epoch: VolumeEpoch) -> Result<(), RestoreError> {
        let openings = self.history.openings();
        let count = openings.partition_point(|opening| opening.epoch <= epoch);
        if let Some(other) = openings[self.opened..count].iter().find(|opening| opening.last != self.last) {
            let what = format!(
                "the recovery that opened epoch {} found {} for the last record, and the redo that is there ends with {}",
                other.epoch, other.last.end, self.last.end
            );
            return Err(RestoreError::Contradiction(what));
        }
        let history = history_of(&openings[..count]);
        self.opened = count;
        self.install(&history)
    }

    fn install(&mut self, history: &EpochHistory) -> Result<(), RestoreError> {
        self.settle()?;
        self.promise = Promise { epoch: history.newest_epoch(), writer: WRITER };
        self.store.fence(self.promise, &[])?;
        self.store.install(WRITER, history, &self.tails(), &[])?;
        self.positions = self.header();
        self.begin_batch(self.promise.epoch);
        Ok(())
    }

    fn tails(&self) -> Vec<GroupTail> {
        self.tails.iter().map(|(&group, &last_end)| GroupTail { group, last_end }).collect()
    }

    /// Positions as of the last record that was brought. Groups whose snapshot is newer know more, and pass over it.
    fn header(&self) -> BatchHeader {
        BatchHeader {
            volume_epoch: self.promise.epoch,
            durable: self.brought,
            minimum_read_point: self.brought.end,
            tails: self.tails(),
        }
    }

    fn append(&mut self) -> Result<(), RestoreError> {
        let count = self.batch.record_count();
        if count == 0 {
            return Ok(());
        }
        let of_writer = self.batch_epoch == self.promise.epoch;
        let batch = self.begin_batch(self.batch_epoch).finish();
        let groups = std::mem::take(&mut self.batch_groups);
        let origins: Vec<Origin> = match of_writer {
            true => vec![Origin::Writer(self.promise)],
            false => groups.into_iter().map(Origin::Peer).collect(),
        };
        for origin in origins {
            let appended = self.store.append(&batch, origin, &[])?;
            // One group has not all of the records. What it should have is compared at the end.
            if (of_writer && appended.taken != count) || !appended.too_far_ahead.is_empty() {
                let what = format!(
                    "of {count} records that end at {} or before, {} were taken",
                    self.brought.end, appended.taken
                );
                return Err(RestoreError::Contradiction(what));
            }
            self.unsynced_bytes += batch.len();
            self.appended = Some(appended.sequence);
        }
        Ok(())
    }

    /// Makes durable what was brought, and says so.
    fn settle(&mut self) -> Result<(), RestoreError> {
        self.append()?;
        if let Some(sequence) = self.appended.take() {
            self.store.sync(sequence)?;
            self.unsynced_bytes = 0;
            self.positions = self.header();
            self.store.note_positions(&self.positions, &[])?;
            self.begin_batch(self.batch_epoch);
        }
        Ok(())
    }

    /// Ends the volume with the last record, in an epoch above all that the volume had: what a recovery does.
    ///
    /// # Errors
    /// When the history has an opening that the redo does not reach, or the store cannot take it.
    pub(super) fn finish(mut self, newest_epoch: VolumeEpoch) -> Result<EpochHistory, RestoreError> {
        let Some(newest) = self.history.newest().copied() else {
            return Err(RestoreError::Contradiction(
                "no recovery opened the volume before this point".to_owned(),
            ));
        };
        if self.opened < self.history.openings().len() {
            self.open_through(newest.epoch)?;
        }
        let epoch = VolumeEpoch(newest_epoch.0.max(newest.epoch.0) + 1);
        self.history.push(EpochOpening { epoch, last: self.last, server_version: newest.server_version });
        let history = self.history.clone();
        self.install(&history)?;
        self.brought = self.last;
        self.positions = self.header();
        self.store.note_positions(&self.positions, &[])?;
        self.check_whole()?;
        Ok(history)
    }

    /// The record says that it follows the last one that is here.
    fn check_follows(&self, record: &BatchRecord<'_>) -> Result<(), RestoreError> {
        let before = start_before(self.store.identity().version, record)?;
        if before == self.last.start {
            return Ok(());
        }
        let what = format!(
            "the record that ends at {} follows one that starts at {before}, and the one before it in what is there starts at {}: redo that \
             ends above {} is missing, and an object or a mark says that there is none",
            record.span.end, self.last.start, self.last.end
        );
        Err(RestoreError::Contradiction(what))
    }

    /// Every group ends here where its redo does.
    fn check_whole(&self) -> Result<(), RestoreError> {
        for summary in self.store.summaries()? {
            let tail = self.tails.get(&summary.group).copied().unwrap_or_default();
            if summary.segment_complete_lsn != tail || summary.readable_through < self.last.end {
                let what = format!(
                    "group {} was brought to {tail}, and its segment is complete to {} and readable to {}",
                    summary.group, summary.segment_complete_lsn, summary.readable_through
                );
                return Err(RestoreError::Contradiction(what));
            }
        }
        Ok(())
    }
}

/// Where the record before this one in the volume starts; zero if this is the first.
fn start_before(version: PostgresVersion, record: &BatchRecord<'_>) -> Result<Lsn, RestoreError> {
    let start = record.span.start;
    let link = if record.form.part.is_piece() {
        borealis_wal::piece::open(record.bytes, start).map(|_| record.form.previous_start)
    } else {
        borealis_wal::verify_checksum(record.bytes, start)
            .and_then(|()| previous_start(version, record.span, record.bytes))
            // After a piece a record names the start of the whole record that the piece is of.
            .map(|named| record.form.previous_start.or(Some(named)))
    };
    let link = link.map_err(|fault| RestoreError::NotApplied(fault.to_string()))?;
    link.ok_or_else(|| {
        RestoreError::Contradiction(format!("a piece of a record at {start} does not say what it follows"))
    })
}

fn history_of(openings: &[EpochOpening]) -> EpochHistory {
    let mut history = EpochHistory::default();
    openings.iter().for_each(|opening| history.push(*opening));
    history
}

/// Applies everything that there is to pages on disk.
pub(super) fn materialize(store: &Store) -> Result<(), StoreError> {
    while store.materialize(borealis_store::Policy::Now)?.advanced {}
    Ok(())
}
