//! What an uploader asks of the node that it is a part of.

use borealis_archive::duty::Candidate;
use borealis_types::{EpochHistory, GroupId, Lsn, VolumeEpoch};

/// A durable position, as one group knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DurablePoint {
    /// The epoch in which it was said.
    pub epoch: VolumeEpoch,
    /// The volume is durable to here.
    pub volume: Lsn,
    /// End of the group's last record at or before that; zero if there is none.
    pub group_tail: Lsn,
}

/// Records of a group in LSN order, as `borealis_store::Store::read_tail` gives them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// Redo batches, one for each run of records of one epoch.
    pub batches: Vec<Vec<u8>>,
    /// There are more above the last record.
    pub more: bool,
}

/// Why a source does not answer. It is asked again later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node cannot read the redo of group {group}: {what}")]
pub struct SourceError {
    /// The group.
    pub group: GroupId,
    /// What the node's store said.
    pub what: String,
}

/// The node's side. Nothing here waits for an uploader, and an uploader holds nothing of the node between two calls.
pub trait RedoSource {
    /// Groups of which the node has a segment, in order.
    fn groups(&self) -> Vec<GroupId>;

    /// Every opening that the node knows of.
    fn history(&self) -> EpochHistory;

    /// What is durable of a group; `None` if the node does not know.
    fn durable(&self, group: GroupId) -> Option<DurablePoint>;

    /// Records of a group that end above `above`, about `limit_bytes` of them and at least one if there is one. The first one may follow a
    /// record that is not here: one that is not here any more ([`RedoSource::log_floor`]), or not yet.
    ///
    /// # Errors
    /// When the node cannot read them now.
    fn tail(&self, group: GroupId, above: Lsn, limit_bytes: u32) -> Result<Tail, SourceError>;

    /// The node let go of records of a group that end at or below this. Others that it lacks it will get.
    fn log_floor(&self, group: GroupId) -> Lsn;

    /// The members of a group, this node among them, as far as it knows.
    fn candidates(&self, group: GroupId) -> Vec<Candidate>;
}
