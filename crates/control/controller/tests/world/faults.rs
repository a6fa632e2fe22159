//! What goes wrong, drawn from the seed.

use borealis_controller::catalog::records::{FleetGroup, NodeState};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::NodeId;

use super::World;

impl World {
    pub(super) fn inject_faults(&mut self) {
        self.fault_of_a_node();
        self.fault_of_the_network();
        self.whim_of_an_operator();
        if self.random.once_in(100) {
            let index = usize::from(self.random.once_in(2));
            let until_ms = self.now_ms + 1_000 * self.random.below(60);
            self.controllers[index].die(until_ms);
        }
    }

    pub(super) fn start_what_was_added(&mut self) {
        let due: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, host)| !host.is_up && host.up_since_ms == self.now_ms)
            .map(|(node, _)| *node)
            .collect();
        due.into_iter().for_each(|node| self.start(node));
    }

    fn fault_of_a_node(&mut self) {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        if self.random.once_in(40)
            && let Some(node) = self.random.one_of(&all)
            && self.nodes[&node].is_up
        {
            let and_wipe = self.random.once_in(3) && self.can_be_wiped(node);
            self.kill(node, and_wipe);
            self.count(if and_wipe { "wiped" } else { "killed" });
        }
        if self.random.once_in(30) {
            let is_down = |node: &NodeId| {
                let host = &self.nodes[node];
                !host.is_up && !host.is_lost && host.up_since_ms <= self.now_ms
            };
            let down: Vec<NodeId> = all.iter().copied().filter(is_down).collect();
            if let Some(node) = self.random.one_of(&down)
                && !self.removed().contains(&node)
            {
                self.start(node);
            }
        }
    }

    pub(super) fn removed(&mut self) -> Vec<NodeId> {
        let removed =
            self.fleet().nodes.clone().into_values().filter(|record| record.state == NodeState::Removed);
        removed.map(|record| record.node).collect()
    }

    /// Whether every group keeps a write quorum of each of its sets that is complete, without this node's disk: what is
    /// beyond that is beyond any controller, too.
    fn can_be_wiped(&self, node: NodeId) -> bool {
        self.groups.values().all(|group| {
            let is_left = |other: NodeId| {
                let segment = group.segments.get(&other);
                other != node
                    && segment.is_some_and(|s| s.missing == 0 && s.store == self.nodes[&other].store)
            };
            !group.membership.contains(node) || QuorumSets::of(&group.membership).is_write_quorum(is_left)
        })
    }

    fn fault_of_the_network(&mut self) {
        if self.cut.is_empty() && self.random.once_in(200) {
            let zones = World::zones();
            let index = usize::try_from(self.random.below(3)).expect("three zones");
            self.cut(zones[index].clone());
            self.count("cut");
        } else if self.random.once_in(100) {
            self.cut.clear();
        }
        if self.random.once_in(100) {
            let all: Vec<NodeId> = self.nodes.keys().copied().collect();
            self.hidden.extend(self.random.one_of(&all));
            self.count("hidden");
        } else if self.random.once_in(100) {
            self.hidden.clear();
        }
    }

    fn whim_of_an_operator(&mut self) {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        if self.random.once_in(150)
            && let Some(node) = self.random.one_of(&all)
            && !self.removed().contains(&node)
        {
            let is_draining = self.fleet().nodes[&node].state == NodeState::Draining;
            self.set_state(node, if is_draining { NodeState::Active } else { NodeState::Draining });
        }
        let groups: Vec<FleetGroup> = self.groups.keys().copied().collect();
        if self.random.once_in(60)
            && let Some(group) = self.random.one_of(&groups)
        {
            let base = *self.groups[&group].membership.base();
            let (from, to) = (self.random.one_of(&base), self.random.one_of(&all));
            if let (Some(from), Some(to)) = (from, to) {
                self.want_move(group, from, to);
            }
        }
    }
}
