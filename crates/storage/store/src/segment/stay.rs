//! A segment's stay on this node: from when it came until it leaves.
//!
//! A group's segment may come, leave and come again. What is left of an earlier stay, on disk or in the log, must never be
//! taken for what is of this one: each stay has a folder of its own, and does not look at the log before it began.

use borealis_types::{GroupId, MembershipEpoch, NodeId};
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::log::position::LogPosition;
use crate::pages::page_files::PageFiles;

/// When a segment came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Stay {
    /// The membership with which it came; zero if it was made with the store.
    pub joined: MembershipEpoch,
    /// No entry of the log before this position is about it.
    pub log_from: LogPosition,
}

impl Stay {
    /// Of a segment that was made with the store.
    pub(crate) const SINCE_CREATION: Stay = Stay { joined: MembershipEpoch(0), log_from: LogPosition(0) };

    /// Whether an entry of the log whose payload is at `position` may be about it.
    pub(crate) fn has(self, position: LogPosition) -> bool {
        position >= self.log_from
    }

    /// The first version number of a segment in this stay (see [`crate::read`]): a reader that looked something up in an
    /// earlier one must not find its number again.
    pub(crate) fn first_version(self) -> u64 {
        self.joined.0 << 32
    }
}

/// Where the segments of a store are, and with what their pages are sealed.
#[derive(Clone, Copy)]
pub(crate) struct Homes<'a> {
    pub directory: &'a Directory,
    pub node: NodeId,
    pub seal: u128,
}

impl Homes<'_> {
    /// The page files of a segment in a stay.
    pub(crate) fn pages(&self, group: GroupId, stay: Stay) -> PageFiles {
        let folder = self.directory.segment(group, stay.joined);
        PageFiles::new(self.directory.disk().clone(), folder, self.node, group, self.seal)
    }
}
