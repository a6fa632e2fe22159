//! What a recovery is told and what it asks for.

use std::time::Duration;

use borealis_types::{EpochHistory, GroupId, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch};

use crate::membership::GroupMembership;
use crate::quorum_set::QuorumSets;
use crate::segment::SegmentSummary;
use crate::{GroupLink, GroupTail, Promise};

/// A record found in a segment's tail. `Handle` is the caller's way to its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TailRecord<Handle> {
    /// The epoch it was written in.
    pub epoch: VolumeEpoch,
    /// Its first byte and its end in the stream.
    pub span: RecordSpan,
    /// Its `xl_prev`: where the record before it in the volume starts; zero for the very first.
    pub previous_start: Lsn,
    /// Every group that received it, with its place in that group's chain.
    pub links: Vec<GroupLink>,
    /// How the caller finds its bytes.
    pub handle: Handle,
}

impl<Handle> TailRecord<Handle> {
    pub(super) fn previous_end(&self, group: GroupId) -> Option<Lsn> {
        self.links.iter().find(|link| link.group == group).map(|link| link.previous_end)
    }

    pub(super) fn is_same(&self, other: &TailRecord<Handle>) -> bool {
        (self.epoch, self.span, self.previous_start) == (other.epoch, other.span, other.previous_start)
            && self.links == other.links
    }
}

/// What the recovery is told.
#[derive(Clone, Debug)]
pub enum Event<Handle> {
    /// The node promised the epoch, durably; these are its segments.
    Fenced {
        /// The node that promised.
        node: NodeId,
        /// One summary for each of its segments.
        summaries: Vec<SegmentSummary>,
    },
    /// The node is promised to another writer. Also the answer to any later request of a fenced recovery.
    Refused {
        /// The node that refused.
        node: NodeId,
        /// The epoch it is promised to.
        current: VolumeEpoch,
    },
    /// Records of a group, in LSN order, whether or not they connect.
    TailPage {
        /// The node that was asked.
        node: NodeId,
        /// The group that was asked for.
        group: GroupId,
        /// The position of the [`Command::ReadTail`] that this answers.
        above: Lsn,
        /// Records that end after it.
        records: Vec<TailRecord<Handle>>,
        /// Whether there are more after these.
        more: bool,
    },
    /// The node has, durably, every record of the [`Command::Repair`] for this group.
    Repaired {
        /// The node that was repaired.
        node: NodeId,
        /// The group of the segment that has the records now.
        group: GroupId,
    },
    /// The node has, durably, installed the new history in all its segments.
    Installed {
        /// The node that installed it.
        node: NodeId,
    },
    /// A group has a newer membership: enough members say so
    /// ([`credible_membership`](crate::membership::credible_membership)).
    MembershipChanged {
        /// The group.
        group: GroupId,
        /// Its membership.
        membership: GroupMembership,
    },
    /// Time passed. Requests without an answer are sent again.
    Tick,
}

/// What the caller does next. Each may come again; carrying it out twice does no harm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command<Handle> {
    /// Ask a node to promise the epoch for all its segments.
    Fence {
        /// The node to ask.
        node: NodeId,
        /// The epoch to promise, and to whom.
        promise: Promise,
    },
    /// Ask a node for a group's records above a position.
    ReadTail {
        /// The node to ask.
        node: NodeId,
        /// The group whose records are wanted.
        group: GroupId,
        /// Records that end after this.
        above: Lsn,
    },
    /// Bring records. The segment first adopts `history`
    /// ([`Segment::adopt_for_recovery`](crate::segment::Segment::adopt_for_recovery)), then takes the records.
    Repair {
        /// The node that lacks them.
        node: NodeId,
        /// The group whose segment takes them.
        group: GroupId,
        /// The promise that allows it.
        promise: Promise,
        /// The history the records are admitted by; empty for a volume without one.
        history: EpochHistory,
        /// The records, in LSN order.
        records: Vec<TailRecord<Handle>>,
    },
    /// Install the new history in all segments of the node.
    Install {
        /// The node that installs it in all its segments.
        node: NodeId,
        /// The promise the node must still hold.
        promise: Promise,
        /// The history, ending with this recovery's opening.
        history: EpochHistory,
        /// Where each group's log ends at the opening, in group order.
        tails: Vec<GroupTail>,
    },
    /// Finished: the writer may start.
    Done(Outcome),
    /// Given up. Nothing is lost; a new recovery with a higher epoch may start at any time.
    Failed(Failure),
}

/// What a writer needs to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The epoch that the new writer writes in, and its identity.
    pub promise: Promise,
    /// The last durable record: new log goes after it.
    pub durable: RecordSpan,
    /// The history to send to every node before anything else.
    pub history: EpochHistory,
    /// Where each group's log ends, in group order.
    pub tails: Vec<GroupTail>,
    /// How long before the end it was last certain that there is no successor. The last node may have answered late, and
    /// another recovery may have come by the others meanwhile: a writer's lease begins when this was certain.
    pub confirmed_before: Duration,
}

/// Why a recovery gave up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// Another recovery came in between.
    #[error("another instance took the volume over with epoch {current}")]
    Superseded {
        /// The epoch the other instance was promised.
        current: VolumeEpoch,
    },
    /// The members of a group have changed. A new recovery, with a higher epoch, begins with the new ones.
    #[error("the members of group {group} have changed (membership epoch {})", .membership.epoch())]
    MembershipChanged {
        /// The group.
        group: GroupId,
        /// Its membership.
        membership: GroupMembership,
    },
    /// Too few members answered in time.
    #[error("fewer than a write quorum of members answered in {} protection group(s), the first is group {}",
            .groups.len(), .groups.first().map_or(0, |g| g.0))]
    NoQuorum {
        /// The groups that lack answers.
        groups: Vec<GroupId>,
    },
    /// Segments contradict each other: at least one is damaged or of another volume.
    #[error("segments of group {group} contradict each other at {position}: {what}")]
    Contradiction {
        /// The group whose segments disagree.
        group: GroupId,
        /// The position at which they disagree; the end of a record where it is about one.
        position: Lsn,
        /// What they disagree about, in a word for the log.
        what: &'static str,
    },
    /// A record known to be durable is on none of the segments that answered.
    #[error(
        "group {group} lacks a durable record after {after}: more segments are damaged than a quorum bears"
    )]
    DurableRecordMissing {
        /// The group that lacks it.
        group: GroupId,
        /// The last record before it ends here.
        after: Lsn,
    },
}

/// How a recovery is set up.
#[derive(Clone, Debug)]
pub struct RecoveryOptions {
    /// The epoch to open, above every one promised so far, and who opens it.
    pub promise: Promise,
    /// The release of the server that will write in it.
    pub server_version: ServerVersion,
    /// The groups' members, in group order.
    pub members: Vec<QuorumSets>,
    /// A request without an answer is repeated after this long.
    pub retry_after: Duration,
    /// Give up this long after the start; never, if `None`.
    pub give_up_after: Option<Duration>,
}
