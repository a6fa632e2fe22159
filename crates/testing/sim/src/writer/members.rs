//! Which nodes a simulated writer is connected to, and what it does when a group's members change.

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{GroupId, GroupSet, NodeId, VolumeId};
use borealis_wire::message::PROTOCOL_VERSION;
use borealis_wire::{Caller, Request};

use super::{HELLO_ID, Link, NodeLinks, Stage, Which, Writer};
use crate::effects::Effects;
use crate::message::{LineId, Message, OnLine};

/// The groups that each node has a segment of.
pub(super) fn groups_of_nodes(members: &[QuorumSets]) -> BTreeMap<NodeId, GroupSet> {
    let mut groups: BTreeMap<NodeId, GroupSet> = BTreeMap::new();
    for (sets, id) in members.iter().zip(0..) {
        for node in sets.members() {
            let of_node = groups.entry(node).or_default();
            *of_node = of_node.with(GroupId(id));
        }
    }
    groups
}

impl Writer {
    /// Goes on with other members of a group: counts anew, from what each says when it is connected again.
    pub fn take_members(
        &mut self,
        group: GroupId,
        members: &QuorumSets,
        now: Duration,
        effects: &mut Effects,
    ) {
        let mut nodes: Vec<NodeId> = self.shipper.tracker().members(group).members().collect();
        nodes.extend(members.members());
        for &node in &nodes {
            self.disconnect(node, Which::Append, now, effects);
            self.disconnect(node, Which::Read, now, effects);
            self.router.forget_segment(node, group);
        }
        self.shipper.set_members(group, members);
        self.tenure.set_members(group, members.clone(), now);
        for node in nodes {
            let down = Link::Down { retry_at: now };
            self.links.insert(node, NodeLinks { append: down, read: down });
            if !self.shipper.has_peer(node) {
                self.links.remove(&node);
            }
        }
    }

    pub(super) fn connect_due(&mut self, now: Duration, effects: &mut Effects) {
        let (epoch, writer) = (self.epoch(), self.outcome.promise.writer);
        let (append, read) = (Caller::Writer { epoch, writer }, Caller::Reader { epoch, writer });
        for (&node, links) in &mut self.links {
            for (which, caller) in [(Which::Append, append), (Which::Read, read)] {
                if !matches!(links.link(which), Link::Down { retry_at } if *retry_at <= now) {
                    continue;
                }
                let line = LineId(u64::from(self.instance) << 32 | self.next_line);
                self.next_line += 1;
                let hello = Request::Hello {
                    protocol: PROTOCOL_VERSION,
                    volume: VolumeId(0),
                    node,
                    caller,
                    memberships: Vec::new(),
                };
                effects.send.push((node, Message::Line(line, OnLine::Request(HELLO_ID, hello))));
                *links.link(which) = Link::Up { line, stage: Stage::Greeting, since: now };
            }
        }
    }
}
