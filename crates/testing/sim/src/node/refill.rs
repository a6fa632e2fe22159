//! What a simulated node does when no peer's log continues a segment: it takes everything up to a durable point from
//! peers, part by part, and jumps. The product's segment decides when it may; pages are modelled by the records that made
//! them, and each part stands for a range of pages.

use std::collections::BTreeMap;
use std::rc::Rc;

use borealis_quorum::DurablePoint;
use borealis_quorum::corroboration::Corroboration;
use borealis_quorum::membership::GroupMembership;
use borealis_types::{GroupId, Lsn, NodeId, ReadPoint};

use super::{Effects, Entry, SimNode};
use crate::message::{Host, Message, SimRecord};
use crate::{Coverage, Defect};

/// Ranges of pages that a group has.
const PARTS: u8 = 4;
/// How many ranges one peer is asked for; the rest is asked of whoever answers next, so a refill has several sources.
const PARTS_AT_ONCE: usize = 2;
/// How many collections a pin outlives that is not renewed.
const LEASE_COLLECTIONS: u8 = 3;

/// The range that a record's page is in.
fn part_of(record: &SimRecord) -> u8 {
    (record.content % u64::from(PARTS)) as u8
}

/// What was brought so far for one segment. A crash loses it.
#[derive(Clone, Debug)]
pub(super) struct Refill {
    point: DurablePoint,
    parts: BTreeMap<u8, Vec<Rc<SimRecord>>>,
}

/// What a node keeps of one group, and for whom.
#[derive(Clone, Default, Debug)]
pub(super) struct Kept {
    /// Log is kept, and everything is there, from here on.
    collected: Lsn,
    /// What peers hold, and for how many collections yet.
    pins: BTreeMap<NodeId, (Lsn, u8)>,
}

impl Kept {
    /// The same store in another process.
    pub(super) fn after_restart(&self) -> Kept {
        Kept { collected: self.collected, pins: BTreeMap::new() }
    }
}

impl SimNode {
    /// From where on a group's log is kept.
    pub(super) fn log_kept_from(&self, group: GroupId) -> Lsn {
        self.kept[usize::from(group.0)].collected
    }

    /// Everything as of a point came from peers: there is no log of what was before it.
    pub(super) fn begin_log_at(&mut self, group: GroupId, point: DurablePoint) {
        let kept = &mut self.kept[usize::from(group.0)];
        kept.collected = kept.collected.max(point.volume.end);
    }

    /// Nothing is kept for a node that is no member any more. A node that `left` keeps nothing for anyone, and what it
    /// was bringing is for a segment that is gone.
    pub(super) fn keep_for_members(&mut self, group: GroupId, members: &GroupMembership, left: bool) {
        let position = usize::from(group.0);
        self.kept[position].pins.retain(|peer, _| !left && members.contains(*peer));
        if left {
            self.refills[position] = None;
            self.unconfirmed[position] = Corroboration::default();
        }
    }

    /// Lets go of log that nobody reads below, as a checkpoint does.
    pub(super) fn collect(&mut self, coverage: &mut Coverage) {
        for group in self.groups() {
            let segment = self.segment(group);
            let durable = segment.known_durable().volume.end;
            let target = segment.minimum_read_point().min(segment.readable_through()).min(durable);
            let kept = &mut self.kept[usize::from(group.0)];
            let pinned = kept.pins.values().map(|(lsn, _)| *lsn).min();
            let held_back = pinned.is_some_and(|pinned| pinned < target);
            if held_back {
                coverage.count("collections held back by a pin");
            }
            let target = match (self.defect, pinned) {
                (Defect::PinIgnored, _) | (_, None) => target,
                (_, Some(pinned)) => target.min(pinned),
            };
            kept.collected = kept.collected.max(target);
            kept.pins.retain(|_, (_, left)| {
                *left -= 1;
                *left > 0
            });
        }
    }

    /// A peer's log brought nothing: asks it for what is missing to the durable point, if the segment may jump.
    pub(super) fn refill_from(
        &mut self,
        from: Host,
        group: GroupId,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let Some(newest) = self.segment(group).refill_point() else { return };
        let complete = self.segment(group).segment_complete_lsn();
        let refill = &mut self.refills[usize::from(group.0)];
        if refill.as_ref().is_none_or(|known| known.point.group_tail <= complete) {
            coverage.count("refills begun");
            *refill = Some(Refill { point: newest, parts: BTreeMap::new() });
        }
        let Some(Refill { point, parts }) = refill else { return };
        let missing = (0..PARTS).filter(|part| !parts.contains_key(part)).take(PARTS_AT_ONCE);
        let missing: Vec<u8> = missing.collect();
        let lsn = point.volume.end;
        let at = ReadPoint { epoch: self.segment(group).history().newest_epoch(), lsn };
        for part in missing {
            effects.send.push((from, Message::RefillAsk { group, at, part }));
        }
    }

    /// Gives a peer one part as of a point, and keeps the rest of it for the peer.
    pub(super) fn give_part(
        &mut self,
        from: Host,
        (group, at, part): (GroupId, ReadPoint, u8),
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let Host::Node(peer) = from else { return };
        if !self.members(group).is_some_and(|members| members.contains(peer)) {
            // It was dropped, or this node has not learned of it yet. A pin for it might never be given up.
            return coverage.count("parts not given to nodes that are no members");
        }
        let segment = self.segment(group);
        let collected = self.log_kept_from(group);
        let is_there = at.lsn <= segment.known_durable().volume.end
            && segment.permit_pinned_read(at, at.lsn).is_ok()
            && (at.lsn >= collected || self.defect == Defect::PinIgnored);
        if !is_there {
            return effects.send.push((from, Message::RefillGone(group, at.lsn)));
        }
        let through = at.lsn.max(collected);
        let records = self.records(group).values();
        let of_part = records.filter(|r| r.span.end <= through && part_of(r) == part).cloned().collect();
        self.kept[usize::from(group.0)].pins.insert(peer, (at.lsn, LEASE_COLLECTIONS));
        self.answer(from, Message::RefillPart { group, lsn: at.lsn, part, records: of_part }, effects);
    }

    /// A peer no longer has what a refill is as of: it begins again at the newest point.
    pub(super) fn begin_refill_again(&mut self, group: GroupId, lsn: Lsn, coverage: &mut Coverage) {
        let newest = self.segment(group).refill_point();
        let refill = &mut self.refills[usize::from(group.0)];
        let Some(known) = refill.as_mut().filter(|known| known.point.volume.end == lsn) else { return };
        coverage.count("refills begun again");
        match newest {
            Some(point) if self.defect == Defect::RefillMixesPoints => known.point = point,
            _ => *refill = None,
        }
    }

    /// Takes a part; with the last one the segment goes on from the point.
    pub(super) fn take_part(
        &mut self,
        (group, lsn, part): (GroupId, Lsn, u8),
        records: Vec<Rc<SimRecord>>,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) {
        let Some(refill) = &mut self.refills[usize::from(group.0)] else { return };
        if refill.point.volume.end != lsn {
            return;
        }
        refill.parts.insert(part, records);
        let is_whole = refill.parts.len() == usize::from(PARTS) || self.defect == Defect::JumpBeforeAllIsHere;
        if !is_whole {
            return;
        }
        let Some(Refill { point, parts }) = self.refills[usize::from(group.0)].take() else { return };
        if self.segment_mut(group).jump(point).is_err() {
            // Its records came in another way, or a recovery is under way.
            return coverage.count("jumps refused");
        }
        coverage.count("segments refilled");
        let block: Vec<Rc<SimRecord>> = parts.into_values().flatten().collect();
        for record in &block {
            let known = self.state.records[usize::from(group.0)].insert(record.span.start, Rc::clone(record));
            if known.is_none() {
                effects.stored.push((group, Rc::clone(record)));
            }
        }
        self.log.push(Entry::Jump(group, point, block));
        self.begin_log_at(group, point);
        self.push_progress(group, effects, coverage);
    }
}
