//! Which nodes the writer is connected to, and what it does when a group's members change.
//!
//! A node refuses what was asked for an older membership, and says what it knows. When enough say the same, the writer goes on
//! with the new members: it connects anew to all that the group has or had, with introductions that name the new membership,
//! and counts from what they say then. The server notices at most that a read or a commit takes some milliseconds longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use borealis_client::Memberships;
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::membership::{GroupMembership, MembershipState};
use borealis_types::{GroupId, GroupSet, NodeId};
use borealis_wire::Refusal;

use super::Engine;
use super::peers::{Line, Link, PeerLinks};
use crate::memberships::{in_words, remember};

/// The groups that each node has a segment of.
pub(super) fn groups_of_nodes(memberships: &Memberships) -> BTreeMap<NodeId, GroupSet> {
    let mut groups: BTreeMap<NodeId, GroupSet> = BTreeMap::new();
    for (&group, membership) in memberships.groups() {
        for node in membership.members() {
            let of_node = groups.entry(node).or_default();
            *of_node = of_node.with(group);
        }
    }
    groups
}

impl Engine {
    /// A node refused something because it stores other memberships, or says so unasked. What it says is noted, and what
    /// follows is done at the end of the turn. Its connection is of no use: what it was made for does not change.
    pub(super) fn note_other_membership(&mut self, node: NodeId, line: Line, refusal: &Refusal) {
        let Refusal::OtherMembership { states, nodes } = refusal else { return };
        let is_newer = |(group, state): &(GroupId, MembershipState)| {
            self.memberships.of(*group).is_some_and(|known| state.installed().epoch() > known.epoch())
        };
        let has_newer = states.iter().any(is_newer);
        self.changed.extend(self.memberships.take(node, states, nodes));
        let failures = self.peer(node).failures;
        self.disconnect(node, line, &refusal.to_string());
        // It was found where it was looked for.
        self.peer(node).failures = failures;
        if !has_newer {
            // It has not learned yet what this writer knows, and soon will.
            self.peer(node).link(line).retry_soon(Instant::now());
        }
    }

    /// Goes on with the members that were learned of in this turn.
    pub(super) fn take_members(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        let groups: Vec<GroupId> = changed.into_iter().collect();
        tracing::info!("members have changed; {}", in_words(&self.memberships, &groups));
        let mut nodes = BTreeSet::new();
        for &group in &groups {
            let before = self.shipper.tracker().members(group).members();
            let after = self.memberships.of(group).map(GroupMembership::members).unwrap_or_default();
            let of_group: BTreeSet<NodeId> = before.chain(after).collect();
            for &node in &of_group {
                self.read_router.forget_segment(node, group);
            }
            nodes.extend(of_group);
        }
        let connected = self.nodes();
        for &node in nodes.iter().filter(|node| connected.contains(node)) {
            for line in [Line::Append, Line::Read] {
                self.give_up(node, line);
            }
        }
        let now = self.now();
        for &group in &groups {
            let Some(sets) = self.memberships.of(group).map(QuorumSets::of) else { continue };
            self.shipper.set_members(group, &sets);
            self.tenure.set_members(group, sets, now);
        }
        self.connect_to(&nodes);
        remember(&self.config, &self.memberships);
    }

    /// Has connections to these nodes opened anew, to those of them that have a segment.
    fn connect_to(&mut self, nodes: &BTreeSet<NodeId>) {
        let now = Instant::now();
        for &node in nodes {
            if !self.shipper.has_peer(node) {
                self.peers.remove(&node);
                continue;
            }
            let groups = self.shipper.groups_of(node);
            let peer = self.peers.entry(node).or_insert_with(|| PeerLinks::new(groups, now));
            peer.groups = groups;
            peer.installed = false;
            (peer.append, peer.read) = (Link::new(now), Link::new(now));
        }
        self.nodes = self.peers.keys().copied().collect();
    }
}
