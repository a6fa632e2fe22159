//! The members of one group, as they matter to whoever catches up.

use std::collections::BTreeSet;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::membership::GroupMembership;
use borealis_types::{MembershipEpoch, NodeId};

/// The members of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    /// Of their membership; zero where configuration says once and for all who they are.
    pub(crate) epoch: MembershipEpoch,
    pub(crate) members: BTreeSet<NodeId>,
    /// How many of them make a quorum; `None` where they are not six, and nothing is ever proven.
    pub(crate) quorums: Option<QuorumSets>,
    /// Whether this node is one.
    pub(crate) is_here: bool,
}

impl Group {
    pub(crate) fn of(membership: &GroupMembership, own: NodeId) -> Group {
        Group {
            epoch: membership.epoch(),
            members: membership.members(),
            quorums: Some(QuorumSets::of(membership)),
            is_here: membership.contains(own),
        }
    }

    /// Of members that no membership is stored of.
    pub(crate) fn fixed(nodes: &[NodeId], own: NodeId) -> Group {
        Group {
            epoch: MembershipEpoch::default(),
            members: nodes.iter().copied().collect(),
            quorums: None,
            is_here: nodes.contains(&own),
        }
    }
}
