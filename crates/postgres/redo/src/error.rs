//! Why redo could not be applied, for whoever asked for it.

use borealis_wal::Record;

use crate::fault::Fault;

/// Why redo could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// Nobody has taught Borealis this operation.
    #[error("unknown redo at {start}: resource manager {resource_manager:?}, info {info:#04x}")]
    Unknown {
        /// Where the record starts in the log.
        start: borealis_types::Lsn,
        /// The resource manager that wrote the record.
        resource_manager: borealis_wal::ResourceManager,
        /// `xl_info`: the operation in the high four bits.
        info: u8,
    },
    /// The record or the page it applies to breaks an expectation of redo.
    #[error("redo of {resource_manager:?} record at {start} (info {info:#04x}) on {key} failed: {what}")]
    Failed {
        /// Where the record starts in the log.
        start: borealis_types::Lsn,
        /// The resource manager that wrote the record.
        resource_manager: borealis_wal::ResourceManager,
        /// `xl_info`: the operation in the high four bits.
        info: u8,
        /// What it was applied to.
        key: String,
        /// The expectation that does not hold.
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
