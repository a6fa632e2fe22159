//! A fleet under the controller, from a seed: nodes die and come back, lose their disks, zones are cut off, controllers die at
//! any step. In the end it is whole again, and on the way no limit was broken and nothing left a zone that is lost.
//!
//! Time, network and segments are modelled as simply as the controller sees them. What segments do with proposals is proven
//! where they are, in the simulator of the protocol.

mod common;
mod world;

use borealis_controller::catalog::records::{NodeState, Settings};
use borealis_controller::reconcile::Step;
use borealis_quorum::membership::Transition;
use borealis_types::NodeId;
use common::{group, zone};
use world::{Faults, World};

const SEEDS: u64 = 100;
/// What the histories must have in them, or they show nothing.
const EVERYTHING: [&str; 17] = [
    "added",
    "adopted",
    "begun",
    "cut",
    "finished",
    "hidden",
    "killed",
    "moves ended",
    "refused",
    "retired",
    "settled",
    "started",
    "steps",
    "taken back",
    "taken over",
    "two at once",
    "wiped",
];

#[test]
fn a_fleet_of_any_size_is_whole_again_after_everything_that_happened_to_it() {
    let mut totals = std::collections::BTreeMap::new();
    for seed in 0..SEEDS {
        let mut world = World::from_seed(seed);
        world.run(400, Faults::All);
        world.recover();
        for (what, count) in world.counts {
            *totals.entry(what).or_insert(0) += count;
        }
    }
    assert_eq!(totals.keys().copied().collect::<Vec<_>>(), EVERYTHING, "{totals:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..10 {
        let history = |_| {
            let mut world = World::from_seed(seed);
            world.run(200, Faults::All);
            world.history
        };
        let (first, second) = (history(0), history(1));
        assert!(!first.is_empty());
        assert_eq!(first, second);
    }
}

/// Two nodes of a fleet are lost; the controller dies after every possible number of steps, and another one takes over.
#[test]
fn whenever_the_controller_dies_another_one_comes_to_the_same_end() {
    let lose_two = |dies_after: Option<usize>| {
        let mut world = World::new(1, 9, 4, Settings::default());
        world.run(5, Faults::None);
        world.kill(NodeId(1), true);
        world.kill(NodeId(5), false);
        world.controller_dies_after = dies_after;
        world.run(400, Faults::None);
        world.assert_whole("two nodes were lost");
        let memberships: Vec<_> =
            (0..4).map(|number| world.membership(group(number)).base().to_vec()).collect();
        (memberships, world.steps())
    };
    let (expected, steps) = lose_two(None);
    assert_eq!(steps, 12, "each of the two is a member of three groups");
    for dies_after in 0..steps {
        let (memberships, _) = lose_two(Some(dies_after));
        assert_eq!(memberships, expected, "the controller died after {dies_after} steps");
    }
}

#[test]
fn two_controllers_that_act_at_once_disturb_each_other_and_nothing_else() {
    for seed in 0..SEEDS / 4 {
        let mut world = World::from_seed(seed);
        world.everyone_acts = true;
        world.run(300, Faults::All);
        world.recover();
    }
}

#[test]
fn a_lost_zone_keeps_its_segments_however_long_it_takes() {
    let mut world = World::new(2, 12, 8, Settings::default());
    world.run(5, Faults::None);
    world.cut(zone(2));
    world.run(1_000, Faults::None);
    assert_eq!(world.steps(), 0, "{:?}", world.history);
    world.mend(&zone(2));
    world.run(1_000, Faults::None);
    world.assert_whole("the zone is back");
    assert_eq!(world.steps(), 0);
}

#[test]
fn a_cluster_of_six_starts_what_it_needs_until_no_first_node_is_left() {
    let mut world = World::new(3, 6, 4, Settings::local());
    for node in 1..=6 {
        world.run(5, Faults::None);
        world.kill(NodeId(node), true);
        world.run(200, Faults::None);
        world.assert_whole("one node was lost with its folder");
    }
    for number in 0..4 {
        let members = world.membership(group(number)).members();
        assert!(members.iter().all(|node| node.0 > 6), "{members:?}");
    }
    assert_eq!(world.active_nodes(), 6, "as many as before: {:?}", world.history);
}

#[test]
fn a_node_that_is_back_before_its_successor_is_complete_stays() {
    let mut world = World::new(4, 9, 1, Settings { replace_after_ms: 20_000, ..Settings::default() });
    world.run(5, Faults::None);
    let before = world.membership(group(0)).base().to_vec();
    world.kill(NodeId(1), false);
    world.run(23, Faults::None);
    assert_eq!(world.membership(group(0)).replacements().len(), 1);
    world.start(NodeId(1));
    world.run(60, Faults::None);
    world.assert_whole("the node is back");
    assert_eq!(world.membership(group(0)).base().to_vec(), before);
    assert!(world.history.iter().any(|line| line.contains("keep node 1")), "{:?}", world.history);
}

#[test]
fn nodes_are_drained_and_segments_moved_by_the_same_steps() {
    let mut world = World::new(5, 12, 8, Settings::default());
    world.run(5, Faults::None);
    world.set_state(NodeId(1), NodeState::Draining);
    world.set_state(NodeId(2), NodeState::Draining);
    world.run(600, Faults::None);
    world.assert_whole("two nodes were drained");
    for number in 0..8 {
        let members = world.membership(group(number)).members();
        assert!(!members.contains(&NodeId(1)) && !members.contains(&NodeId(2)), "{members:?}");
    }
    assert_eq!(world.active_nodes(), 10);
    let moved = world.membership(group(0)).base()[1];
    let to = world.spare_of(group(0), moved);
    world.want_move(group(0), moved, to);
    world.run(200, Faults::None);
    world.assert_whole("a segment was moved");
    assert!(world.membership(group(0)).contains(to) && !world.membership(group(0)).contains(moved));
}

/// What makes the checks of the world worth something: each mistake in a plan is found.
#[test]
fn the_world_notices_wrong_plans() {
    let noticed = |mistake: fn(&Step) -> Option<Step>| {
        let found = (0..20).any(|seed| {
            std::panic::catch_unwind(|| {
                let mut world = World::from_seed(seed);
                world.mistake = Some(mistake);
                world.run(600, Faults::All);
                world.recover();
            })
            .is_err()
        });
        assert!(found, "a mistake went unnoticed");
    };
    // Another zone; nothing is ever finished; whatever is begun is taken back; chosen memberships are left where they are.
    noticed(|step| match step {
        Step::Change { group, after, transition: Transition::Begin(change) } => {
            let mut change = *change;
            change.new = NodeId(change.new.0 + 1);
            Some(Step::Change { group: *group, after: *after, transition: Transition::Begin(change) })
        }
        _ => Some(step.clone()),
    });
    noticed(|step| match step {
        Step::Change { transition: Transition::Finish(_), .. } => None,
        _ => Some(step.clone()),
    });
    noticed(|step| match step {
        Step::Change { group, after, transition: Transition::Finish(change) } => {
            Some(Step::Change { group: *group, after: *after, transition: Transition::TakeBack(*change) })
        }
        _ => Some(step.clone()),
    });
    noticed(|step| match step {
        Step::Settle(_) => None,
        _ => Some(step.clone()),
    });
}
