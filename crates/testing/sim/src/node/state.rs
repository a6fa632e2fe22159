//! A simulated node's log, and what its entries make of its segments.

use std::collections::BTreeMap;
use std::rc::Rc;

use borealis_quorum::membership::{Accepted, Ballot, GroupMembership};
use borealis_quorum::segment::{Segment, SegmentCheckpoint, SegmentRecord, Source};
use borealis_quorum::{DurablePoint, Promise};
use borealis_types::{EpochHistory, GroupId, Lsn, MembershipEpoch, NodeId, VolumeEpoch, WriterId};

use crate::message::SimRecord;

/// One entry of the node's log.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Record(GroupId, Rc<SimRecord>),
    Fence(GroupId, Promise),
    Install(GroupId, Option<WriterId>, EpochHistory, DurablePoint),
    Adopt(GroupId, Promise, EpochHistory),
    Observe(GroupId, VolumeEpoch, DurablePoint),
    ReadPoint(GroupId, VolumeEpoch, Lsn),
    Jump(GroupId, DurablePoint, Vec<Rc<SimRecord>>),
    Prepare(GroupId, MembershipEpoch, Ballot),
    Accept(GroupId, Accepted),
    Members(GroupId, GroupMembership),
    Base(GroupId, VolumeEpoch, DurablePoint, Vec<Rc<SimRecord>>),
}

/// Records of one group, by start position.
pub(super) type Records = BTreeMap<Lsn, Rc<SimRecord>>;

/// What a node is after its log is applied: also what a checkpoint stores.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) own: NodeId,
    pub(super) segments: Vec<Segment>,
    pub(super) records: Vec<Records>,
}

impl State {
    pub(super) fn new(own: NodeId, memberships: &[GroupMembership]) -> State {
        let segment = |(membership, id): (&GroupMembership, u16)| match membership.contains(own) {
            true => Segment::created(GroupId(id), membership.clone()),
            false => Segment::absent(GroupId(id)),
        };
        State {
            own,
            segments: memberships.iter().zip(0..).map(segment).collect(),
            records: vec![Records::new(); memberships.len()],
        }
    }

    pub(super) fn forget(&mut self, group: GroupId, cut: &[SegmentRecord]) {
        for record in cut {
            let removed = self.records[usize::from(group.0)].remove(&record.link.span.start);
            assert!(
                removed.is_some_and(|known| known.epoch == record.epoch),
                "a segment cuts only what it has"
            );
        }
    }

    /// Applies an entry that was accepted when it was written.
    pub(super) fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Record(group, record) => {
                let link = record.link(*group).expect("a record is logged for its own groups");
                let offer = self.segments[usize::from(group.0)].offer(Source::Replay, record.epoch, link);
                assert!(offer.must_persist(), "replay must take what was taken: {offer:?}");
                self.records[usize::from(group.0)].insert(record.span.start, Rc::clone(record));
            }
            Entry::Fence(group, promise) => {
                self.segments[usize::from(group.0)].fence(*promise).expect("it was granted before");
            }
            Entry::Install(group, writer, history, durable) => {
                let installed = self.segments[usize::from(group.0)].install(*writer, history, *durable);
                self.forget(*group, &installed.expect("it was installed before").cut);
            }
            Entry::Adopt(group, promise, history) => {
                let adopted = self.segments[usize::from(group.0)].adopt_for_recovery(*promise, history);
                self.forget(*group, &adopted.expect("it was adopted before").cut);
            }
            Entry::Observe(group, epoch, point) => {
                self.segments[usize::from(group.0)].observe_durable(*epoch, *point);
            }
            Entry::Jump(group, point, block) => {
                self.segments[usize::from(group.0)].jump(*point).expect("it was allowed before");
                let records = block.iter().map(|record| (record.span.start, Rc::clone(record)));
                self.records[usize::from(group.0)].extend(records);
            }
            Entry::ReadPoint(group, epoch, point) => {
                self.segments[usize::from(group.0)].observe_minimum_read_point(*epoch, *point);
            }
            Entry::Prepare(..) | Entry::Accept(..) | Entry::Members(..) | Entry::Base(..) => {
                self.apply_membership(entry);
            }
        }
    }
}

/// What a checkpoint stores.
pub(super) fn checkpoint_of(state: &State) -> (Vec<SegmentCheckpoint>, Vec<Records>) {
    (state.segments.iter().map(Segment::checkpoint).collect(), state.records.clone())
}
