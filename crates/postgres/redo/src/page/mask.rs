//! Hiding parts of a page that the oracle must not compare, as all access methods do.
//!
//! Behaviour: `src/backend/access/common/bufmask.c`. Each hides something that a server changes without a
//! record, or that redo does not reproduce.

use borealis_types::{Lsn, PAGE_SIZE, PageBytes};
use borealis_wal::layout::item_id::LP_UNUSED;

use super::header::{self as page, LinePointer};
use crate::fault::{Redo, expect};

/// `MASK_MARKER`: what hidden bytes are overwritten with.
pub(crate) const MARKER: u8 = 0;

/// `mask_page_lsn_and_checksum`
pub(crate) fn page_lsn_and_checksum(page: &mut PageBytes) {
    page::set_lsn(page, Lsn(u64::from(MARKER)));
    page::set_checksum(page, u16::from(MARKER));
}

/// `mask_page_hint_bits`
pub(crate) fn page_hint_bits(page: &mut PageBytes) {
    page::set_prune_xid(page, u32::from(MARKER));
    page::set_flag(page, page::PAGE_FULL | page::HAS_FREE_LINES | page::ALL_VISIBLE, false);
}

/// `mask_unused_space`
pub(crate) fn unused_space(page: &mut PageBytes) -> Redo {
    let (lower, upper) = (usize::from(page::lower(page)), usize::from(page::upper(page)));
    let special = usize::from(page::special_start(page));
    expect(
        page::HEADER_BYTES <= lower && lower <= upper && upper <= special && special <= PAGE_SIZE,
        "the page header's pointers are corrupt",
    )?;
    page[lower..upper].fill(MARKER);
    Ok(())
}

/// `mask_lp_flags`
pub(crate) fn line_pointer_flags(page: &mut PageBytes) -> Redo {
    for offset_number in 1..=page::max_offset_number(page) {
        let pointer = page::line_pointer(page, offset_number)?;
        page::set_line_pointer(page, offset_number, LinePointer { flags: LP_UNUSED, ..pointer })?;
    }
    Ok(())
}

/// `mask_page_content`
pub(crate) fn page_content(page: &mut PageBytes) {
    page[page::HEADER_BYTES..].fill(MARKER);
    page::set_lower(page, u16::from(MARKER));
    page::set_upper(page, u16::from(MARKER));
}
