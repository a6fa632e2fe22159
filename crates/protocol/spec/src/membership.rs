//! Which node is where, and which nodes have a segment of which protection group.

use std::collections::BTreeMap;

use borealis_types::membership::GroupMembership;
use borealis_types::{AvailabilityZone, GroupId, GroupSet, NodeId, Placement};
use serde::{Deserialize, Serialize};

use crate::{Contradiction, Endpoint, require};

/// A storage node and where it is found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its number in the volume, from 1.
    pub node: NodeId,
    /// Its availability zone: two nodes of a group share one.
    pub zone: AvailabilityZone,
    /// Where it listens for callers and peers.
    pub address: Endpoint,
}

/// Which nodes have a segment of one group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupMembers {
    /// The group, below the volume's number of groups.
    pub group: GroupId,
    /// Its nodes; six in a volume that a driver can open.
    // Drivers' files once had another name for it than nodes'.
    #[serde(alias = "members")]
    pub nodes: Vec<NodeId>,
}

/// Which nodes have which group, for all groups of a volume.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Membership(Vec<GroupMembers>);

impl FromIterator<GroupMembers> for Membership {
    fn from_iter<I: IntoIterator<Item = GroupMembers>>(groups: I) -> Membership {
        Membership(groups.into_iter().collect())
    }
}

impl Membership {
    /// Every group on every one of these nodes, as in a cluster of six.
    #[must_use]
    pub fn everyone_has_everything(placement: Placement, nodes: &[NodeId]) -> Membership {
        placement.groups().map(|group| GroupMembers { group, nodes: nodes.to_vec() }).collect()
    }

    /// The groups and their nodes, as they are listed.
    pub fn iter(&self) -> impl Iterator<Item = &GroupMembers> {
        self.0.iter()
    }

    /// The nodes that have a segment of `group`; none if the group is not listed.
    #[must_use]
    pub fn nodes_of(&self, group: GroupId) -> &[NodeId] {
        self.0.iter().find(|members| members.group == group).map_or(&[], |members| &members.nodes)
    }

    /// Whether `node` has a segment of `group`.
    #[must_use]
    pub fn is_member(&self, node: NodeId, group: GroupId) -> bool {
        self.nodes_of(group).contains(&node)
    }

    /// The groups that have a segment on `node`.
    #[must_use]
    pub fn groups_on(&self, node: NodeId) -> GroupSet {
        self.0
            .iter()
            .filter(|members| members.nodes.contains(&node))
            .fold(GroupSet::EMPTY, |set, members| set.with(members.group))
    }

    /// The first membership of each group: the nodes as they are listed here, in this order. A group that has not six has none, and
    /// its members are fixed.
    #[must_use]
    pub fn first_memberships(&self) -> BTreeMap<GroupId, GroupMembership> {
        self.0.iter().filter_map(|members| Some((members.group, self.created(members.group).ok()?))).collect()
    }

    /// The membership that a group had when it was made: epoch 1, with the six nodes that it has here, in this order.
    ///
    /// # Errors
    /// If there are not six, or one is named twice.
    pub fn created(&self, group: GroupId) -> Result<GroupMembership, Contradiction> {
        let nodes = self.nodes_of(group);
        let Ok(set) = nodes.try_into() else {
            return Err(Contradiction(format!("group {group} has {} members, not six", nodes.len())));
        };
        GroupMembership::created(set).map_err(|error| Contradiction(format!("group {group}: {error}")))
    }

    /// Checks what holds in every volume: the groups exist and are listed once, and their nodes are known and
    /// named once in each.
    ///
    /// # Errors
    /// Names the first contradiction.
    pub fn validate(
        &self,
        placement: Placement,
        is_known: impl Fn(NodeId) -> bool,
    ) -> Result<(), Contradiction> {
        for (index, GroupMembers { group, nodes }) in self.0.iter().enumerate() {
            let count = placement.group_count();
            require!(group.0 < count, "group {group} is listed, but the volume has {count} groups");
            let again = self.0.iter().skip(index + 1).any(|other| other.group == *group);
            require!(!again, "group {group} is listed twice");
            for (position, node) in nodes.iter().enumerate() {
                require!(is_known(*node), "group {group} has node {node}, which is not among the peers");
                let again = nodes.iter().skip(position + 1).any(|other| other == node);
                require!(!again, "group {group} has node {node} twice");
            }
        }
        Ok(())
    }

    /// Checks what a writer needs beside [`Membership::validate`]: that every group of the volume is listed and has
    /// six nodes.
    ///
    /// # Errors
    /// Names the first group that is missing or of another size.
    pub fn require_quorum_sets(&self, placement: Placement) -> Result<(), Contradiction> {
        for group in placement.groups() {
            let count = self.nodes_of(group).len();
            require!(
                count == borealis_types::SEGMENTS_PER_GROUP,
                "group {group} has {count} members, not six"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let nodes: Vec<NodeId> = (1..=6).map(NodeId).collect();
        Membership::everyone_has_everything(Placement::new(2).expect("2 groups"), &nodes)
    }

    #[test]
    fn members_are_found_by_group_and_by_node() {
        let mut membership = membership();
        membership.0[1].nodes.retain(|node| *node != NodeId(3));
        assert_eq!(membership.nodes_of(GroupId(0)).len(), 6);
        assert_eq!(membership.nodes_of(GroupId(7)), []);
        assert!(membership.is_member(NodeId(3), GroupId(0)) && !membership.is_member(NodeId(3), GroupId(1)));
        assert_eq!(membership.groups_on(NodeId(3)), GroupSet::EMPTY.with(GroupId(0)));
        assert_eq!(membership.groups_on(NodeId(4)), GroupSet::EMPTY.with(GroupId(0)).with(GroupId(1)));
    }

    #[test]
    fn contradictions_are_named() {
        let placement = Placement::new(2).expect("2 groups");
        let refused = |expected: &str, break_it: &dyn Fn(&mut Membership)| {
            let mut membership = membership();
            break_it(&mut membership);
            let checked = membership
                .validate(placement, |node| (1..=6).contains(&node.0))
                .and_then(|()| membership.require_quorum_sets(placement));
            let message = checked.expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        };
        refused("group 0 is listed twice", &|m| m.0[1].group = GroupId(0));
        refused("group 9 is listed, but the volume has 2", &|m| m.0[1].group = GroupId(9));
        refused("not among the peers", &|m| m.0[1].nodes[0] = NodeId(7));
        refused("group 1 has node 2 twice", &|m| m.0[1].nodes[0] = NodeId(2));
        refused("group 1 has 5 members, not six", &|m| m.0[1].nodes.truncate(5));
        refused("group 1 has 0 members", &|m| m.0.truncate(1));
    }

    #[test]
    fn the_first_membership_of_a_group_is_its_six_nodes_as_they_are_listed() {
        let mut membership = membership();
        membership.0[0].nodes.reverse();
        membership.0[1].nodes.pop();
        let first = membership.first_memberships();
        assert_eq!(first.keys().collect::<Vec<_>>(), [&GroupId(0)], "five nodes choose no other members");
        let created = &first[&GroupId(0)];
        assert_eq!((created.epoch().0, created.sets()), (1, [[6, 5, 4, 3, 2, 1].map(NodeId)].as_slice()));
    }

    #[test]
    fn files_of_drivers_that_say_members_are_still_read() {
        let read: Membership = serde_json::from_str(r#"[{"group":0,"members":[1,2]}]"#).expect("read");
        let same: Membership = serde_json::from_str(r#"[{"group":0,"nodes":[1,2]}]"#).expect("read");
        assert_eq!(read, same);
        assert_eq!(serde_json::to_string(&read).expect("plain data"), r#"[{"group":0,"nodes":[1,2]}]"#);
    }
}
