//! What peers say that they store of groups' memberships. Pure: the rule of `borealis_quorum` decides what of it is believed.

use std::collections::{BTreeMap, BTreeSet};

use borealis_quorum::membership::credible_membership;
use borealis_types::membership::{GroupMembership, MembershipState};
use borealis_types::{GroupId, MembershipEpoch, NodeId};

/// The last word of each peer about each group.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<GroupId, BTreeMap<NodeId, MembershipState>>);

impl Claims {
    pub(super) fn note(&mut self, peer: NodeId, group: GroupId, state: MembershipState) {
        self.0.entry(group).or_default().insert(peer, state);
    }

    /// What a peer said last of a group that it acts on.
    pub(super) fn epoch_of(&self, group: GroupId, peer: NodeId) -> Option<MembershipEpoch> {
        Some(self.0.get(&group)?.get(&peer)?.installed().epoch())
    }

    /// Whether somebody says that `own` has to do with a newer membership of the group than is known: of one that is known
    /// at all any, of another one in which it is a member.
    pub(super) fn has_newer(&self, own: NodeId, group: GroupId, known: Option<MembershipEpoch>) -> bool {
        let is_news = |state: &MembershipState| match known {
            Some(known) => state.installed().epoch() > known,
            None => state.installed().contains(own),
        };
        self.0.get(&group).is_some_and(|claims| claims.values().any(is_news))
    }

    /// The groups that somebody said something of.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.0.keys().copied()
    }

    /// The membership that is believed to have been chosen after the one stored here, and who has it installed.
    pub(super) fn believed(
        &self,
        own: NodeId,
        group: GroupId,
        stored: Option<&MembershipState>,
    ) -> Option<(GroupMembership, Vec<NodeId>)> {
        let mut claims = self.0.get(&group)?.clone();
        claims.extend(stored.map(|stored| (own, stored.clone())));
        let newer = credible_membership(stored.map(MembershipState::installed), &claims)?;
        // Of a group that it never had to do with, a node wants to know only when it is a member.
        if stored.is_none() && !newer.contains(own) {
            return None;
        }
        // Anyone may say it; those who would know are its members.
        let knows = |(node, state): &(&NodeId, &MembershipState)| {
            newer.contains(**node) && *state.installed() == newer
        };
        let said = claims.iter().filter(knows).map(|(node, _)| *node).collect();
        Some((newer, said))
    }

    /// Every node that is a member as somebody says.
    pub(super) fn members(&self) -> BTreeSet<NodeId> {
        let states = self.0.values().flat_map(BTreeMap::values);
        states.flat_map(|state| state.installed().members()).collect()
    }

    /// Forgets what is of nobody that is asked any more.
    pub(super) fn keep(&mut self, is_asked: impl Fn(NodeId) -> bool) {
        self.0.values_mut().for_each(|claims| claims.retain(|peer, _| is_asked(*peer)));
        self.0.retain(|_, claims| !claims.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::membership::{Replacement, Transition};

    const GROUP: GroupId = GroupId(3);

    /// The first membership, and the one with which node 9 begins to take the place of node 1.
    fn memberships() -> [GroupMembership; 2] {
        let first = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).unwrap();
        let replacement = Replacement { old: NodeId(1), new: NodeId(9) };
        let second = first.after(Transition::Begin(replacement)).unwrap();
        [first, second]
    }

    #[test]
    fn a_node_that_knew_nothing_believes_three_that_it_is_a_member() {
        let [_, second] = memberships();
        let mut claims = Claims::default();
        for peer in [2, 3] {
            claims.note(NodeId(peer), GROUP, MembershipState::new(second.clone()));
            assert!(claims.has_newer(NodeId(9), GROUP, None));
            assert_eq!(claims.believed(NodeId(9), GROUP, None), None, "{peer}");
        }
        claims.note(NodeId(20), GROUP, MembershipState::new(second.clone()));
        assert_eq!(claims.believed(NodeId(9), GROUP, None), None, "a stranger's word");
        claims.note(NodeId(4), GROUP, MembershipState::new(second.clone()));
        let (believed, said) = claims.believed(NodeId(9), GROUP, None).unwrap();
        assert_eq!((believed, said), (second, [2, 3, 4].map(NodeId).to_vec()));
        assert_eq!(claims.believed(NodeId(8), GROUP, None), None, "it is no member");
        assert!(!claims.has_newer(NodeId(8), GROUP, None));
    }

    #[test]
    fn two_that_act_on_it_are_enough_with_four_that_accepted_it() {
        let [first, second] = memberships();
        let mut claims = Claims::default();
        for peer in [2, 3] {
            claims.note(NodeId(peer), GROUP, MembershipState::new(second.clone()));
        }
        let stored = MembershipState::new(first.clone());
        assert_eq!(claims.believed(NodeId(6), GROUP, Some(&stored)), None);
        assert!(claims.has_newer(NodeId(6), GROUP, Some(first.epoch())));
        let ballot = borealis_types::membership::Ballot { counter: 1, proposer: 7 };
        for peer in [4, 5] {
            let mut state = stored.clone();
            let accepted = borealis_types::membership::Accepted { ballot, membership: second.clone() };
            state.accept(&accepted).unwrap();
            claims.note(NodeId(peer), GROUP, state);
        }
        assert_eq!(claims.believed(NodeId(6), GROUP, Some(&stored)).unwrap().0, second);
        claims.keep(|peer| peer == NodeId(2));
        assert_eq!(claims.believed(NodeId(6), GROUP, Some(&stored)), None);
        assert_eq!(claims.epoch_of(GROUP, NodeId(2)), Some(second.epoch()));
        assert_eq!(claims.epoch_of(GROUP, NodeId(3)), None);
    }
}
