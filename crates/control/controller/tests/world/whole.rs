//! The end of a history: everything that can come back does, and the fleet has to become whole.

use std::collections::BTreeMap;

use borealis_controller::catalog::records::NodeState;
use borealis_controller::reconcile::reconcile;
use borealis_types::NodeId;

use super::{Faults, World};

const RECOVERY_TICKS: u64 = 4_000;
/// How long an operator looks at a request for a node before adding one.
const OPERATOR_TICKS: u64 = 30;

impl World {
    /// Ends all faults and waits until the fleet is whole.
    pub fn recover(&mut self) {
        self.cut.clear();
        self.hidden.clear();
        self.everyone_acts = false;
        self.faults = Faults::None;
        self.controllers.iter_mut().for_each(|controller| controller.revive(self.now_ms));
        let removed = self.removed();
        let nodes: Vec<NodeId> = self.nodes.keys().copied().filter(|node| !removed.contains(node)).collect();
        for node in nodes {
            self.set_state(node, NodeState::Active);
            if !self.nodes[&node].is_up && !self.nodes[&node].is_lost {
                self.start(node);
            }
        }
        for tick in 0..RECOVERY_TICKS {
            self.tick();
            if tick % OPERATOR_TICKS == 0 {
                self.add_what_is_asked_for();
            }
            if self.what_is_not_whole().is_none() {
                return;
            }
        }
        self.assert_whole("all faults have ended");
    }

    fn add_what_is_asked_for(&mut self) {
        let (fleet, observed) = (self.fleet(), self.observe(0));
        let remarks = reconcile(&fleet, &observed).remarks;
        for zone in World::zones() {
            if remarks.iter().any(|remark| remark.contains(&format!("borealis node add --az {}", zone.0))) {
                self.count("added");
                self.add_node(zone);
            }
        }
    }

    pub fn assert_whole(&mut self, when: &str) {
        if let Some(what) = self.what_is_not_whole() {
            let plan = reconcile(&self.fleet(), &self.observe(0));
            let last = self.history.iter().rev().take(30).rev().cloned().collect::<Vec<_>>().join("\n");
            panic!("{when}, and {what}\n{last}\nplan: {plan:#?}");
        }
    }

    /// The first thing that is wrong with the fleet.
    fn what_is_not_whole(&mut self) -> Option<String> {
        for (name, group) in &self.groups {
            if group.membership.sets().len() > 1 || !group.is_established {
                return Some(format!("{name} is in the middle of a change: {:?}", group.membership));
            }
            let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
            for node in group.membership.members() {
                *in_zone.entry(&self.nodes[&node].zone.0).or_default() += 1;
                if !self.answers(group, node) || group.segments[&node].missing > 0 {
                    return Some(format!("{name} is not complete on node {node}"));
                }
            }
            if in_zone.values().any(|count| *count != 2) {
                return Some(format!("{name} is spread unevenly: {in_zone:?}"));
            }
            if group.segments.len() != 6 {
                return Some(format!("{name} has {} segments", group.segments.len()));
            }
        }
        let plan = reconcile(&self.fleet(), &self.observe(0));
        plan.decisions.first().map(|decision| format!("there is something to do: {decision}"))
    }
}
