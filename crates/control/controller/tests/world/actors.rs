//! Controllers: they observe, decide, act, and die in the middle of it.

use std::collections::BTreeMap;
use std::rc::Rc;

use borealis_controller::catalog::records::{Fleet, MembershipRecord, NodeRecord, NodeState, Record};
use borealis_controller::catalog::{Acquisition, Catalog, Change, Lease, Outcome, Transaction};
use borealis_controller::fleet::{
    GroupObservation, MemberProgress, NodeObservation, Observed, Observer, SelfReport,
};
use borealis_controller::reconcile::{Decision, Step, reconcile};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::NodeId;

use super::{Faults, NEWCOMER_UNITS, World};
use crate::common::{SEGMENT_BYTES, WRITER, under_way};

const LEASE_MS: u64 = 5_000;
/// How old the observations are at most that a controller acts on which acts all the time.
const STALE_TICKS: u64 = 4;

#[derive(Default)]
pub struct Controller {
    dead_until_ms: u64,
    since_ms: u64,
    lease: Option<Lease>,
    heard_at_ms: BTreeMap<NodeId, u64>,
    /// What it saw some time ago, and when it looks again.
    memory: Option<(Rc<Fleet>, Observed, u64)>,
}

impl Controller {
    pub fn hear(&mut self, nodes: &[NodeId], now_ms: u64) {
        if now_ms >= self.dead_until_ms {
            self.heard_at_ms.extend(nodes.iter().map(|node| (*node, now_ms)));
        }
    }

    /// Ends the process; the next one under its name knows nothing.
    pub fn die(&mut self, until_ms: u64) {
        *self = Controller { dead_until_ms: until_ms, since_ms: until_ms, ..Controller::default() };
    }

    pub fn revive(&mut self, now_ms: u64) {
        if now_ms < self.dead_until_ms {
            (self.dead_until_ms, self.since_ms) = (now_ms, now_ms);
        }
    }
}

impl World {
    pub(super) fn controllers_act(&mut self) {
        for index in 0..self.controllers.len() {
            if self.now_ms >= self.controllers[index].dead_until_ms && self.may_act(index) {
                self.act(index);
            }
        }
    }

    /// Whether a controller has the lease, or gets it now.
    fn may_act(&mut self, index: usize) -> bool {
        if self.everyone_acts {
            return true;
        }
        if let Some(lease) = &self.controllers[index].lease
            && self.catalog.keep(lease).expect("it is in memory")
        {
            return true;
        }
        let acquired = self.catalog.acquire("controller", &index.to_string(), LEASE_MS);
        self.controllers[index].lease = match acquired.expect("it is in memory") {
            Acquisition::Acquired(lease) => Some(lease),
            Acquisition::HeldBy(_) => None,
        };
        let has_it = self.controllers[index].lease.is_some();
        if has_it && self.now_ms > 1_000 {
            self.count("taken over");
        }
        has_it
    }

    fn act(&mut self, index: usize) {
        let (fleet, observed) = self.look(index);
        let plan = reconcile(&fleet, &observed);
        for Decision { step, because } in plan.decisions {
            let dies = self.controller_dies_after == Some(self.steps());
            if dies || (self.faults == Faults::All && self.random.once_in(40)) {
                let rest_ms = if dies { u64::MAX / 2 } else { 1_000 * self.random.below(60) };
                self.controller_dies_after = None;
                self.controllers[index].die(self.now_ms + rest_ms);
                return;
            }
            self.count("steps");
            self.history.push(format!("{} {index}: {step}, because {because}", self.now_ms / 1000));
            let step = self.mistake.map_or(Some(step.clone()), |mistake| mistake(&step));
            if let Some(step) = step
                && !self.carry_out(&step)
            {
                self.count("refused");
            }
        }
        self.write_down_memberships(&fleet);
    }

    /// What a controller acts on: what there is, or what there was if it acts all the time.
    fn look(&mut self, index: usize) -> (Rc<Fleet>, Observed) {
        if self.everyone_acts
            && let Some((fleet, observed, until_ms)) = &self.controllers[index].memory
            && self.now_ms < *until_ms
        {
            return (Rc::clone(fleet), observed.clone());
        }
        let (fleet, observed) = (self.fleet(), self.observe(index));
        let until_ms = self.now_ms + 1_000 * (1 + self.random.below(STALE_TICKS));
        if self.everyone_acts {
            self.controllers[index].memory = Some((Rc::clone(&fleet), observed.clone(), until_ms));
        }
        (fleet, observed)
    }

    /// Does a step; false if it was too late for it.
    fn carry_out(&mut self, step: &Step) -> bool {
        match step {
            Step::Change { group, after, transition } => return self.propose(*group, *after, *transition),
            Step::Settle(name) => {
                let group = &self.groups[name];
                let quorum_sets = QuorumSets::of(&group.membership);
                if !quorum_sets.is_write_quorum(|node| self.answers(group, node)) {
                    return false;
                }
                self.groups.get_mut(name).expect("the group exists").is_established = true;
                self.count("settled");
            }
            Step::StartNode(zone) => {
                self.add_node(zone.clone());
                self.count("started");
            }
            Step::Adopt { node, incarnation } => {
                self.rewrite(*node, |record| record.incarnation = incarnation.clone());
                self.count("adopted");
            }
            Step::Retire(node) => {
                self.rewrite(*node, |record| record.state = NodeState::Removed);
                self.nodes.get_mut(node).expect("the node exists").is_up = false;
                self.count("retired");
            }
            Step::EndMove(record) => {
                self.write(vec![Change::Delete(record.key())]);
                self.count("moves ended");
            }
        }
        true
    }

    fn rewrite(&mut self, node: NodeId, change: impl Fn(&mut NodeRecord)) {
        let mut record = self.fleet().nodes[&node].clone();
        change(&mut record);
        self.write(vec![record.put()]);
    }

    /// Notes the memberships that were seen, each as long as nobody else has.
    fn write_down_memberships(&mut self, fleet: &Fleet) {
        let records: Vec<MembershipRecord> = self
            .groups
            .iter()
            .map(|(group, seen)| MembershipRecord { group: *group, membership: seen.membership.clone() })
            .filter(|record| fleet.memberships.get(&record.group) != Some(record))
            .collect();
        for record in records {
            let conditions = vec![record.is_as_in(fleet)];
            let written = self.catalog.commit(&Transaction { conditions, changes: vec![record.put()] });
            if written.expect("it is in memory") == Outcome::Conflict {
                self.count("written by another");
            }
        }
    }

    /// What a controller sees now.
    pub(super) fn observe(&self, index: usize) -> Observed {
        let controller = &self.controllers[index];
        let mut observed = Observed::default();
        for (&node, host) in &self.nodes {
            let since = |heard_ms: Option<&u64>, since_ms: u64| {
                self.now_ms - heard_ms.copied().unwrap_or(0).max(since_ms).min(self.now_ms)
            };
            let mut heard_ms_ago = BTreeMap::from([
                (Observer::Controller, since(controller.heard_at_ms.get(&node), controller.since_ms)),
                (WRITER, since(self.heard_at_ms.get(&(WRITER, node)), 0)),
            ]);
            for (&peer, peer_host) in self.nodes.iter().filter(|(peer, _)| **peer != node) {
                if self.is_in_sight(peer) {
                    let peer = Observer::Peer(peer);
                    let ago = since(self.heard_at_ms.get(&(peer, node)), peer_host.up_since_ms);
                    heard_ms_ago.insert(peer, ago);
                }
            }
            let answer = self.is_in_sight(node).then(|| SelfReport {
                incarnation: host.incarnation(),
                broken: None,
                free_bytes: 100 * SEGMENT_BYTES,
            });
            let lost = host.is_lost.then(|| "its folder is gone".to_owned());
            observed.nodes.insert(node, NodeObservation { heard_ms_ago, answer, lost });
            if !host.has_answered && !host.is_lost {
                *observed.starting.entry(host.zone.clone()).or_default() += 1;
            }
        }
        for (&name, group) in &self.groups {
            let answering = group.segments.iter().filter(|(node, _)| self.answers(group, **node));
            let members: BTreeMap<NodeId, MemberProgress> = answering
                .map(|(node, segment)| {
                    let total = NEWCOMER_UNITS.max(segment.missing);
                    let progress = match segment.missing {
                        0 => MemberProgress::Complete,
                        missing => {
                            MemberProgress::CatchingUp { done_bytes: total - missing, total_bytes: total }
                        }
                    };
                    (*node, progress)
                })
                .collect();
            if !members.is_empty() {
                let (membership, is_established) = (group.membership.clone(), group.is_established);
                let seen =
                    GroupObservation { membership, is_established, members, segment_bytes: SEGMENT_BYTES };
                observed.groups.insert(name, seen);
            }
        }
        observed
    }

    /// A member is replaced only for a reason, and only within its zone.
    pub(super) fn check_begin(&mut self, name: super::FleetGroup, old: NodeId, new: NodeId) {
        let fleet = self.fleet();
        let (old_record, new_record) = (&fleet.nodes[&old], &fleet.nodes[&new]);
        assert_eq!(old_record.zone, new_record.zone, "{name} would leave its zone");
        if self.everyone_acts {
            // It decided on what it saw before.
            return;
        }
        assert!(!self.cut.contains(&old_record.zone), "{name} would be moved in a zone that is lost");
        let is_wanted = fleet.moves.iter().any(|record| (record.group, record.from) == (name, old));
        let segment = &self.groups[&name].segments[&old];
        let is_there = self.hears(None, old) && self.nodes[&old].store == segment.store;
        let may_go = !is_there || is_wanted || old_record.state != NodeState::Active;
        assert!(may_go, "{name} would lose node {old}, which is there: {:?}", self.history);
        assert!(self.is_in_sight(new), "{name} would get node {new}, which is not there");
    }

    pub(super) fn check_limits(&mut self) {
        let (count, of_node) = under_way(self.groups.values().map(|group| &group.membership));
        if count >= 2 {
            self.count("two at once");
        }
        if !self.everyone_acts {
            assert!(count <= self.settings.changes_max, "{count} changes at once");
            let most = of_node.values().copied().max().unwrap_or(0);
            assert!(most <= self.settings.changes_per_node_max, "{most} changes at once on a node");
        }
    }
}
