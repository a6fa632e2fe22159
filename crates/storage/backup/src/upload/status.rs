//! What an uploader says of itself.

use std::collections::BTreeMap;

use borealis_archive::duty::Duty;
use borealis_types::{GroupId, Lsn, NodeId};

use super::{Now, Trouble};
use crate::store::ErrorKind;

/// Redo that is in no object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The group.
    pub group: GroupId,
    /// The store has the group's records to here …
    pub from: Lsn,
    /// … and those after here.
    pub through: Lsn,
    /// When it was found, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Why nothing gets to the store at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Its kind; `None` if the node cannot read its own redo.
    pub kind: Option<ErrorKind>,
    /// What was said last.
    pub what: String,
    /// When it began, in milliseconds since 1970.
    pub since_ms: u64,
    /// How many attempts failed since.
    pub attempts: u64,
}

/// How far a group is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The store has its redo to here without a gap, as far as this node knows.
    pub uploaded: Lsn,
    /// Its last durable record ends here.
    pub durable: Lsn,
    /// What this node is to do; `None` before it asked.
    pub duty: Option<Duty>,
    /// For how long there is something that the store does not have, and nothing new in it, in milliseconds.
    pub behind_ms: u64,
    /// As of which position its newest snapshot is; `None` if there is none.
    pub snapshot: Option<Lsn>,
}

/// What an uploader did, and how far it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Each group of the node.
    pub groups: Vec<GroupStatus>,
    /// Objects that it made.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Requests that failed, by kind.
    pub failures: BTreeMap<ErrorKind, u64>,
    /// What is wrong now; `None` after a success.
    pub last_failure: Option<Failure>,
    /// What no object has, until a snapshot is there that is newer.
    pub gaps: Vec<Gap>,
    /// Snapshots that it made.
    pub snapshots: u64,
    /// Why the last attempt to make one did not get to its end, and of which group; `None` after one that did.
    pub snapshot_trouble: Option<(GroupId, String)>,
}

impl Status {
    pub(super) fn note_failure(&mut self, trouble: &Trouble, now: Now, node: NodeId) {
        let what = self.count(trouble);
        let kind = match trouble {
            Trouble::Store(error) => Some(error.kind),
            Trouble::Source(_) => None,
        };
        let earlier = self.last_failure.take().filter(|failure| failure.kind == kind);
        if earlier.is_none() {
            tracing::warn!("node {node} uploads nothing for now: {what}");
        }
        let (since_ms, attempts) =
            earlier.map_or((now.wall_ms, 0), |failure| (failure.since_ms, failure.attempts));
        self.last_failure = Some(Failure { kind, what, since_ms, attempts: attempts + 1 });
    }

    /// Counts what the store did not fulfil, and puts it into words.
    pub(super) fn count(&mut self, trouble: &Trouble) -> String {
        match trouble {
            Trouble::Store(error) => {
                *self.failures.entry(error.kind).or_default() += 1;
                error.to_string()
            }
            Trouble::Source(error) => error.to_string(),
        }
    }
}
