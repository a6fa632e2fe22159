//! Finding whose record it is, and letting that resource manager apply it.

use borealis_types::{Fork, MetaKey, PageBytes, PageKey, invariant};
use borealis_wal::layout::heap::OPERATION_MASK;
use borealis_wal::layout::heap2::VISIBLE;
use borealis_wal::{Record, ResourceManager};

use crate::block::is_fork;
use crate::error::RedoError;
use crate::fault::{Fault, Redo};
use crate::{
    brin, btree, clog, commit_ts, counters, database, generic, gin, gist, hash, heap, kept_file, multixact,
    native, page, relmap, sequence, spgist, storage, tablespace, transaction, xlog,
};

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
    apply_operation(record, key, page)?;
    assert_stamped(record, key, page);
    Ok(())
}

/// Whether PostgreSQL stamps whatever page this record changes, other than by its image.
fn stamps(record: &Record<'_>, key: &PageKey) -> bool {
    match record.resource_manager {
        ResourceManager::Btree
        | ResourceManager::Gin
        | ResourceManager::Gist
        | ResourceManager::Spgist
        | ResourceManager::Brin
        | ResourceManager::Sequence
        | ResourceManager::Generic => true,
        ResourceManager::Hash => !hash::only_locks(record, key),
        // Clearing bits of the visibility map is no reason to, nor is setting them on the heap page.
        ResourceManager::Heap => !is_fork(key, Fork::VisibilityMap),
        ResourceManager::Heap2 => {
            !is_fork(key, Fork::VisibilityMap) && record.info & OPERATION_MASK != VISIBLE
        }
        _ => false,
    }
}

/// The server whose page this was has it with this LSN, and tells by it that the record is applied.
fn assert_stamped(record: &Record<'_>, key: &PageKey, page: &PageBytes) {
    let lsn = page::lsn(page);
    let stamped = lsn == record.span.end || !stamps(record, key);
    invariant!("redone-page-has-the-records-lsn", stamped, "{key} has {lsn}, the record {}", record.span.end);
}

fn apply_operation(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
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
        ResourceManager::LogicalMessage => kept_file::redo_meta(record, key),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_record::{block_key, record_on};

    #[test]
    #[should_panic(expected = "invariant redone-page-has-the-records-lsn is broken")]
    fn a_page_that_redo_did_not_stamp_is_noticed() {
        let record = record_on(ResourceManager::Generic, 0, &[], &[(0, 1, &[])]);
        assert_stamped(&record, &PageKey::Block(block_key(1)), &[0; borealis_types::PAGE_SIZE]);
    }
}
