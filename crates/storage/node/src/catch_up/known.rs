//! What is known of the peers' segments, and how the threads that catch up are woken and stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_quorum::segment::{Segment, Standing};
use borealis_store::Store;
use borealis_types::{GroupId, Lsn, NodeId, Placement, invariant};
use borealis_wire::SegmentSummary;

use super::proof::Proof;
use super::unconfirmed::Unconfirmed;
use crate::group::Group;

/// A peer that did not keep the log we need is asked again after this, in case it was a misunderstanding.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How many peers must have no log that continues a segment before it is refilled.
const PEERS_WITHOUT_LOG: usize = 2;

/// What is known of the peers' segments.
#[derive(Debug)]
pub(crate) struct Known {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a thread pulls the records of each group of the volume, so that no two ask for the same ones.
    pulling: BTreeMap<GroupId, AtomicBool>,
    /// What of the peers' words may be taken over.
    pub(super) proof: Proof,
    /// What of their records may not, yet.
    pub(super) unconfirmed: Unconfirmed,
}

#[derive(Default, Debug)]
struct State {
    stopping: bool,
    /// How often the threads were woken.
    wakes: u64,
    /// The last that was heard of each other member's segment. A member never heard of counts as empty, so that log is
    /// kept for it.
    members: BTreeMap<GroupId, BTreeMap<NodeId, Member>>,
    /// Peers that do not keep log old enough for a segment of ours: where that segment ended, and when that was
    /// noticed.
    collected: BTreeMap<(GroupId, NodeId), (Lsn, Instant)>,
    /// Segments that are to be refilled although they were not found to be cut off.
    refills_requested: BTreeSet<GroupId>,
}

/// What was last heard of one member's segment.
#[derive(Clone, Copy, Default, Debug)]
struct Member {
    complete: Lsn,
    /// It has every record up to here that no recovery can truncate: known to be durable.
    safe: Lsn,
}

impl Known {
    /// Of a volume's groups. Which of them are here and who their members are, [`Known::follow`] says.
    pub(crate) fn new(node: NodeId, placement: Placement) -> Known {
        Known {
            state: Mutex::default(),
            changed: Condvar::new(),
            pulling: placement.groups().map(|group| (group, AtomicBool::new(false))).collect(),
            proof: Proof::new(node),
            unconfirmed: Unconfirmed::default(),
        }
    }

    /// Goes by these members of a group from here on; `None` if it has no segment here (any more), and nothing that is under way
    /// for one matters. A member that is new counts as empty, so that log is kept for it; none is kept for one that left.
    pub(crate) fn follow(&self, group: GroupId, members: Option<&Group>, own: NodeId, store: &Store) {
        self.proof.follow(group, members.and_then(|members| members.quorums.clone()));
        let mut state = self.lock();
        state.collected.retain(|(of, peer), _| {
            *of != group || members.is_some_and(|members| members.members.contains(peer))
        });
        let Some(members) = members else {
            state.members.remove(&group);
            state.refills_requested.remove(&group);
            drop(state);
            return self.unconfirmed.forget(group);
        };
        let before = state.members.remove(&group).unwrap_or_default();
        let others = members.members.iter().filter(|node| **node != own);
        let kept = others.map(|node| (*node, before.get(node).copied().unwrap_or_default())).collect();
        state.members.insert(group, kept);
        if let Some(floor) = floor_of(&state.members[&group]) {
            store.set_peer_floor(group, floor);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Starts an exchange with every peer now.
    pub(crate) fn wake(&self) {
        self.lock().wakes += 1;
        self.changed.notify_all();
    }

    /// Makes the threads end after what they are doing.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Whether the threads are to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Makes a thread look whether it is to end.
    pub(super) fn rouse(&self) {
        // Whoever is about to wait has either looked, and waits by now, or looks after this.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until woken since `seen_wakes`, stopped, or `timeout` has passed; false when stopping.
    pub(super) fn wait(&self, seen_wakes: &mut u64, timeout: Duration, wakeable: bool) -> bool {
        self.wait_unless(&AtomicBool::new(false), seen_wakes, timeout, wakeable)
    }

    /// As [`Known::wait`]; false also when the thread was told to end.
    pub(super) fn wait_unless(
        &self,
        has_ended: &AtomicBool,
        seen_wakes: &mut u64,
        timeout: Duration,
        wakeable: bool,
    ) -> bool {
        let is_over = |state: &State| state.stopping || has_ended.load(Ordering::Acquire);
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| {
                let woken = wakeable && state.wakes != *seen_wakes;
                !is_over(state) && !woken
            })
            .expect("nothing panics while it holds this lock");
        if wakeable {
            *seen_wakes = state.wakes;
        }
        !is_over(&state)
    }

    /// How far each other member of a group was complete when it was last heard.
    pub(crate) fn complete_of(&self, group: GroupId) -> BTreeMap<NodeId, Lsn> {
        let state = self.lock();
        let members = state.members.get(&group).into_iter().flatten();
        members.map(|(node, member)| (*node, member.complete)).collect()
    }

    /// Whether we have a segment of the group.
    pub(super) fn is_own(&self, group: GroupId) -> bool {
        self.lock().members.contains_key(&group)
    }

    /// Lets one thread at a time pull a group's records; `None` if another is at it, or the group is not ours.
    pub(super) fn begin_pull(&self, group: GroupId) -> Option<PullPermit<'_>> {
        let pulling = self.pulling.get(&group)?;
        (!pulling.swap(true, Ordering::Acquire)).then(|| PullPermit { group, pulling })
    }

    /// Notes a peer's segment, and hands on the LSN up to which every other member has the group's records. It is handed on
    /// before anybody else can be noted, or come into the group.
    pub(super) fn note_peer(&self, peer: NodeId, summary: &SegmentSummary, set_floor: impl FnOnce(Lsn)) {
        let mut state = self.lock();
        let Some(members) = state.members.get_mut(&summary.group) else { return };
        let Some(member) = members.get_mut(&peer) else { return };
        let complete = summary.segment_complete_lsn;
        *member = Member { complete, safe: complete.min(summary.known_durable.end) };
        if let Some(floor) = floor_of(members) {
            set_floor(floor);
        }
    }

    /// Notes that a peer had no record after `ours`, where our segment ended when it was asked and still ends. True if
    /// the peer is ahead, so that it had such records and no longer keeps them. A peer that is not ahead has nothing to
    /// give: the writer's stream may have brought what was missing in the meantime.
    pub(super) fn note_nothing_came(&self, peer: NodeId, group: GroupId, ours: Lsn) -> bool {
        let mut state = self.lock();
        let member = state.members.get(&group).and_then(|members| members.get(&peer));
        if member.is_none_or(|member| member.complete <= ours) {
            return false;
        }
        state.collected.insert((group, peer), (ours, Instant::now()));
        true
    }

    /// Whether the peer was asked for records after `ours` not long ago, and no longer kept them.
    pub(super) fn is_collected(&self, peer: NodeId, group: GroupId, ours: Lsn) -> bool {
        let noticed = self.lock().collected.get(&(group, peer)).copied();
        noticed.is_some_and(|(stood_at, when)| stood_at == ours && when.elapsed() < ASK_AGAIN_AFTER)
    }

    /// Whether our segment, which ends at `ours`, is cut off: peers that are ahead do not keep log that continues it. Two
    /// must have been asked, for one may lie; what is done then is right in any case, but it is work.
    pub(super) fn is_cut_off(&self, group: GroupId, ours: Lsn) -> bool {
        let state = self.lock();
        let noticed = state.collected.iter();
        let of_ours = noticed.filter(|((of, _), (stood_at, _))| *of == group && *stood_at == ours);
        of_ours.count() >= PEERS_WITHOUT_LOG
    }

    /// Asks that a segment is refilled without looking for log first: it is known to be empty.
    pub(crate) fn request_refill(&self, group: GroupId) {
        let mut state = self.lock();
        state.refills_requested.insert(group);
        state.wakes += 1;
        self.changed.notify_all();
    }

    /// Whether a refill was asked for.
    pub(super) fn is_refill_requested(&self, group: GroupId) -> bool {
        self.lock().refills_requested.contains(&group)
    }

    /// Notes that a refill is over.
    pub(super) fn note_refilled(&self, group: GroupId) {
        self.lock().refills_requested.remove(&group);
    }
}

/// The right to pull one group's records.
#[derive(Debug)]
pub(super) struct PullPermit<'a> {
    group: GroupId,
    pulling: &'a AtomicBool,
}

impl Drop for PullPermit<'_> {
    fn drop(&mut self) {
        let held = self.pulling.swap(false, Ordering::Release);
        // A second panic would end the process without a word about the first.
        if !std::thread::panicking() {
            invariant!(
                "one-pull-per-group",
                held,
                "group {} was pulled under a permit that was returned",
                self.group
            );
        }
    }
}

/// Up to where every other member has the records.
fn floor_of(members: &BTreeMap<NodeId, Member>) -> Option<Lsn> {
    let floor = members.values().map(|member| member.safe).min()?;
    assert_kept_for_all(members.values(), floor);
    Some(floor)
}

/// Asserted before the store is told which log nobody needs any more: no member lacks any of it.
fn assert_kept_for_all<'a>(mut members: impl Iterator<Item = &'a Member>, floor: Lsn) {
    invariant!(
        "log-is-kept-for-every-member",
        members.all(|member| floor <= member.safe),
        "log up to {floor} was to be released"
    );
}

/// Whether a record waits for a missing predecessor, in a segment that has all that was before. A durable position beyond our SCL is no sign of a gap: the slowest
/// node sees that in every batch, and the records are on their way.
pub(crate) fn has_hole(segment: &Segment) -> bool {
    segment.held_count() > 0 && segment.standing() == Standing::Full
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{EpochHistory, MembershipEpoch, RecordSpan, VolumeEpoch, WriterId};
    use std::collections::BTreeSet;

    const GROUP: GroupId = GroupId(0);

    fn group(epoch: u64, members: &[u16]) -> Group {
        let members: BTreeSet<NodeId> = members.iter().copied().map(NodeId).collect();
        Group { epoch: MembershipEpoch(epoch), members, quorums: None, is_here: true }
    }

    /// Node 1, which shares the only group with 2 and 3, and its store.
    fn known() -> (Known, Store, tempfile::TempDir) {
        let (folder, placement) = (tempfile::tempdir().unwrap(), Placement::new(1).unwrap());
        let identity = borealis_store::Identity {
            volume: borealis_types::VolumeId(1),
            node: NodeId(1),
            zone: borealis_types::AvailabilityZone("az1".to_owned()),
            version: borealis_types::PostgresVersion::NEWEST,
            placement,
            groups: vec![GROUP],
            incarnation: 1,
        };
        let store = Store::create(&folder.path().join("store"), identity, Default::default()).unwrap();
        let known = Known::new(NodeId(1), placement);
        known.follow(GROUP, Some(&group(1, &[1, 2, 3])), NodeId(1), &store);
        (known, store, folder)
    }

    fn noted(known: &Known, peer: u16, summary: &SegmentSummary) -> Option<Lsn> {
        let mut floor = None;
        known.note_peer(NodeId(peer), summary, |lsn| floor = Some(lsn));
        floor
    }

    fn segment(complete: u64) -> SegmentSummary {
        SegmentSummary {
            group: GROUP,
            promised_epoch: VolumeEpoch(1),
            promised_writer: WriterId(1),
            history: EpochHistory::default(),
            segment_complete_lsn: Lsn(complete),
            known_durable: RecordSpan { start: Lsn(350), end: Lsn(400) },
            known_durable_tail: Lsn(400),
            readable_through: Lsn(complete),
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
            joining: false,
            membership_epoch: borealis_types::MembershipEpoch(1),
        }
    }

    #[test]
    fn log_is_kept_for_a_peer_that_was_never_heard_of() {
        let (known, ..) = known();
        assert_eq!(noted(&known, 2, &segment(500)), Some(Lsn::ZERO));
        assert_eq!(noted(&known, 3, &segment(300)), Some(Lsn(300)));
        assert_eq!(noted(&known, 3, &segment(600)), Some(Lsn(400)), "what may be truncated does not count");
        assert_eq!(noted(&known, 9, &segment(1)), None, "a stranger does not count");
    }

    #[test]
    fn log_is_kept_for_who_comes_and_not_for_who_left() {
        let (known, store, _folder) = known();
        noted(&known, 2, &segment(400));
        assert_eq!(noted(&known, 3, &segment(300)), Some(Lsn(300)));
        known.follow(GROUP, Some(&group(2, &[1, 2, 3, 4])), NodeId(1), &store);
        assert_eq!(noted(&known, 3, &segment(300)), Some(Lsn::ZERO), "node 4 is empty");
        assert_eq!(noted(&known, 4, &segment(350)), Some(Lsn(300)));
        known.follow(GROUP, Some(&group(3, &[1, 2, 4])), NodeId(1), &store);
        assert_eq!(noted(&known, 4, &segment(350)), Some(Lsn(350)));
        assert_eq!(noted(&known, 3, &segment(300)), None, "node 3 left");
        known.request_refill(GROUP);
        known.follow(GROUP, None, NodeId(1), &store);
        assert!(!known.is_own(GROUP) && !known.is_refill_requested(GROUP));
        assert_eq!(noted(&known, 4, &segment(350)), None, "this node left");
    }

    #[test]
    fn a_thread_that_is_told_to_end_does_not_wait() {
        let (known, ..) = known();
        let has_ended = AtomicBool::new(true);
        assert!(!known.wait_unless(&has_ended, &mut 0, Duration::from_secs(60), false));
        has_ended.store(false, Ordering::Release);
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| known.wait_unless(&has_ended, &mut 0, Duration::from_secs(60), false));
            std::thread::sleep(Duration::from_millis(20));
            has_ended.store(true, Ordering::Release);
            known.rouse();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn a_peer_that_is_not_ahead_has_not_collected_anything() {
        let (known, ..) = known();
        noted(&known, 2, &segment(500));
        // We stood at 400 when we decided to ask, and the writer's stream came before the peer's answer.
        assert!(!known.note_nothing_came(NodeId(2), GROUP, Lsn(500)));
        assert!(!known.is_collected(NodeId(2), GROUP, Lsn(500)));
        assert!(!known.note_nothing_came(NodeId(3), GROUP, Lsn(500)), "never heard of");
    }

    #[test]
    fn a_segment_is_cut_off_when_two_peers_have_no_log_that_continues_it() {
        let (known, ..) = known();
        noted(&known, 2, &segment(500));
        noted(&known, 3, &segment(400));
        assert!(known.note_nothing_came(NodeId(2), GROUP, Lsn(100)));
        assert!(known.is_collected(NodeId(2), GROUP, Lsn(100)));
        assert!(!known.is_cut_off(GROUP, Lsn(100)), "node 3 may still have it");
        assert!(known.note_nothing_came(NodeId(3), GROUP, Lsn(100)));
        assert!(known.is_cut_off(GROUP, Lsn(100)));
        assert!(!known.is_cut_off(GroupId(1), Lsn(100)));
        // Once the segment moves, what was noticed before is void.
        assert!(!known.is_cut_off(GROUP, Lsn(200)) && !known.is_collected(NodeId(2), GROUP, Lsn(200)));
    }

    #[test]
    fn a_refill_can_be_asked_for() {
        let (known, ..) = known();
        known.request_refill(GROUP);
        assert!(known.is_refill_requested(GROUP) && !known.is_refill_requested(GroupId(1)));
        known.note_refilled(GROUP);
        assert!(!known.is_refill_requested(GROUP));
    }

    #[test]
    #[should_panic(expected = "invariant log-is-kept-for-every-member is broken")]
    fn log_that_a_member_lacks_is_not_released() {
        let behind = Member { complete: Lsn(300), safe: Lsn(300) };
        assert_kept_for_all([&behind, &Member::default()].into_iter(), Lsn(300));
    }

    #[test]
    fn one_thread_at_a_time_pulls_a_groups_records() {
        let (known, ..) = known();
        let permit = known.begin_pull(GROUP);
        assert!(permit.is_some() && known.begin_pull(GROUP).is_none());
        drop(permit);
        assert!(known.begin_pull(GROUP).is_some());
        assert!(known.begin_pull(GroupId(9)).is_none(), "not our group");
    }

    #[test]
    #[should_panic(expected = "invariant one-pull-per-group is broken")]
    fn a_permit_that_was_returned_twice_is_noticed() {
        let (known, ..) = known();
        let permit = known.begin_pull(GROUP).unwrap();
        drop(PullPermit { group: GROUP, pulling: permit.pulling });
    }
}
