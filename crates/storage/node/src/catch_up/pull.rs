//! Taking missing records from a peer's log.

use std::sync::Arc;

use borealis_client::{ClientError, NodeClient};
use borealis_quorum::Promise;
use borealis_quorum::segment::Segment;
use borealis_store::{Origin, Sequence, Store, StoreError};
use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId, VolumeEpoch, invariant};
use borealis_wire::SegmentProgress;

use super::known::Known;
use crate::durability::assert_durable;
use crate::materializer::Materializer;
use crate::metrics::{Metrics, add};
use crate::open_connections::OpenConnections;

/// Log asked for at a time.
const PULL_BYTES: u32 = 1 << 20;

/// Why an exchange ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CatchUpError {
    #[error(transparent)]
    Peer(#[from] ClientError),
    #[error("own store: {0}")]
    Store(#[from] StoreError),
}

/// Whom a segment serves, and how far it is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Standing {
    promise: Promise,
    newest_epoch: VolumeEpoch,
    complete: Lsn,
    /// The membership that the segment acts on; zero if it stores none.
    membership: MembershipEpoch,
}

impl Standing {
    fn of(segment: &Segment) -> Standing {
        Standing {
            promise: segment.promise(),
            newest_epoch: segment.history().newest_epoch(),
            complete: segment.segment_complete_lsn(),
            membership: segment.membership().map(|state| state.installed().epoch()).unwrap_or_default(),
        }
    }

    /// The writer whose stream the segment's records are of, if it was the same `before` and now; `None` while a
    /// recovery is under way. Promises and histories only ever advance, so what is the same twice was the same in
    /// between.
    fn live_writer_since(self, before: Standing) -> Option<Promise> {
        let same = (before.promise, before.newest_epoch) == (self.promise, self.newest_epoch);
        let live = same && self.promise.epoch == self.newest_epoch;
        if live && before.membership == self.membership {
            // Only a newer history can truncate records, and only with a newer membership a segment begins anew.
            invariant!(
                "scl-advances-under-one-writer",
                before.complete <= self.complete,
                "complete to {} under {:?}, before to {}",
                self.complete,
                self.promise,
                before.complete
            );
        }
        live.then_some(self.promise)
    }
}

/// Takes records from peers' logs.
#[derive(Debug)]
pub(crate) struct Puller {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) known: Arc<Known>,
    /// Connections through which to tell the writer that an SCL moved by records from a peer.
    pub(crate) connections: Arc<OpenConnections>,
    pub(crate) materializer: Arc<Materializer>,
}

impl Puller {
    /// Takes the records after our segment's end from the peer's log, unless another thread is at it.
    pub(super) fn pull(
        &self,
        client: &mut NodeClient,
        peer: NodeId,
        group: GroupId,
    ) -> Result<(), CatchUpError> {
        let Some(_permit) = self.known.begin_pull(group) else { return Ok(()) };
        while !self.known.is_stopping() {
            let above = self.store.with_segment(group, Segment::segment_complete_lsn)?;
            let durable = self.store.with_segment(group, Segment::known_durable)?;
            let (batches, more) = client.read_tail(group, above, PULL_BYTES)?;
            let believed = self.known.unconfirmed.believed(peer, group, durable.group_tail, batches);
            add(&self.metrics.gossip_records_unconfirmed, believed.left as u64);
            self.take(group, &believed.batches)?;
            if self.store.with_segment(group, Segment::segment_complete_lsn)? <= above {
                if believed.left > 0 {
                    self.known.unconfirmed.note_left(peer, group, (above, durable.volume.end));
                } else if self.known.note_nothing_came(peer, group, above) {
                    tracing::debug!(%peer, %group, segment_complete_lsn = %above, "no log that continues the segment");
                }
                return Ok(());
            }
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reports an SCL, only to the writer whose records produced it: a writer of another epoch would count it as an
    /// acknowledgement of its own records at these positions.
    fn tell_writer(
        &self,
        group: GroupId,
        before: Standing,
        taken: Option<Sequence>,
        synced: Option<Sequence>,
        progress: &[SegmentProgress],
    ) -> Result<(), CatchUpError> {
        let after = self.store.with_segment(group, Standing::of)?;
        if let Some(writer) = after.live_writer_since(before) {
            assert_durable(taken, synced);
            self.connections.push_progress(writer, (group, after.membership), progress);
        }
        Ok(())
    }

    /// Lets a segment go on from what peers brought, durably, and tells the writer.
    pub(super) fn jump(
        &self,
        group: GroupId,
        jump: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), CatchUpError> {
        let before = self.store.with_segment(group, Standing::of)?;
        jump()?;
        // Synced first: the writer's stream may have moved the segment on meanwhile.
        let summaries = self.store.summaries()?;
        let of_group = summaries.iter().filter(|summary| summary.group == group);
        let progress: Vec<SegmentProgress> = of_group
            .map(|summary| SegmentProgress { group, segment_complete_lsn: summary.segment_complete_lsn })
            .collect();
        self.tell_writer(group, before, None, None, &progress)
    }

    /// Appends records of one group, makes them durable, and tells the writer how far its stream is complete here.
    fn take(&self, group: GroupId, batches: &[Vec<u8>]) -> Result<(), CatchUpError> {
        let before = self.store.with_segment(group, Standing::of)?;
        let mut appended_bytes = 0;
        let mut progress = Vec::new();
        let mut taken = None;
        for batch in batches {
            let appended = self.store.append(batch, Origin::Peer(group), &[])?;
            if appended.taken > 0 {
                taken = taken.max(Some(appended.sequence));
                progress = appended.progress;
            }
            appended_bytes += batch.len();
        }
        add(&self.metrics.gossip_pulled_batches, batches.len() as u64);
        add(&self.metrics.gossip_pulled_bytes, appended_bytes as u64);
        let mut synced = None;
        if let Some(sequence) = taken {
            self.store.sync(sequence)?;
            synced = Some(sequence);
        }
        self.tell_writer(group, before, taken, synced, &progress)?;
        self.materializer.note_appended(appended_bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::WriterId;

    fn standing(promised: u64, newest: u64, complete: u64) -> Standing {
        Standing {
            promise: Promise { epoch: VolumeEpoch(promised), writer: WriterId(7) },
            newest_epoch: VolumeEpoch(newest),
            complete: Lsn(complete),
            membership: MembershipEpoch(1),
        }
    }

    #[test]
    fn progress_belongs_to_a_writer_only_if_no_recovery_came_in_between() {
        let told = |before, after: Standing| after.live_writer_since(before).is_some();
        assert!(told(standing(3, 3, 100), standing(3, 3, 200)));
        assert!(!told(standing(3, 3, 100), standing(4, 4, 200)), "another writer");
        assert!(!told(standing(4, 3, 100), standing(4, 3, 200)), "a recovery is under way");
        assert!(!told(standing(3, 3, 200), standing(4, 4, 100)), "a recovery truncated records");
        let came_again = Standing { membership: MembershipEpoch(3), ..standing(3, 3, 0) };
        assert!(told(standing(3, 3, 200), came_again), "it left its group and came again");
    }

    #[test]
    #[should_panic(expected = "invariant scl-advances-under-one-writer is broken")]
    fn records_do_not_vanish_under_a_live_writer() {
        let _ = standing(3, 3, 100).live_writer_since(standing(3, 3, 200));
    }
}
