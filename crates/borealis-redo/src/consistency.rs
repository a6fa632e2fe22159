//! The oracle: is a page after redo what PostgreSQL says it must be?
//!
//! With `wal_consistency_checking` a record carries, for each listed block, the page as the server that wrote
//! the record had it afterwards. Behaviour: `verifyBackupPageConsistency` in
//! `src/backend/access/transam/xlogrecovery.c`.

use std::fmt;

use borealis_types::{BlockKey, BlockNumber, PAGE_SIZE, PageBytes, PageKey};
use borealis_wal::{Record, ResourceManager};

use crate::heap::tuple;
use crate::{RedoError, listed_block, mask, page};

/// The first byte in which two pages differ after masking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Which block.
    pub key: BlockKey,
    /// Offset of the byte in the page.
    pub offset: usize,
    /// What PostgreSQL has there.
    pub expected: u8,
    /// What redo made of it.
    pub actual: u8,
    /// What the byte is part of.
    pub field: String,
    /// How many bytes differ in all.
    pub different_bytes: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { key, offset, expected, actual, field, different_bytes } = self;
        write!(
            f,
            "{key}: byte {offset} ({field}) is {actual:#04x} after redo, {expected:#04x} in PostgreSQL; \
             {different_bytes} bytes differ"
        )
    }
}

/// What the oracle says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// The record has no image to check this page with.
    NotChecked,
    /// Equal after masking.
    Equal,
    /// Redo and PostgreSQL disagree.
    Different(Mismatch),
}

/// Compares the page `key` as it is after redo of `record` with the record's image of it.
///
/// An image that redo applies is nothing to compare with.
///
/// # Errors
/// When the image cannot be restored or one of the pages cannot be masked, because it is no page.
pub fn check_consistency(
    record: &Record<'_>,
    key: &PageKey,
    page_after: &PageBytes,
) -> Result<Comparison, RedoError> {
    let Some(block) = listed_block(record, key) else { return Ok(Comparison::NotChecked) };
    let Some(image) = block.image.as_ref().filter(|image| !image.apply) else {
        return Ok(Comparison::NotChecked);
    };
    let mut expected = [0; PAGE_SIZE];
    image
        .restore(&mut expected)
        .map_err(|error| RedoError::from_fault(error.into(), record, || key.to_string()))?;
    Ok(compare(record.resource_manager, block.key, &expected, page_after)
        .map_err(|fault| RedoError::from_fault(fault, record, || key.to_string()))?
        .map_or(Comparison::Equal, Comparison::Different))
}

/// Compares two versions of a page after hiding what its access method says replay need not reproduce.
///
/// # Errors
/// When one of the two cannot be masked, because it is no page.
pub fn compare_pages(
    resource_manager: ResourceManager,
    key: BlockKey,
    expected: &PageBytes,
    actual: &PageBytes,
) -> Result<Option<Mismatch>, String> {
    compare(resource_manager, key, expected, actual)
        .map_err(|fault| format!("{key} cannot be masked: {fault:?}"))
}

fn compare(
    resource_manager: ResourceManager,
    key: BlockKey,
    expected: &PageBytes,
    actual: &PageBytes,
) -> crate::Redo<Option<Mismatch>> {
    let masked = |page: &PageBytes, block: BlockNumber| -> crate::Redo<PageBytes> {
        let mut masked = *page;
        // A page of zeros is one that was never initialized, and equal only to another.
        if !page::is_new(page) {
            mask::mask(resource_manager, &mut masked, block)?;
        }
        Ok(masked)
    };
    let (expected, actual) = (masked(expected, key.block)?, masked(actual, key.block)?);
    let mut differing = (0..PAGE_SIZE).filter(|offset| expected[*offset] != actual[*offset]);
    let Some(offset) = differing.next() else { return Ok(None) };
    Ok(Some(Mismatch {
        key,
        offset,
        expected: expected[offset],
        actual: actual[offset],
        field: field_name(resource_manager, &expected, offset),
        different_bytes: 1 + differing.count(),
    }))
}

/// What the byte at `offset` is part of.
fn field_name(resource_manager: ResourceManager, page: &PageBytes, offset: usize) -> String {
    let lower = usize::from(page::lower(page));
    if offset < page::HEADER_SIZE {
        let name = match offset {
            0..8 => "pd_lsn",
            8..10 => "pd_checksum",
            10..12 => "pd_flags",
            12..14 => "pd_lower",
            14..16 => "pd_upper",
            16..18 => "pd_special",
            18..20 => "pd_pagesize_version",
            _ => "pd_prune_xid",
        };
        return name.to_owned();
    }
    if offset >= usize::from(page::special_start(page)) {
        return format!("special space byte {}", offset - usize::from(page::special_start(page)));
    }
    if offset < lower {
        return format!("line pointer {}", (offset - page::HEADER_SIZE) / page::LINE_POINTER_SIZE + 1);
    }
    for offset_number in 1..=page::max_offset_number(page) {
        let Ok(pointer) = page::line_pointer(page, offset_number) else { break };
        let start = usize::from(pointer.offset);
        if pointer.has_storage() && (start..start + usize::from(pointer.length)).contains(&offset) {
            let in_item = offset - start;
            return match resource_manager {
                ResourceManager::Heap | ResourceManager::Heap2 => {
                    format!("tuple {offset_number}, {}", tuple::field_name(in_item))
                }
                _ => format!("item {offset_number}, byte {in_item}"),
            };
        }
    }
    "between the items".to_owned()
}
