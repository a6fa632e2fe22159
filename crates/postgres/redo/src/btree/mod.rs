//! B-tree indexes (`RM_BTREE_ID`).
//!
//! Records: `src/include/access/nbtxlog.h`; redo: `src/backend/access/nbtree/nbtxlog.c`.

mod deletion;
mod insertion;
pub(crate) mod tuple;

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::{BlockReference, Record};

use crate::bytes::{Reader, put, u16_at, u32_at};
use crate::fault::{Fault, Redo};
use crate::{listed_block, mask, page};

const INSERT_LEAF: u8 = 0x00;
const INSERT_UPPER: u8 = 0x10;
const INSERT_META: u8 = 0x20;
const SPLIT_L: u8 = 0x30;
const SPLIT_R: u8 = 0x40;
const INSERT_POST: u8 = 0x50;
const DEDUP: u8 = 0x60;
const DELETE: u8 = 0x70;
const UNLINK_PAGE: u8 = 0x80;
const UNLINK_PAGE_META: u8 = 0x90;
const NEWROOT: u8 = 0xA0;
const MARK_PAGE_HALFDEAD: u8 = 0xB0;
const VACUUM: u8 = 0xC0;
const REUSE_PAGE: u8 = 0xD0;
const META_CLEANUP: u8 = 0xE0;

/// `P_NONE`: no sibling.
const NO_BLOCK: u32 = 0;
/// `P_HIKEY`
const HIGH_KEY: u16 = 1;

/// `BTP_*` in `btpo_flags`.
mod flag {
    pub(super) const LEAF: u16 = 1 << 0;
    pub(super) const ROOT: u16 = 1 << 1;
    pub(super) const DELETED: u16 = 1 << 2;
    pub(super) const META: u16 = 1 << 3;
    pub(super) const HALF_DEAD: u16 = 1 << 4;
    pub(super) const SPLIT_END: u16 = 1 << 5;
    pub(super) const HAS_GARBAGE: u16 = 1 << 6;
    pub(super) const INCOMPLETE_SPLIT: u16 = 1 << 7;
    pub(super) const HAS_FULLXID: u16 = 1 << 8;
}

/// `BTPageOpaqueData`: what a B-tree keeps in the special space of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Opaque {
    /// `btpo_prev`: left sibling.
    previous: u32,
    /// `btpo_next`: right sibling.
    next: u32,
    /// `btpo_level`: zero for leaves.
    level: u32,
    /// `btpo_flags`
    flags: u16,
    /// `btpo_cycleid`
    cycle_id: u16,
}

impl Opaque {
    const SIZE: usize = 16;

    fn read(page: &PageBytes) -> Redo<Opaque> {
        let special = page::special(page, Self::SIZE)?;
        Ok(Opaque {
            previous: u32_at(special, 0)?,
            next: u32_at(special, 4)?,
            level: u32_at(special, 8)?,
            flags: u16_at(special, 12)?,
            cycle_id: u16_at(special, 14)?,
        })
    }

    fn write(self, page: &mut PageBytes) -> Redo {
        let special = page::special_mut(page, Self::SIZE)?;
        put(special, 0, &self.previous.to_le_bytes())?;
        put(special, 4, &self.next.to_le_bytes())?;
        put(special, 8, &self.level.to_le_bytes())?;
        put(special, 12, &self.flags.to_le_bytes())?;
        put(special, 14, &self.cycle_id.to_le_bytes())
    }

    /// `P_FIRSTDATAKEY`: the number of the first item that is not the high key.
    fn first_data_key(self) -> u16 {
        if self.next == NO_BLOCK { 1 } else { 2 }
    }

    /// `_bt_pageinit`, with this in the special space.
    fn init_page(self, page: &mut PageBytes) -> Redo {
        page::init(page, Self::SIZE);
        self.write(page)
    }
}

/// Applies a B-tree record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed_block(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
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
    /// `BTREE_MAGIC`
    const MAGIC: u32 = 0x0005_3162;
    /// `sizeof(BTMetaPageData)`
    const META_SIZE: usize = 48;

    let mut data = Reader::new(block.data);
    Opaque { flags: flag::META, ..Opaque::default() }.init_page(page)?;
    let meta = &mut page[page::HEADER_SIZE..page::HEADER_SIZE + META_SIZE];
    put(meta, 0, &MAGIC.to_le_bytes())?;
    // Version, root, its level, fast root, its level, pages deleted by the last cleanup.
    put(meta, 4, data.bytes(24)?)?;
    // `btm_last_cleanup_num_heap_tuples`, which is no longer used.
    put(meta, 32, &(-1.0_f64).to_le_bytes())?;
    put(meta, 40, &[data.u8()?])?;
    // The metadata lies below `pd_lower`, so that full-page images do not take it for the hole.
    page::set_lower(page, (page::HEADER_SIZE + META_SIZE) as u16);
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
