//! B-tree indexes (`RM_BTREE_ID`).
//!
//! Records: `src/include/access/nbtxlog.h`; redo: `src/backend/access/nbtree/nbtxlog.c`.

mod deletion;
mod insertion;
mod opaque;
pub(crate) mod tuple;

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::layout::btree::{
    DEDUP, DELETE, INSERT_LEAF, INSERT_META, INSERT_POST, INSERT_UPPER, MARK_PAGE_HALFDEAD,
    META_ALL_EQUAL_IMAGE_OFFSET, META_BYTES, META_CLEANUP, META_LAST_CLEANUP_OFFSET, META_MAGIC,
    META_VERSION_OFFSET, METADATA_COPIED_BYTES, NEWROOT, REUSE_PAGE, SPLIT_L, SPLIT_R, UNLINK_PAGE,
    UNLINK_PAGE_META, VACUUM, flag,
};
use borealis_wal::{BlockReference, Record};

use crate::block::listed;
use crate::bytes::{Reader, put};
use crate::fault::{Fault, Redo};
use crate::page::{self, mask};
use opaque::Opaque;

/// Applies a B-tree record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    match (record.operation(), block.id) {
        (INSERT_LEAF | INSERT_UPPER | INSERT_META, 0) => insertion::insert(record, block, page),
        (INSERT_POST, 0) => insertion::insert_with_posting_split(record, block, page),
        (INSERT_UPPER | INSERT_META, 1) | (SPLIT_L | SPLIT_R, 3) | (NEWROOT, 1) => {
            clear_incomplete_split(page)
        }
        (INSERT_META | NEWROOT, 2) | (UNLINK_PAGE_META, 4) | (META_CLEANUP, 0) => restore_meta(block, page),
        (SPLIT_L, 0) => insertion::split_left(record, block, page, true),
        (SPLIT_R, 0) => insertion::split_left(record, block, page, false),
        (SPLIT_L | SPLIT_R, 1) => insertion::split_right(record, block, page),
        (SPLIT_L | SPLIT_R, 2) => insertion::split_sibling(record, page),
        (NEWROOT, 0) => insertion::new_root(record, block, page),
        (DEDUP, 0) => insertion::deduplicate(record, block, page),
        (VACUUM, 0) => deletion::vacuum(record, block, page),
        (DELETE, 0) => deletion::delete(record, block, page),
        (MARK_PAGE_HALFDEAD, 0) => deletion::mark_half_dead_leaf(record, page),
        (MARK_PAGE_HALFDEAD, 1) => deletion::mark_half_dead_parent(record, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 0) => deletion::unlink_target(record, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 1) => deletion::unlink_left_sibling(record, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 2) => deletion::unlink_right_sibling(record, page),
        (UNLINK_PAGE | UNLINK_PAGE_META, 3) => deletion::unlink_leaf(record, page),
        // `REUSE_PAGE` only resolves conflicts on a standby.
        (INSERT_LEAF..=REUSE_PAGE | META_CLEANUP, _) => {
            Err(Fault::Failed("this B-tree operation does not have such a block"))
        }
        _ => Err(Fault::Unknown),
    }?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// `_bt_clear_incomplete_split`: the page's right sibling has its downlink now.
fn clear_incomplete_split(page: &mut PageBytes) -> Redo {
    let mut opaque = Opaque::read(page)?;
    opaque.flags &= !flag::INCOMPLETE_SPLIT;
    opaque.write(page)
}

/// `_bt_restore_meta`: writes the metapage anew from the `xl_btree_metadata` of its block data.
fn restore_meta(block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(block.data);
    Opaque { flags: flag::META, ..Opaque::default() }.init_page(page)?;
    let meta = &mut page[page::HEADER_BYTES..page::HEADER_BYTES + META_BYTES];
    put(meta, 0, &META_MAGIC.to_le_bytes())?;
    put(meta, META_VERSION_OFFSET, data.bytes(METADATA_COPIED_BYTES)?)?;
    put(meta, META_LAST_CLEANUP_OFFSET, &(-1.0_f64).to_le_bytes())?;
    put(meta, META_ALL_EQUAL_IMAGE_OFFSET, &[data.u8()?])?;
    // The metadata lies below `pd_lower`, so that full-page images do not take it for the hole.
    page::set_lower(page, (page::HEADER_BYTES + META_BYTES) as u16);
    Ok(())
}

/// `btree_mask`: makes equal what redo does not reproduce.
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::page_hint_bits(page);
    mask::unused_space(page)?;
    let mut opaque = Opaque::read(page)?;
    if opaque.flags & flag::LEAF != 0 {
        // `LP_DEAD` is set without a record.
        mask::line_pointer_flags(page)?;
    }
    opaque.flags &= !(flag::HAS_GARBAGE | flag::SPLIT_END);
    opaque.cycle_id = 0;
    opaque.write(page)
}

#[cfg(test)]
mod tests;
