//! The oracle: is a page after redo what PostgreSQL says it must be?
//!
//! With `wal_consistency_checking` a record carries, for each listed block, the page as the server that wrote
//! the record had it afterwards. Behaviour: `verifyBackupPageConsistency` in
//! `src/backend/access/transam/xlogrecovery.c`.

mod fields;

use std::fmt;

use borealis_types::{BlockKey, BlockNumber, PAGE_SIZE, PageBytes, PageKey};
use borealis_wal::{Record, ResourceManager};

use super::mask::mask;
use crate::block::listed;
use crate::error::RedoError;
use crate::page;

/// How many bytes of the first difference are shown.
const SHOWN_BYTES_MAX: usize = 16;

/// Where two pages first differ after masking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The block that differs.
    pub key: BlockKey,
    /// Offset of the first differing byte in the page.
    pub offset: usize,
    /// What PostgreSQL has from there on: as many bytes as differ in one piece, but not more than a few.
    pub expected: Vec<u8>,
    /// What redo made of them.
    pub actual: Vec<u8>,
    /// What the first byte is part of.
    pub field: String,
    /// How many bytes differ in all.
    pub different_bytes: usize,
}

/// Bytes as pairs of hexadecimal digits.
struct Hexadecimal<'b>(&'b [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl Mismatch {
    /// PostgreSQL's bytes as pairs of hexadecimal digits.
    #[must_use]
    pub fn expected_text(&self) -> String {
        Hexadecimal(&self.expected).to_string()
    }

    /// Redo's bytes as pairs of hexadecimal digits.
    #[must_use]
    pub fn actual_text(&self) -> String {
        Hexadecimal(&self.actual).to_string()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { key, offset, expected, actual, field, different_bytes } = self;
        write!(
            f,
            "{key}: from byte {offset} ({field}) on, redo made {}, and PostgreSQL has {}; {different_bytes} bytes \
             differ",
            Hexadecimal(actual),
            Hexadecimal(expected)
        )
    }
}

/// What the oracle says of a page after redo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// The record does not list the page: PostgreSQL does not say what it must be.
    NotListed,
    /// The record lists the block without an image: it was written without `wal_consistency_checking`.
    NoImage,
    /// Redo takes the page whole from the record, so there is nothing to compare.
    Restored,
    /// Equal once what redo does not reproduce is hidden.
    Equal,
    /// Redo and PostgreSQL disagree, here for the first time.
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
    let Some(block) = listed(record, key) else { return Ok(Comparison::NotListed) };
    let Some(image) = block.image.as_ref() else { return Ok(Comparison::NoImage) };
    if image.apply {
        return Ok(Comparison::Restored);
    }
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
) -> crate::fault::Redo<Option<Mismatch>> {
    let masked = |page: &PageBytes, block: BlockNumber| -> crate::fault::Redo<PageBytes> {
        let mut masked = *page;
        // A page of zeros is one that was never initialized, and equal only to another.
        if !page::is_new(page) {
            mask(resource_manager, &mut masked, block)?;
        }
        Ok(masked)
    };
    let (unmasked, expected, actual) = (expected, masked(expected, key.block)?, masked(actual, key.block)?);
    let differs = |offset: &usize| expected[*offset] != actual[*offset];
    let Some(offset) = (0..PAGE_SIZE).find(differs) else { return Ok(None) };
    let shown_max = PAGE_SIZE.min(offset + SHOWN_BYTES_MAX);
    let end = (offset..shown_max).find(|offset| !differs(offset)).unwrap_or(shown_max);
    Ok(Some(Mismatch {
        key,
        offset,
        expected: expected[offset..end].to_vec(),
        actual: actual[offset..end].to_vec(),
        field: fields::field_name(resource_manager, key.block, unmasked, offset),
        different_bytes: (offset..PAGE_SIZE).filter(differs).count(),
    }))
}
