//! What is known of the members of each group, and what nodes claim.

use std::collections::{BTreeMap, BTreeSet};

use borealis_quorum::membership::credible_membership;
use borealis_spec::NodeAddress;
use borealis_types::membership::{GroupMembership, MembershipState};
use borealis_types::{GroupId, MembershipEpoch, NodeId};
use borealis_wire::Whereabouts;

use super::AddressBook;

/// The memberships of a volume's groups as one caller of its nodes knows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memberships {
    /// Of each group the newest that is believed.
    groups: BTreeMap<GroupId, GroupMembership>,
    /// What members said last of what they store, until it is believed or they leave.
    claims: BTreeMap<GroupId, BTreeMap<NodeId, MembershipState>>,
    addresses: AddressBook,
}

impl Memberships {
    /// What is known before anyone is asked: a membership for each group that is of interest, and where nodes are. Claims
    /// about other groups are not listened to.
    #[must_use]
    pub fn new(
        groups: BTreeMap<GroupId, GroupMembership>,
        addresses: impl IntoIterator<Item = NodeAddress>,
    ) -> Memberships {
        Memberships { groups, claims: BTreeMap::new(), addresses: AddressBook::new(addresses) }
    }

    /// Takes memberships that were believed before, perhaps by another process: of each group the newer one counts, of two
    /// with one epoch the one known here. Returns the groups whose members are others now.
    pub fn adopt(&mut self, groups: &BTreeMap<GroupId, GroupMembership>) -> Vec<GroupId> {
        let mut changed = Vec::new();
        for (&group, membership) in groups {
            if self.groups.get(&group).is_some_and(|known| membership.epoch() > known.epoch()) {
                self.replace(group, membership.clone());
                changed.push(group);
            }
        }
        changed
    }

    /// Every group, with its newest membership.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<GroupId, GroupMembership> {
        &self.groups
    }

    /// The newest membership of a group; `None` if the group is not of interest.
    #[must_use]
    pub fn of(&self, group: GroupId) -> Option<&GroupMembership> {
        self.groups.get(&group)
    }

    /// For which memberships a request is made: what an introduction says.
    #[must_use]
    pub fn made_for(&self) -> Vec<(GroupId, MembershipEpoch)> {
        self.groups.iter().map(|(&group, membership)| (group, membership.epoch())).collect()
    }

    /// The members of all groups.
    #[must_use]
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.groups.values().flat_map(GroupMembership::members).collect()
    }

    /// Where nodes are to be found.
    #[must_use]
    pub fn addresses(&self) -> &AddressBook {
        &self.addresses
    }

    /// Adds addresses from before; see [`AddressBook::add`].
    pub fn add_addresses(&mut self, addresses: impl IntoIterator<Item = NodeAddress>) {
        self.addresses.add(addresses);
    }

    /// The likeliest address of every member, as far as one is known.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeAddress> {
        let first = |node| self.addresses.attempt(node, 0).cloned();
        self.members().into_iter().filter_map(first).collect()
    }

    /// A node said what it stores of the memberships of its groups, and where other nodes are. Returns the groups whose members
    /// are others now, in group order. What a node says of a group counts only if it is a member of it as it is known,
    /// or says so itself; the rule decides about the rest.
    pub fn take(
        &mut self,
        node: NodeId,
        states: &[(GroupId, MembershipState)],
        nodes: &[Whereabouts],
    ) -> Vec<GroupId> {
        for (group, state) in states {
            let Some(known) = self.groups.get(group) else { continue };
            let may_say = known.contains(node) || state.installed().contains(node);
            if may_say && state.installed().epoch() >= known.epoch() {
                self.claims.entry(*group).or_default().insert(node, state.clone());
            }
        }
        let mut wanted = self.members();
        wanted.extend(self.claimed());
        self.addresses.told(node, &wanted, nodes);
        let groups: BTreeSet<GroupId> = states.iter().map(|(group, _)| *group).collect();
        groups.into_iter().filter(|&group| self.believe(group)).collect()
    }

    /// Members that nodes claim, though that is not believed.
    #[must_use]
    pub fn claimed(&self) -> BTreeSet<NodeId> {
        let claims = self.claims.values().flat_map(BTreeMap::values);
        claims.flat_map(|state| state.installed().members()).collect()
    }

    /// Whether a node claims a newer membership, which is not believed. Asking others decides.
    #[must_use]
    pub fn has_newer_claims(&self) -> bool {
        self.claims.iter().any(|(group, claims)| {
            let known = self.groups.get(group).map(GroupMembership::epoch);
            claims.values().any(|state| Some(state.installed().epoch()) > known)
        })
    }

    fn believe(&mut self, group: GroupId) -> bool {
        let (known, claims) = (self.groups.get(&group), self.claims.get(&group));
        let newer = claims.and_then(|claims| credible_membership(known, claims));
        let has_newer = newer.is_some();
        if let Some(newer) = newer {
            self.replace(group, newer);
        }
        has_newer
    }

    fn replace(&mut self, group: GroupId, newer: GroupMembership) {
        if let Some(claims) = self.claims.get_mut(&group) {
            claims.retain(|node, state| newer.contains(*node) && state.installed().epoch() >= newer.epoch());
        }
        self.groups.insert(group, newer);
        let mut wanted = self.members();
        wanted.extend(self.claimed());
        self.addresses.retain(&wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::AvailabilityZone;
    use borealis_types::membership::{Accepted, Ballot, Replacement, Transition};

    const GROUP: GroupId = GroupId(0);

    fn first() -> GroupMembership {
        GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes")
    }

    fn replacing(old: u16, new: u16) -> Replacement {
        Replacement { old: NodeId(old), new: NodeId(new) }
    }

    fn second() -> GroupMembership {
        first().after(Transition::Begin(replacing(6, 7))).expect("6 is a member")
    }

    fn memberships() -> Memberships {
        let address = |node| NodeAddress {
            node: NodeId(node),
            zone: AvailabilityZone("az1".into()),
            address: format!("/s/{node}").parse().expect("a path"),
        };
        Memberships::new(BTreeMap::from([(GROUP, first())]), (1..=6).map(address))
    }

    fn says(memberships: &mut Memberships, node: u16, installed: &GroupMembership) -> Vec<GroupId> {
        let state = MembershipState::new(installed.clone());
        let at = |node: &NodeId| Whereabouts {
            node: *node,
            zone: AvailabilityZone("az3".into()),
            address: format!("/s/{node}"),
        };
        let nodes: Vec<Whereabouts> = installed.members().iter().map(at).collect();
        memberships.take(NodeId(node), &[(GROUP, state)], &nodes)
    }

    #[test]
    fn three_members_are_believed_and_say_where_the_new_one_is() {
        let mut memberships = memberships();
        assert_eq!(memberships.made_for(), [(GROUP, MembershipEpoch(1))]);
        assert!(
            says(&mut memberships, 1, &second()).is_empty()
                && says(&mut memberships, 2, &second()).is_empty()
        );
        assert!(memberships.has_newer_claims() && memberships.claimed().contains(&NodeId(7)));
        assert_eq!(memberships.of(GROUP), Some(&first()));
        assert_eq!(says(&mut memberships, 2, &second()), [], "one node has one word");
        assert_eq!(says(&mut memberships, 7, &second()), [GROUP]);
        assert_eq!(memberships.of(GROUP), Some(&second()));
        assert!(!memberships.has_newer_claims());
        let nodes: Vec<u16> = memberships.nodes().iter().map(|address| address.node.0).collect();
        assert_eq!(nodes, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(memberships.made_for(), [(GROUP, MembershipEpoch(2))]);
    }

    #[test]
    fn two_that_have_it_and_four_that_accepted_it_are_believed() {
        let mut memberships = memberships();
        let mut accepting = MembershipState::new(first());
        let ballot = Ballot { counter: 1, proposer: 9 };
        accepting.accept(&Accepted { ballot, membership: second() }).expect("the next step");
        for node in [3, 4] {
            assert!(memberships.take(NodeId(node), &[(GROUP, accepting.clone())], &[]).is_empty());
        }
        assert!(!memberships.has_newer_claims(), "what is accepted need not have been chosen");
        assert!(says(&mut memberships, 1, &second()).is_empty());
        assert_eq!(says(&mut memberships, 2, &second()), [GROUP]);
    }

    #[test]
    fn whoever_is_no_member_is_not_heard_and_nobody_is_heard_of_other_groups() {
        let mut memberships = memberships();
        for node in 20..40 {
            assert!(says(&mut memberships, node, &second()).is_empty());
        }
        assert!(memberships.claims.values().all(BTreeMap::is_empty) && !memberships.has_newer_claims());
        let state = MembershipState::new(second());
        for node in 1..=6 {
            assert!(memberships.take(NodeId(node), &[(GroupId(5), state.clone())], &[]).is_empty());
        }
        assert_eq!(memberships.groups().len(), 1);
    }

    #[test]
    fn a_newer_hint_is_adopted_and_an_older_one_is_not() {
        let mut memberships = memberships();
        let other = GroupMembership::created([1, 2, 3, 4, 5, 9].map(NodeId)).expect("six nodes");
        assert!(memberships.adopt(&BTreeMap::from([(GROUP, other)])).is_empty(), "configuration counts");
        assert_eq!(memberships.adopt(&BTreeMap::from([(GROUP, second()), (GroupId(8), second())])), [GROUP]);
        assert!(memberships.adopt(&BTreeMap::from([(GROUP, first())])).is_empty());
        assert_eq!(memberships.of(GROUP), Some(&second()));
        assert_eq!(memberships.of(GroupId(8)), None);
    }

    #[test]
    fn several_steps_are_believed_at_once() {
        let mut memberships = memberships();
        let third = second().after(Transition::Finish(replacing(6, 7))).expect("it is under way");
        for node in [1, 2] {
            assert!(says(&mut memberships, node, &third).is_empty());
        }
        assert!(says(&mut memberships, 6, &second()).is_empty(), "it left, and knows the step before");
        assert_eq!(says(&mut memberships, 3, &third), [GROUP]);
        assert!(!memberships.members().contains(&NodeId(6)));
    }
}
