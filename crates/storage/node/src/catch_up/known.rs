//! What is known of the peers' segments, and how the threads that catch up are woken and stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_quorum::segment::Segment;
use borealis_spec::NodeConfig;
use borealis_types::{GroupId, Lsn, NodeId, invariant};
use borealis_wire::SegmentSummary;

use super::proof::Proof;
use super::unconfirmed::Unconfirmed;

/// A peer that did not keep the log we need is asked again after this, in case it was a misunderstanding.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How many peers must have no log that continues a segment before it is refilled.
const PEERS_WITHOUT_LOG: usize = 2;

/// What is known of the peers' segments.
#[derive(Debug)]
pub(crate) struct Known {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a thread pulls the records of each group we have, so that no two ask for the same ones.
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
    pub(crate) fn new(config: &NodeConfig) -> Known {
        let own = config.own_groups();
        let others = |group: GroupId| {
            config
                .peers
                .iter()
                .map(|peer| peer.node)
                .filter(move |node| config.groups.is_member(*node, group))
        };
        let unheard = |group| others(group).map(|node| (node, Member::default())).collect();
        let members = own.iter().map(|&group| (group, unheard(group))).collect();
        Known {
            state: Mutex::new(State { members, ..State::default() }),
            changed: Condvar::new(),
            pulling: own.into_iter().map(|group| (group, AtomicBool::new(false))).collect(),
            proof: Proof::new(config),
            unconfirmed: Unconfirmed::default(),
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

    /// Waits until woken since `seen_wakes`, stopped, or `timeout` has passed; false when stopping.
    pub(super) fn wait(&self, seen_wakes: &mut u64, timeout: Duration, wakeable: bool) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| {
                let woken = wakeable && state.wakes != *seen_wakes;
                !state.stopping && !woken
            })
            .expect("nothing panics while it holds this lock");
        if wakeable {
            *seen_wakes = state.wakes;
        }
        !state.stopping
    }

    /// Whether we have a segment of the group.
    pub(super) fn is_own(&self, group: GroupId) -> bool {
        self.pulling.contains_key(&group)
    }

    /// Lets one thread at a time pull a group's records; `None` if another is at it, or the group is not ours.
    pub(super) fn begin_pull(&self, group: GroupId) -> Option<PullPermit<'_>> {
        let pulling = self.pulling.get(&group)?;
        (!pulling.swap(true, Ordering::Acquire)).then(|| PullPermit { group, pulling })
    }

    /// Notes a peer's segment; returns the LSN up to which every other member has the group's records.
    pub(super) fn note_peer(&self, peer: NodeId, summary: &SegmentSummary) -> Option<Lsn> {
        let mut state = self.lock();
        let members = state.members.get_mut(&summary.group)?;
        let complete = summary.segment_complete_lsn;
        *members.get_mut(&peer)? = Member { complete, safe: complete.min(summary.known_durable.end) };
        let floor = members.values().map(|member| member.safe).min()?;
        assert_kept_for_all(members.values(), floor);
        Some(floor)
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

/// Asserted before the store is told which log nobody needs any more: no member lacks any of it.
fn assert_kept_for_all<'a>(mut members: impl Iterator<Item = &'a Member>, floor: Lsn) {
    invariant!(
        "log-is-kept-for-every-member",
        members.all(|member| floor <= member.safe),
        "log up to {floor} was to be released"
    );
}

/// Whether a record waits for a missing predecessor. A durable position beyond our SCL is no sign of a gap: the slowest
/// node sees that in every batch, and the records are on their way.
pub(crate) fn has_hole(segment: &Segment) -> bool {
    segment.held_count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::{Membership, NodeAddress};
    use borealis_types::{
        AvailabilityZone, EpochHistory, Placement, RecordSpan, VolumeEpoch, VolumeId, WriterId,
    };

    const GROUP: GroupId = GroupId(0);

    fn known() -> Known {
        let zone = AvailabilityZone("az1".to_owned());
        let address: borealis_spec::Endpoint = "/nowhere/1".parse().unwrap();
        let placement = Placement::new(1).unwrap();
        let mut config = NodeConfig::new(
            "unused".into(),
            VolumeId(1),
            NodeId(1),
            zone.clone(),
            1,
            address.clone(),
            placement,
        );
        config.peers = (2..=3)
            .map(|node| NodeAddress { node: NodeId(node), zone: zone.clone(), address: address.clone() })
            .collect();
        config.groups = Membership::everyone_has_everything(placement, &[1, 2, 3].map(NodeId));
        Known::new(&config)
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
        let known = known();
        assert_eq!(known.note_peer(NodeId(2), &segment(500)), Some(Lsn::ZERO));
        assert_eq!(known.note_peer(NodeId(3), &segment(300)), Some(Lsn(300)));
        assert_eq!(
            known.note_peer(NodeId(3), &segment(600)),
            Some(Lsn(400)),
            "what may be truncated does not count"
        );
        assert_eq!(known.note_peer(NodeId(9), &segment(1)), None, "a stranger does not count");
    }

    #[test]
    fn a_peer_that_is_not_ahead_has_not_collected_anything() {
        let known = known();
        known.note_peer(NodeId(2), &segment(500));
        // We stood at 400 when we decided to ask, and the writer's stream came before the peer's answer.
        assert!(!known.note_nothing_came(NodeId(2), GROUP, Lsn(500)));
        assert!(!known.is_collected(NodeId(2), GROUP, Lsn(500)));
        assert!(!known.note_nothing_came(NodeId(3), GROUP, Lsn(500)), "never heard of");
    }

    #[test]
    fn a_segment_is_cut_off_when_two_peers_have_no_log_that_continues_it() {
        let known = known();
        known.note_peer(NodeId(2), &segment(500));
        known.note_peer(NodeId(3), &segment(400));
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
        let known = known();
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
        let known = known();
        let permit = known.begin_pull(GROUP);
        assert!(permit.is_some() && known.begin_pull(GROUP).is_none());
        drop(permit);
        assert!(known.begin_pull(GROUP).is_some());
        assert!(known.begin_pull(GroupId(9)).is_none(), "not our group");
    }

    #[test]
    #[should_panic(expected = "invariant one-pull-per-group is broken")]
    fn a_permit_that_was_returned_twice_is_noticed() {
        let known = known();
        let permit = known.begin_pull(GROUP).unwrap();
        drop(PullPermit { group: GROUP, pulling: permit.pulling });
    }
}
