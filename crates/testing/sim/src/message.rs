//! What simulated parties send each other.

use std::rc::Rc;

use borealis_quorum::recovery::TailRecord;
use borealis_quorum::segment::{Gap, SegmentSummary};
use borealis_quorum::{ChainLink, DurablePoint, GroupLink, GroupTail, Promise};
use borealis_types::{EpochHistory, GroupId, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch};

/// A simulated record. `content` is unique, so two records for one position can be told apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimRecord {
    /// The epoch it was written in.
    pub epoch: VolumeEpoch,
    /// Where it stands.
    pub span: RecordSpan,
    /// Start of the record before it in the volume.
    pub previous_start: Lsn,
    /// Its groups.
    pub links: Vec<GroupLink>,
    /// Stands for its bytes.
    pub content: u64,
    /// The release its writer ran. Not sent: a node must know it from its history.
    pub truth: ServerVersion,
}

impl SimRecord {
    /// Its place in one group's chain.
    #[must_use]
    pub fn link(&self, group: GroupId) -> Option<ChainLink> {
        let link = self.links.iter().find(|link| link.group == group)?;
        Some(ChainLink { previous_end: link.previous_end, span: self.span })
    }
}

/// As a recovery sees it.
#[must_use]
pub fn to_tail_record(record: &Rc<SimRecord>) -> TailRecord<Rc<SimRecord>> {
    TailRecord {
        epoch: record.epoch,
        span: record.span,
        previous_start: record.previous_start,
        links: record.links.clone(),
        handle: Rc::clone(record),
    }
}

/// A party on the network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Host {
    /// A storage node.
    Node(NodeId),
    /// An instance: a recovery that becomes a writer.
    Compute(u32),
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Message {
    /// Recovery to node.
    Fence(Promise),
    /// Recovery to node.
    ReadTail {
        /// Of which group.
        group: GroupId,
        /// Records that end after it.
        above: Lsn,
    },
    /// Recovery to node.
    Repair {
        /// Into which group.
        group: GroupId,
        /// Who asks.
        promise: Promise,
        /// By which the records are admitted.
        history: EpochHistory,
        /// The records.
        records: Vec<Rc<SimRecord>>,
    },
    /// Recovery or writer to node.
    Install {
        /// Who asks.
        promise: Promise,
        /// What to install.
        history: EpochHistory,
        /// Ends of the groups at the newest opening.
        tails: Vec<GroupTail>,
    },
    /// Writer to node.
    Append {
        /// The writer's epoch.
        epoch: VolumeEpoch,
        /// New or repeated records, in order.
        records: Vec<Rc<SimRecord>>,
        /// VDL and every group's end at it.
        durable: RecordSpan,
        /// Ends of the groups at `durable`.
        tails: Vec<GroupTail>,
    },
    /// Node to recovery.
    Fenced(Vec<SegmentSummary>),
    /// Node to recovery or writer: another promise stands in the way.
    Refused(VolumeEpoch),
    /// Node to recovery.
    Tail {
        /// Of which group.
        group: GroupId,
        /// As asked.
        above: Lsn,
        /// The records.
        records: Vec<Rc<SimRecord>>,
        /// Whether more follow.
        more: bool,
    },
    /// Node to recovery.
    Repaired(GroupId),
    /// Node to recovery or writer.
    Installed(VolumeEpoch),
    /// Node to writer: the epoch it is promised to and the SCL, for each group.
    Acknowledge(Vec<(GroupId, VolumeEpoch, Lsn)>),
    /// Node to writer: install the history first.
    NeedsHistory,
    /// Node to node.
    GossipSummary(Vec<SegmentSummary>),
    /// Node to node.
    GossipAsk(GroupId, Gap),
    /// Node to node.
    GossipRecords(GroupId, Vec<Rc<SimRecord>>),
}

/// A durable point of one group out of a list for all.
#[must_use]
pub fn durable_point(volume: RecordSpan, tails: &[GroupTail], group: GroupId) -> DurablePoint {
    let tail = tails.iter().find(|tail| tail.group == group);
    DurablePoint { volume, group_tail: tail.map_or(Lsn::ZERO, |tail| tail.last_end) }
}
