//! The writer's view: what was shipped, who has it, how far the volume is durable.
//!
//! One [`WriterTracker`] belongs to one writer in one volume epoch. It assigns each record its place in the
//! chains of its groups, takes the segments' acknowledgements, and moves the volume durable LSN (VDL).
//! Shipping costs a few words per record and group; an acknowledgement costs sorting six numbers per set
//! of members, plus a step for each record that became durable.

use std::collections::VecDeque;

use borealis_types::{GroupId, GroupSet, Lsn, NodeId, RecordSpan, VolumeEpoch, invariant};

use crate::quorum_set::QuorumSets;
use crate::{DurablePoint, GroupLink, GroupTail};

/// What became of an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acknowledgement {
    /// The volume is durable further: to the end of this record.
    Durable(RecordSpan),
    /// Noted; the durable position stays.
    Noted,
    /// Of another epoch, or of a node that is not a member (any more). Ignored.
    Ignored,
}

/// A segment claims to have what was never shipped to its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("node {node} claims group {group} complete to {claimed}, but the group's log ends at {shipped}")]
pub struct ImpossibleAcknowledgement {
    /// The member that claims it.
    pub node: NodeId,
    /// The group that it claims it for.
    pub group: GroupId,
    /// The SCL that it claims.
    pub claimed: Lsn,
    /// Where the group's log ends.
    pub shipped: Lsn,
}

#[derive(Debug)]
struct Group {
    members: QuorumSets,
    /// The segment complete LSN of every member.
    complete: Vec<(NodeId, Lsn)>,
    /// End of the last shipped record.
    shipped: Lsn,
    /// PGCL: a write quorum has everything up to here.
    group_complete: Lsn,
    /// End of the group's last record that is not after the volume durable LSN.
    durable_tail: Lsn,
}

impl Group {
    fn complete_of(&self, node: NodeId) -> Lsn {
        self.complete.iter().find(|(member, _)| *member == node).map_or(Lsn::ZERO, |&(_, lsn)| lsn)
    }

    fn update_group_complete(&mut self) {
        self.group_complete = self.members.write_quorum_reached(|node| self.complete_of(node));
    }
}

/// Tracks what one writer shipped and what became durable.
#[derive(Debug)]
pub struct WriterTracker {
    epoch: VolumeEpoch,
    groups: Vec<Group>,
    /// Records shipped and not durable, in stream order.
    pending: VecDeque<(RecordSpan, GroupSet)>,
    shipped: RecordSpan,
    durable: RecordSpan,
}

impl WriterTracker {
    /// A writer that continues after `durable`, the outcome of its recovery.
    ///
    /// `members` are the groups' members in group order; `tails` is where each group's log ends at `durable`
    /// (zero for a group that is not listed).
    ///
    /// # Panics
    /// If there is no group, or a tail names one that does not exist or lies after `durable`.
    #[must_use]
    pub fn new(
        epoch: VolumeEpoch,
        members: Vec<QuorumSets>,
        durable: RecordSpan,
        tails: &[GroupTail],
    ) -> WriterTracker {
        invariant!("writer-knows-members", !members.is_empty(), "the writer of {epoch:?} has no group");
        let mut groups: Vec<Group> = members
            .into_iter()
            .map(|members| Group {
                complete: members.members().map(|node| (node, Lsn::ZERO)).collect(),
                members,
                shipped: Lsn::ZERO,
                group_complete: Lsn::ZERO,
                durable_tail: Lsn::ZERO,
            })
            .collect();
        for tail in tails {
            assert!(tail.last_end <= durable.end, "group {} ends after the durable position", tail.group);
            let group = groups.get_mut(usize::from(tail.group.0)).expect("tails are of the volume's groups");
            group.shipped = tail.last_end;
            group.durable_tail = tail.last_end;
        }
        WriterTracker { epoch, groups, pending: VecDeque::new(), shipped: durable, durable }
    }

    /// Notes the next record of the stream and fills `links` with its place in the chain of every group.
    ///
    /// # Panics
    /// If the record does not come after the one before, goes to no group, or to one that does not exist:
    /// the stream would have a hole.
    pub fn ship(&mut self, span: RecordSpan, groups: GroupSet, links: &mut Vec<GroupLink>) {
        let in_order = span.start >= self.shipped.end && span.end > span.start;
        invariant!("shipped-in-order", in_order, "{span:?} after {:?}", self.shipped);
        invariant!("every-record-has-a-group", !groups.is_empty(), "{span:?}");
        links.clear();
        for id in groups.iter() {
            let group = self.group_mut(id);
            links.push(GroupLink { group: id, previous_end: group.shipped });
            group.shipped = span.end;
        }
        self.shipped = span;
        self.pending.push_back((span, groups));
    }

    /// Notes that a segment, promised to `epoch`, has everything of its group up to `complete`.
    ///
    /// Late and repeated acknowledgements do no harm.
    ///
    /// # Errors
    /// If the segment claims more than was shipped: it is not of this volume or broken.
    pub fn acknowledge(
        &mut self,
        node: NodeId,
        group_id: GroupId,
        epoch: VolumeEpoch,
        complete: Lsn,
    ) -> Result<Acknowledgement, ImpossibleAcknowledgement> {
        let Some(group) = self.groups.get_mut(usize::from(group_id.0)) else {
            return Ok(Acknowledgement::Ignored);
        };
        let Some(known) = group.complete.iter_mut().find(|(member, _)| *member == node) else {
            return Ok(Acknowledgement::Ignored);
        };
        if epoch != self.epoch {
            return Ok(Acknowledgement::Ignored);
        }
        if complete > group.shipped {
            let shipped = group.shipped;
            return Err(ImpossibleAcknowledgement { node, group: group_id, claimed: complete, shipped });
        }
        if complete <= known.1 {
            return Ok(Acknowledgement::Noted);
        }
        known.1 = complete;
        let before = group.group_complete;
        group.update_group_complete();
        if group.group_complete == before {
            return Ok(Acknowledgement::Noted);
        }
        Ok(self.advance_durable())
    }

    /// Notes where a segment stands that introduced itself, which may be before what it acknowledged: a node
    /// that lost the end of its log with its power has lost what it said it had. The group is then complete to
    /// less than before; what was durable stays so, for it was decided on what four segments had, and recovery
    /// bears the loss of one.
    ///
    /// # Errors
    /// If the segment claims more than was shipped: it is not of this volume or broken.
    pub fn restate(
        &mut self,
        node: NodeId,
        group_id: GroupId,
        complete: Lsn,
    ) -> Result<Acknowledgement, ImpossibleAcknowledgement> {
        let Some(group) = self.groups.get_mut(usize::from(group_id.0)) else {
            return Ok(Acknowledgement::Ignored);
        };
        if complete > group.shipped {
            let shipped = group.shipped;
            return Err(ImpossibleAcknowledgement { node, group: group_id, claimed: complete, shipped });
        }
        let Some(known) = group.complete.iter_mut().find(|(member, _)| *member == node) else {
            return Ok(Acknowledgement::Ignored);
        };
        known.1 = complete;
        group.update_group_complete();
        Ok(self.advance_durable())
    }

    fn advance_durable(&mut self) -> Acknowledgement {
        let before = self.durable;
        let mut advanced = GroupSet::EMPTY;
        while let Some(&(span, groups)) = self.pending.front() {
            if !groups.iter().all(|id| self.group(id).group_complete >= span.end) {
                break;
            }
            for id in groups.iter() {
                self.group_mut(id).durable_tail = span.end;
                advanced = advanced.with(id);
            }
            self.durable = span;
            self.pending.pop_front();
        }
        // Counted anew from what each member said, whatever was remembered along the way. Only where VDL moved: a
        // member that came back with less does not make undone what was decided.
        for id in advanced.iter() {
            let group = self.group(id);
            let tail = group.durable_tail;
            let quorum = group.members.is_write_quorum(|node| group.complete_of(node) >= tail);
            invariant!("durable-at-write-quorum", quorum, "group {id} to {tail}: {:?}", group.complete);
        }
        invariant!("durable-never-falls", self.durable.end >= before.end, "{:?}, {before:?}", self.durable);
        invariant!("durable-was-shipped", self.durable.end <= self.shipped.end, "{:?}", self.durable);
        if self.durable == before { Acknowledgement::Noted } else { Acknowledgement::Durable(self.durable) }
    }

    /// Replaces a group's members, at a step of a membership change. What is durable stays durable; a record
    /// that is not yet needs a write quorum of the new sets.
    ///
    /// # Panics
    /// If the group does not exist.
    pub fn set_members(&mut self, group_id: GroupId, members: QuorumSets) -> Acknowledgement {
        let group = self.group_mut(group_id);
        group.complete = members.members().map(|node| (node, group.complete_of(node))).collect();
        group.members = members;
        group.update_group_complete();
        self.advance_durable()
    }

    /// A group's members, as they are counted.
    ///
    /// # Panics
    /// If the group does not exist.
    #[must_use]
    pub fn members(&self, group: GroupId) -> &QuorumSets {
        &self.group(group).members
    }

    fn group(&self, id: GroupId) -> &Group {
        self.groups.get(usize::from(id.0)).expect("the group is one of the volume's")
    }

    fn group_mut(&mut self, id: GroupId) -> &mut Group {
        self.groups.get_mut(usize::from(id.0)).expect("the group is one of the volume's")
    }

    /// The epoch whose records are tracked; acknowledgements of any other are ignored.
    #[must_use]
    pub fn epoch(&self) -> VolumeEpoch {
        self.epoch
    }

    /// VDL: everything up to the end of this record is durable. Equals VCL, because every record of
    /// PostgreSQL is a consistency point.
    #[must_use]
    pub fn volume_durable(&self) -> RecordSpan {
        self.durable
    }

    /// The last shipped record; what recovery left before the first one.
    #[must_use]
    pub fn shipped(&self) -> RecordSpan {
        self.shipped
    }

    /// How far the shipped log is ahead of the durable position, in bytes.
    #[must_use]
    pub fn log_ahead_bytes(&self) -> u64 {
        self.shipped.end.bytes_since(self.durable.end)
    }

    /// PGCL: a write quorum of the group has everything up to here.
    #[must_use]
    pub fn group_complete(&self, group: GroupId) -> Lsn {
        self.group(group).group_complete
    }

    /// The last known SCL of a member; after a reconnect, retained records of the group that end after it are
    /// sent again.
    #[must_use]
    pub fn segment_complete(&self, node: NodeId, group: GroupId) -> Lsn {
        self.group(group).complete_of(node)
    }

    /// Where each group's log ends at the durable position, in group order: what batches carry along.
    pub fn durable_tails(&self) -> impl Iterator<Item = GroupTail> {
        self.groups
            .iter()
            .zip(0..)
            .map(|(group, id)| GroupTail { group: GroupId(id), last_end: group.durable_tail })
    }

    /// The durable position as one group sees it.
    #[must_use]
    pub fn durable_point(&self, group: GroupId) -> DurablePoint {
        DurablePoint { volume: self.durable, group_tail: self.group(group).durable_tail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(groups: usize) -> Vec<QuorumSets> {
        vec![QuorumSets::new(vec![[0, 1, 2, 3, 4, 5].map(NodeId)]).expect("six different nodes"); groups]
    }

    fn span(start: u64, end: u64) -> RecordSpan {
        RecordSpan { start: Lsn(start), end: Lsn(end) }
    }

    const EPOCH: VolumeEpoch = VolumeEpoch(2);

    fn tracker(groups: usize) -> WriterTracker {
        WriterTracker::new(EPOCH, members(groups), RecordSpan::NONE, &[])
    }

    /// A tracker of one group that shipped one record, which ends at 40.
    fn shipped_one() -> WriterTracker {
        let mut tracker = tracker(1);
        tracker.ship(span(8, 40), GroupSet::EMPTY.with(GroupId(0)), &mut Vec::new());
        tracker
    }

    #[test]
    #[should_panic(expected = "invariant shipped-in-order is broken")]
    fn a_record_shipped_twice_is_noticed() {
        shipped_one().ship(span(8, 40), GroupSet::EMPTY.with(GroupId(0)), &mut Vec::new());
    }

    #[test]
    #[should_panic(expected = "invariant every-record-has-a-group is broken")]
    fn a_record_that_goes_nowhere_is_noticed() {
        shipped_one().ship(span(40, 80), GroupSet::EMPTY, &mut Vec::new());
    }

    #[test]
    #[should_panic(expected = "invariant durable-at-write-quorum is broken")]
    fn a_record_called_durable_with_three_copies_is_noticed() {
        let mut tracker = shipped_one();
        for node in 0..3 {
            tracker.acknowledge(NodeId(node), GroupId(0), EPOCH, Lsn(40)).expect("it was shipped");
        }
        tracker.groups[0].group_complete = Lsn(40);
        tracker.advance_durable();
    }

    #[test]
    #[should_panic(expected = "invariant durable-never-falls is broken")]
    fn a_durable_position_that_falls_is_noticed() {
        let mut tracker = shipped_one();
        for node in 0..4 {
            tracker.acknowledge(NodeId(node), GroupId(0), EPOCH, Lsn(40)).expect("it was shipped");
        }
        // The same record once more, as if it stood before the durable position.
        tracker.pending.push_back((span(8, 32), GroupSet::EMPTY.with(GroupId(0))));
        tracker.advance_durable();
    }

    #[test]
    #[should_panic(expected = "invariant durable-was-shipped is broken")]
    fn a_durable_position_that_nobody_shipped_is_noticed() {
        let mut tracker = shipped_one();
        tracker.shipped = span(0, 8);
        for node in 0..4 {
            tracker.acknowledge(NodeId(node), GroupId(0), EPOCH, Lsn(40)).expect("it was shipped");
        }
    }

    #[test]
    fn four_of_six_make_a_record_durable_and_only_with_its_predecessors() {
        let mut tracker = tracker(2);
        let mut links = Vec::new();
        let (zero, one) = (GroupId(0), GroupId(1));
        tracker.ship(span(8, 40), GroupSet::EMPTY.with(zero), &mut links);
        tracker.ship(span(40, 80), GroupSet::EMPTY.with(zero).with(one), &mut links);
        let place = |group, previous_end| GroupLink { group, previous_end: Lsn(previous_end) };
        assert_eq!(links, [place(zero, 40), place(one, 0)]);
        for node in 0..4 {
            let noted = tracker.acknowledge(NodeId(node), one, EPOCH, Lsn(80));
            assert_eq!(noted, Ok(Acknowledgement::Noted));
        }
        assert_eq!(tracker.group_complete(one), Lsn(80));
        for node in 0..3 {
            let noted = tracker.acknowledge(NodeId(node), zero, EPOCH, Lsn(80));
            assert_eq!(noted, Ok(Acknowledgement::Noted));
        }
        let first = tracker.acknowledge(NodeId(5), zero, EPOCH, Lsn(40));
        assert_eq!(first, Ok(Acknowledgement::Durable(span(8, 40))));
        assert_eq!(tracker.durable_point(one).group_tail, Lsn::ZERO);
        assert_eq!(tracker.log_ahead_bytes(), 40);
        let both = tracker.acknowledge(NodeId(5), zero, EPOCH, Lsn(80));
        assert_eq!(both, Ok(Acknowledgement::Durable(span(40, 80))));
        assert_eq!(tracker.durable_point(one).group_tail, Lsn(80));
        assert_eq!(tracker.pending.len(), 0);
    }

    #[test]
    fn a_segment_that_came_back_with_less_no_longer_counts_for_what_it_lost() {
        let mut tracker = tracker(1);
        let group = GroupId(0);
        tracker.ship(span(8, 40), GroupSet::EMPTY.with(group), &mut Vec::new());
        tracker.ship(span(40, 80), GroupSet::EMPTY.with(group), &mut Vec::new());
        for node in 0..4 {
            tracker.acknowledge(NodeId(node), group, EPOCH, Lsn(40)).expect("shipped");
        }
        for node in 0..3 {
            tracker.acknowledge(NodeId(node), group, EPOCH, Lsn(80)).expect("shipped");
        }
        assert_eq!(tracker.restate(NodeId(0), group, Lsn(0)), Ok(Acknowledgement::Noted));
        assert_eq!(tracker.segment_complete(NodeId(0), group), Lsn(0));
        assert_eq!(tracker.group_complete(group), Lsn(0));
        assert_eq!(tracker.volume_durable(), span(8, 40), "what is durable stays");
        let third = tracker.acknowledge(NodeId(3), group, EPOCH, Lsn(80));
        assert_eq!(third, Ok(Acknowledgement::Noted), "three have the second record");
        let fourth = tracker.restate(NodeId(4), group, Lsn(80));
        assert_eq!(fourth, Ok(Acknowledgement::Durable(span(40, 80))));
        assert!(tracker.restate(NodeId(4), group, Lsn(81)).is_err());
        assert_eq!(tracker.restate(NodeId(9), group, Lsn(80)), Ok(Acknowledgement::Ignored));
    }

    #[test]
    fn acknowledgements_of_other_epochs_and_strangers_do_not_count() {
        let mut tracker = tracker(1);
        tracker.ship(span(8, 40), GroupSet::EMPTY.with(GroupId(0)), &mut Vec::new());
        for node in 0..6 {
            let other = tracker.acknowledge(NodeId(node), GroupId(0), VolumeEpoch(3), Lsn(40));
            assert_eq!(other, Ok(Acknowledgement::Ignored));
            let stranger = tracker.acknowledge(NodeId(10 + node), GroupId(0), EPOCH, Lsn(40));
            assert_eq!(stranger, Ok(Acknowledgement::Ignored));
            let beyond = tracker.acknowledge(NodeId(node), GroupId(0), EPOCH, Lsn(41));
            assert!(beyond.is_err());
        }
        assert_eq!(tracker.acknowledge(NodeId(0), GroupId(7), EPOCH, Lsn(40)), Ok(Acknowledgement::Ignored));
        assert_eq!(tracker.volume_durable(), RecordSpan::NONE);
    }

    #[test]
    fn during_a_membership_change_both_sets_must_agree() {
        let mut tracker = tracker(1);
        let group = GroupId(0);
        tracker.ship(span(8, 40), GroupSet::EMPTY.with(group), &mut Vec::new());
        for node in [0, 1, 5] {
            tracker.acknowledge(NodeId(node), group, EPOCH, Lsn(40)).expect("shipped");
        }
        let sets = vec![[0, 1, 2, 3, 4, 5].map(NodeId), [0, 1, 2, 3, 4, 6].map(NodeId)];
        let sets = QuorumSets::new(sets).expect("six different nodes in each");
        assert_eq!(tracker.set_members(group, sets.clone()), Acknowledgement::Noted);
        let old_only = tracker.acknowledge(NodeId(2), group, EPOCH, Lsn(40));
        assert_eq!(old_only, Ok(Acknowledgement::Noted));
        let both = tracker.acknowledge(NodeId(6), group, EPOCH, Lsn(40));
        assert_eq!(both, Ok(Acknowledgement::Durable(span(8, 40))));
        tracker.ship(span(40, 80), GroupSet::EMPTY.with(group), &mut Vec::new());
        for node in [0, 1, 2, 5] {
            tracker.acknowledge(NodeId(node), group, EPOCH, Lsn(80)).expect("shipped");
        }
        assert_eq!(tracker.volume_durable(), span(8, 40));
        let taken_back = tracker.set_members(group, members(1).remove(0));
        assert_eq!(taken_back, Acknowledgement::Durable(span(40, 80)));
    }

    #[test]
    #[should_panic(expected = "invariant writer-knows-members is broken")]
    fn a_writer_that_knows_no_members_is_none() {
        let _ = WriterTracker::new(EPOCH, Vec::new(), RecordSpan::NONE, &[]);
    }

    proptest! {
        /// The durable position is what its definition says: the last record such that it and all before it
        /// are on four members of each of their groups.
        #[test]
        fn the_durable_position_agrees_with_the_definition(
            steps in prop::collection::vec((any::<bool>(), 0u16..6, 0u16..3, 1u64..8, any::<prop::sample::Index>()), 1..120),
        ) {
            let mut tracker = tracker(3);
            let mut shipped: Vec<(RecordSpan, GroupSet)> = Vec::new();
            let mut complete = [[0u64; 6]; 3];
            for (ship, node, group, bits, index) in steps {
                if ship {
                    let start = shipped.last().map_or(8, |(span, _)| span.end.0);
                    let groups = (0..3).filter(|g| bits & 1 << g != 0).map(GroupId);
                    let groups = groups.fold(GroupSet::EMPTY, GroupSet::with);
                    shipped.push((span(start, start + 8 * bits), groups));
                    tracker.ship(span(start, start + 8 * bits), groups, &mut Vec::new());
                } else {
                    let own: Vec<u64> =
                        shipped.iter().filter(|(_, g)| g.contains(GroupId(group))).map(|(s, _)| s.end.0).collect();
                    if own.is_empty() {
                        continue;
                    }
                    let lsn = own[index.index(own.len())];
                    let known = &mut complete[usize::from(group)][usize::from(node)];
                    *known = lsn.max(*known);
                    let result = tracker.acknowledge(NodeId(node), GroupId(group), EPOCH, Lsn(lsn));
                    prop_assert!(result.is_ok());
                }
                let durable = shipped
                    .iter()
                    .take_while(|(span, groups)| {
                        groups.iter().all(|g| {
                            complete[usize::from(g.0)].iter().filter(|&&lsn| lsn >= span.end.0).count() >= 4
                        })
                    })
                    .last()
                    .map_or(RecordSpan::NONE, |(span, _)| *span);
                prop_assert_eq!(tracker.volume_durable(), durable);
                for tail in tracker.durable_tails() {
                    let last = shipped
                        .iter()
                        .filter(|(span, groups)| span.end <= durable.end && groups.contains(tail.group))
                        .map(|(span, _)| span.end)
                        .next_back();
                    prop_assert_eq!(tail.last_end, last.unwrap_or_default());
                }
            }
        }
    }
}
