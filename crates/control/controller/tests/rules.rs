//! The rules of healing, one by one.

mod common;

use borealis_controller::catalog::records::{MoveRecord, NodeState, Settings};
use borealis_controller::fleet::{MemberProgress, Observer};
use borealis_controller::reconcile::Step;
use borealis_quorum::membership::Transition;
use borealis_types::NodeId;
use common::{SEGMENT_BYTES, Scene, WRITER, group, replacement, zone};

const LONG_MS: u64 = 61_000;

fn begin(old: u16, new: u16) -> Transition {
    Transition::Begin(replacement(old, new))
}

#[test]
fn a_healthy_fleet_is_left_alone() {
    let plan = Scene::new(9, 4).plan();
    assert_eq!((plan.decisions.len(), plan.remarks.len()), (0, 0), "{plan:?}");
}

#[test]
fn a_node_that_several_have_missed_for_long_is_replaced_in_its_zone() {
    let mut scene = Scene::new(9, 2);
    scene.silence(1, 7_000);
    assert_eq!(scene.changes(), [], "it may come back");
    assert!(
        scene.remarks(&["node 1 in az1", "not been heard for 7.0 s", "replaced after 60.0 s"]),
        "{:?}",
        scene.plan()
    );
    scene.silence(1, LONG_MS);
    assert_eq!(scene.changes(), [(0, begin(1, 7)), (1, begin(1, 7))]);
    let said = scene.plan().decisions[0].to_string();
    assert!(said.contains("replace node 1 by node 7, because node 1 has not been heard for 61.0 s by any of the 10 that know it"), "{said}");
}

#[test]
fn one_observer_alone_replaces_nobody() {
    let mut scene = Scene::new(9, 1);
    scene.observation(1).heard_ms_ago.insert(Observer::Controller, LONG_MS);
    scene.observation(1).answer = None;
    assert_eq!(scene.changes(), []);
    assert!(scene.remarks(&["node 1", "does not answer the controller, but others hear it", "not replaced"]));
    // All but one peer: that one hears it, so it lives.
    scene.silence(1, LONG_MS);
    scene.observation(1).heard_ms_ago.insert(Observer::Peer(NodeId(5)), 100);
    assert_eq!(scene.changes(), []);
    scene.observation(1).heard_ms_ago = [(WRITER, LONG_MS)].into();
    assert_eq!(scene.changes(), [], "nobody but the writer says so");
    scene.observation(1).heard_ms_ago.insert(Observer::Controller, LONG_MS);
    assert_eq!(scene.changes(), [(0, begin(1, 7))]);
}

#[test]
fn a_node_that_only_the_controller_hears_is_of_no_use_to_its_groups() {
    let mut scene = Scene::new(9, 1);
    scene.silence(1, LONG_MS);
    scene.observation(1).heard_ms_ago.insert(Observer::Controller, 0);
    assert_eq!(scene.changes(), [(0, begin(1, 7))]);
}

#[test]
fn a_node_that_says_it_is_broken_is_replaced_at_once() {
    let mut scene = Scene::new(9, 1);
    scene.breaks(2);
    assert_eq!(scene.changes(), [(0, begin(2, 8))]);
    let mut scene = Scene::new(9, 1);
    scene.silence(2, 100);
    scene.observation(2).lost = Some("its folder is gone".to_owned());
    assert_eq!(scene.changes(), [(0, begin(2, 8))]);
    assert!(scene.plan().decisions[0].because.contains("its folder is gone"));
    let mut scene = Scene::new(9, 1);
    scene.observation(2).answer.as_mut().expect("it answers").incarnation = "second".to_owned();
    scene.seen(0).members.remove(&NodeId(2));
    assert_eq!(
        scene.changes(),
        [(0, begin(2, 8))],
        "what came back under its number does not know what it acknowledged"
    );
}

#[test]
fn nothing_lost_is_replaced_where_nobody_wants_that_unless_its_node_is_emptied() {
    let mut scene = Scene::new(9, 1);
    scene.fleet.settings = Settings { replace_after_ms: 0, starts_nodes: true, ..scene.fleet.settings };
    scene.breaks(3);
    scene.silence(2, 1 << 40);
    assert_eq!(scene.steps(), []);
    assert!(scene.remarks(&["group 0", "node 3 is broken", "`--replace-after` is 0"]));
    assert!(scene.remarks(&["node 2", "`--replace-after` is 0"]));
    scene.set_state(3, NodeState::Draining);
    assert_eq!(scene.changes(), [(0, begin(3, 9))]);
}

#[test]
fn nothing_is_moved_out_of_a_lost_zone() {
    let mut scene = Scene::new(12, 3);
    for node in [1, 4, 7, 10] {
        scene.silence(node, LONG_MS);
    }
    assert_eq!(scene.steps(), []);
    assert!(scene.remarks(&["zone az1 is lost", "Nothing is moved out of it"]));
    // One of its nodes is heard: the zone is there, and its other nodes are what is gone.
    let mut scene = Scene::new(12, 1);
    for node in [1, 4, 7] {
        scene.silence(node, LONG_MS);
    }
    assert_eq!(scene.changes(), [(0, begin(1, 10))]);
}

#[test]
fn a_lost_zone_starts_no_processes_unless_its_host_says_what_is_lost() {
    let mut scene = Scene::new(6, 1);
    scene.fleet.settings.starts_nodes = true;
    for node in [1, 4] {
        scene.silence(node, LONG_MS);
    }
    assert_eq!(scene.steps(), []);
    for node in [1, 4] {
        scene.observation(node).lost = Some("its folder is gone".to_owned());
    }
    assert_eq!(scene.steps(), [Step::StartNode(zone(1)), Step::StartNode(zone(1))]);
}

#[test]
fn a_zone_and_one_more_is_repaired_as_soon_as_four_are_there() {
    let mut scene = Scene::new(9, 1);
    for node in [1, 4, 7] {
        scene.silence(node, LONG_MS);
    }
    scene.silence(2, LONG_MS);
    assert_eq!(scene.changes(), [], "three cannot choose a membership");
    assert!(scene.remarks(&["only 3 of its members answer", "borealis node replace"]));
    let mut scene = Scene::new(9, 1);
    for node in [1, 7] {
        scene.silence(node, LONG_MS);
    }
    scene.silence(2, LONG_MS);
    assert_eq!(scene.changes(), [(0, begin(2, 8))], "az1 has nobody left who could take it, az2 has");
}

#[test]
fn two_failures_at_once_do_not_wait_for_each_other() {
    let mut scene = Scene::new(9, 1);
    scene.breaks(1);
    scene.breaks(2);
    assert_eq!(scene.changes(), [(0, begin(1, 7))]);
    scene.begin(0, 1, 7);
    scene.breaks_again(&[1, 2]);
    assert_eq!(scene.changes(), [(0, begin(2, 8))], "one step a round, and the second beside the first");
    scene.begin(0, 2, 8);
    scene.progress(0, 7, 41, 100);
    scene.breaks_again(&[1, 2]);
    assert_eq!(scene.changes(), []);
    assert!(scene.remarks(&["node 8 takes the place of node 2", "41 % of 100 MiB"]));
}

#[test]
fn a_third_failure_of_a_group_waits_for_the_first_two() {
    let mut scene = Scene::new(9, 1);
    scene.begin(0, 1, 7);
    scene.begin(0, 2, 8);
    scene.progress(0, 7, 41, 100);
    // The first two are back and catch up as well, or the other three could not change anything.
    scene.progress(0, 1, 1, 2);
    scene.progress(0, 2, 1, 2);
    scene.silence(3, LONG_MS);
    assert_eq!(scene.changes(), []);
    assert!(scene.remarks(&["node 3", "it waits", "replaced already"]), "{:?}", scene.plan());
}

/// What ends a change, for every state of the old member and of the newcomer.
#[test]
fn every_end_of_a_change() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Member {
        Complete,
        CatchingUp,
        Silent,
        Gone,
        Broken,
    }
    use Member::{Broken, CatchingUp, Complete, Gone, Silent};
    let every = [Complete, CatchingUp, Silent, Gone, Broken];
    let put = |scene: &mut Scene, node: u16, member: Member| match member {
        Complete => drop(scene.seen(0).members.insert(NodeId(node), MemberProgress::Complete)),
        CatchingUp => scene.progress(0, node, 1, 2),
        Silent => scene.silence(node, 10_000),
        Gone => scene.silence(node, LONG_MS),
        Broken => scene.breaks(node),
    };
    for (old, new) in every.iter().flat_map(|old| every.map(|new| (*old, new))) {
        for (shall_go, removed) in [(false, false), (true, false), (false, true)] {
            let mut scene = Scene::new(9, 1);
            scene.begin(0, 1, 7);
            put(&mut scene, 1, old);
            put(&mut scene, 7, new);
            if shall_go {
                scene.set_state(1, NodeState::Draining);
            }
            if removed {
                scene.set_state(7, NodeState::Removed);
            }
            let expected = match (old, new) {
                _ if removed => Some(Transition::TakeBack(replacement(1, 7))),
                (_, Gone | Broken) => Some(Transition::TakeBack(replacement(1, 7))),
                (_, Complete) => Some(Transition::Finish(replacement(1, 7))),
                (Complete, _) if !shall_go => Some(Transition::TakeBack(replacement(1, 7))),
                _ => None,
            };
            let case = format!("{old:?} {new:?}, shall go: {shall_go}, removed: {removed}");
            assert_eq!(
                scene.changes(),
                expected.map(|end| (0, end)).into_iter().collect::<Vec<_>>(),
                "{case}"
            );
        }
    }
}

#[test]
fn what_somebody_began_is_carried_through_first() {
    let mut scene = Scene::new(9, 1);
    scene.breaks(2);
    scene.begin(0, 1, 7);
    scene.seen(0).is_established = false;
    assert_eq!(scene.steps(), [Step::Settle(group(0))]);
}

#[test]
fn the_most_endangered_groups_come_first_within_the_limits() {
    let mut scene = Scene::new(12, 3);
    scene.fleet.settings.changes_max = 2;
    scene.silence(1, LONG_MS);
    scene.progress(2, 5, 1, 2);
    assert_eq!(scene.changes().iter().map(|(group, _)| *group).collect::<Vec<_>>(), [2, 0]);
    assert!(scene.remarks(&["group 1", "as many members change as may at once"]));
    scene.begin(2, 1, 7);
    scene.silence(1, LONG_MS);
    assert_eq!(scene.changes(), [(0, begin(1, 10))], "the one that takes part in nothing yet");
}

#[test]
fn segments_of_a_lost_node_are_spread_over_those_with_most_room() {
    let mut scene = Scene::new(15, 6);
    for (node, gib) in [(7, 50), (10, 51), (13, 2)] {
        scene.observation(node).answer.as_mut().expect("it answers").free_bytes = gib << 30;
    }
    scene.silence(1, LONG_MS);
    let newcomers: Vec<u16> = scene.changes().iter().map(|(_, change)| change.replacement().new.0).collect();
    assert_eq!(newcomers, [10, 7, 13, 10, 7, 13], "each gets its share");
    scene.observation(13).answer.as_mut().expect("it answers").free_bytes = SEGMENT_BYTES;
    let newcomers: Vec<u16> = scene.changes().iter().map(|(_, change)| change.replacement().new.0).collect();
    assert_eq!(newcomers, [10, 7, 13, 10, 7, 10], "and no more than it has room for");
    scene.fleet.settings.changes_per_node_max = 1;
    assert_eq!(scene.changes().len(), 3);
    assert!(scene.remarks(&["group 3", "busy with other changes"]));
}

#[test]
fn without_room_a_process_is_started_or_a_person_is_asked() {
    let mut scene = Scene::new(9, 2);
    scene.breaks(1);
    scene.observation(7).answer.as_mut().expect("it answers").free_bytes = SEGMENT_BYTES - 1;
    assert_eq!(scene.steps(), []);
    assert!(scene.remarks(&["no room for its segment"]));
    assert!(scene.remarks(&["borealis node add --az az1"]));
    scene.fleet.settings = Settings { starts_nodes: true, ..scene.fleet.settings };
    assert_eq!(scene.steps(), [Step::StartNode(zone(1))], "one for both groups");
    scene.observed.starting.insert(zone(1), 1);
    assert_eq!(scene.steps(), [], "it is on its way");
}

#[test]
fn a_node_is_drained_while_its_groups_are_well_and_then_retired() {
    let mut scene = Scene::new(9, 3);
    scene.set_state(1, NodeState::Draining);
    scene.fleet.settings.moves_max = 2;
    assert_eq!(scene.changes(), [(0, begin(1, 7)), (1, begin(1, 7))], "no more moves than may be");
    scene.progress(0, 5, 1, 2);
    assert_eq!(scene.changes(), [(1, begin(1, 7)), (2, begin(1, 7))]);
    assert!(scene.remarks(&["group 0", "until every member of the group is well"]));
    scene.begin(0, 1, 7);
    assert_eq!(scene.changes().len(), 1, "the one under way counts");
    for number in 0..3 {
        let mut alone = Scene::new(9, 1);
        alone.begin(0, 1, 7);
        let finished = alone.seen(0).membership.after(Transition::Finish(replacement(1, 7)));
        scene.show(number, finished.expect("it is under way"));
    }
    assert_eq!(scene.steps(), [Step::Retire(NodeId(1))]);
    scene.observed.groups.remove(&group(2));
    assert_eq!(scene.steps(), [], "a group that nobody answers for may have a segment there");
}

#[test]
fn a_drain_that_is_called_off_is_taken_back() {
    let mut scene = Scene::new(9, 1);
    scene.begin(0, 1, 7);
    scene.set_state(1, NodeState::Draining);
    assert_eq!(scene.changes(), []);
    scene.set_state(1, NodeState::Active);
    assert_eq!(scene.changes(), [(0, Transition::TakeBack(replacement(1, 7)))]);
}

#[test]
fn a_repair_does_not_wait_for_moves() {
    let mut scene = Scene::new(9, 4);
    scene.fleet.settings = Settings { changes_max: 2, moves_max: 1, ..scene.fleet.settings };
    scene.set_state(2, NodeState::Draining);
    assert_eq!(scene.changes(), [(0, begin(2, 8))]);
    scene.begin(0, 2, 8);
    scene.breaks(1);
    assert_eq!(scene.changes(), [(0, begin(1, 7))]);
}

#[test]
fn a_segment_is_moved_where_it_is_wanted() {
    let mut scene = Scene::new(12, 1);
    let wanted = MoveRecord { group: group(0), from: NodeId(1), to: NodeId(10) };
    scene.fleet.moves.insert(wanted.clone());
    assert_eq!(scene.changes(), [(0, begin(1, 10))], "not on node 7, which has as much room");
    scene.begin(0, 1, 10);
    assert_eq!(scene.steps(), [], "its old member is well, and yet it is not taken back");
    scene.seen(0).members.insert(NodeId(10), MemberProgress::Complete);
    let finish = Transition::Finish(replacement(1, 10));
    assert_eq!(scene.changes(), [(0, finish)]);
    let finished = scene.seen(0).membership.after(finish).expect("it is under way");
    scene.show(0, finished);
    assert_eq!(scene.steps(), [Step::EndMove(wanted)]);
}

#[test]
fn moves_that_make_no_sense_are_struck() {
    let struck = |from: u16, to: u16, change: &dyn Fn(&mut Scene)| {
        let mut scene = Scene::new(9, 1);
        let wanted = MoveRecord { group: group(0), from: NodeId(from), to: NodeId(to) };
        scene.fleet.moves.insert(wanted.clone());
        change(&mut scene);
        scene.steps().contains(&Step::EndMove(wanted))
    };
    assert!(!struck(1, 7, &|_| {}));
    assert!(struck(8, 7, &|_| {}), "it has no segment of it");
    assert!(struck(1, 4, &|_| {}), "it has one already");
    assert!(struck(1, 8, &|_| {}), "another zone");
    assert!(struck(1, 99, &|_| {}), "there is no such node");
    assert!(struck(1, 7, &|scene| scene.breaks(7)));
    assert!(struck(1, 7, &|scene| scene.breaks(1)), "it is repaired instead");
}

#[test]
fn a_node_with_a_new_store_is_used_once_it_is_a_member_of_nothing() {
    let mut scene = Scene::new(9, 1);
    scene.observation(7).answer.as_mut().expect("it answers").incarnation = "second".to_owned();
    assert_eq!(scene.steps(), [Step::Adopt { node: NodeId(7), incarnation: "second".to_owned() }]);
    scene.begin(0, 1, 7);
    scene.seen(0).members.remove(&NodeId(7));
    assert_eq!(
        scene.steps(),
        [Step::Change {
            group: group(0),
            after: borealis_types::MembershipEpoch(2),
            transition: Transition::TakeBack(replacement(1, 7)),
        }]
    );
}

#[test]
fn a_lost_node_that_was_started_here_is_removed_once_it_holds_nothing() {
    let mut scene = Scene::new(9, 1);
    scene.silence(7, LONG_MS);
    assert_eq!(scene.steps(), [], "it may come back, and be of use");
    scene.observation(7).lost = Some("its folder is gone".to_owned());
    assert_eq!(scene.steps(), [], "a person added it");
    scene.fleet.settings.starts_nodes = true;
    assert_eq!(scene.steps(), [Step::Retire(NodeId(7))]);
}

impl Scene {
    /// As [`Scene::breaks`], after a group was shown anew.
    fn breaks_again(&mut self, nodes: &[u16]) {
        for node in nodes {
            self.breaks(*node);
        }
    }
}
