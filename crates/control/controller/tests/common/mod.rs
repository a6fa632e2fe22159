//! A fleet and what is seen of it, for tests to change.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;

use borealis_controller::catalog::records::{
    Fleet, FleetGroup, NodeRecord, NodeState, Settings, VolumeRecord,
};
use borealis_controller::fleet::{
    GroupObservation, MemberProgress, NodeObservation, Observed, Observer, SelfReport,
};
use borealis_controller::reconcile::{Plan, Step, reconcile};
use borealis_quorum::membership::{GroupMembership, Replacement, Transition};
use borealis_types::{AvailabilityZone, GroupId, InstanceId, NodeId, Placement, PostgresVersion, VolumeId};

pub const VOLUME: VolumeId = VolumeId(7);
pub const SEGMENT_BYTES: u64 = 1 << 30;
pub const WRITER: Observer = Observer::Writer(VOLUME, InstanceId(1));

pub fn zone(number: u16) -> AvailabilityZone {
    AvailabilityZone(format!("az{number}"))
}

/// Nodes count through the zones: 1, 4, 7 in az1, and so on.
pub fn zone_of(node: u16) -> AvailabilityZone {
    zone((node - 1) % 3 + 1)
}

pub fn group(number: u16) -> FleetGroup {
    FleetGroup { volume: VOLUME, group: GroupId(number) }
}

pub fn record(node: u16) -> NodeRecord {
    NodeRecord {
        node: NodeId(node),
        zone: zone_of(node),
        address: format!("unix:/nodes/{node}"),
        incarnation: "first".to_owned(),
        state: NodeState::Active,
    }
}

pub fn volume(groups: u16) -> VolumeRecord {
    VolumeRecord {
        volume: VOLUME,
        postgres_version: PostgresVersion::V15,
        placement: Placement::new(groups).expect("a number of groups"),
    }
}

pub fn replacement(old: u16, new: u16) -> Replacement {
    Replacement { old: NodeId(old), new: NodeId(new) }
}

/// What is wanted and what is seen.
#[derive(Clone, Debug)]
pub struct Scene {
    pub fleet: Fleet,
    pub observed: Observed,
}

impl Scene {
    /// Nodes 1 to `nodes`, all well, and groups that are complete on nodes 1 to 6.
    pub fn new(nodes: u16, groups: u16) -> Scene {
        let mut scene = Scene { fleet: Fleet::default(), observed: Observed::default() };
        scene.fleet.settings = Settings { changes_per_node_max: 8, ..Settings::default() };
        scene.fleet.volumes.insert(VOLUME, volume(groups));
        for node in 1..=nodes {
            scene.fleet.nodes.insert(NodeId(node), record(node));
            let heard_ms_ago = (1..=nodes)
                .filter(|peer| *peer != node)
                .map(|peer| (Observer::Peer(NodeId(peer)), 0))
                .chain([(Observer::Controller, 0), (WRITER, 0)])
                .collect();
            let answer = SelfReport { incarnation: "first".to_owned(), broken: None, free_bytes: 100 << 30 };
            let seen = NodeObservation { heard_ms_ago, answer: Some(answer), lost: None };
            scene.observed.nodes.insert(NodeId(node), seen);
        }
        for number in 0..groups {
            let membership = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
            scene.show(number, membership);
        }
        scene
    }

    /// All members of a group are complete under this membership.
    pub fn show(&mut self, number: u16, membership: GroupMembership) {
        let members = membership.members().into_iter().map(|node| (node, MemberProgress::Complete)).collect();
        let seen =
            GroupObservation { membership, is_established: true, members, segment_bytes: SEGMENT_BYTES };
        self.observed.groups.insert(group(number), seen);
    }

    pub fn seen(&mut self, number: u16) -> &mut GroupObservation {
        self.observed.groups.get_mut(&group(number)).expect("the scene has the group")
    }

    pub fn begin(&mut self, number: u16, old: u16, new: u16) {
        let begun = self.seen(number).membership.after(Transition::Begin(replacement(old, new)));
        self.show(number, begun.expect("it can begin"));
        self.progress(number, new, 41, 100);
    }

    pub fn progress(&mut self, number: u16, node: u16, done: u64, total: u64) {
        let progress = MemberProgress::CatchingUp { done_bytes: done << 20, total_bytes: total << 20 };
        self.seen(number).members.insert(NodeId(node), progress);
    }

    pub fn observation(&mut self, node: u16) -> &mut NodeObservation {
        self.observed.nodes.get_mut(&NodeId(node)).expect("the scene has the node")
    }

    pub fn set_state(&mut self, node: u16, state: NodeState) {
        self.fleet.nodes.get_mut(&NodeId(node)).expect("the scene has the node").state = state;
    }

    /// Nobody has heard the node for so long, and it says nothing of others and of its groups.
    pub fn silence(&mut self, node: u16, ms: u64) {
        for (other, seen) in &mut self.observed.nodes {
            if *other == NodeId(node) {
                seen.heard_ms_ago.values_mut().for_each(|ago| *ago = ms);
                seen.answer = None;
            }
            seen.heard_ms_ago.remove(&Observer::Peer(NodeId(node)));
        }
        for seen in self.observed.groups.values_mut() {
            seen.members.remove(&NodeId(node));
        }
    }

    /// The node answers that it will keep no promise.
    pub fn breaks(&mut self, node: u16) {
        let answer = self.observation(node).answer.as_mut().expect("it answers");
        answer.broken = Some("its log is poisoned".to_owned());
        for seen in self.observed.groups.values_mut() {
            seen.members.remove(&NodeId(node));
        }
    }

    pub fn plan(&self) -> Plan {
        let plan = reconcile(&self.fleet, &self.observed);
        assert_eq!(plan, reconcile(&self.fleet, &self.observed), "the same arguments gave another plan");
        plan
    }

    pub fn steps(&self) -> Vec<Step> {
        self.plan().decisions.into_iter().map(|decision| decision.step).collect()
    }

    /// The changes of groups: each group's number and what changes.
    pub fn changes(&self) -> Vec<(u16, Transition)> {
        let steps = self.steps().into_iter();
        steps
            .filter_map(|step| match step {
                Step::Change { group, transition, .. } => Some((group.group.0, transition)),
                _ => None,
            })
            .collect()
    }

    /// Whether a remark says all of this.
    pub fn remarks(&self, words: &[&str]) -> bool {
        self.plan().remarks.iter().any(|remark| words.iter().all(|word| remark.contains(word)))
    }
}

/// How many changes of members are under way, in all and for each newcomer.
pub fn under_way<'a>(groups: impl Iterator<Item = &'a GroupMembership>) -> (usize, BTreeMap<NodeId, usize>) {
    let mut of_node = BTreeMap::new();
    let mut count = 0;
    for change in groups.flat_map(GroupMembership::replacements) {
        count += 1;
        *of_node.entry(change.new).or_insert(0) += 1;
    }
    (count, of_node)
}
