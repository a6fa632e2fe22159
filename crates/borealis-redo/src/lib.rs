//! PostgreSQL redo as pure functions from (page, record) to page.
//!
//! Invariant: pure. The new bytes of a page depend only on its old bytes and the record (invariant 4).

use borealis_types::{MetaKey, PageBytes, PageKey};
use borealis_wal::Record;

/// Why redo could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// Nobody has taught Borealis this operation.
    #[error("unknown redo at {start}: resource manager {resource_manager:?}, info {info:#04x}")]
    Unknown {
        /// Position of the record.
        start: borealis_types::Lsn,
        /// Whose record it is.
        resource_manager: borealis_wal::ResourceManager,
        /// Its info byte.
        info: u8,
    },
    /// The record or the page it applies to breaks an expectation of redo.
    #[error("redo of {resource_manager:?} record at {start} (info {info:#04x}) on {key} failed: {what}")]
    Failed {
        /// Position of the record.
        start: borealis_types::Lsn,
        /// Whose record it is.
        resource_manager: borealis_wal::ResourceManager,
        /// Its info byte.
        info: u8,
        /// What it was applied to.
        key: String,
        /// Which expectation.
        what: &'static str,
    },
}

/// Applies `record` to the page `key`, in place.
///
/// `page` holds the version before the record (all zeros if the page did not exist). The caller has found
/// `key` among the record's effects and `record.span.end` above the version it holds; redo does not look at
/// the page's own LSN to decide whether to apply, but stamps it with `record.span.end` where PostgreSQL does.
///
/// # Errors
/// When the operation is unknown, the record malformed, or the page not what the record expects. The page's
/// bytes are then unspecified and must be thrown away.
pub fn apply_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Result<(), RedoError> {
    let _ = (record, key, page);
    todo!("written by the resource manager modules")
}

/// Applies `record` to a small value; `None` means it does not exist, before or after.
///
/// # Errors
/// As for [`apply_page`].
pub fn apply_meta(record: &Record<'_>, key: &MetaKey, value: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, RedoError> {
    let _ = (record, key, value);
    todo!("written by the resource manager modules")
}
