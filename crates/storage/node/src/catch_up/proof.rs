//! What peers say of their segments, and what of it enough of them say to be taken over.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use borealis_quorum::evidence::{Claims, credible_durable, credible_history, credible_minimum_read_point};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::segment::Segment;
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId};
use borealis_wire::{BatchHeader, GroupTail, SegmentSummary};

/// The last word of every peer about the groups that this node has, and who the members of these are.
#[derive(Debug)]
pub(super) struct Proof {
    own: NodeId,
    groups: Mutex<BTreeMap<GroupId, Witnesses>>,
}

/// Who may say something of a group, and what they said.
#[derive(Debug)]
struct Witnesses {
    quorums: QuorumSets,
    claims: Claims,
}

impl Proof {
    pub(super) fn new(own: NodeId) -> Proof {
        Proof { own, groups: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, Witnesses>> {
        self.groups.lock().expect("nothing panics while it holds this lock")
    }

    /// Goes by these members of a group from here on; without any, nothing of it is ever proven. What somebody said who
    /// is no member any more is forgotten.
    pub(super) fn follow(&self, group: GroupId, quorums: Option<QuorumSets>) {
        let mut groups = self.lock();
        let known = groups.remove(&group);
        let Some(quorums) = quorums else { return };
        let mut claims = known.map(|known| known.claims).unwrap_or_default();
        claims.retain(|peer, _| quorums.contains(*peer));
        groups.insert(group, Witnesses { quorums, claims });
    }

    /// Notes what a peer says of its segment. Whatever it said before was true then, or never.
    pub(super) fn note(&self, peer: NodeId, said: &SegmentSummary) {
        if let Some(witnesses) = self.lock().get_mut(&said.group)
            && witnesses.quorums.contains(peer)
        {
            witnesses.claims.insert(peer, said.into());
        }
    }

    /// Whether so many other members were heard that a durable point of theirs would be known.
    pub(super) fn is_heard(&self, group: GroupId) -> bool {
        self.lock().get(&group).is_some_and(|witnesses| {
            let has_said = |node| node != self.own && witnesses.claims.contains_key(&node);
            witnesses.quorums.is_read_quorum_of_each(has_said)
        })
    }

    /// The newest history that a write quorum of members has, if our segment has an older one.
    pub(super) fn history(&self, segment: &Segment) -> Option<EpochHistory> {
        let groups = self.lock();
        let Witnesses { quorums, claims } = groups.get(&segment.group())?;
        credible_history(quorums, self.own, segment, claims)
    }

    /// What a read quorum of members knows to be durable and no longer read, beyond what our segment knows.
    pub(super) fn positions(&self, segment: &Segment) -> Option<BatchHeader> {
        let group = segment.group();
        let groups = self.lock();
        let Witnesses { quorums, claims } = groups.get(&group)?;
        let durable = credible_durable(quorums, self.own, segment, claims);
        let minimum = credible_minimum_read_point(quorums, self.own, segment, claims);
        if durable.is_none() && minimum.is_none() {
            return None;
        }
        let point = durable.unwrap_or_else(|| segment.known_durable());
        Some(BatchHeader {
            volume_epoch: segment.history().newest_epoch(),
            durable: point.volume,
            minimum_read_point: minimum.unwrap_or(Lsn::ZERO),
            tails: vec![GroupTail { group, last_end: point.group_tail }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::membership::{GroupMembership, Replacement, Transition};
    use borealis_types::{EpochOpening, RecordSpan, ServerVersion, VolumeEpoch, WriterId};

    const GROUP: GroupId = GroupId(0);

    fn first() -> GroupMembership {
        GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).unwrap()
    }

    fn proof() -> Proof {
        let proof = Proof::new(NodeId(1));
        proof.follow(GROUP, Some(QuorumSets::of(&first())));
        proof
    }

    fn forged() -> SegmentSummary {
        let end = Lsn(0x0100_0000_0000);
        let last = RecordSpan { start: Lsn(end.0 - 8), end };
        let mut history = EpochHistory::default();
        history.push(EpochOpening {
            epoch: VolumeEpoch(5),
            last,
            server_version: ServerVersion::NEWEST_TESTED,
        });
        SegmentSummary {
            group: GROUP,
            promised_epoch: VolumeEpoch(5),
            promised_writer: WriterId(1),
            history,
            segment_complete_lsn: end,
            known_durable: last,
            known_durable_tail: end,
            readable_through: end,
            minimum_read_point: end,
            materialized_lsn: Lsn::ZERO,
            joining: false,
            membership_epoch: borealis_types::MembershipEpoch(1),
        }
    }

    #[test]
    fn a_peer_counts_once_and_a_stranger_never() {
        let (proof, segment) = (proof(), Segment::new(GROUP));
        for stranger_or_peer in [2, 2, 2, 7, 8, 9, 3, 4] {
            proof.note(NodeId(stranger_or_peer), &forged());
            assert_eq!(proof.history(&segment), None);
        }
        proof.note(NodeId(5), &forged());
        assert_eq!(proof.history(&segment), Some(forged().history));
        // Their durable point is of that history, which is not installed.
        assert_eq!(proof.positions(&segment), None);
    }
    #[test]
    fn whoever_left_is_no_witness_any_more() {
        let (proof, segment) = (proof(), Segment::new(GROUP));
        for peer in 2..=4 {
            proof.note(NodeId(peer), &forged());
        }
        assert!(proof.is_heard(GROUP) && !proof.is_heard(GroupId(1)));
        let replacement = Replacement { old: NodeId(4), new: NodeId(9) };
        let begun = first().after(Transition::Begin(replacement)).unwrap();
        proof.follow(GROUP, Some(QuorumSets::of(&begun)));
        assert!(!proof.is_heard(GROUP), "two of the sets with node 9");
        let finished = begun.after(Transition::Finish(replacement)).unwrap();
        proof.follow(GROUP, Some(QuorumSets::of(&finished)));
        for peer in [4, 9] {
            proof.note(NodeId(peer), &forged());
        }
        assert!(proof.is_heard(GROUP));
        assert_eq!(proof.history(&segment), None, "three members and one that left");
        proof.note(NodeId(5), &forged());
        assert_eq!(proof.history(&segment), Some(forged().history));
        proof.follow(GROUP, None);
        assert_eq!(proof.history(&segment), None);
    }
}
