//! A store of redo: it is told what a writer told its nodes, epoch by epoch, so that it has what they had.

use std::collections::BTreeMap;

use borealis_quorum::Promise;
use borealis_store::{Origin, Sequence, Store, StoreError};
use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, PostgresVersion, RecordSpan, VolumeEpoch, WriterId,
};
use borealis_wal::record::previous_start;
use borealis_wire::{BatchBuilder, BatchHeader, BatchRecord, GroupTail};

use super::RestoreError;

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
    /// The last record that was brought.
    last: RecordSpan,
    /// End of each group's last record.
    tails: BTreeMap<GroupId, Lsn>,
    batch: BatchBuilder,
    appended: Option<Sequence>,
    unsynced_bytes: usize,
    /// What the store was told to be durable.
    positions: BatchHeader,
}

impl<'s> Assembly<'s> {
    /// Into an empty store of all groups. `history` is what the volume's recoveries decided, to the point that is restored.
    pub(super) fn new(store: &'s Store, history: EpochHistory) -> Assembly<'s> {
        let positions = BatchHeader::default();
        Assembly {
            store,
            history,
            opened: 0,
            promise: Promise::default(),
            last: RecordSpan::NONE,
            tails: store.identity().placement.groups().map(|group| (group, Lsn::ZERO)).collect(),
            batch: BatchBuilder::new(&positions),
            appended: None,
            unsynced_bytes: 0,
            positions,
        }
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
        if !self.history.admits(epoch, span.end) || span.start < self.last.end {
            let what = format!(
                "the record that ends at {} in epoch {epoch} is not of the volume's history",
                span.end
            );
            return Err(RestoreError::Contradiction(what));
        }
        // Its groups' chains show what they lack of their own; this shows a record that only other groups have.
        let before = start_before(self.store.identity().version, record)?;
        if before != self.last.start {
            let what = format!(
                "the record that ends at {} follows one that starts at {before}, and the one before it in what is there starts at {}: redo that \
                 ends above {} is missing, and an object or a mark says that there is none",
                span.end, self.last.start, self.last.end
            );
            return Err(RestoreError::Contradiction(what));
        }
        if epoch != self.promise.epoch {
            self.open_through(epoch)?;
        }
        self.batch.push_form(span, record.form, &record.links, record.bytes);
        self.last = span;
        self.tails.extend(record.links.iter().map(|link| (link.group, span.end)));
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
        let mut history = EpochHistory::default();
        openings[..count].iter().for_each(|opening| history.push(*opening));
        self.opened = count;
        self.install(&history)
    }

    fn install(&mut self, history: &EpochHistory) -> Result<(), RestoreError> {
        self.settle()?;
        self.promise = Promise { epoch: history.newest_epoch(), writer: WRITER };
        self.store.fence(self.promise, &[])?;
        self.store.install(WRITER, history, &self.tails(), &[])?;
        self.positions = self.header();
        self.batch = BatchBuilder::new(&self.positions);
        Ok(())
    }

    fn tails(&self) -> Vec<GroupTail> {
        self.tails.iter().map(|(&group, &last_end)| GroupTail { group, last_end }).collect()
    }

    /// Positions as of the last record.
    fn header(&self) -> BatchHeader {
        BatchHeader {
            volume_epoch: self.promise.epoch,
            durable: self.last,
            minimum_read_point: self.last.end,
            tails: self.tails(),
        }
    }

    fn append(&mut self) -> Result<(), RestoreError> {
        let count = self.batch.record_count();
        if count == 0 {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.batch, BatchBuilder::new(&self.positions)).finish();
        let appended = self.store.append(&batch, Origin::Writer(self.promise), &[])?;
        if appended.taken != count || !appended.too_far_ahead.is_empty() {
            let what = format!(
                "of {count} records that end at {} or before, {} were taken",
                self.last.end, appended.taken
            );
            return Err(RestoreError::Contradiction(what));
        }
        self.unsynced_bytes += batch.len();
        self.appended = Some(appended.sequence);
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
            self.batch = BatchBuilder::new(&self.positions);
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
        self.store.note_positions(&self.positions, &[])?;
        self.check_whole()?;
        Ok(history)
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

/// Applies everything that there is to pages on disk.
pub(super) fn materialize(store: &Store) -> Result<(), StoreError> {
    while store.materialize(borealis_store::Policy::Now)?.advanced {}
    Ok(())
}
