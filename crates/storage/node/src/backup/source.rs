//! The node's side of an uploader: its redo, what is durable, and who else might upload.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use borealis_archive::duty::Candidate;
use borealis_backup::upload::{DurablePoint, PageSource, RedoSource, SourceError, StorePages, Tail};
use borealis_quorum::segment::{Segment, Standing};
use borealis_store::Store;
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId};

use crate::catch_up::Known;
use crate::members::Members;

/// A peer that was not heard for so long does not upload, as far as others go. A node that has just started waits as long before it
/// believes that it is alone.
const HEARD_LATELY: Duration = Duration::from_secs(10);
/// What peers say is older than what is known here: they are held against what was durable so long ago, and up to twice that.
const LAG: Duration = Duration::from_secs(5);

/// What a node has for its uploader. It holds nothing of the node between two calls: a thread that hangs in a request to a broken
/// store does not keep the node's store open.
#[derive(Debug)]
pub(super) struct NodeRedo {
    node: NodeId,
    started: Instant,
    store: Weak<Store>,
    known: Weak<Known>,
    members: Weak<Members>,
    seen: Mutex<BTreeMap<GroupId, Seen>>,
}

/// What was seen of a group before.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// What was durable at least [`LAG`] ago.
    durable_before: Lsn,
    /// What was durable when that was noted.
    durable: Lsn,
    noted: Instant,
    /// What of the group was here, without a gap, before its redo was last read: what was not in that is not here any more.
    complete_before_reading: Lsn,
}

impl NodeRedo {
    pub(super) fn new(
        node: NodeId,
        store: &Arc<Store>,
        known: &Arc<Known>,
        members: &Arc<Members>,
    ) -> NodeRedo {
        NodeRedo {
            node,
            started: Instant::now(),
            store: Arc::downgrade(store),
            known: Arc::downgrade(known),
            members: Arc::downgrade(members),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<GroupId, Seen>> {
        self.seen.lock().expect("nothing panics while it holds this lock")
    }

    fn look<T>(&self, group: GroupId, look: impl FnOnce(&Segment) -> T) -> Option<T> {
        self.store.upgrade()?.with_segment(group, look).ok()
    }

    /// Has the store keep log that the backup does not have, as long as it may.
    pub(super) fn keep_log(&self, floors: BTreeMap<GroupId, Lsn>) {
        if let Some(store) = self.store.upgrade() {
            store.set_backup_floors(floors);
        }
    }

    /// What of a group was durable some seconds ago.
    fn durable_before(&self, group: GroupId, durable: Lsn) -> Lsn {
        let mut all = self.seen();
        let now = Instant::now();
        let seen = all.entry(group).or_insert(Seen {
            durable_before: Lsn::ZERO,
            durable,
            noted: now,
            complete_before_reading: Lsn::ZERO,
        });
        if now.duration_since(seen.noted) >= LAG {
            *seen = Seen { durable_before: seen.durable, durable, noted: now, ..*seen };
        }
        seen.durable_before
    }
}

impl RedoSource for NodeRedo {
    fn groups(&self) -> Vec<GroupId> {
        self.store.upgrade().map(|store| store.groups()).unwrap_or_default()
    }

    fn history(&self) -> EpochHistory {
        let newest = |group: &GroupId| self.look(*group, |segment| segment.history().newest_epoch());
        let Some(group) = self.groups().into_iter().max_by_key(newest) else {
            return EpochHistory::default();
        };
        self.look(group, |segment| segment.history().clone()).unwrap_or_default()
    }

    fn durable(&self, group: GroupId) -> Option<DurablePoint> {
        self.look(group, |segment| {
            let point = segment.known_durable();
            let epoch = segment.history().newest_epoch();
            DurablePoint { epoch, volume: point.volume.end, group_tail: point.group_tail }
        })
    }

    fn tail(&self, group: GroupId, above: Lsn, limit_bytes: u32) -> Result<Tail, SourceError> {
        let error = |what: String| SourceError { group, what };
        let store = self.store.upgrade().ok_or_else(|| error("the node stops".to_owned()))?;
        let complete = store.with_segment(group, Segment::segment_complete_lsn);
        let complete = complete.map_err(|refused| error(refused.to_string()))?;
        if let Some(seen) = self.seen().get_mut(&group) {
            seen.complete_before_reading = complete;
        }
        let tail =
            store.read_tail(group, above, limit_bytes).map_err(|refused| error(refused.to_string()))?;
        Ok(Tail { batches: tail.batches, more: tail.more })
    }

    fn log_floor(&self, group: GroupId) -> Lsn {
        // Everything up to there came at some time: what was not read is not kept any more.
        self.seen().get(&group).map_or(Lsn::ZERO, |seen| seen.complete_before_reading)
    }

    fn candidates(&self, group: GroupId) -> Vec<Candidate> {
        let (Some(known), Some(members)) = (self.known.upgrade(), self.members.upgrade()) else {
            return Vec::new();
        };
        let own = self.look(group, |segment| {
            let is_full = segment.standing() == Standing::Full;
            (segment.known_durable().group_tail, segment.segment_complete_lsn(), is_full)
        });
        let Some((durable, own_complete, is_full)) = own else { return Vec::new() };
        let before = self.durable_before(group, durable);
        let complete = known.complete_of(group);
        let is_new_here = self.started.elapsed() < HEARD_LATELY;
        let candidate = |(node, heard_lately): (NodeId, bool)| {
            let has_all = complete.get(&node).is_some_and(|complete| *complete >= before);
            let complete = match node == self.node {
                true => is_full && own_complete >= before,
                false => is_new_here || (heard_lately && has_all),
            };
            Candidate { node, complete }
        };
        members.of_group(group, HEARD_LATELY).into_iter().map(candidate).collect()
    }

    fn pages(&self) -> Option<Box<dyn PageSource + '_>> {
        Some(Box::new(StorePages { store: Weak::clone(&self.store), node: self.node }))
    }
}
