//! What is wanted and what is seen, with an opinion about each node and each zone.

use std::collections::{BTreeMap, BTreeSet};

use borealis_quorum::membership::{GroupMembership, Replacement};
use borealis_types::{AvailabilityZone, NodeId};

use crate::catalog::records::{Fleet, FleetGroup, MoveRecord, NodeRecord, NodeState};
use crate::fleet::{GroupObservation, MemberProgress, NodeObservation, Observed};
use crate::health::{Health, judge};

/// The arguments of a round, and what follows from them for each node.
pub(super) struct View<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) observed: &'a Observed,
    health: BTreeMap<NodeId, Health>,
    /// Zones that have nodes, none of which anybody hears.
    pub(super) lost_zones: BTreeSet<&'a AvailabilityZone>,
}

impl<'a> View<'a> {
    pub(super) fn new(fleet: &'a Fleet, observed: &'a Observed) -> View<'a> {
        let unseen = NodeObservation::default();
        let judged = |record: &NodeRecord| {
            let seen = observed.nodes.get(&record.node).unwrap_or(&unseen);
            judge(&fleet.settings, record, seen)
        };
        let health: BTreeMap<NodeId, Health> =
            fleet.nodes.iter().map(|(node, record)| (*node, judged(record))).collect();
        let mut view = View { fleet, observed, health, lost_zones: BTreeSet::new() };
        let zones: BTreeSet<&AvailabilityZone> = view.nodes().map(|record| &record.zone).collect();
        view.lost_zones = zones.into_iter().filter(|zone| view.is_lost_zone(zone)).collect();
        view
    }

    /// Every node that is not removed.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &'a NodeRecord> {
        self.fleet.nodes.values().filter(|record| record.state != NodeState::Removed)
    }

    /// Whether nobody hears anything of a whole zone, and some of its nodes have been missed for long.
    fn is_lost_zone(&self, zone: &AvailabilityZone) -> bool {
        let states =
            || self.nodes().filter(|record| record.zone == *zone).map(|record| self.health(record.node));
        states().any(Health::is_lost) && !states().any(Health::is_heard)
    }

    /// What the node is taken for; unknown if the catalog does not have it.
    pub(super) fn health(&self, node: NodeId) -> &Health {
        self.health.get(&node).unwrap_or(&Health::Unknown)
    }

    /// Whether a member's segment is to be replaced because the node is lost.
    pub(super) fn is_to_be_replaced(&self, record: &NodeRecord) -> bool {
        let is_wanted = self.fleet.settings.replaces() || record.state != NodeState::Active;
        is_wanted && self.health(record.node).is_lost()
    }

    pub(super) fn record(&self, node: NodeId) -> Option<&'a NodeRecord> {
        self.fleet.nodes.get(&node)
    }

    pub(super) fn answer_free_bytes(&self, node: NodeId) -> Option<u64> {
        Some(self.observed.nodes.get(&node)?.answer.as_ref()?.free_bytes)
    }

    pub(super) fn move_of(&self, group: FleetGroup, from: NodeId) -> Option<&'a MoveRecord> {
        self.fleet.moves.iter().find(|record| (record.group, record.from) == (group, from))
    }

    /// Whether a member shall go although nothing may be wrong with it.
    pub(super) fn shall_go(&self, group: FleetGroup, replacement: Replacement) -> bool {
        let is_active = self.record(replacement.old).is_some_and(|record| record.state == NodeState::Active);
        !is_active || self.move_of(group, replacement.old).is_some_and(|record| record.to == replacement.new)
    }

    /// Whether a replacement moves a segment from a node that is not lost.
    pub(super) fn is_move(&self, group: FleetGroup, replacement: Replacement) -> bool {
        !self.health(replacement.old).is_lost() && self.shall_go(group, replacement)
    }

    /// Whether a newcomer cannot become a member any more.
    pub(super) fn is_useless(&self, newcomer: NodeId) -> bool {
        let is_known = self.record(newcomer).is_some_and(|record| record.state != NodeState::Removed);
        !is_known || self.health(newcomer).is_lost()
    }

    /// Whether a member has everything, and can be counted on.
    pub(super) fn is_complete(&self, seen: &GroupObservation, member: NodeId) -> bool {
        seen.members.get(&member) == Some(&MemberProgress::Complete) && !self.health(member).is_lost()
    }

    /// Whether a segment could be put on a node of `zone` that has none of the group's, apart from limits.
    pub(super) fn can_take(
        &self,
        node: &NodeRecord,
        zone: &AvailabilityZone,
        membership: &GroupMembership,
    ) -> bool {
        node.state == NodeState::Active
            && node.zone == *zone
            && *self.health(node.node) == Health::Well
            && !membership.contains(node.node)
            && self.answer_free_bytes(node.node).is_some()
    }

    /// Whether any group has, or for all that is known may have, a segment on a node.
    pub(super) fn may_hold_something(&self, node: NodeId) -> bool {
        self.fleet.volumes.values().any(|volume| {
            volume.placement.groups().any(|group| {
                let group = FleetGroup { volume: volume.volume, group };
                match (self.observed.groups.get(&group), self.fleet.memberships.get(&group)) {
                    (Some(seen), _) => seen.membership.contains(node),
                    (None, Some(record)) => record.membership.contains(node),
                    (None, None) => true,
                }
            })
        })
    }
}
