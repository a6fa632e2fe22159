//! What peers say of their segments, and what of it enough of them say to be taken over.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use borealis_quorum::evidence::{Claims, credible_durable, credible_history, credible_minimum_read_point};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::segment::Segment;
use borealis_spec::NodeConfig;
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId};
use borealis_wire::{BatchHeader, GroupTail, SegmentSummary};

/// The last word of every peer about the groups that this node has, and who the members of these are.
#[derive(Debug)]
pub(super) struct Proof {
    own: NodeId,
    quorums: BTreeMap<GroupId, QuorumSets>,
    claims: Mutex<BTreeMap<GroupId, Claims>>,
}

impl Proof {
    pub(super) fn new(config: &NodeConfig) -> Proof {
        let quorum = |group: GroupId| {
            // Of a group without six members nothing is ever proven.
            let members = config.groups.nodes_of(group).try_into().ok()?;
            Some((group, QuorumSets::new(vec![members]).ok()?))
        };
        Proof {
            own: config.node,
            quorums: config.own_groups().into_iter().filter_map(quorum).collect(),
            claims: Mutex::new(BTreeMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, Claims>> {
        self.claims.lock().expect("nothing panics while it holds this lock")
    }

    /// Notes what a peer says of its segment. Whatever it said before was true then, or never.
    pub(super) fn note(&self, peer: NodeId, said: &SegmentSummary) {
        let is_member = self.quorums.get(&said.group).is_some_and(|members| members.contains(peer));
        if is_member {
            self.lock().entry(said.group).or_default().insert(peer, said.into());
        }
    }

    /// The newest history that a write quorum of members has, if our segment has an older one.
    pub(super) fn history(&self, segment: &Segment) -> Option<EpochHistory> {
        let members = self.quorums.get(&segment.group())?;
        credible_history(members, self.own, segment, self.lock().get(&segment.group())?)
    }

    /// What a read quorum of members knows to be durable and no longer read, beyond what our segment knows.
    pub(super) fn positions(&self, segment: &Segment) -> Option<BatchHeader> {
        let group = segment.group();
        let members = self.quorums.get(&group)?;
        let claims = self.lock();
        let claims = claims.get(&group)?;
        let durable = credible_durable(members, self.own, segment, claims);
        let minimum = credible_minimum_read_point(members, self.own, segment, claims);
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
    use borealis_spec::{Membership, NodeAddress};
    use borealis_types::{
        AvailabilityZone, EpochOpening, Placement, RecordSpan, ServerVersion, VolumeEpoch, VolumeId, WriterId,
    };

    const GROUP: GroupId = GroupId(0);

    fn proof() -> Proof {
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
        config.peers = (2..=6)
            .map(|node| NodeAddress { node: NodeId(node), zone: zone.clone(), address: address.clone() })
            .collect();
        config.groups = Membership::everyone_has_everything(placement, &[1, 2, 3, 4, 5, 6].map(NodeId));
        Proof::new(&config)
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
}
