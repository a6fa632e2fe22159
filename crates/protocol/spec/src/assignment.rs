//! Which nodes of a fleet host which group: chosen for a new volume, and changed by as few moves as possible when nodes
//! come and go.
//!
//! Three things are wanted, in this order:
//!
//! 1. Each group has two nodes in each of three zones ([`check_zones`]).
//! 2. Within a zone, no node hosts more than one segment more than another ("balanced within one").
//! 3. The pairs of nodes that share groups are spread: when a node is lost, each of its segments is rebuilt from the five
//!    others of its group, and the fewer groups any two nodes share, the more nodes take part.
//!
//! A change moves segments within their zone only, so that the first holds at every step. [`plan`] makes one for whatever
//! has happened: nodes were added, or are leaving (drained, or lost for good), or the load is uneven. It never moves more
//! segments than the second needs.
//!
//! Everything here is a pure function of its arguments; ties go to the node with less on its disk, then to the lower number.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{AvailabilityZone, GroupId, NodeId, Placement, SEGMENTS_PER_GROUP, invariant};

use crate::{GroupMembers, Membership};

/// Zones that a group is spread over.
pub const ZONES_PER_GROUP: usize = 3;
/// Segments of a group in one zone.
pub const SEGMENTS_PER_ZONE: usize = SEGMENTS_PER_GROUP / ZONES_PER_GROUP;

/// A node that may host segments, or is about to host none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its number.
    pub node: NodeId,
    /// Where it stands.
    pub zone: AvailabilityZone,
    /// Bytes on its disk; decides between nodes with equally many segments. Zero where it is not known.
    pub used_bytes: u64,
    /// It is drained, or lost for good: every segment leaves it, and none comes.
    pub is_leaving: bool,
}

/// One segment's way to another node of the same zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Move {
    /// The group that the segment is of.
    pub group: GroupId,
    /// The node that hosts it.
    pub from: NodeId,
    /// The node that will host it instead.
    pub to: NodeId,
}

/// Why segments cannot be placed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AssignmentError {
    /// The nodes do not stand in three zones.
    #[error("the nodes stand in {0} availability zones; a volume needs {ZONES_PER_GROUP}")]
    Zones(usize),
    /// A zone has too few nodes that stay.
    #[error("zone {zone} has {count} nodes to host segments; a group needs {SEGMENTS_PER_ZONE} in each zone", zone = zone.0)]
    TooFew {
        /// The zone.
        zone: AvailabilityZone,
        /// How many of its nodes may host segments.
        count: usize,
    },
    /// A zone has more nodes than segments, so some would have nothing to do.
    #[error(
        "zone {zone} has {nodes} nodes, and {segments} segments to host; more groups would give each of them something to do",
        zone = zone.0
    )]
    Idle {
        /// The zone.
        zone: AvailabilityZone,
        /// Its nodes.
        nodes: usize,
        /// Two for each group.
        segments: usize,
    },
    /// A group has a node that is not among the hosts.
    #[error("group {group} has node {node}, which is not a node of the fleet")]
    Unknown {
        /// The group.
        group: GroupId,
        /// Its member.
        node: NodeId,
    },
    /// A group does not have two nodes in a zone.
    #[error("group {group} has {count} nodes in zone {zone}, not {SEGMENTS_PER_ZONE}", zone = zone.0)]
    Uneven {
        /// The group.
        group: GroupId,
        /// The zone.
        zone: AvailabilityZone,
        /// How many of the group's nodes stand there.
        count: usize,
    },
}

/// Chooses six nodes for each group of a new volume.
///
/// # Errors
/// When the hosts that stay are not in three zones with two or more in each, or are more than there are segments for.
pub fn assign(placement: Placement, hosts: &[Host]) -> Result<Membership, AssignmentError> {
    let zones = zones_of(hosts)?;
    let segments = SEGMENTS_PER_ZONE * usize::from(placement.group_count());
    for (zone, members) in &zones {
        if members.staying().count() > segments {
            let (zone, nodes) = ((*zone).clone(), members.staying().count());
            return Err(AssignmentError::Idle { zone, nodes, segments });
        }
    }
    let mut state = Assigned::default();
    for group in placement.groups() {
        for members in zones.values() {
            for _ in 0..SEGMENTS_PER_ZONE {
                let host = state.best_host(group, members).expect("a zone has two nodes that stay");
                state.add(group, host.node);
            }
        }
    }
    while spread(&mut state, placement, &zones) {}
    let membership = state.membership(placement);
    assert_in_three_zones(&membership, placement, hosts);
    Ok(membership)
}

/// Lets two groups exchange nodes of a zone where that spreads the pairs; whether it did so anywhere. Every exchange makes
/// the sum of the squares of [`Assigned::shared`] smaller, so that this ends.
fn spread(
    state: &mut Assigned,
    placement: Placement,
    zones: &BTreeMap<&AvailabilityZone, ZoneMembers<'_>>,
) -> bool {
    let mut any = false;
    for first in placement.groups() {
        for second in placement.groups().filter(|second| *second > first) {
            for members in zones.values() {
                any |= state.exchange_if_better(first, second, members);
            }
        }
    }
    any
}

/// The moves after which no leaving node hosts anything and every zone is balanced within one, in an order in which they
/// can be carried out one by one: as few as there can be, and none if nothing is to be done.
///
/// # Errors
/// When the hosts that stay are not in three zones with two or more in each, or `current` names others than the hosts or
/// has not two in each zone.
pub fn plan(
    current: &Membership,
    placement: Placement,
    hosts: &[Host],
) -> Result<Vec<Move>, AssignmentError> {
    check_zones(current, placement, hosts)?;
    let zones = zones_of(hosts)?;
    let mut state = Assigned::default();
    for members in current.iter() {
        members.nodes.iter().for_each(|&node| state.add(members.group, node));
    }
    let mut moves = Vec::new();
    for members in zones.values() {
        moves.extend(ZonePlan { state: &mut state, members, moves: Vec::new() }.make());
    }
    assert_in_three_zones(&state.membership(placement), placement, hosts);
    Ok(moves)
}

/// A volume that outlives a zone and one node more needs the six segments of every group two by two in three zones.
fn assert_in_three_zones(membership: &Membership, placement: Placement, hosts: &[Host]) {
    let checked = check_zones(membership, placement, hosts);
    invariant!("groups-stand-in-three-zones", checked.is_ok(), "{checked:?}");
}

/// Checks that every group of the volume has two nodes in each of three zones, among these hosts.
///
/// # Errors
/// Names the first group that has not.
pub fn check_zones(
    membership: &Membership,
    placement: Placement,
    hosts: &[Host],
) -> Result<(), AssignmentError> {
    let zone_of = |node: NodeId| hosts.iter().find(|host| host.node == node).map(|host| &host.zone);
    let zones: BTreeSet<&AvailabilityZone> = hosts.iter().map(|host| &host.zone).collect();
    if zones.len() != ZONES_PER_GROUP {
        return Err(AssignmentError::Zones(zones.len()));
    }
    for group in placement.groups() {
        let mut counts: BTreeMap<&AvailabilityZone, usize> = zones.iter().map(|&zone| (zone, 0)).collect();
        for &node in membership.nodes_of(group) {
            let zone = zone_of(node).ok_or(AssignmentError::Unknown { group, node })?;
            *counts.entry(zone).or_default() += 1;
        }
        if let Some((zone, &count)) = counts.iter().find(|(_, count)| **count != SEGMENTS_PER_ZONE) {
            return Err(AssignmentError::Uneven { group, zone: (*zone).clone(), count });
        }
    }
    Ok(())
}

/// The nodes of one zone.
struct ZoneMembers<'a>(Vec<&'a Host>);

impl ZoneMembers<'_> {
    fn staying(&self) -> impl Iterator<Item = &Host> {
        self.0.iter().copied().filter(|host| !host.is_leaving)
    }

    fn leaving(&self) -> impl Iterator<Item = &Host> {
        self.0.iter().copied().filter(|host| host.is_leaving)
    }
}

fn zones_of(hosts: &[Host]) -> Result<BTreeMap<&AvailabilityZone, ZoneMembers<'_>>, AssignmentError> {
    let mut zones: BTreeMap<&AvailabilityZone, ZoneMembers<'_>> = BTreeMap::new();
    for host in hosts {
        zones.entry(&host.zone).or_insert_with(|| ZoneMembers(Vec::new())).0.push(host);
    }
    if zones.len() != ZONES_PER_GROUP {
        return Err(AssignmentError::Zones(zones.len()));
    }
    for (zone, members) in &zones {
        let count = members.staying().count();
        if count < SEGMENTS_PER_ZONE {
            return Err(AssignmentError::TooFew { zone: (*zone).clone(), count });
        }
    }
    Ok(zones)
}

/// Who hosts what, from both sides, and how many groups any two nodes share.
#[derive(Default)]
struct Assigned {
    groups_on: BTreeMap<NodeId, BTreeSet<GroupId>>,
    nodes_of: BTreeMap<GroupId, BTreeSet<NodeId>>,
    /// By both nodes, the lower number first.
    shared: BTreeMap<(NodeId, NodeId), i32>,
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl Assigned {
    fn add(&mut self, group: GroupId, node: NodeId) {
        let others = self.nodes_of.entry(group).or_default();
        for &other in others.iter() {
            *self.shared.entry(pair(node, other)).or_default() += 1;
        }
        others.insert(node);
        self.groups_on.entry(node).or_default().insert(group);
    }

    fn remove(&mut self, group: GroupId, node: NodeId) {
        let others = self.nodes_of.entry(group).or_default();
        others.remove(&node);
        for &other in others.iter() {
            *self.shared.entry(pair(node, other)).or_default() -= 1;
        }
        self.groups_on.entry(node).or_default().remove(&group);
    }

    fn move_one(&mut self, Move { group, from, to }: Move) {
        self.remove(group, from);
        self.add(group, to);
    }

    fn load(&self, node: NodeId) -> usize {
        self.groups_on.get(&node).map_or(0, BTreeSet::len)
    }

    fn hosts(&self, node: NodeId, group: GroupId) -> bool {
        self.groups_on.get(&node).is_some_and(|groups| groups.contains(&group))
    }

    /// How many groups a node shares with the others of a group, each of them counted: the larger, the less the pairs are
    /// spread if the node hosts the group.
    fn crowding(&self, group: GroupId, node: NodeId) -> i32 {
        let others = self.nodes_of.get(&group).into_iter().flatten().filter(|other| **other != node);
        others.map(|&other| self.shared.get(&pair(node, other)).copied().unwrap_or(0)).sum()
    }

    /// Adds a segment; returns by how much the sum of squares grows.
    fn add_counted(&mut self, group: GroupId, node: NodeId) -> i32 {
        let change = 2 * self.crowding(group, node) + SEGMENTS_PER_GROUP as i32 - 1;
        self.add(group, node);
        change
    }

    /// Removes a segment; returns by how much the sum of squares grows, which is zero or less.
    fn remove_counted(&mut self, group: GroupId, node: NodeId) -> i32 {
        let change = SEGMENTS_PER_GROUP as i32 - 1 - 2 * self.crowding(group, node);
        self.remove(group, node);
        change
    }

    /// Lets two groups exchange two nodes of a zone if the pairs are spread better then.
    fn exchange_if_better(&mut self, first: GroupId, second: GroupId, members: &ZoneMembers<'_>) -> bool {
        let only = |state: &Assigned, group, other| -> Vec<NodeId> {
            let nodes = members.staying().map(|host| host.node);
            nodes.filter(|&node| state.hosts(node, group) && !state.hosts(node, other)).collect()
        };
        for a in only(self, first, second) {
            for b in only(self, second, first) {
                let change = self.remove_counted(first, a)
                    + self.remove_counted(second, b)
                    + self.add_counted(first, b)
                    + self.add_counted(second, a);
                if change < 0 {
                    return true;
                }
                self.move_one(Move { group: first, from: b, to: a });
                self.move_one(Move { group: second, from: a, to: b });
            }
        }
        false
    }

    /// The node of a zone that is to host a segment: of those that do not host the group the one with the fewest segments,
    /// then the one that shares the fewest groups with the others.
    fn best_host<'a>(&self, group: GroupId, members: &'a ZoneMembers<'_>) -> Option<&'a Host> {
        members.staying().filter(|host| !self.hosts(host.node, group)).min_by_key(|host| {
            (self.load(host.node), self.crowding(group, host.node), host.used_bytes, host.node)
        })
    }

    fn membership(&self, placement: Placement) -> Membership {
        let nodes = |group| self.nodes_of.get(&group).into_iter().flatten().copied().collect();
        placement.groups().map(|group| GroupMembers { group, nodes: nodes(group) }).collect()
    }
}

/// The moves within one zone, while they are being chosen.
struct ZonePlan<'a> {
    state: &'a mut Assigned,
    members: &'a ZoneMembers<'a>,
    moves: Vec<Move>,
}

impl ZonePlan<'_> {
    fn make(mut self) -> Vec<Move> {
        let leaving: Vec<(NodeId, GroupId)> = self
            .members
            .leaving()
            .flat_map(|host| {
                let groups = self.state.groups_on.get(&host.node).into_iter().flatten();
                groups.map(|&group| (host.node, group))
            })
            .collect();
        for (from, group) in leaving {
            let host = self.state.best_host(group, self.members);
            // The zone has two nodes that stay, and the group one more segment there at most.
            let to = host.expect("a node of the zone that does not host the group").node;
            self.carry_out(Move { group, from, to });
        }
        while let Some((most, least)) = self.uneven_pair() {
            if !self.reroute_to(least) {
                self.move_between(most, least);
            }
        }
        self.in_order()
    }

    fn carry_out(&mut self, chosen: Move) {
        self.state.move_one(chosen);
        self.moves.push(chosen);
    }

    /// The nodes with the most and the fewest segments, if they differ by more than one.
    fn uneven_pair(&self) -> Option<(NodeId, NodeId)> {
        let load = |host: &&Host| self.state.load(host.node);
        let most = self.members.staying().max_by_key(|host| (load(host), host.used_bytes))?;
        let least = self.members.staying().min_by_key(|host| (load(host), host.used_bytes))?;
        (load(&most) > load(&least) + 1).then_some((most.node, least.node))
    }

    /// Gives `least` a segment more and a node that has two more than it one less, without one more move: the targets of
    /// moves that are planned anyway change along a chain of nodes. Without this, where a leaving node's segment went
    /// because its first choice hosts the group already could cost a second move.
    fn reroute_to(&mut self, least: NodeId) -> bool {
        let wanted = self.state.load(least) + 2;
        // Breadth first from the end of the chain: the node after each, and the planned move that is to go there instead.
        let mut next: BTreeMap<NodeId, (usize, NodeId)> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([least]);
        let mut chain = None;
        while let Some(to) = queue.pop_front() {
            if to != least && self.state.load(to) >= wanted {
                chain = Some(to);
                break;
            }
            for (index, planned) in self.moves.iter().enumerate() {
                let fits = !self.state.hosts(to, planned.group) && planned.from != to;
                if fits && planned.to != least && !next.contains_key(&planned.to) {
                    next.insert(planned.to, (index, to));
                    queue.push_back(planned.to);
                }
            }
        }
        let Some(mut at) = chain else { return false };
        while let Some(&(index, to)) = next.get(&at) {
            let group = self.moves[index].group;
            self.state.move_one(Move { group, from: at, to });
            self.moves[index].to = to;
            at = to;
        }
        true
    }

    /// Moves a segment from one node to another with fewer, of the group that spreads best.
    fn move_between(&mut self, from: NodeId, to: NodeId) {
        let groups = self.state.groups_on.get(&from).into_iter().flatten().copied();
        // A segment that a planned move brought here could have been sent there by it.
        let fits = |group: &GroupId| {
            let arrived = self.moves.iter().any(|planned| planned.group == *group && planned.to == from);
            !self.state.hosts(to, *group) && !arrived
        };
        let change = |group| self.state.crowding(group, to) - self.state.crowding(group, from);
        let group = groups.filter(fits).min_by_key(|&group| (change(group), group));
        let group = group.expect("a node with more segments hosts a group that the other does not");
        self.carry_out(Move { group, from, to });
    }

    /// The moves in an order in which none brings a segment to a node that still has one of that group.
    fn in_order(self) -> Vec<Move> {
        let mut left = self.moves;
        let mut ordered = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let is_free = |planned: &Move| {
                !left.iter().any(|other| other.group == planned.group && other.from == planned.to)
            };
            let next = left.iter().position(is_free).expect("no segment moves in a circle");
            ordered.push(left.remove(next));
        }
        ordered
    }
}

#[cfg(test)]
mod tests;
