//! The fleet of the simulation: nodes, groups, a catalog and two controllers.

mod actors;
mod faults;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use borealis_controller::catalog::records::{
    Fleet, FleetGroup, MoveRecord, NodeRecord, NodeState, Record, Settings,
};
use borealis_controller::catalog::table::MemoryCatalog;
use borealis_controller::catalog::{Catalog, Change, News, Outcome, Revision, Transaction};
use borealis_controller::fleet::Observer;
use borealis_controller::reconcile::Step;
use borealis_quorum::membership::{GroupMembership, Transition};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{AvailabilityZone, MembershipEpoch, NodeId};

use crate::common::{WRITER, group, record, volume, zone, zone_of};
use actors::Controller;

const TICK_MS: u64 = 1_000;
/// What a newcomer has to fetch, in units of one tick's work or less.
const NEWCOMER_UNITS: u64 = 400;
/// What a member misses in a tick that it is down.
const MISSED_UNITS: u64 = 6;

/// What may go wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    None,
    All,
}

/// Numbers from a seed (splitmix64).
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in so many times.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        let count = u64::try_from(choices.len()).expect("few choices");
        (count > 0).then(|| choices[usize::try_from(self.below(count)).expect("few choices")])
    }
}

struct Node {
    zone: AvailabilityZone,
    is_up: bool,
    up_since_ms: u64,
    /// Counts the stores that it has had.
    store: u32,
    /// Its host says that its folder is gone.
    is_lost: bool,
    /// Whether a controller ever heard it.
    has_answered: bool,
}

impl Node {
    fn new(zone: AvailabilityZone, now_ms: u64) -> Node {
        Node { zone, is_up: true, up_since_ms: now_ms, store: 1, is_lost: false, has_answered: false }
    }

    fn incarnation(&self) -> String {
        if self.store == 1 { "first".to_owned() } else { format!("store {}", self.store) }
    }
}

/// One node's segment of a group.
struct Segment {
    /// The store that it is in; another one knows nothing of it.
    store: u32,
    /// What it lacks; zero when it is complete.
    missing: u64,
}

struct Group {
    membership: GroupMembership,
    is_established: bool,
    segments: BTreeMap<NodeId, Segment>,
}

pub struct World {
    pub counts: BTreeMap<&'static str, usize>,
    pub history: Vec<String>,
    /// Whether both controllers act all the time, lease or not, on what they saw some time ago.
    pub everyone_acts: bool,
    /// The first controller dies for good after so many steps.
    pub controller_dies_after: Option<usize>,
    /// What becomes of a step on its way: a planted defect.
    pub mistake: Option<fn(&Step) -> Option<Step>>,
    now_ms: u64,
    random: Random,
    settings: Settings,
    nodes: BTreeMap<NodeId, Node>,
    groups: BTreeMap<FleetGroup, Group>,
    cut: BTreeSet<AvailabilityZone>,
    /// Nodes that no controller reaches, though everybody else does.
    hidden: BTreeSet<NodeId>,
    heard_at_ms: BTreeMap<(Observer, NodeId), u64>,
    catalog: MemoryCatalog,
    /// The catalog as it was read last.
    read_fleet: (Revision, Rc<Fleet>),
    controllers: [Controller; 2],
    faults: Faults,
}

impl World {
    /// A healthy fleet: nodes through three zones, each group on two of each zone.
    pub fn new(seed: u64, nodes: u16, groups: u16, settings: Settings) -> World {
        let mut world = World {
            counts: BTreeMap::new(),
            history: Vec::new(),
            everyone_acts: false,
            controller_dies_after: None,
            mistake: None,
            now_ms: 0,
            random: Random(seed),
            settings,
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            cut: BTreeSet::new(),
            hidden: BTreeSet::new(),
            heard_at_ms: BTreeMap::new(),
            catalog: MemoryCatalog::default(),
            read_fleet: Default::default(),
            controllers: [Controller::default(), Controller::default()],
            faults: Faults::None,
        };
        world.write(vec![settings.put(), volume(groups).put()]);
        for node in 1..=nodes {
            world.nodes.insert(NodeId(node), Node::new(zone_of(node), 0));
            world.write(vec![record(node).put()]);
        }
        for number in 0..groups {
            // In each zone two neighbours, others for each group.
            let in_zone = nodes / 3;
            let place = |zone: u16, second: u16| zone + 1 + 3 * ((number + second) % in_zone);
            let set =
                [place(0, 0), place(1, 0), place(2, 0), place(0, 1), place(1, 1), place(2, 1)].map(NodeId);
            let segments = set.iter().map(|node| (*node, Segment { store: 1, missing: 0 })).collect();
            let membership = GroupMembership::created(set).expect("six different nodes");
            world.groups.insert(group(number), Group { membership, is_established: true, segments });
        }
        world
    }

    /// A fleet whose size and settings follow from the seed.
    pub fn from_seed(seed: u64) -> World {
        let mut random = Random(seed ^ 0x5eed);
        let is_local = random.once_in(3);
        let in_zone = if is_local { 2 } else { 3 + random.below(3) };
        let changes_max = 1 + random.below(8) as usize;
        let settings = Settings {
            changes_max,
            moves_max: changes_max.div_ceil(2),
            changes_per_node_max: 1 + random.below(3) as usize,
            ..if is_local { Settings::local() } else { Settings::default() }
        };
        World::new(seed, 3 * in_zone as u16, 1 + random.below(8) as u16, settings)
    }

    /// Lets so many seconds pass.
    pub fn run(&mut self, ticks: u64, faults: Faults) {
        self.faults = faults;
        for _ in 0..ticks {
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        self.catalog.now_ms = self.now_ms;
        if self.faults == Faults::All {
            self.inject_faults();
        }
        self.start_what_was_added();
        self.work();
        self.hear();
        self.controllers_act();
        self.check_limits();
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn steps(&self) -> usize {
        self.counts.get("steps").copied().unwrap_or(0)
    }

    fn write(&mut self, changes: Vec<Change>) {
        let written = self.catalog.commit(&Transaction { conditions: vec![], changes });
        assert!(matches!(written, Ok(Outcome::Committed(_))), "{written:?}");
    }

    /// What the catalog says.
    fn fleet(&mut self) -> Rc<Fleet> {
        let News::Changes { revision, .. } =
            self.catalog.news("nowhere", Revision(0)).expect("it is in memory")
        else {
            panic!("the answer is about nothing")
        };
        if self.read_fleet.0 != revision {
            let listing = self.catalog.list("").expect("it is in memory");
            self.read_fleet = (revision, Rc::new(Fleet::read(&listing).expect("only records are written")));
        }
        Rc::clone(&self.read_fleet.1)
    }

    /// Segments catch up or fall behind.
    fn work(&mut self) {
        let World { nodes, groups, cut, random, .. } = self;
        for group in groups.values_mut() {
            for (node, segment) in &mut group.segments {
                let host = &nodes[node];
                if !host.is_up || cut.contains(&host.zone) {
                    segment.missing += MISSED_UNITS;
                } else if host.store == segment.store {
                    segment.missing = segment.missing.saturating_sub(random.below(4 * MISSED_UNITS));
                }
            }
        }
    }

    fn hears(&self, observer: Option<NodeId>, node: NodeId) -> bool {
        let host = &self.nodes[&node];
        let is_near = observer.is_some_and(|observer| self.nodes[&observer].zone == host.zone);
        let observer_is_cut = observer.is_some_and(|observer| self.cut.contains(&self.nodes[&observer].zone));
        host.is_up && (is_near || (!observer_is_cut && !self.cut.contains(&host.zone)))
    }

    /// Whether controllers hear a node.
    fn is_in_sight(&self, node: NodeId) -> bool {
        self.hears(None, node) && !self.hidden.contains(&node)
    }

    /// Everybody hears whom they can hear.
    fn hear(&mut self) {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        for &node in &all {
            if self.hears(None, node) {
                self.heard_at_ms.insert((WRITER, node), self.now_ms);
            }
            for &peer in &all {
                if self.nodes[&peer].is_up && self.hears(Some(peer), node) {
                    self.heard_at_ms.insert((Observer::Peer(peer), node), self.now_ms);
                }
            }
        }
        let heard: Vec<NodeId> = all.into_iter().filter(|node| self.is_in_sight(*node)).collect();
        for node in &heard {
            self.nodes.get_mut(node).expect("the node exists").has_answered = true;
        }
        for controller in &mut self.controllers {
            controller.hear(&heard, self.now_ms);
        }
    }

    /// Whether a node answers a controller for its segment of a group.
    fn answers(&self, group: &Group, node: NodeId) -> bool {
        self.is_in_sight(node)
            && group.segments.get(&node).is_some_and(|segment| segment.store == self.nodes[&node].store)
    }

    /// What a proposer and the segments make of a proposal: true if the next membership was chosen.
    fn propose(&mut self, name: FleetGroup, after: MembershipEpoch, transition: Transition) -> bool {
        let group = &self.groups[&name];
        let quorum_sets = QuorumSets::of(&group.membership);
        if group.membership.epoch() != after
            || !group.is_established
            || !quorum_sets.is_write_quorum(|node| self.answers(group, node))
        {
            return false;
        }
        let next =
            group.membership.after(transition).expect("the plan has a step that the membership allows");
        let is_complete = |node: NodeId| self.answers(group, node) && group.segments[&node].missing == 0;
        let change = transition.replacement();
        match transition {
            Transition::Finish(_) if !QuorumSets::of(&next).is_write_quorum(is_complete) => return false,
            Transition::Begin(_) => self.check_begin(name, change.old, change.new),
            Transition::Finish(_) | Transition::TakeBack(_) => {}
        }
        let store = self.nodes[&change.new].store;
        // A proposer may die before all of them have heard of it.
        let is_established = self.faults == Faults::None || !self.random.once_in(10);
        let group = self.groups.get_mut(&name).expect("the group exists");
        let leaves = match transition {
            Transition::Begin(_) => {
                group.segments.insert(change.new, Segment { store, missing: NEWCOMER_UNITS });
                None
            }
            Transition::Finish(_) => Some(change.old),
            Transition::TakeBack(_) => Some(change.new),
        };
        if let Some(node) = leaves {
            group.segments.remove(&node);
        }
        (group.membership, group.is_established) = (next, is_established);
        self.count(match transition {
            Transition::Begin(_) => "begun",
            Transition::Finish(_) => "finished",
            Transition::TakeBack(_) => "taken back",
        });
        true
    }

    pub fn membership(&self, group: FleetGroup) -> &GroupMembership {
        &self.groups[&group].membership
    }

    /// How many nodes the catalog has that are not removed.
    pub fn active_nodes(&mut self) -> usize {
        self.fleet().nodes.values().filter(|record| record.state == NodeState::Active).count()
    }

    /// A node of the member's zone that has no segment of the group.
    pub fn spare_of(&self, group: FleetGroup, member: NodeId) -> NodeId {
        let is_spare = |node: &NodeId| {
            let host = &self.nodes[node];
            host.is_up
                && host.zone == self.nodes[&member].zone
                && !self.groups[&group].membership.contains(*node)
        };
        self.nodes.keys().copied().find(is_spare).expect("the zone has a node to spare")
    }

    pub fn want_move(&mut self, group: FleetGroup, from: NodeId, to: NodeId) {
        self.write(vec![MoveRecord { group, from, to }.put()]);
    }

    pub fn set_state(&mut self, node: NodeId, state: NodeState) {
        let before = self.fleet().nodes[&node].clone();
        self.write(vec![NodeRecord { state, ..before }.put()]);
    }

    /// Adds a node, as an operator or a controller does, and starts it.
    fn add_node(&mut self, zone: AvailabilityZone) {
        let number = self.nodes.keys().last().map_or(1, |last| last.0 + 1);
        self.write(vec![NodeRecord { zone: zone.clone(), ..record(number) }.put()]);
        let up_at_ms = self.now_ms + 3 * TICK_MS;
        self.nodes.insert(NodeId(number), Node { is_up: false, ..Node::new(zone, up_at_ms) });
    }

    pub fn start(&mut self, node: NodeId) {
        let now_ms = self.now_ms;
        let host = self.nodes.get_mut(&node).expect("the node exists");
        (host.is_up, host.up_since_ms) = (true, now_ms);
        // It has missed nobody for longer than it runs.
        self.heard_at_ms.retain(|(observer, _), _| *observer != Observer::Peer(node));
    }

    pub fn cut(&mut self, zone: AvailabilityZone) {
        self.cut.insert(zone);
    }

    pub fn mend(&mut self, zone: &AvailabilityZone) {
        self.cut.remove(zone);
    }

    /// Stops a node, and takes its disk away.
    pub fn kill(&mut self, node: NodeId, and_wipe: bool) {
        let host = self.nodes.get_mut(&node).expect("the node exists");
        host.is_up = false;
        if and_wipe {
            host.store += 1;
            host.is_lost = self.settings.starts_nodes;
        }
    }

    fn zones() -> [AvailabilityZone; 3] {
        [zone(1), zone(2), zone(3)]
    }
}
