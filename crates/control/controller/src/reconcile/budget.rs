//! Which node takes a segment, within the limits on changes at once and the room on disks.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use borealis_quorum::membership::Replacement;
use borealis_types::{NodeId, invariant};

use super::group::{Begin, Kind};
use super::view::View;
use crate::fleet::MemberProgress;

/// What changes may still begin. Changes under way count until they have ended, whoever began them.
pub(super) struct Budget {
    changes_left: usize,
    moves_left: usize,
    /// Changes of each node: as the newcomer, or as the one that leaves although it is well.
    changes_of: BTreeMap<NodeId, usize>,
    /// Bytes on each node that are promised to newcomers' segments.
    promised_bytes: BTreeMap<NodeId, u64>,
    /// Segments on each node.
    segments_on: BTreeMap<NodeId, usize>,
}

/// Why a change cannot begin now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hindrance {
    /// No node of the zone could take it.
    NoNode,
    /// Those that could have no room.
    NoRoom,
    /// A limit of the fleet.
    FleetIsBusy,
    /// The limit of each node that could.
    NodesAreBusy,
    /// The node that it is wanted on cannot take it.
    NotThere(NodeId),
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hindrance::NoNode => f.write_str("no other node of the zone can take its segment"),
            Hindrance::NoRoom => f.write_str("the nodes of the zone have no room for its segment"),
            Hindrance::FleetIsBusy => f.write_str("as many members change as may at once"),
            Hindrance::NodesAreBusy => {
                f.write_str("the nodes that could take part in it are busy with other changes")
            }
            Hindrance::NotThere(node) => write!(f, "node {node} cannot take it"),
        }
    }
}

impl Budget {
    pub(super) fn new(view: &View<'_>) -> Budget {
        let settings = &view.fleet.settings;
        let mut budget = Budget {
            changes_left: settings.changes_max,
            moves_left: settings.moves_max,
            changes_of: BTreeMap::new(),
            promised_bytes: BTreeMap::new(),
            segments_on: BTreeMap::new(),
        };
        for (&group, seen) in &view.observed.groups {
            for node in seen.membership.members() {
                *budget.segments_on.entry(node).or_default() += 1;
            }
            for replacement in seen.membership.replacements() {
                let still_to_come = match seen.members.get(&replacement.new) {
                    Some(MemberProgress::Complete) => 0,
                    Some(MemberProgress::CatchingUp { done_bytes, .. }) => {
                        seen.segment_bytes.saturating_sub(*done_bytes)
                    }
                    None => seen.segment_bytes,
                };
                budget.take(replacement, view.is_move(group, replacement), still_to_come);
            }
        }
        budget
    }

    fn take(&mut self, replacement: Replacement, is_move: bool, bytes: u64) {
        self.changes_left = self.changes_left.saturating_sub(1);
        *self.changes_of.entry(replacement.new).or_default() += 1;
        *self.promised_bytes.entry(replacement.new).or_default() += bytes;
        if is_move {
            self.moves_left = self.moves_left.saturating_sub(1);
            *self.changes_of.entry(replacement.old).or_default() += 1;
        }
    }

    fn is_busy(&self, view: &View<'_>, node: NodeId) -> bool {
        self.changes_of.get(&node).copied().unwrap_or(0) >= view.fleet.settings.changes_per_node_max
    }

    /// What is left of a node's disk when everything that was promised is there.
    fn room_bytes(&self, view: &View<'_>, node: NodeId) -> u64 {
        let promised = self.promised_bytes.get(&node).copied().unwrap_or(0);
        view.answer_free_bytes(node).unwrap_or(0).saturating_sub(promised)
    }

    /// Chooses the node for a change and counts it: the one with the fewest changes, of these the one with the most room,
    /// then with the fewest segments.
    pub(super) fn begin(&mut self, view: &View<'_>, begin: &Begin<'_>) -> Result<Replacement, Hindrance> {
        let is_move = !begin.is_repair();
        if self.changes_left == 0 || (is_move && self.moves_left == 0) {
            return Err(Hindrance::FleetIsBusy);
        }
        if is_move && self.is_busy(view, begin.old) {
            return Err(Hindrance::NodesAreBusy);
        }
        let could: Vec<NodeId> = view
            .nodes()
            .filter(|node| view.can_take(node, begin.zone, begin.membership))
            .map(|node| node.node)
            .filter(|node| !matches!(begin.kind, Kind::Move(to) if to != *node))
            .collect();
        if could.is_empty() {
            return Err(match begin.kind {
                Kind::Move(to) => Hindrance::NotThere(to),
                Kind::Repair | Kind::Drain => Hindrance::NoNode,
            });
        }
        let roomy: Vec<NodeId> =
            could.into_iter().filter(|node| self.room_bytes(view, *node) >= begin.segment_bytes).collect();
        if roomy.is_empty() {
            return Err(Hindrance::NoRoom);
        }
        let count = |of: &BTreeMap<NodeId, usize>, node: &NodeId| of.get(node).copied().unwrap_or(0);
        let best = roomy.into_iter().filter(|node| !self.is_busy(view, *node)).min_by_key(|node| {
            let room_bytes = self.room_bytes(view, *node);
            (count(&self.changes_of, node), Reverse(room_bytes), count(&self.segments_on, node), *node)
        });
        let replacement = Replacement { old: begin.old, new: best.ok_or(Hindrance::NodesAreBusy)? };
        require_one_zone(view, replacement);
        self.take(replacement, is_move, begin.segment_bytes);
        *self.segments_on.entry(replacement.new).or_default() += 1;
        Ok(replacement)
    }
}

/// A group survives the loss of a zone because it has two members in each: whoever replaces one stands where it stood.
fn require_one_zone(view: &View<'_>, replacement: Replacement) {
    let zone = |node| view.record(node).map(|record| &record.zone);
    let (old, new) = (zone(replacement.old), zone(replacement.new));
    invariant!("replacement-stays-in-its-zone", old.is_some() && old == new, "from {old:?} to {new:?}");
}

#[cfg(test)]
mod tests {
    use borealis_types::AvailabilityZone;

    use super::*;
    use crate::catalog::records::{Fleet, NodeRecord, NodeState};
    use crate::fleet::Observed;

    #[test]
    #[should_panic(expected = "invariant replacement-stays-in-its-zone is broken")]
    fn a_replacement_in_another_zone_is_noticed() {
        let mut fleet = Fleet::default();
        for (node, zone) in [(1, "az1"), (2, "az2")] {
            let record = NodeRecord {
                node: NodeId(node),
                zone: AvailabilityZone(zone.to_owned()),
                address: String::new(),
                incarnation: String::new(),
                state: NodeState::Active,
            };
            fleet.nodes.insert(record.node, record);
        }
        let observed = Observed::default();
        let view = View::new(&fleet, &observed);
        require_one_zone(&view, Replacement { old: NodeId(1), new: NodeId(1) });
        require_one_zone(&view, Replacement { old: NodeId(1), new: NodeId(2) });
    }
}
