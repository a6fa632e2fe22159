//! PostgreSQL redo as pure functions from (page, record) to page.
//!
//! Invariant: pure. The new bytes of a page depend only on its old bytes and the record (invariant 4).
//! Invariant: bytes from outside, in the record or on the page, never panic.
//!
//! One module for each resource manager, named as PostgreSQL's, with up to three entry points that this file
//! calls: `redo_page` for the blocks a record lists or implies, `redo_meta` for the small values it changes,
//! and `mask` for what the consistency oracle must not compare.

mod brin;
mod btree;
mod bytes;
pub mod check;
mod clog;
mod commit_ts;
pub mod consistency;
pub mod counters;
mod database;
mod fault;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod mask;
mod multixact;
pub mod names;
mod native;
mod page;
mod releases;
mod relmap;
mod sequence;
mod spgist;
mod storage;
mod tablespace;
#[cfg(test)]
mod test_record;
mod transaction;
mod transaction_id;
mod xlog;

pub use borealis_wal::layout::control_file;

use borealis_types::{Fork, MetaKey, PageBytes, PageKey};
use borealis_wal::{Record, ResourceManager};

use fault::{Fault, Redo};

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
    fn from_fault(fault: Fault, record: &Record<'_>, key: impl Fn() -> String) -> Self {
        let (start, resource_manager, info) = (record.span.start, record.resource_manager, record.info);
        match fault {
            Fault::Unknown => RedoError::Unknown { start, resource_manager, info },
            Fault::Failed(what) => RedoError::Failed { start, resource_manager, info, key: key(), what },
        }
    }
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
    redo_page(record, key, page).map_err(|fault| RedoError::from_fault(fault, record, || key.to_string()))
}

fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    if restore_image(record, key, page)? {
        return match record.resource_manager {
            ResourceManager::Gist => gist::after_restore(record, key, page),
            _ => Ok(()),
        };
    }
    match record.resource_manager {
        ResourceManager::Xlog => xlog::redo_page(record, key, page),
        ResourceManager::Transaction => transaction::redo_page(record, key, page),
        ResourceManager::Storage => storage::redo_page(record, key, page),
        ResourceManager::Clog => clog::redo_page(record, key, page),
        ResourceManager::MultiXact => multixact::redo_page(record, key, page),
        ResourceManager::Heap2 => heap::heap2::redo_page(record, key, page),
        ResourceManager::Heap => heap::redo_page(record, key, page),
        ResourceManager::Btree => btree::redo_page(record, key, page),
        ResourceManager::Sequence => sequence::redo_page(record, key, page),
        ResourceManager::CommitTs => commit_ts::redo_page(record, key, page),
        ResourceManager::Borealis => native::redo_page(record, key, page),
        // These change no page.
        ResourceManager::Database
        | ResourceManager::Tablespace
        | ResourceManager::RelMap
        | ResourceManager::Standby
        | ResourceManager::ReplicationOrigin
        | ResourceManager::LogicalMessage => Err(Fault::Failed("this resource manager changes no pages")),
        ResourceManager::Hash => hash::redo_page(record, key, page),
        ResourceManager::Gin => gin::redo_page(record, key, page),
        ResourceManager::Gist => gist::redo_page(record, key, page),
        ResourceManager::Spgist => spgist::redo_page(record, key, page),
        ResourceManager::Brin => brin::redo_page(record, key, page),
        ResourceManager::Generic => generic::redo_page(record, key, page),
        ResourceManager::Other(_) => Err(Fault::Unknown),
    }
}

/// `XLogReadBufferForRedoExtended`'s first half: if the record carries the block's image to be applied, that
/// is all there is to do, whatever the operation.
fn restore_image(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo<bool> {
    let PageKey::Block(block_key) = key else { return Ok(false) };
    let listed = record.blocks.iter().find(|block| block.key == *block_key);
    let Some(image) = listed.and_then(|block| block.image.as_ref()).filter(|image| image.apply) else {
        return Ok(false);
    };
    image.restore(page)?;
    if !page::is_new(page) {
        page::set_lsn(page, record.span.end);
    }
    Ok(true)
}

/// Applies `record` to a small value; `None` means it does not exist, before or after.
///
/// # Errors
/// As for [`apply_page`].
pub fn apply_meta(
    record: &Record<'_>,
    key: &MetaKey,
    value: Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>, RedoError> {
    redo_meta(record, key, value).map_err(|fault| RedoError::from_fault(fault, record, || format!("{key:?}")))
}

fn redo_meta(record: &Record<'_>, key: &MetaKey, value: Option<Vec<u8>>) -> Redo<Option<Vec<u8>>> {
    if record.resource_manager == ResourceManager::Borealis {
        return native::redo_meta(record, key, value);
    }
    if *key == MetaKey::Counters {
        return counters::redo_meta(record, value);
    }
    match record.resource_manager {
        ResourceManager::Transaction => transaction::redo_meta(record, key, value),
        ResourceManager::Database => database::redo_meta(record, key, value),
        ResourceManager::Tablespace => tablespace::redo_meta(record, key, value),
        ResourceManager::RelMap => relmap::redo_meta(record, key, value),
        _ => Err(Fault::Failed("this resource manager does not change this value")),
    }
}

/// The key whose value [`apply_meta`] needs before the record, when that is not the key itself: the relation map
/// of a database made by copying files starts as its template's.
///
/// # Errors
/// As for [`apply_page`].
pub fn meta_before(record: &Record<'_>, key: &MetaKey) -> Result<Option<MetaKey>, RedoError> {
    database::meta_before(record, key)
        .map_err(|fault| RedoError::from_fault(fault, record, || format!("{key:?}")))
}

/// The listed block with `key`, and its id.
pub(crate) fn listed_block<'r, 'a>(
    record: &'r Record<'a>,
    key: &PageKey,
) -> Option<&'r borealis_wal::BlockReference<'a>> {
    let PageKey::Block(block_key) = key else { return None };
    record.blocks.iter().find(|block| block.key == *block_key)
}

/// Whether `key` is a block of this fork.
pub(crate) fn is_fork(key: &PageKey, fork: Fork) -> bool {
    matches!(key, PageKey::Block(block) if block.relation_fork.fork == fork)
}
