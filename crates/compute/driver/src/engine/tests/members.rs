//! A writer whose group gets other members, among nodes that speak the protocol.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_quorum::Promise;
use borealis_quorum::recovery::Outcome;
use borealis_types::membership::{GroupMembership, Replacement, Transition};
use borealis_types::{
    AvailabilityZone, BlockKey, EpochHistory, EpochOpening, Fork, GroupId, GroupSet, Lsn, MembershipEpoch,
    NodeId, RecordSpan, RelationFork, RelationLocator, ServerVersion, VolumeEpoch, WriterId,
};
use borealis_wire::Whereabouts;

use super::super::{Engine, ReadLines};
use crate::config::Configured;
use crate::fake_nodes::{FakeNode, GROUP};
use crate::memberships::known;
use crate::memberships::tests::{configured, seven_for_six};

const REPLACEMENT: Replacement = Replacement { old: NodeId(6), new: NodeId(7) };

fn first() -> GroupMembership {
    GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes")
}

fn nodes(folder: &Path, nodes: impl IntoIterator<Item = u16>) -> Vec<FakeNode> {
    nodes.into_iter().map(|node| FakeNode::start(folder, node, &first())).collect()
}

/// The writer that a recovery through the first six nodes made.
fn engine(folder: &Path) -> Engine {
    engine_of(configured(folder, 1))
}

fn engine_of(config: Configured) -> Engine {
    let promise = Promise { epoch: VolumeEpoch(1), writer: WriterId(1) };
    let mut history = EpochHistory::default();
    let server_version = ServerVersion::NEWEST_TESTED;
    history.push(EpochOpening { epoch: promise.epoch, last: RecordSpan::NONE, server_version });
    let outcome = Outcome {
        promise,
        history,
        durable: RecordSpan::NONE,
        tails: Vec::new(),
        confirmed_before: Duration::ZERO,
    };
    let memberships = known(&config).expect("the configuration is sound");
    Engine::new(Arc::new(config), outcome, memberships, 3).expect("the system has a poll")
}

fn turn_until(engine: &mut Engine, what: &str, condition: impl Fn(&Engine) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition(engine) {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        engine.turn(Duration::from_millis(10)).expect("nothing ends this writer");
    }
}

/// Ships a record of the group, and turns the loop until it is durable.
fn commit(engine: &mut Engine) {
    let start = engine.shipper.last_shipped().end;
    let span = RecordSpan { start, end: Lsn(start.0 + 64) };
    engine.shipper.ship(span, GroupSet::EMPTY.with(GROUP), &[0; 64]);
    turn_until(engine, "a record is durable", |engine| engine.shipper.all_durable());
}

fn epoch_of(engine: &Engine) -> Option<MembershipEpoch> {
    engine.memberships().of(GroupId(0)).map(GroupMembership::epoch)
}

fn connected(engine: &Engine) -> Vec<u16> {
    engine.node_views().filter(|view| view.connected).map(|view| view.node.0).collect()
}

#[test]
fn a_writer_goes_on_while_a_dead_member_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    // Node 6 is dead, and the configuration does not know node 7.
    let nodes = nodes(folder.path(), [1, 2, 3, 4, 5, 7]);
    let mut engine = engine(folder.path());
    commit(&mut engine);
    assert_eq!(engine.node_views().map(|view| view.node.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);

    let second = seven_for_six(&first());
    for fake in &nodes {
        fake.install(&second);
    }
    nodes[5].state().joining = true;
    commit(&mut engine);
    assert_eq!(epoch_of(&engine), Some(MembershipEpoch(2)));
    turn_until(&mut engine, "all that live are connected", |engine| connected(engine) == [1, 2, 3, 4, 5, 7]);
    commit(&mut engine);
    assert_eq!(
        engine.shipper.tracker().segment_complete(NodeId(7), GROUP),
        Lsn::ZERO,
        "it counts for nothing"
    );
    turn_until(&mut engine, "the newcomer takes live records", |_| {
        nodes[5].state().promised.0 == VolumeEpoch(1)
    });

    let third = second.after(Transition::Finish(REPLACEMENT)).expect("it is under way");
    nodes[5].state().joining = false;
    nodes[5].state().complete = engine.shipper.last_shipped().end;
    for fake in &nodes {
        fake.install(&third);
    }
    commit(&mut engine);
    assert_eq!(epoch_of(&engine), Some(MembershipEpoch(3)));
    assert_eq!(engine.node_views().map(|view| view.node.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 7]);
    let again = known(&engine.config).expect("the configuration is sound");
    assert_eq!(again.of(GROUP), Some(&third), "the next start begins with it");
    let new_address =
        again.nodes().into_iter().find(|address| address.node == NodeId(7)).expect("it was told");
    assert_eq!(new_address.address.to_string(), folder.path().join("7").display().to_string());
}

#[test]
fn reads_under_way_are_answered_by_the_members_that_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = nodes(folder.path(), 1..=7);
    let mut engine = engine(folder.path());
    commit(&mut engine);
    turn_until(&mut engine, "all are connected", |engine| connected(engine).len() == 6);
    for fake in &nodes {
        fake.state().is_silent = true;
    }
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
    let key = BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block: 1 };
    let now = engine.now();
    let mut lines = ReadLines { peers: &mut engine.peers, shipper: &engine.shipper };
    engine.reads.prefetch(key, &mut engine.read_router, &mut lines, now);
    let asked = || nodes.iter().map(|fake| fake.state().pages_asked).sum::<u32>();
    turn_until(&mut engine, "a node is asked for a page", |_| asked() > 0);
    let second = seven_for_six(&first());
    for fake in &nodes {
        fake.install(&second);
        fake.state().is_silent = false;
    }
    commit(&mut engine);
    turn_until(&mut engine, "no read is under way", |engine| engine.reads.next_due().is_none());
    assert_eq!(epoch_of(&engine), Some(MembershipEpoch(2)));
    assert_eq!(engine.read_counters().errors, 0);
}

#[test]
fn what_one_or_two_nodes_claim_moves_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = nodes(folder.path(), 1..=6);
    let mut engine = engine(folder.path());
    commit(&mut engine);
    let invented = seven_for_six(&first()).after(Transition::Finish(REPLACEMENT)).expect("it is under way");
    for fake in &nodes[..2] {
        fake.install(&invented);
    }
    commit(&mut engine);
    turn_until(&mut engine, "both have refused again", |_| {
        nodes[..2].iter().all(|fake| fake.state().refused > 2)
    });
    assert_eq!(epoch_of(&engine), Some(MembershipEpoch(1)));
    assert_eq!(engine.node_views().map(|view| view.node.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert!(!folder.path().join("memberships.json").exists(), "nothing was learned");
}

#[test]
fn a_node_that_has_not_learned_yet_is_asked_again_soon() {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = nodes(folder.path(), 1..=6);
    let second = seven_for_six(&first());
    let third = second.after(Transition::TakeBack(REPLACEMENT)).expect("it is under way");
    let config = configured(folder.path(), 1);
    let mut memberships = known(&config).expect("the configuration is sound");
    memberships.adopt(&[(GROUP, third.clone())].into());
    crate::memberships::remember(&config, &memberships);
    let mut engine = engine(folder.path());
    // Nobody has heard of it: all are two memberships behind what this writer knows.
    turn_until(&mut engine, "all have refused", |_| nodes.iter().all(|fake| fake.state().refused > 2));
    assert_eq!(epoch_of(&engine), Some(MembershipEpoch(3)), "an older membership is not believed");
    for fake in &nodes {
        fake.install(&third);
    }
    let learned = Instant::now();
    turn_until(&mut engine, "all are connected", |engine| connected(engine).len() == 6);
    assert!(learned.elapsed() < Duration::from_secs(2), "{:?}", learned.elapsed());
    commit(&mut engine);
}

#[test]
fn a_node_that_says_where_others_are_and_lies_costs_time_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = nodes(folder.path(), 1..=7);
    let mut engine = engine(folder.path());
    commit(&mut engine);
    let second = seven_for_six(&first());
    let at = |node: u16, address: &str| Whereabouts {
        node: NodeId(node),
        zone: AvailabilityZone("az1".into()),
        address: address.to_owned(),
    };
    for fake in &nodes[..2] {
        fake.state().lies = vec![at(7, "/nonexistent/7"), at(1, "/nonexistent/1"), at(9, "/nonexistent/9")];
    }
    for fake in &nodes {
        fake.install(&second);
    }
    turn_until(&mut engine, "all are connected", |engine| connected(engine).len() == 7);
    assert_eq!(epoch_of(&engine), Some(MembershipEpoch(2)));
    commit(&mut engine);
}

#[test]
fn a_writer_that_has_nothing_to_write_learns_when_it_asks_whether_its_epoch_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = nodes(folder.path(), 1..=7);
    let mut config = configured(folder.path(), 1);
    config.told.tuning.lease_ms = 2000;
    let mut engine = engine_of(config);
    commit(&mut engine);
    turn_until(&mut engine, "all are connected", |engine| connected(engine).len() == 6);
    for fake in &nodes {
        fake.install(&seven_for_six(&first()));
    }
    turn_until(&mut engine, "it has learned", |engine| epoch_of(engine) == Some(MembershipEpoch(2)));
    // The lease goes on with the new members: it would be over by now without their word.
    let learned = engine.now();
    turn_until(&mut engine, "a lease has passed", |engine| {
        engine.now() > learned + Duration::from_millis(2500)
    });
    assert_eq!(connected(&engine), [1, 2, 3, 4, 5, 6, 7]);
    assert!(engine.node_views().all(|view| view.heard < Duration::from_millis(1500)), "all are heard");
}
