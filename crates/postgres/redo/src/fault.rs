//! What a redo function reports; `lib.rs` adds which record and which page it was.

use borealis_wal::RecordError;

/// Why a redo function gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation is not one this resource manager has.
    Unknown,
    /// An expectation of redo does not hold, in the record or on the page.
    Failed(&'static str),
}

/// Result of a redo function.
pub(crate) type Redo<T = ()> = Result<T, Fault>;

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Malformed { what, .. } | RecordError::Image { what, .. } => Fault::Failed(what),
            RecordError::Checksum { .. } => Fault::Failed("the record fails its checksum"),
        }
    }
}

/// `Ok` when `holds`, the named fault otherwise.
pub(crate) fn expect(holds: bool, what: &'static str) -> Redo {
    if holds { Ok(()) } else { Err(Fault::Failed(what)) }
}
