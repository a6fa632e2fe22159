//! Which version of a page, a size or a value a reader means.

use serde::{Deserialize, Serialize};

use crate::{Lsn, VolumeEpoch};

/// A position in the stream of one writer.
///
/// A position alone does not say which stream is meant: a segment that missed a recovery still holds records which that
/// recovery cut, at positions where the stream of the new epoch has others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ReadPoint {
    /// The epoch whose stream the reader means. Zero asks for whatever the node has: for tools that compare nodes.
    pub epoch: VolumeEpoch,
    /// The position: what every record that ends at or below it has made.
    pub lsn: Lsn,
}

/// A tool's question, which names no epoch.
impl From<Lsn> for ReadPoint {
    fn from(lsn: Lsn) -> ReadPoint {
        ReadPoint { epoch: VolumeEpoch(0), lsn }
    }
}
