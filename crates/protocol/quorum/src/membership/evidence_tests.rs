//! Whose word makes a membership credible.

use std::collections::BTreeMap;

use borealis_types::NodeId;

use super::{Accepted, Ballot, MembershipState};
use super::{GroupMembership, Replacement, Transition, credible_membership};

fn created() -> GroupMembership {
    GroupMembership::created([0, 1, 2, 3, 4, 5].map(NodeId)).expect("six different nodes")
}

fn begun() -> GroupMembership {
    let replacement = Replacement { old: NodeId(5), new: NodeId(6) };
    created().after(Transition::Begin(replacement)).expect("node 6 is new")
}

fn installed(membership: &GroupMembership) -> MembershipState {
    MembershipState::new(membership.clone())
}

fn accepted(membership: &GroupMembership) -> MembershipState {
    let mut state = installed(&created());
    let ballot = Ballot { counter: 1, proposer: 1 };
    state.accept(&Accepted { ballot, membership: membership.clone() }).expect("it follows");
    state
}

fn credible(claims: &[(u16, MembershipState)]) -> Option<GroupMembership> {
    let claims: BTreeMap<NodeId, MembershipState> =
        claims.iter().map(|(node, state)| (NodeId(*node), state.clone())).collect();
    credible_membership(Some(&created()), &claims)
}

#[test]
fn three_members_that_have_it_are_enough() {
    let by =
        |nodes: &[u16]| credible(&nodes.iter().map(|&node| (node, installed(&begun()))).collect::<Vec<_>>());
    assert_eq!(by(&[0, 1, 2]), Some(begun()));
    // A newcomer is a member of it.
    assert_eq!(by(&[0, 1, 6]), Some(begun()));
    assert_eq!(by(&[0, 1]), None);
    // A stranger has no say.
    assert_eq!(by(&[0, 1, 7]), None);
}

#[test]
fn two_that_have_it_are_enough_when_a_write_quorum_accepted_it() {
    let (has, voted, older) = (installed(&begun()), accepted(&begun()), installed(&created()));
    let claims = |third: &MembershipState, fourth: &MembershipState| {
        credible(&[(0, has.clone()), (1, has.clone()), (2, third.clone()), (3, fourth.clone())])
    };
    assert_eq!(claims(&voted, &voted), Some(begun()));
    assert_eq!(claims(&voted, &older), None);
    // One that claims to have it could be lying about all that the others merely accepted.
    assert_eq!(
        credible(&[(0, has.clone()), (1, voted.clone()), (2, voted.clone()), (3, voted.clone()), (4, voted)]),
        None
    );
}

#[test]
fn what_two_liars_made_up_is_not_believed_and_older_ones_are_not_news() {
    let [old, new] = [0, 9].map(NodeId);
    let made_up = created().after(Transition::Begin(Replacement { old, new })).expect("node 9 is new");
    assert_eq!(credible(&[(0, installed(&made_up)), (1, installed(&made_up))]), None);
    let all_older: Vec<_> = (0..6).map(|node| (node, installed(&created()))).collect();
    assert_eq!(credible(&all_older), None);
}

#[test]
fn a_node_that_knows_no_membership_goes_by_three_of_its_members() {
    let claims = |nodes: &[u16]| -> BTreeMap<NodeId, MembershipState> {
        nodes.iter().map(|&node| (NodeId(node), installed(&begun()))).collect()
    };
    assert_eq!(credible_membership(None, &claims(&[0, 1, 2])), Some(begun()));
    assert_eq!(credible_membership(None, &claims(&[0, 1, 8, 9])), None);
}
