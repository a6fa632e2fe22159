//! Why redo could not be applied, for whoever asked for it.

use borealis_wal::Record;

use crate::fault::Fault;

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

impl RedoError {
    /// Adds which record it was, and what it was applied to.
    pub(crate) fn from_fault(fault: Fault, record: &Record<'_>, key: impl Fn() -> String) -> RedoError {
        let (start, resource_manager, info) = (record.span.start, record.resource_manager, record.info);
        match fault {
            Fault::Unknown => RedoError::Unknown { start, resource_manager, info },
            Fault::Failed(what) => RedoError::Failed { start, resource_manager, info, key: key(), what },
        }
    }
}
