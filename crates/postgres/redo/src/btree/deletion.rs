//! Deleting tuples, and deleting whole pages in two steps: half-dead, then unlinked.

use borealis_types::PageBytes;
use borealis_wal::layout::btree::{BtreeMarkHalfDead, BtreeUnlinkPage, HIGH_KEY, flag};
use borealis_wal::{BlockReference, Record};

use super::opaque::Opaque;
use super::tuple;
use crate::bytes::{OffsetNumbers, Reader, put};
use crate::fault::{Redo, expect};
use crate::page::{self, Placing};

/// `btree_xlog_vacuum`
pub(super) fn vacuum(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    remove_tuples(data.u16()?, data.u16()?, block.data, page)
}

/// `btree_xlog_delete`
pub(super) fn delete(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    // The newest transaction removed: for conflicts on a standby.
    data.skip(4)?;
    remove_tuples(data.u16()?, data.u16()?, block.data, page)
}

/// Removes whole tuples and items of posting lists. `data`: the offset numbers of the tuples to delete, those of
/// the posting lists to update, and for each of the latter an `xl_btree_update`.
fn remove_tuples(deleted_count: u16, updated_count: u16, data: &[u8], page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(data);
    let deleted = OffsetNumbers::read(&mut data, deleted_count)?;
    let updated = OffsetNumbers::read(&mut data, updated_count)?;
    for offset_number in updated.iter() {
        let item_count = data.u16()?;
        let items = OffsetNumbers::read(&mut data, item_count)?;
        let pointer = page::line_pointer(page, offset_number)?;
        let smaller = tuple::update_posting(page::item(page, pointer)?, items.iter())?;
        page::index_tuple_overwrite(page, offset_number, &smaller)?;
    }
    if !deleted.is_empty() {
        page::index_multi_delete(page, deleted.iter())?;
    }
    let mut opaque = Opaque::read(page)?;
    opaque.flags &= !flag::HAS_GARBAGE;
    opaque.write(page)
}

/// `btree_xlog_mark_page_halfdead`, the parent: the downlink takes its right neighbour's target, and the
/// neighbour goes, so that the doomed page's key space falls to its right sibling.
pub(super) fn mark_half_dead_parent(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let number = BtreeMarkHalfDead::parse(record)?.parent_offset;
    expect(number < u16::MAX, "the page has no such line pointer")?;
    let right = page::item(page, page::line_pointer(page, number + 1)?)?;
    let right_sibling = tuple::block_number(right)?;
    let pointer = page::line_pointer(page, number)?;
    tuple::set_block_number(page::item_mut(page, pointer)?, right_sibling)?;
    page::index_tuple_delete(page, number + 1)
}

/// `btree_xlog_mark_page_halfdead`, the leaf.
pub(super) fn mark_half_dead_leaf(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let mark = BtreeMarkHalfDead::parse(record)?;
    init_half_dead_leaf(page, mark.left, mark.right, mark.top_parent)
}

fn init_half_dead_leaf(page: &mut PageBytes, left: u32, right: u32, top_parent: u32) -> Redo {
    let flags = flag::HALF_DEAD | flag::LEAF;
    Opaque { previous: left, next: right, level: 0, flags, cycle_id: 0 }.init_page(page)?;
    page::add_item(page, &tuple::top_parent_link(top_parent), HIGH_KEY, Placing::Shift).map(|_| ())
}

/// `btree_xlog_unlink_page`, the page that goes: a tombstone with the transaction id after which nobody can
/// still be on the way to it.
pub(super) fn unlink_target(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let unlink = BtreeUnlinkPage::parse(record)?;
    let leaf = if unlink.level == 0 { flag::LEAF } else { 0 };
    Opaque {
        previous: unlink.left,
        next: unlink.right,
        level: unlink.level,
        flags: flag::DELETED | flag::HAS_FULLXID | leaf,
        cycle_id: 0,
    }
    .init_page(page)?;
    put(page, page::HEADER_BYTES, &unlink.safe_full_xid.to_le_bytes())?;
    page::set_lower(page, (page::HEADER_BYTES + size_of::<u64>()) as u16);
    Ok(())
}

/// `btree_xlog_unlink_page`, the left sibling.
pub(super) fn unlink_left_sibling(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let mut opaque = Opaque::read(page)?;
    opaque.next = BtreeUnlinkPage::parse(record)?.right;
    opaque.write(page)
}

/// `btree_xlog_unlink_page`, the right sibling.
pub(super) fn unlink_right_sibling(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let mut opaque = Opaque::read(page)?;
    opaque.previous = BtreeUnlinkPage::parse(record)?.left;
    opaque.write(page)
}

/// `btree_xlog_unlink_page`, the leaf below the page that goes, when that is not the leaf itself.
pub(super) fn unlink_leaf(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let unlink = BtreeUnlinkPage::parse(record)?;
    init_half_dead_leaf(page, unlink.leaf_left, unlink.leaf_right, unlink.leaf_top_parent)
}
