//! What can go wrong in a store.

use std::io;
use std::path::{Path, PathBuf};

use borealis_types::{GroupId, Lsn, PageKey, VolumeEpoch};
use borealis_wire::Refusal;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The request is refused; nothing is wrong with the store.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The segment was not told about the epoch of the records; install its history and offer again.
    #[error("group {group} has not been told about volume epoch {epoch}; install its history first")]
    NeedsHistory {
        /// The group of the segment that refused.
        group: GroupId,
        /// The epoch of the records.
        epoch: VolumeEpoch,
    },
    /// The request was made for other memberships than those installed here. [`Store::membership`](crate::Store::membership)
    /// says which they are.
    #[error(
        "made for other memberships: of groups {newer:?} a newer one is installed here, of {not_learned:?} an older one"
    )]
    OtherMembership {
        /// The groups of which the sender knows an older membership.
        newer: Vec<GroupId>,
        /// The groups of which the sender knows one that this node has not learned yet.
        not_learned: Vec<GroupId>,
    },
    /// A history cannot be installed.
    #[error("group {group}: {error}")]
    Install {
        /// The group of the segment that refused.
        group: GroupId,
        /// The rule that the history breaks.
        error: borealis_quorum::segment::InstallError,
    },
    /// Another process has the directory open.
    #[error("{0} is in use by another process; stop that storage node first")]
    InUse(PathBuf),
    /// The directory is not what the caller takes it for.
    #[error("{path} {what}")]
    Directory {
        /// The file or folder that the operation was on.
        path: PathBuf,
        /// What is wrong, as the rest of a sentence.
        what: String,
    },
    /// Bytes on disk are not what was written.
    #[error("corruption in {place}: {what}; replace this node (`borealis node replace`)")]
    Corrupt {
        /// Which file, group and key.
        place: String,
        /// What does not match, in words.
        what: String,
    },
    /// A record could not be applied.
    #[error("group {group} cannot apply the record ending at {lsn}: {reason}")]
    Redo {
        /// The group of the segment that has the record.
        group: GroupId,
        /// Position of the record's end.
        lsn: Lsn,
        /// What the redo engine reported.
        reason: String,
    },
    /// A record could not be applied to one page, which is kept as it was before; other pages go on.
    #[error(
        "page {key} of group {group} is in quarantine: redo of the record ending at {lsn} failed ({reason}); the page is \
         kept as it was before; report this with the record, and start the node with a release that can apply it"
    )]
    RedoOfPage {
        /// The group of the segment that has the page.
        group: GroupId,
        /// The page.
        key: PageKey,
        /// Position of the record's end.
        lsn: Lsn,
        /// What the redo engine reported.
        reason: String,
    },
    /// The system refused an operation. Nothing depends on it: it may be tried again, and passes with its cause.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The operation, such as `read` or `sync`.
        operation: &'static str,
        /// The file it was on.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// An earlier write or sync failed; the store promises nothing until it is opened again.
    #[error("the store stopped: {0}")]
    Poisoned(String),
}

impl StoreError {
    pub(crate) fn io<'a>(
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::Io { operation, path: path.to_owned(), source }
    }

    /// For an operation after whose failure it is not known what is on disk, and promises depend on it.
    pub(crate) fn lost<'a>(
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::Poisoned(format!("{operation} {}: {source}", path.display()))
    }

    pub(crate) fn corrupt(place: impl Into<String>, what: impl Into<String>) -> StoreError {
        StoreError::Corrupt { place: place.into(), what: what.into() }
    }

    pub(crate) fn directory(path: &Path, what: impl Into<String>) -> StoreError {
        StoreError::Directory { path: path.to_owned(), what: what.into() }
    }

    /// The refusal to send to a client.
    #[must_use]
    pub fn to_refusal(&self) -> Refusal {
        match self {
            StoreError::Refused(refusal) => refusal.clone(),
            StoreError::NeedsHistory { .. } => Refusal::Misuse(self.to_string()),
            StoreError::Install { error, .. } => match error {
                borealis_quorum::segment::InstallError::Fenced(fenced) => {
                    Refusal::Fenced(fenced.current.epoch)
                }
                _ => Refusal::Misuse(self.to_string()),
            },
            StoreError::Io { .. } | StoreError::OtherMembership { .. } => Refusal::NotNow(self.to_string()),
            _ => Refusal::Failed(self.to_string()),
        }
    }
}
