//! The arithmetic of memberships, exhaustively: every state with up to two replacements under way, every step, every
//! subset of the eight nodes that are concerned.

use borealis_types::{MembershipEpoch, NodeId, SEGMENTS_PER_GROUP, WRITE_QUORUM};

use super::{GroupMembership, InvalidMembership, InvalidTransition, Replacement, Transition};
use crate::quorum_set::QuorumSets;

/// Six members, and the two that come.
const NODES: u16 = 8;

fn created() -> GroupMembership {
    GroupMembership::created([0, 1, 2, 3, 4, 5].map(NodeId)).expect("six different nodes")
}

fn replacement(old: u16, new: u16) -> Replacement {
    Replacement { old: NodeId(old), new: NodeId(new) }
}

/// With no replacement under way, with one of each member, with two of each two.
fn states() -> Vec<GroupMembership> {
    let begin = |membership: &GroupMembership, old, new| {
        membership
            .after(Transition::Begin(replacement(old, new)))
            .expect("the old one is a member, the new one is not")
    };
    let mut states = vec![created()];
    for first in 0..6 {
        let one = begin(&created(), first, 6);
        states.extend((0..6).filter(|&second| second != first).map(|second| begin(&one, second, 7)));
        states.push(one);
    }
    states
}

/// Every step that a state allows.
fn transitions(from: &GroupMembership) -> Vec<Transition> {
    let begun = (0..6).flat_map(|old| [6, 7].map(|new| Transition::Begin(replacement(old, new))));
    let ended =
        from.replacements().into_iter().flat_map(|r| [Transition::Finish(r), Transition::TakeBack(r)]);
    begun.chain(ended).filter(|&transition| from.after(transition).is_ok()).collect()
}

/// The subsets that are write quorums.
fn write_quorums(membership: &GroupMembership) -> Vec<u32> {
    let sets = QuorumSets::of(membership);
    (0..1 << NODES).filter(|mask| sets.is_write_quorum(|node| mask & 1 << node.0 != 0)).collect()
}

fn mask(set: &[NodeId]) -> u32 {
    set.iter().fold(0, |mask, node| mask | 1 << node.0)
}

#[test]
fn successive_write_quorums_meet_in_two_members_of_a_common_set() {
    let mut steps = 0;
    for from in states() {
        for transition in transitions(&from) {
            let to = from.after(transition).expect("only what is allowed is listed");
            let common: Vec<u32> =
                from.sets().iter().filter(|set| to.sets().contains(set)).map(|set| mask(set)).collect();
            assert!(!common.is_empty(), "{from:?} {transition:?}");
            for a in write_quorums(&from) {
                for b in write_quorums(&to) {
                    let meet = common.iter().all(|set| (a & b & set).count_ones() >= 2);
                    assert!(meet, "{a:08b} of {from:?} and {b:08b} of {to:?}");
                }
            }
            steps += 1;
        }
    }
    // From one set 12, from two (six states) 5 and 2 each, from four (thirty states) 4 each.
    assert_eq!(steps, 12 + 6 * (5 + 2) + 30 * 4);
}

#[test]
fn a_write_quorum_with_the_next_membership_leaves_none_to_the_one_before() {
    for from in states() {
        let sets = QuorumSets::of(&from);
        for transition in transitions(&from) {
            let to = from.after(transition).expect("only what is allowed is listed");
            for refuse in write_quorums(&to) {
                let is_left = |node: NodeId| refuse & 1 << node.0 == 0;
                assert!(!sets.is_write_quorum(is_left), "{refuse:08b} of {to:?} leaves a quorum of {from:?}");
            }
        }
    }
}

#[test]
fn quorums_two_steps_apart_may_meet_in_one_member_so_a_step_carries_over_what_was_promised() {
    let one = replacement(5, 6);
    let during = created().after(Transition::Begin(one)).expect("node 6 is new");
    let after = during.after(Transition::Finish(one)).expect("it is under way");
    let (a, b) = (0b0011_1001_u32, 0b0100_1110_u32);
    assert!(write_quorums(&created()).contains(&a) && write_quorums(&after).contains(&b));
    assert_eq!((a & b).count_ones(), 1);
}

#[test]
fn the_base_stays_until_a_replacement_is_finished() {
    for from in states() {
        for transition in transitions(&from) {
            let to = from.after(transition).expect("only what is allowed is listed");
            assert!(
                from.sets().contains(to.base()),
                "{transition:?} makes a base that was no set of {from:?}"
            );
            if !matches!(transition, Transition::Finish(_)) {
                assert_eq!(from.base(), to.base());
            }
        }
    }
}

#[test]
fn a_step_ends_a_replacement_or_begins_one() {
    for from in states() {
        for transition in transitions(&from) {
            let to = from.after(transition).expect("only what is allowed is listed");
            assert_eq!(to.epoch(), MembershipEpoch(from.epoch().0 + 1));
            assert_eq!(from.transition_to(&to), Some(transition));
            assert_eq!(GroupMembership::new(to.epoch(), to.sets().to_vec()), Ok(to.clone()));
            let changed = transition.replacement();
            let (before, after) = (from.is_under_way(changed), to.is_under_way(changed));
            assert_eq!((before, after), (!after, matches!(transition, Transition::Begin(_))));
            let others = |m: &GroupMembership| -> Vec<_> {
                m.replacements().into_iter().filter(|r| *r != changed).collect()
            };
            assert_eq!(others(&from), others(&to));
        }
    }
}

/// A member that is gone for good, and is being replaced, costs what it cost before: the change takes nothing away.
#[test]
fn losses_that_leave_writes_before_a_replacement_leave_them_while_it_goes_on() {
    for state in states() {
        let gone = state.replacements().iter().fold(0u32, |mask, r| mask | 1 << r.old.0);
        let newcomers = state.replacements().iter().fold(0u32, |mask, r| mask | 1 << r.new.0);
        let (sets, before) = (QuorumSets::of(&state), QuorumSets::of(&created()));
        for lost in 0..1u32 << 6 {
            // The old ones are gone, and the new ones count for nothing yet.
            let left = 0b11_1111 & !lost & !gone;
            let has = |node: NodeId| left & 1 << node.0 != 0;
            assert_eq!(sets.is_write_quorum(has), before.is_write_quorum(has), "{left:06b} of {state:?}");
            // Once the new ones are complete, as many may be lost as of six.
            let complete = left | newcomers;
            let has_complete = |node: NodeId| complete & 1 << node.0 != 0;
            let newest = state.sets().last().expect("there is a set");
            let of_newest = newest.iter().filter(|&&node| has_complete(node)).count();
            let finished = QuorumSets::of(&replaced(&state)).is_write_quorum(has_complete);
            assert_eq!(finished, of_newest >= WRITE_QUORUM);
        }
    }
}

/// The membership after all its replacements are finished.
fn replaced(state: &GroupMembership) -> GroupMembership {
    state.replacements().into_iter().fold(state.clone(), |membership, replacement| {
        membership.after(Transition::Finish(replacement)).expect("it is under way")
    })
}

#[test]
fn a_zone_lost_leaves_writes_and_one_more_reads_in_every_state() {
    // Two members per zone: 0 and 1, 2 and 3, 4 and 5; whoever replaces one is in the zone of the old one.
    for state in states() {
        let zone_of = |node: NodeId| {
            let replaced = state.replacements().into_iter().find(|r| r.new == node).map(|r| r.old);
            replaced.unwrap_or(node).0 / 2
        };
        let sets = QuorumSets::of(&state);
        for zone in 0..3 {
            assert!(sets.is_write_quorum(|node| zone_of(node) != zone), "{state:?} without zone {zone}");
            for extra in 0..NODES {
                let is_left = |node: NodeId| zone_of(node) != zone && node != NodeId(extra);
                assert!(sets.is_read_quorum(is_left), "{state:?} without zone {zone} and node {extra}");
            }
        }
    }
}

#[test]
fn what_is_no_membership_is_refused() {
    let set = [0, 1, 2, 3, 4, 5].map(NodeId);
    let other = [0, 1, 2, 3, 4, 6].map(NodeId);
    let third = [0, 1, 2, 3, 7, 6].map(NodeId);
    let new = |epoch: u64, sets: &[[NodeId; SEGMENTS_PER_GROUP]]| {
        GroupMembership::new(MembershipEpoch(epoch), sets.to_vec())
    };
    assert_eq!(new(0, &[set]), Err(InvalidMembership::Epoch));
    assert_eq!(new(1, &[]), Err(InvalidMembership::Count(0)));
    assert_eq!(new(1, &[set, other, third]), Err(InvalidMembership::Count(3)));
    assert_eq!(new(1, &[set, third]), Err(InvalidMembership::Combinations));
    assert_eq!(new(1, &[set, set]), Err(InvalidMembership::Combinations));
    assert_eq!(new(1, &[set, other, third, set]), Err(InvalidMembership::Combinations));
    let twice = [0, 1, 2, 3, 4, 4].map(NodeId);
    assert!(matches!(new(1, &[twice]), Err(InvalidMembership::Repeated(_))));
    let begin =
        |membership: &GroupMembership, old, new| membership.after(Transition::Begin(replacement(old, new)));
    assert_eq!(begin(&created(), 6, 7), Err(InvalidTransition::NotMember(NodeId(6))));
    assert_eq!(begin(&created(), 0, 5), Err(InvalidTransition::MemberAlready(NodeId(5))));
    let one = begin(&created(), 0, 6).expect("node 6 is new");
    // A newcomer that dies is taken back, not replaced: it is not a member of every set.
    assert_eq!(begin(&one, 6, 7), Err(InvalidTransition::NotMember(NodeId(6))));
    let two = begin(&one, 1, 7).expect("node 7 is new");
    assert_eq!(begin(&two, 2, 8), Err(InvalidTransition::TooMany));
    let not_under_way = replacement(2, 6);
    assert_eq!(
        two.after(Transition::Finish(not_under_way)),
        Err(InvalidTransition::NotUnderWay(not_under_way))
    );
    assert_eq!(created().transition_to(&two), None);
}
