//! A fleet whose nodes are real segments without a store, and answer what a controller asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use borealis_conductor::nodes::Addressee;
use borealis_conductor::{Host, NoAnswer, Nodes};
use borealis_controller::catalog::records::{
    Fleet, FleetGroup, MembershipRecord, NodeRecord, NodeState, Record, Settings, VolumeRecord,
};
use borealis_controller::catalog::table::MemoryCatalog;
use borealis_controller::catalog::{
    Acquisition, Catalog, CatalogError, Lease, Listing, News, Outcome, Revision, Transaction,
};
use borealis_quorum::membership::{GroupMembership, MembershipState, credible_membership};
use borealis_quorum::segment::{Segment, Source, Standing};
use borealis_quorum::{ChainLink, DurablePoint, Promise};
use borealis_types::membership::MembershipRequest;
use borealis_types::{
    AvailabilityZone, EpochHistory, EpochOpening, GroupId, Lsn, NodeId, Placement, PostgresVersion,
    RecordSpan, ServerVersion, VolumeEpoch, VolumeId, WriterId,
};
use borealis_wire::{NodeStatus, PeerHeard, Reply, Request, SegmentSummary};

pub const VOLUME: VolumeId = VolumeId(7);
pub const GROUPS: u16 = 3;
/// Where the volume's redo ends.
const END: Lsn = Lsn(40);

/// Of the first six two stand in each zone, side by side; those after them take turns.
fn zone_of(node: u16) -> AvailabilityZone {
    let zone = if node <= 6 { (node - 1) / 2 } else { (node - 7) % 3 };
    AvailabilityZone(format!("az{}", zone + 1))
}

pub fn settings() -> Settings {
    Settings { replace_after_ms: 300, silent_after_ms: 100, ..Settings::local() }
}

fn promise() -> Promise {
    Promise { epoch: VolumeEpoch(1), writer: WriterId(1) }
}

fn history() -> EpochHistory {
    let mut history = EpochHistory::default();
    let (last, server_version) = (RecordSpan::NONE, ServerVersion::NEWEST_TESTED);
    history.push(EpochOpening { epoch: VolumeEpoch(1), last, server_version });
    history
}

struct FakeNode {
    zone: AvailabilityZone,
    incarnation: u128,
    segments: BTreeMap<GroupId, Segment>,
    /// Since when it does not answer.
    down_since: Option<Instant>,
    folder_is_gone: bool,
}

#[derive(Default)]
pub struct State {
    nodes: BTreeMap<NodeId, FakeNode>,
    /// Every membership that a node ever acted on.
    chosen: BTreeMap<(GroupId, u64), GroupMembership>,
    pub started: Vec<NodeId>,
    pub retired: BTreeSet<NodeId>,
}

/// The fleet; clones are of the same one.
#[derive(Clone, Default)]
pub struct FakeFleet(Arc<Mutex<State>>);

impl FakeFleet {
    /// Nodes 1 to 6, two in each zone, with all groups; and so many that host nothing.
    pub fn new(spares: u16) -> FakeFleet {
        let fleet = FakeFleet::default();
        let created = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
        for number in 1..=6 + spares {
            let segments = (0..GROUPS).map(GroupId).filter(|_| number <= 6).map(|group| {
                let mut segment = Segment::created(group, created.clone());
                segment.fence(promise()).expect("the first");
                segment.install(Some(WriterId(1)), &history(), DurablePoint::default()).expect("promised");
                let span = RecordSpan { start: Lsn(8), end: END };
                segment.offer(Source::Writer, VolumeEpoch(1), ChainLink { previous_end: Lsn::ZERO, span });
                (group, segment)
            });
            let segments = segments.collect();
            fleet.state().add(NodeId(number), zone_of(number), segments);
        }
        fleet
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics in here")
    }

    /// Its process is gone; with `folder`, its data too.
    pub fn kill(&self, node: u16, folder: bool) {
        let mut state = self.state();
        let node = state.nodes.get_mut(&NodeId(node)).expect("it is there");
        node.down_since.get_or_insert_with(Instant::now);
        node.folder_is_gone |= folder;
    }

    pub fn start(&self, node: u16) {
        self.state().nodes.get_mut(&NodeId(node)).expect("it is there").down_since = None;
    }

    /// The catalog of this fleet as it is made.
    pub fn catalog(&self, settings: Settings) -> SharedCatalog {
        let mut changes = vec![settings.put()];
        let placement = Placement::new(GROUPS).expect("some groups");
        let postgres_version = PostgresVersion::V15;
        changes.push(VolumeRecord { volume: VOLUME, postgres_version, placement }.put());
        for (&node, fake) in &self.state().nodes {
            changes.push(fake.record(node).put());
        }
        for group in placement.groups() {
            let membership = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
            changes.push(MembershipRecord { group: FleetGroup { volume: VOLUME, group }, membership }.put());
        }
        let mut catalog = SharedCatalog(Arc::default());
        catalog.commit(&Transaction { conditions: vec![], changes }).expect("no limit is broken");
        catalog
    }

    /// Which nodes act on the newest membership of each group as full members; none while members change. A node that is down does
    /// not count.
    pub fn full_members(&self) -> Vec<BTreeSet<NodeId>> {
        let state = self.state();
        let of_group = |group: GroupId| {
            let newest = state.chosen.range((group, 0)..=(group, u64::MAX)).next_back();
            let newest = newest.map(|(_, membership)| membership.clone());
            if newest.as_ref().is_some_and(|membership| membership.sets().len() > 1) {
                return BTreeSet::new();
            }
            let is_full = |(_, node): &(&NodeId, &FakeNode)| {
                node.down_since.is_none()
                    && node.segments.get(&group).is_some_and(|segment| {
                        let installed = segment.membership().map(|state| state.installed().clone());
                        let is_newest = newest.is_none() || installed == newest;
                        segment.standing() == Standing::Full && is_newest
                    })
            };
            state.nodes.iter().filter(is_full).map(|(node, _)| *node).collect()
        };
        (0..GROUPS).map(GroupId).map(of_group).collect()
    }

    /// How many memberships were acted on in all.
    pub fn memberships_chosen(&self) -> usize {
        self.state().chosen.len()
    }
}

impl FakeNode {
    fn record(&self, node: NodeId) -> NodeRecord {
        NodeRecord {
            node,
            zone: self.zone.clone(),
            address: format!("/nodes/{node}"),
            incarnation: format!("{:032x}", self.incarnation),
            state: NodeState::Active,
        }
    }
}

impl State {
    fn add(&mut self, node: NodeId, zone: AvailabilityZone, segments: BTreeMap<GroupId, Segment>) {
        let incarnation = 1000 + u128::from(node.0);
        let fake = FakeNode { zone, incarnation, segments, down_since: None, folder_is_gone: false };
        self.nodes.insert(node, fake);
    }

    fn status(&self, node: NodeId) -> NodeStatus {
        let fake = &self.nodes[&node];
        let ms = |since: Option<Instant>| since.map_or(0, |since| since.elapsed().as_millis() as u64);
        let heard = self.nodes.iter().filter(|(other, _)| **other != node);
        let here = fake.segments.values().filter(|segment| segment.standing() != Standing::Absent);
        NodeStatus {
            node,
            zone: fake.zone.clone(),
            process_id: 1,
            failure: None,
            damage: None,
            segments: here.map(summary).collect(),
            metrics: Vec::new(),
            hindrance: None,
            incarnation: fake.incarnation,
            free_bytes: 1 << 40,
            heard: heard.map(|(&node, fake)| PeerHeard { node, ms_ago: ms(fake.down_since) }).collect(),
            refills: Vec::new(),
        }
    }

    /// What a newcomer gets from its peers.
    fn fill(&mut self, node: NodeId) {
        let node = self.nodes.get_mut(&node).expect("it answers");
        for segment in node.segments.values_mut().filter(|segment| segment.standing() == Standing::Joining) {
            let _ = segment.fence(promise());
            segment.install(Some(WriterId(1)), &history(), DurablePoint::default()).expect("promised");
            let volume = RecordSpan { start: Lsn(8), end: END };
            segment
                .take_base(VolumeEpoch(1), DurablePoint { volume, group_tail: END })
                .expect("it has the history");
        }
    }

    /// What a node learns from the others that call it: that they act on a membership which it is a member of.
    fn hear(&mut self, node: NodeId) {
        for group in (0..GROUPS).map(GroupId) {
            // Itself among them, as in a node.
            let there = self.nodes.iter().filter(|(_, fake)| fake.down_since.is_none());
            let claim = |(&node, fake): (&NodeId, &FakeNode)| {
                Some((node, fake.segments.get(&group)?.membership()?.clone()))
            };
            let claims: BTreeMap<NodeId, MembershipState> = there.filter_map(claim).collect();
            let known = claims.get(&node).map(MembershipState::installed);
            let newer = credible_membership(known, &claims);
            if let Some(newer) = newer.filter(|newer| newer.contains(node)) {
                self.membership(node, group, &MembershipRequest::Install(newer));
            }
        }
    }

    fn membership(&mut self, node: NodeId, group: GroupId, request: &MembershipRequest) -> Reply {
        let fake = self.nodes.get_mut(&node).expect("it answers");
        let segment = fake.segments.entry(group).or_insert_with(|| Segment::absent(group));
        match request {
            MembershipRequest::Ask => {}
            MembershipRequest::Prepare { installed, ballot } => {
                segment.prepare_membership(installed.epoch(), *ballot);
            }
            MembershipRequest::Accept(proposed) => {
                let _ = segment.accept_membership(proposed);
            }
            MembershipRequest::Install(membership) => {
                segment.install_membership(node, membership).expect("one membership per epoch");
                let key = (group, membership.epoch().0);
                let first = self.chosen.entry(key).or_insert_with(|| membership.clone());
                assert_eq!(first, membership, "two memberships of one epoch");
            }
        }
        let here = segment.standing() != Standing::Absent;
        Reply::Member { membership: segment.membership().cloned(), segment: here.then(|| summary(segment)) }
    }
}

fn summary(segment: &Segment) -> SegmentSummary {
    let own = segment.summary();
    SegmentSummary {
        group: own.group,
        promised_epoch: own.promised.epoch,
        promised_writer: own.promised.writer,
        history: own.history,
        segment_complete_lsn: own.complete.end,
        known_durable: RecordSpan { start: Lsn(8), end: END },
        known_durable_tail: END,
        readable_through: own.complete.end,
        minimum_read_point: own.minimum_read_point,
        materialized_lsn: own.complete.end,
        joining: own.joining,
        membership_epoch: segment.membership().map(|state| state.installed().epoch()).unwrap_or_default(),
    }
}

impl Nodes for FakeFleet {
    fn ask(&self, addressee: &Addressee, request: &Request) -> Result<Reply, NoAnswer> {
        let mut state = self.state();
        let node = addressee.node;
        match state.nodes.get(&node) {
            Some(fake) if fake.down_since.is_none() => {}
            _ => return Err(NoAnswer("nobody listens".to_owned())),
        }
        assert_eq!(addressee.volume, VOLUME);
        Ok(match request {
            Request::Status => {
                let status = state.status(node);
                // By the next question it has what it lacked by this one.
                state.hear(node);
                state.fill(node);
                Reply::Status(status)
            }
            Request::Memberships => {
                let segments = state.nodes[&node].segments.iter();
                let states =
                    segments.filter_map(|(group, segment)| Some((*group, segment.membership()?.clone())));
                Reply::Memberships { states: states.collect(), nodes: Vec::new() }
            }
            Request::Membership { group, request, nodes } => {
                if let MembershipRequest::Install(membership) = request {
                    let told: BTreeSet<NodeId> = nodes.iter().map(|place| place.node).collect();
                    assert!(membership.members().is_subset(&told), "a member could not find another");
                }
                state.membership(node, *group, request)
            }
            other => panic!("a controller does not ask {:?}", other.kind()),
        })
    }
}

impl Host for FakeFleet {
    fn lost(&mut self, node: &NodeRecord) -> Option<String> {
        let state = self.state();
        state.nodes[&node.node].folder_is_gone.then(|| "its folder is gone".to_owned())
    }

    fn start_node(&mut self, zone: &AvailabilityZone) -> Result<NodeRecord, String> {
        let mut state = self.state();
        let node = NodeId(state.nodes.keys().next_back().map_or(1, |last| last.0 + 1));
        state.add(node, zone.clone(), BTreeMap::new());
        state.started.push(node);
        Ok(state.nodes[&node].record(node))
    }

    fn retire(&mut self, node: NodeId) -> Result<(), String> {
        self.state().retired.insert(node);
        Ok(())
    }
}

/// A catalog that several controllers share.
#[derive(Clone)]
pub struct SharedCatalog(Arc<Mutex<MemoryCatalog>>);

impl SharedCatalog {
    fn inner(&self) -> MutexGuard<'_, MemoryCatalog> {
        self.0.lock().expect("nothing panics in here")
    }

    /// Time passes for its leases.
    pub fn pass(&self, ms: u64) {
        self.inner().now_ms += ms;
    }

    pub fn fleet(&self) -> Fleet {
        Fleet::read(&self.inner().list("").expect("listed")).expect("read")
    }
}

impl Catalog for SharedCatalog {
    fn list(&mut self, prefix: &str) -> Result<Listing, CatalogError> {
        self.inner().list(prefix)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, CatalogError> {
        self.inner().commit(transaction)
    }

    fn news(&mut self, prefix: &str, since: Revision) -> Result<News, CatalogError> {
        self.inner().news(prefix, since)
    }

    fn acquire(&mut self, name: &str, holder: &str, ttl_ms: u64) -> Result<Acquisition, CatalogError> {
        self.inner().acquire(name, holder, ttl_ms)
    }

    fn keep(&mut self, lease: &Lease) -> Result<bool, CatalogError> {
        self.inner().keep(lease)
    }

    fn release(&mut self, lease: &Lease) -> Result<(), CatalogError> {
        self.inner().release(lease)
    }
}
