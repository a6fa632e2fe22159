//! What holds of every plan, whatever is wanted and whatever is seen, however little sense it makes.

mod common;

use std::collections::BTreeSet;

use borealis_controller::catalog::records::{MoveRecord, NodeState, Settings};
use borealis_controller::fleet::MemberProgress;
use borealis_controller::reconcile::Step;
use borealis_quorum::membership::Transition;
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::NodeId;
use common::{SEGMENT_BYTES, Scene, group, under_way};
use proptest::collection::vec;
use proptest::prelude::*;

const NODES: u16 = 12;
const GROUPS: u16 = 5;

/// Something that makes a scene different.
#[derive(Clone, Debug)]
enum Twist {
    Begin(u16, u16, u16),
    Progress(u16, u16, u64),
    Silence(u16, u64),
    Break(u16),
    Lose(u16),
    NewStore(u16),
    State(u16, u8),
    Forget(u16),
    Room(u16, u64),
    Unsettled(u16),
    Move(u16, u16, u16),
    Starting(u16, usize),
}

fn twist() -> impl Strategy<Value = Twist> {
    let (node, number) = (1..=NODES, 0..GROUPS);
    prop_oneof![
        4 => (number.clone(), node.clone(), node.clone()).prop_map(|(g, old, new)| Twist::Begin(g, old, new)),
        4 => (number.clone(), node.clone(), 0..3u64).prop_map(|(g, node, done)| Twist::Progress(g, node, done)),
        3 => (node.clone(), 0..120u64).prop_map(|(node, s)| Twist::Silence(node, s * 1_000)),
        2 => node.clone().prop_map(Twist::Break),
        1 => node.clone().prop_map(Twist::Lose),
        1 => node.clone().prop_map(Twist::NewStore),
        2 => (node.clone(), 0..3u8).prop_map(|(node, state)| Twist::State(node, state)),
        1 => node.clone().prop_map(Twist::Forget),
        1 => (node.clone(), 0..3u64).prop_map(|(node, segments)| Twist::Room(node, segments)),
        1 => number.clone().prop_map(Twist::Unsettled),
        2 => (number, node.clone(), node.clone()).prop_map(|(g, from, to)| Twist::Move(g, from, to)),
        1 => (1..=3u16, 0..3usize).prop_map(|(zone, count)| Twist::Starting(zone, count)),
    ]
}

fn apply(scene: &mut Scene, twist: &Twist) {
    let answer = |scene: &mut Scene, node: u16| scene.observation(node).answer.is_some();
    match *twist {
        Twist::Begin(number, old, new) => {
            let change = common::replacement(old, new);
            if scene.seen(number).membership.after(Transition::Begin(change)).is_ok() {
                scene.begin(number, old, new);
            }
        }
        Twist::Progress(number, node, done) => scene.progress(number, node, done, 3),
        Twist::Silence(node, ms) => scene.silence(node, ms),
        Twist::Break(node) if answer(scene, node) => scene.breaks(node),
        Twist::Lose(node) => scene.observation(node).lost = Some("its folder is gone".to_owned()),
        Twist::NewStore(node) => {
            if let Some(answer) = &mut scene.observation(node).answer {
                answer.incarnation = "second".to_owned();
            }
        }
        Twist::State(node, state) if scene.fleet.nodes.contains_key(&NodeId(node)) => {
            let states = [NodeState::Active, NodeState::Draining, NodeState::Removed];
            scene.set_state(node, states[usize::from(state)]);
        }
        Twist::Forget(node) => drop(scene.fleet.nodes.remove(&NodeId(node))),
        Twist::Room(node, segments) => {
            if let Some(answer) = &mut scene.observation(node).answer {
                answer.free_bytes = segments * SEGMENT_BYTES;
            }
        }
        Twist::Unsettled(number) => scene.seen(number).is_established = false,
        Twist::Move(number, from, to) => {
            scene.fleet.moves.insert(MoveRecord { group: group(number), from: NodeId(from), to: NodeId(to) });
        }
        Twist::Starting(zone, count) => drop(scene.observed.starting.insert(common::zone(zone), count)),
        Twist::Break(_) | Twist::State(..) => {}
    }
}

fn scene() -> impl Strategy<Value = Scene> {
    let settings = (1..6usize, 0..6usize, 1..4usize, any::<bool>());
    (settings, vec(twist(), 0..24)).prop_map(|((changes_max, moves_max, per_node, starts_nodes), twists)| {
        let mut scene = Scene::new(NODES, GROUPS);
        scene.fleet.settings = Settings {
            changes_max,
            moves_max: moves_max.min(changes_max),
            changes_per_node_max: per_node,
            starts_nodes,
            ..Settings::default()
        };
        twists.iter().for_each(|twist| apply(&mut scene, twist));
        scene
    })
}

/// Whether the rules allow one step; the limits are looked at over all steps.
fn check_step(scene: &Scene, step: &Step) {
    let Step::Change { group, after, transition } = step else { return };
    let seen = &scene.observed.groups[group];
    assert_eq!(seen.membership.epoch(), *after);
    assert!(seen.is_established, "what was begun before is carried through first");
    assert!(seen.membership.after(*transition).is_ok(), "{transition:?} of {:?}", seen.membership);
    let answers = |node: NodeId| seen.members.contains_key(&node);
    assert!(
        QuorumSets::of(&seen.membership).is_write_quorum(answers),
        "nobody can choose the next membership"
    );
    let change = transition.replacement();
    match transition {
        Transition::Begin(_) => {
            let (old, new) = (&scene.fleet.nodes[&change.old], &scene.fleet.nodes[&change.new]);
            assert_eq!(old.zone, new.zone);
            assert_eq!(new.state, NodeState::Active);
            let host = &scene.observed.nodes[&change.new];
            let answer = host.answer.as_ref().expect("a node that does not answer cannot be chosen");
            assert!(answer.broken.is_none() && host.lost.is_none() && answer.incarnation == new.incarnation);
            assert!(answer.free_bytes >= seen.segment_bytes);
        }
        Transition::Finish(_) => {
            assert_eq!(seen.members.get(&change.new), Some(&MemberProgress::Complete));
        }
        Transition::TakeBack(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn every_plan_keeps_the_rules(scene in scene()) {
        let plan = scene.plan();
        let mut changed = BTreeSet::new();
        let mut memberships: Vec<_> = scene.observed.groups.iter().map(|(g, s)| (*g, s.membership.clone())).collect();
        let (before, before_of) = under_way(memberships.iter().map(|(_, membership)| membership));
        for decision in &plan.decisions {
            prop_assert!(!decision.because.is_empty());
            check_step(&scene, &decision.step);
            if let Step::Change { group, transition, .. } = &decision.step {
                prop_assert!(changed.insert(*group), "two steps of one group at once");
                if let Transition::Begin(_) = transition {
                    let (_, membership) = memberships.iter_mut().find(|(g, _)| g == group).expect("it was seen");
                    *membership = membership.after(*transition).expect("checked before");
                }
            }
            if let Step::StartNode(_) = &decision.step {
                prop_assert!(scene.fleet.settings.starts_nodes);
            }
        }
        let (after, after_of) = under_way(memberships.iter().map(|(_, membership)| membership));
        let settings = &scene.fleet.settings;
        prop_assert!(after <= settings.changes_max.max(before), "{before} changes became {after}");
        for (node, count) in after_of {
            let had = before_of.get(&node).copied().unwrap_or(0);
            prop_assert!(count <= settings.changes_per_node_max.max(had), "{had} of node {node} became {count}");
        }
    }

    /// Nothing is decided that only one observer could have been the reason for.
    #[test]
    fn what_one_observer_says_replaces_nobody(node in 1..=NODES, witness in 1..=NODES, ms in 0..1_000_000u64) {
        prop_assume!(node != witness);
        let mut scene = Scene::new(NODES, GROUPS);
        let said = borealis_controller::fleet::Observer::Peer(NodeId(witness));
        scene.observation(node).heard_ms_ago.insert(said, ms);
        prop_assert_eq!(scene.steps(), []);
    }
}
