//! What an uploader asks of the node that it is a part of.

use borealis_archive::duty::Candidate;
use borealis_archive::snapshot::SnapshotPoint;
use borealis_types::{EpochHistory, GroupId, Lsn, MetaKey, PageBytes, PageKey, RelationFork, VolumeEpoch};

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
#[error("this node cannot read what it has of group {group}: {what}")]
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

    /// The node's pages, for one step; `None` if it has none to give now.
    fn pages(&self) -> Option<Box<dyn PageSource + '_>>;
}

/// The node's pages. What was held is kept for a while and then let go of, whether or not the uploader comes again.
pub trait PageSource {
    /// About how many bytes all pages of a group have.
    fn size_bytes(&self, group: GroupId) -> u64;

    /// Keeps everything of a group as of what is durable now, for half a minute. Nothing else of it is kept any more.
    ///
    /// # Errors
    /// When not everything is here, or there is no room to keep it.
    fn hold(&self, group: GroupId) -> Result<SnapshotPoint, SourceError>;

    /// Keeps it for half a minute more.
    ///
    /// # Errors
    /// When it is not there any more.
    fn renew(&self, group: GroupId, lsn: Lsn) -> Result<(), SourceError>;

    /// It is not needed any more.
    fn release(&self, group: GroupId);

    /// The pages of a group as of what was held that come after `after`, in key order; fewer than `limit` are the last.
    ///
    /// # Errors
    /// When one of them cannot be read, or not everything is there any more.
    fn pages(
        &self,
        group: GroupId,
        lsn: Lsn,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<Vec<(PageKey, Box<PageBytes>)>, SourceError>;

    /// Every fork of a group as of what was held, with its size in blocks, in key order.
    ///
    /// # Errors
    /// As [`PageSource::pages`].
    fn relations(&self, group: GroupId, lsn: Lsn) -> Result<Vec<(RelationFork, u32)>, SourceError>;

    /// Every value of a group as of what was held, in key order.
    ///
    /// # Errors
    /// As [`PageSource::pages`].
    fn values(&self, group: GroupId, lsn: Lsn) -> Result<Vec<(MetaKey, Vec<u8>)>, SourceError>;
}
