//! A controller heals a fleet of real segments: by itself, after it was ended at any question, and with others beside it.

mod fake;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use borealis_conductor::conductor::Round;
use borealis_conductor::nodes::Addressee;
use borealis_conductor::{Conductor, NoAnswer, Nodes, Options};
use borealis_controller::catalog::records::{MoveRecord, NodeRecord, NodeState, Record, Settings};
use borealis_controller::catalog::{Catalog, Transaction};
use borealis_types::{GroupId, NodeId};
use borealis_wire::{Reply, Request};

use fake::{FakeFleet, GROUPS, SharedCatalog, VOLUME, settings};

const PATIENCE: Duration = Duration::from_secs(20);

fn conductor(fleet: &FakeFleet, catalog: &SharedCatalog, name: &str) -> Conductor {
    controlling(Arc::new(fleet.clone()), fleet, catalog, name)
}

fn controlling(nodes: Arc<dyn Nodes>, fleet: &FakeFleet, catalog: &SharedCatalog, name: &str) -> Conductor {
    let options = Options { step_timeout: Duration::from_secs(2), ..Options::new(name.to_owned()) };
    Conductor::new(Box::new(catalog.clone()), nodes, Box::new(fleet.clone()), options)
}

/// Rounds until every group has these six, and nothing is left to do.
fn heal(conductor: &mut Conductor, fleet: &FakeFleet, wanted: [u16; 6]) -> Duration {
    let begin = Instant::now();
    let wanted: BTreeSet<NodeId> = wanted.map(NodeId).into();
    loop {
        let round = conductor.round().expect("the catalog is in memory");
        let is_quiet = matches!(&round, Round::Acted(plan) if plan.decisions.is_empty());
        if is_quiet && !conductor.is_at_work() && fleet.full_members().iter().all(|nodes| *nodes == wanted) {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < PATIENCE, "{round:?}: {:?}", fleet.full_members());
        conductor.wait(Duration::from_millis(20));
    }
}

fn put(catalog: &SharedCatalog, record: &impl Record) {
    let changes = vec![record.put()];
    catalog.clone().commit(&Transaction { conditions: vec![], changes }).expect("no limit is broken");
}

fn record(catalog: &SharedCatalog, node: u16) -> NodeRecord {
    catalog.fleet().nodes[&NodeId(node)].clone()
}

#[test]
fn a_lost_node_is_replaced_by_one_that_is_started_for_it() {
    let fleet = FakeFleet::new(0);
    let catalog = fleet.catalog(settings());
    let mut conductor = conductor(&fleet, &catalog, "one");
    heal(&mut conductor, &fleet, [1, 2, 3, 4, 5, 6]);
    assert_eq!(fleet.memberships_chosen(), 0, "a healthy fleet is left alone");
    fleet.kill(3, true);
    heal(&mut conductor, &fleet, [1, 2, 4, 5, 6, 7]);
    assert_eq!(fleet.state().started, [NodeId(7)]);
    assert_eq!(fleet.memberships_chosen(), 2 * usize::from(GROUPS), "begun and finished");
    assert_eq!(record(&catalog, 3).state, NodeState::Removed);
    assert!(fleet.state().retired.contains(&NodeId(3)));
    let memberships = catalog.fleet().memberships;
    assert!(memberships.values().all(|record| record.membership.contains(NodeId(7))), "{memberships:?}");
}

#[test]
fn a_node_that_is_only_away_is_waited_for_and_then_replaced() {
    let fleet = FakeFleet::new(3);
    let patient = Settings { replace_after_ms: 1_000, ..settings() };
    let catalog = fleet.catalog(patient);
    let mut conductor = conductor(&fleet, &catalog, "one");
    heal(&mut conductor, &fleet, [1, 2, 3, 4, 5, 6]);
    fleet.kill(3, false);
    let begin = Instant::now();
    // Node 8 stands in the zone of node 3.
    heal(&mut conductor, &fleet, [1, 2, 4, 5, 6, 8]);
    assert!(begin.elapsed() > Duration::from_millis(1_000), "{:?}", begin.elapsed());
    assert!(fleet.state().started.is_empty());
    let before = fleet.memberships_chosen();
    fleet.start(3);
    heal(&mut conductor, &fleet, [1, 2, 4, 5, 6, 8]);
    assert_eq!(
        fleet.memberships_chosen(),
        before,
        "it is a member of nothing, and no reason to change anything"
    );
    assert_eq!(record(&catalog, 3).state, NodeState::Active);
}

#[test]
fn two_are_replaced_at_once_and_then_all_that_are_left() {
    let fleet = FakeFleet::new(0);
    let catalog = fleet.catalog(settings());
    let mut conductor = conductor(&fleet, &catalog, "one");
    fleet.kill(1, true);
    fleet.kill(5, true);
    heal(&mut conductor, &fleet, [2, 3, 4, 6, 7, 8]);
    for (lost, wanted) in [
        (2, [3, 4, 6, 7, 8, 9]),
        (3, [4, 6, 7, 8, 9, 10]),
        (4, [6, 7, 8, 9, 10, 11]),
        (6, [7, 8, 9, 10, 11, 12]),
    ] {
        fleet.kill(lost, true);
        heal(&mut conductor, &fleet, wanted);
    }
    let removed = catalog.fleet().nodes.into_values().filter(|node| node.state == NodeState::Removed);
    assert_eq!(removed.count(), 6);
}

#[test]
fn a_node_is_emptied_and_a_segment_moved_where_it_is_wanted() {
    let fleet = FakeFleet::new(3);
    let catalog = fleet.catalog(settings());
    let mut conductor = conductor(&fleet, &catalog, "one");
    put(&catalog, &NodeRecord { state: NodeState::Draining, ..record(&catalog, 1) });
    heal(&mut conductor, &fleet, [2, 3, 4, 5, 6, 7]);
    assert_eq!(record(&catalog, 1).state, NodeState::Removed);
    for group in (0..GROUPS).map(GroupId) {
        let group = borealis_controller::catalog::records::FleetGroup { volume: VOLUME, group };
        put(&catalog, &MoveRecord { group, from: NodeId(4), to: NodeId(8) });
    }
    heal(&mut conductor, &fleet, [2, 3, 5, 6, 7, 8]);
    assert!(catalog.fleet().moves.is_empty(), "a move that is done is struck");
}

/// A controller's way to the nodes, which ends after so many questions about memberships, as its process does.
struct Mortal {
    fleet: FakeFleet,
    left: AtomicUsize,
}

impl Nodes for Mortal {
    fn ask(&self, addressee: &Addressee, request: &Request) -> Result<Reply, NoAnswer> {
        if matches!(request, Request::Membership { .. }) {
            let spent =
                self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if spent.is_err() {
                return Err(NoAnswer("the controller is dead".to_owned()));
            }
        }
        self.fleet.ask(addressee, request)
    }
}

#[test]
fn whatever_a_controller_leaves_behind_another_carries_through() {
    let mut died_in_the_middle = 0;
    for questions in 0..70 {
        let fleet = FakeFleet::new(3);
        let catalog = fleet.catalog(settings());
        let left = AtomicUsize::new(questions);
        let nodes = Arc::new(Mortal { fleet: fleet.clone(), left });
        fleet.kill(3, true);
        let mut first = controlling(Arc::clone(&nodes) as Arc<dyn Nodes>, &fleet, &catalog, "first");
        for _ in 0..4 {
            first.round().expect("the catalog is in memory");
            first.wait(Duration::from_millis(5));
        }
        died_in_the_middle += usize::from(nodes.left.load(Ordering::Relaxed) == 0);
        let mut second = conductor(&fleet, &catalog, "second");
        let waits = Round::Waits { holder: "first".to_owned() };
        assert_eq!(second.round(), Ok(waits), "the lease is not over yet");
        catalog.pass(5_000);
        // Threads of the first may still wait for answers that do not come; they do no harm.
        heal(&mut second, &fleet, [1, 2, 4, 5, 6, 8]);
        let two_steps = fleet.memberships_chosen();
        assert!((6..=12).contains(&two_steps), "{two_steps} memberships after {questions} questions");
    }
    assert!(died_in_the_middle > 40, "{died_in_the_middle}");
}

#[test]
fn two_that_act_at_once_do_no_harm() {
    let fleet = FakeFleet::new(6);
    // Each has a catalog of its own, so that nothing keeps them apart but the segments.
    let mut both: Vec<Conductor> =
        ["one", "two"].map(|name| conductor(&fleet, &fleet.catalog(settings()), name)).into_iter().collect();
    fleet.kill(5, false);
    let begin = Instant::now();
    let is_healed = |fleet: &FakeFleet| {
        fleet.full_members().iter().all(|nodes| nodes.len() == 6 && !nodes.contains(&NodeId(5)))
    };
    while !is_healed(&fleet) {
        for conductor in &mut both {
            conductor.round().expect("the catalog is in memory");
            conductor.wait(Duration::from_millis(10));
        }
        assert!(begin.elapsed() < PATIENCE, "{:?}", fleet.full_members());
    }
}
