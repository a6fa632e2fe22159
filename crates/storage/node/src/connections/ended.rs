//! How a connection can end.

use std::io;

use borealis_wire::FrameError;

/// Why a connection ended, if not by the caller's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The connection broke; the caller may be gone.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is not the protocol; says what.
    #[error("{0}")]
    Garbage(String),
    /// The caller goes by an older membership, and was told so.
    #[error("the caller goes by another membership, and has to come again")]
    OtherMembership,
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Ended {
        match error {
            FrameError::Io(error) => Ended::Io(error),
            other => Ended::Garbage(other.to_string()),
        }
    }
}
