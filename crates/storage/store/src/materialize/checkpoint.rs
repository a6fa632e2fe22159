//! The end of a round: a checkpoint names the next states, and then readers see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_quorum::segment::Segment;
use borealis_types::{GroupId, Lsn, invariant};

use crate::checkpoint::{Checkpoint, CheckpointedSegment};
use crate::log::entry::ENTRY_HEADER_BYTES;
use crate::log::position::LogPosition;
use crate::materialize::page_writer::NextState;
use crate::metrics::count;
use crate::pages::region::Region;
use crate::segment::hosted::HostedSegment;
use crate::store::Sequence;
use crate::{Store, StoreError};

impl Store {
    /// Writes a checkpoint with the next states. Returns the position from which it needs the log.
    pub(crate) fn write_checkpoint(
        &self,
        next: &BTreeMap<GroupId, NextState>,
    ) -> Result<LogPosition, StoreError> {
        let (checkpoint, log_end, left) = {
            let mut state = self.lock_to_change()?;
            // Of what left before, nothing is named.
            let left = std::mem::take(&mut state.left_folders);
            let state = &*state;
            let materialized = |hosted: &HostedSegment| {
                let next = next.get(&hosted.group()).filter(|next| next.is_of(hosted));
                Arc::clone(next.map_or(&hosted.materialized, |next| &next.materialized))
            };
            let log_end = state.log.end();
            let needed = state.batch_locations.first_needed(|group| {
                state.segments.get(&group).map_or(Lsn::MAX, |hosted| materialized(hosted).lsn)
            });
            let entry_start = |payload: LogPosition| LogPosition(payload.0 - ENTRY_HEADER_BYTES as u64);
            let segments = state.segments.values().map(|hosted| CheckpointedSegment {
                chain: hosted.segment.checkpoint(),
                stay: hosted.stay,
                // The state is shared, not copied, because appends wait for this lock.
                materialized: materialized(hosted),
                refilled: hosted.refilled.clone(),
            });
            let files =
                state.batch_locations.files.iter().map(|(number, file)| (*number, file.ranges.clone()));
            let checkpoint = Checkpoint {
                seal: self.seal,
                replay_from: needed.map_or(log_end, entry_start),
                log_end,
                segments: segments.collect(),
                absent: state.absent.values().map(Segment::checkpoint).collect(),
                files: files.collect(),
            };
            (checkpoint, log_end, left)
        };
        // The chains in the checkpoint must not be ahead of the durable log.
        let made = self.sync(Sequence(log_end)).and_then(|()| self.make_durable(&checkpoint, next));
        if let Err(error) = made {
            self.lock().left_folders.extend(left);
            return Err(error);
        }
        let replay_from = checkpoint.replay_from;
        self.note_checkpoint(replay_from);
        self.remove_left(&left);
        Ok(replay_from)
    }

    /// Writes a checkpoint. The log and the pages that it names must be durable already.
    pub(crate) fn make_durable(
        &self,
        checkpoint: &Checkpoint,
        next: &BTreeMap<GroupId, NextState>,
    ) -> Result<(), StoreError> {
        let durable = self.commit.durable();
        invariant!(
            "checkpoint-within-durable-log",
            durable >= checkpoint.log_end,
            "a checkpoint as of {:?}, and the log is durable through {durable:?}",
            checkpoint.log_end
        );
        for (group, next) in next {
            invariant!("pages-synced-before-checkpoint", next.synced, "pages of group {group}");
        }
        let bytes = checkpoint.write(&self.directory)?;
        Checkpoint::take(&self.directory).map_err(|error| self.poisoned(&error))?;
        count(&self.counters.checkpoints, 1);
        count(&self.counters.checkpoint_bytes, bytes);
        Ok(())
    }

    /// Notes from where the newest durable checkpoint needs the log.
    pub(crate) fn note_checkpoint(&self, replay_from: LogPosition) {
        let mut state = self.lock();
        invariant!(
            "replay-start-never-goes-back",
            replay_from >= state.replay_from,
            "from {replay_from:?}, and from {:?} before",
            state.replay_from
        );
        state.replay_from = replay_from;
    }

    /// Makes the next states visible to readers. Returns the replaced states, with the regions that are free
    /// now.
    pub(crate) fn publish_states(&self, next: BTreeMap<GroupId, NextState>) -> Vec<NextState> {
        let mut state = self.lock();
        let mut replaced = Vec::new();
        for (group, mut next) in next {
            // It may have left meanwhile, and even come again.
            let hosted = state.segments.get_mut(&group).filter(|hosted| next.is_of(hosted));
            let Some(hosted) = hosted else { continue };
            let target = next.materialized.lsn;
            hosted.check_next(target);
            let is_free = |region: &Region| next.materialized.regions.is_free(*region);
            invariant!(
                "punched-region-is-free",
                next.freed_regions.iter().all(is_free),
                "group {group} frees {:?}",
                next.freed_regions
            );
            hosted.index.drop_through(target);
            hosted.cut.drop_through(target);
            hosted.unapplied.retain(|record| record.span.end > target);
            hosted.indexed_through = hosted.indexed_through.max(target);
            hosted.index.check_above(target);
            let mended = hosted.troubles.end_mended(&next.mended, target);
            count(&self.counters.pages_mended, mended);
            // The replaced state is returned to be dropped outside of the lock.
            std::mem::swap(&mut hosted.materialized, &mut next.materialized);
            hosted.version += 1;
            replaced.push(next);
        }
        replaced
    }
}
