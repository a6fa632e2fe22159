//! What simulated parties send each other.

use std::rc::Rc;

use borealis_quorum::membership::{self, MembershipState};
use borealis_quorum::recovery::TailRecord;
use borealis_quorum::segment::{Gap, SegmentSummary};
use borealis_quorum::{ChainLink, DurablePoint, GroupLink, GroupTail, Promise};
use borealis_types::{
    EpochHistory, GroupId, Lsn, NodeId, PAGE_SIZE, Part, ReadPoint, RecordSpan, ServerVersion, VolumeEpoch,
};
use borealis_wire::{BatchFrame, BatchRecord, Reply, Request};

/// A simulated record. `content` is unique, so two records for one position can be told apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimRecord {
    /// The epoch it was written in.
    pub epoch: VolumeEpoch,
    /// Where it stands in the volume.
    pub span: RecordSpan,
    /// Start of the record before it in the volume.
    pub previous_start: Lsn,
    /// Its place in the chain of each of its groups.
    pub links: Vec<GroupLink>,
    /// What part of a record it is.
    pub part: Part,
    /// Stands for what it changes; of a piece, unless it is the last, for nothing.
    pub content: u64,
    /// The release its writer ran. It travels in the bytes for the oracle alone: a node must know it from its history.
    pub truth: ServerVersion,
}

/// Bytes of every simulated record: content, start of the record before it, release.
const RECORD_BYTES: usize = 20;

impl SimRecord {
    /// Its place in one group's chain.
    #[must_use]
    pub fn link(&self, group: GroupId) -> Option<ChainLink> {
        let link = self.links.iter().find(|link| link.group == group)?;
        Some(ChainLink { previous_end: link.previous_end, span: self.span })
    }

    /// What PostgreSQL would have written: never longer than its span.
    #[must_use]
    pub fn bytes(content: u64, previous_start: Lsn, truth: ServerVersion) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&content.to_le_bytes());
        bytes[8..16].copy_from_slice(&previous_start.0.to_le_bytes());
        bytes[16..].copy_from_slice(&truth.server_version_num().to_le_bytes());
        bytes
    }

    /// The record that a batch of `epoch` carries; `None` if no simulated writer made it.
    #[must_use]
    pub fn from_batch(epoch: VolumeEpoch, record: &BatchRecord<'_>) -> Option<SimRecord> {
        let bytes: &[u8; RECORD_BYTES] = record.bytes.try_into().ok()?;
        let [content, previous_start] =
            [0, 8].map(|at| bytes[at..].first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word)));
        let truth = bytes.last_chunk::<4>().map(|word| u32::from_le_bytes(*word))?;
        if record.form.previous_start.is_some_and(|said| said != Lsn(previous_start)) {
            return None;
        }
        Some(SimRecord {
            epoch,
            span: record.span,
            previous_start: Lsn(previous_start),
            links: record.links.clone(),
            part: record.form.part,
            content,
            truth: ServerVersion::new(truth).ok()?,
        })
    }
}

/// A page of a group: as of which position, and how many and which records it was made from.
#[must_use]
pub fn page_of<'a>(lsn: Lsn, records: impl Iterator<Item = &'a SimRecord>) -> Vec<u8> {
    let (mut count, mut digest) = (0u64, 0u64);
    for record in records {
        count += 1;
        digest =
            digest.wrapping_add((record.content ^ record.content << 31).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
    let mut page = vec![0; PAGE_SIZE];
    for (at, word) in [lsn.0, count, digest].into_iter().enumerate() {
        page[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// As of which position a page is.
#[must_use]
pub fn page_lsn(page: &[u8]) -> Lsn {
    Lsn(page.first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word)))
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
    /// A controller: one change of one group's membership.
    Controller(u32),
}

/// A connection of an instance to a node. The network delivers what is sent on one in order, or breaks it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineId(pub u64);

/// What goes over a connection: the product's own messages.
#[derive(Clone, Debug)]
pub enum OnLine {
    /// Writer to node, with its id.
    Request(u64, Request),
    /// Writer to node: an encoded batch in its frame.
    Batch(Rc<BatchFrame>),
    /// Node to writer, with the id of the request; zero unasked.
    Reply(u64, Reply),
    /// The sender no longer has the connection, or the system says that it broke.
    Closed,
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
    /// Recovery to node.
    Install {
        /// Who asks.
        promise: Promise,
        /// What to install.
        history: EpochHistory,
        /// Ends of the groups at the newest opening.
        tails: Vec<GroupTail>,
    },
    /// Node to recovery: it has promised; its segments.
    Fenced(Vec<SegmentSummary>),
    /// Node to recovery: another promise stands in the way.
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
    /// Node to recovery.
    Installed(VolumeEpoch),
    /// On a connection of a writer to a node, in either direction.
    Line(LineId, OnLine),
    /// Node to node.
    GossipSummary(Vec<SegmentSummary>),
    /// Node to node: what records up to a point made of one part of a group, and keep it all for me.
    RefillAsk {
        /// Of which group.
        group: GroupId,
        /// As of which point.
        at: ReadPoint,
        /// Which part.
        part: u8,
    },
    /// Node to node.
    RefillPart {
        /// Of which group.
        group: GroupId,
        /// As it was asked for.
        lsn: Lsn,
        /// Which part.
        part: u8,
        /// What it is made of.
        records: Vec<Rc<SimRecord>>,
    },
    /// Node to node: that point is not here, or not any more.
    RefillGone(GroupId, Lsn),
    /// Node to node; and up to where the one that asks knows its group to be durable.
    GossipAsk(GroupId, Gap, Lsn),
    /// Node to node; with what the question said of the durable records.
    GossipRecords(GroupId, Lsn, Vec<Rc<SimRecord>>),
    /// Node to node: what it stores of each group's memberships.
    GossipMembership(Vec<(GroupId, MembershipState)>),
    /// Node to instance: what it asked was made for an older membership. What the node stores of those groups' memberships.
    OlderMembership(Vec<(GroupId, MembershipState)>),
    /// Controller to node.
    Membership(GroupId, membership::Request),
    /// Node to controller.
    MembershipAnswer(membership::Answer),
    /// A joining segment asks a peer for everything as of one durable point.
    AskBase(GroupId),
    /// Stands for pages as of one point: every record of the group up to its end there.
    Base {
        /// Of which group.
        group: GroupId,
        /// Under whose history the point is durable.
        epoch: VolumeEpoch,
        /// The point.
        point: DurablePoint,
        /// The records.
        records: Vec<Rc<SimRecord>>,
    },
}

/// A durable point of one group out of a list for all.
#[must_use]
pub fn durable_point(volume: RecordSpan, tails: &[GroupTail], group: GroupId) -> DurablePoint {
    let tail = tails.iter().find(|tail| tail.group == group);
    DurablePoint { volume, group_tail: tail.map_or(Lsn::ZERO, |tail| tail.last_end) }
}
