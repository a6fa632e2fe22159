//! What a segment is asked, and what it answers.

use borealis_types::{EpochHistory, GroupId, Lsn, RecordSpan, VolumeEpoch};
use serde::{Deserialize, Serialize};

use crate::membership::MembershipState;
use crate::{ChainLink, DurablePoint, Promise};

/// A record as a segment knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// The epoch of the writer that made it. Copies by gossip or repair keep it.
    pub epoch: VolumeEpoch,
    /// Its place in the group's chain.
    pub link: ChainLink,
}

/// Who offers a record; it decides which rules it must pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The live writer: only the epoch this segment has promised and installed.
    Writer,
    /// A peer of the same group: any epoch that this segment's history admits.
    Peer,
    /// A recovery, after [`Segment::adopt_for_recovery`](super::Segment::adopt_for_recovery): like a peer, but never refused for being far ahead,
    /// because the recovery counts it as a copy.
    Recovery,
    /// The segment's own log at restart: was taken before, so it is taken again.
    Replay,
}

/// What became of an offered record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// Taken, and the segment complete LSN moved (perhaps past held records too). Persist it.
    Complete,
    /// Taken, but a predecessor is missing. Persist it.
    Held,
    /// Already here. Nothing to persist, but the sender may be told the segment complete LSN again.
    Duplicate,
    /// Too many records wait already. Not taken; fill the [`Segment::gap`](super::Segment::gap) first.
    TooFarAhead,
    /// Of an epoch that is fenced off, or truncated by a recovery. Never take it from anyone.
    Stale,
    /// Of an epoch this segment has not been told about. Ask the sender for its history and offer again.
    NeedsHistory,
    /// Contradicts a record that this segment holds. Cannot happen unless a party is broken: stop the segment.
    Conflict,
}

impl Offer {
    /// Whether the record was taken, so that its bytes must be in the log before anyone hears of it.
    #[must_use]
    pub fn must_persist(self) -> bool {
        matches!(self, Offer::Complete | Offer::Held)
    }
}

/// Another promise stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("fenced: a writer with volume epoch {} was promised", current.epoch)]
pub struct Fenced {
    /// The promise this segment keeps.
    pub current: Promise,
}

/// Why a history was not installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InstallError {
    /// The segment keeps a newer promise.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// Two different histories end with the same epoch, so one is not of this volume.
    #[error("another history of volume epoch {epoch} is installed already")]
    Contradiction {
        /// The epoch both end with.
        epoch: VolumeEpoch,
    },
    /// The history would truncate records that are known to be durable, so it is not of this volume.
    #[error("the history of volume epoch {epoch} cuts below the durable position {durable}")]
    CutsDurable {
        /// The newest epoch of the history.
        epoch: VolumeEpoch,
        /// What this segment knows to be durable.
        durable: Lsn,
    },
    /// The history names another release as the writer of a record that stays, so it is not of this volume.
    #[error(
        "the history of volume epoch {epoch} changes who wrote records that stay (durable up to {durable})"
    )]
    ChangesRelease {
        /// The newest epoch of the history.
        epoch: VolumeEpoch,
        /// What this segment knows to be durable.
        durable: Lsn,
    },
    /// The history has other openings below the durable position than are known here, so it is not of this volume.
    #[error("the history of volume epoch {epoch} has other openings below the durable position {durable}")]
    RewritesDurable {
        /// The newest epoch of the history.
        epoch: VolumeEpoch,
        /// What this segment knows to be durable.
        durable: Lsn,
    },
    /// A history without any opening opens no epoch.
    #[error("the history is empty")]
    Empty,
}

/// What an installation changed, for the log and the index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Installed {
    /// Whether there is something to persist: the same history a second time changes nothing.
    pub changed: bool,
    /// Records that are truncated for ever, in position order. The caller forgets their bytes.
    pub cut: Vec<SegmentRecord>,
}

/// What a segment says about itself to recoveries and peers. The message that carries it is
/// [`borealis_wire::SegmentSummary`]; see crate `borealis-spec` for why these are two types.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// The protection group it is a copy of.
    pub group: GroupId,
    /// The newest promise it gave.
    pub promised: Promise,
    /// The history by which it admits records.
    pub history: EpochHistory,
    /// The last record of the unbroken chain; its end is the segment complete LSN (SCL).
    pub complete: RecordSpan,
    /// The highest durable position it heard of.
    pub known_durable: DurablePoint,
    /// The lowest position anyone may still read at.
    pub minimum_read_point: Lsn,
    /// It does not have everything yet, whatever records it has: it counts as a copy of nothing.
    pub joining: bool,
}

impl From<&borealis_wire::SegmentSummary> for SegmentSummary {
    /// The message does not say where the last record starts, and nothing that is told of another segment asks: the
    /// span is empty.
    fn from(message: &borealis_wire::SegmentSummary) -> SegmentSummary {
        let end = message.segment_complete_lsn;
        SegmentSummary {
            group: message.group,
            promised: Promise { epoch: message.promised_epoch, writer: message.promised_writer },
            history: message.history.clone(),
            complete: RecordSpan { start: end, end },
            known_durable: DurablePoint {
                volume: message.known_durable,
                group_tail: message.known_durable_tail,
            },
            minimum_read_point: message.minimum_read_point,
            joining: message.joining,
        }
    }
}

/// A range of the group's chain this segment lacks: records that end after `after` and not after `through`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// SCL: what is missing begins after it.
    pub after: Lsn,
    /// The last record known to be missing ends here.
    pub through: Lsn,
}

/// What to do after a peer's summary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GossipPlan {
    /// Install the peer's history (with its durable point, and no writer) before anything else.
    pub install_history: bool,
    /// Note the peer's durable point.
    pub observe_durable: bool,
    /// Ask this peer for these records, once the history is installed.
    pub ask: Option<Gap>,
}

/// Why a read cannot be answered here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadRefusal {
    /// The segment is promised to a newer writer than the reader's.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// A recovery happened that this segment has not heard of: what it holds may have been truncated.
    #[error("this segment has not heard of volume epoch {wanted} yet (it knows {known})")]
    HistoryBehind {
        /// The epoch whose stream the reader means.
        wanted: VolumeEpoch,
        /// The newest epoch that this segment has the history of.
        known: VolumeEpoch,
    },
    /// Records up to the read point may be missing.
    #[error("this segment answers from {from} through {through} only")]
    Behind {
        /// The lowest position it can be read at.
        from: Lsn,
        /// The highest position it can be read at.
        through: Lsn,
    },
    /// Versions this old may be collected already.
    #[error("versions below {from} may be gone")]
    TooOld {
        /// The lowest position it can be read at.
        from: Lsn,
        /// The highest position it can be read at.
        through: Lsn,
    },
}

/// What a segment is to its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Standing {
    /// It counts: its SCL says what it has.
    #[default]
    Full,
    /// It came into the group and does not have everything yet. Its SCL is zero to everyone, it answers no reads, and no
    /// recovery counts it as a copy.
    Joining,
    /// Its node is no member. It has nothing.
    Absent,
}

/// A segment's state as stored in a checkpoint of the node's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentCheckpoint {
    /// What the segment says about itself.
    pub summary: SegmentSummary,
    /// What it stores of its group's memberships.
    pub membership: Option<MembershipState>,
    /// What it is to its group.
    pub standing: Standing,
    /// The last record of the chain that is not after the known durable position.
    pub floor: RecordSpan,
    /// The chain above `floor`, in order.
    pub recent: Vec<SegmentRecord>,
    /// Records whose predecessor is missing, in order.
    pub held: Vec<SegmentRecord>,
}

/// A checkpoint that no segment can have written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the segment checkpoint contradicts itself: {0}")]
pub struct CheckpointError(pub(super) &'static str);
