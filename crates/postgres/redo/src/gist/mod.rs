//! GiST indexes (`RM_GIST_ID`).
//!
//! Records: `src/include/access/gistxlog.h`; pages: `src/include/access/gist.h`; redo:
//! `src/backend/access/gist/gistxlog.c`.

use borealis_types::{BlockNumber, Lsn, PageBytes, PageKey};
use borealis_wal::layout::gist::{
    ASSIGN_LSN, DELETE, FLAGS_OFFSET, GistDelete, NO_BLOCK, PAGE_DELETE, PAGE_DELETE_DOWNLINK_OFFSET,
    PAGE_ID, PAGE_ID_OFFSET, PAGE_REUSE, PAGE_SPLIT, PAGE_UPDATE, RIGHT_OFFSET, ROOT, SPECIAL_BYTES,
    SPLIT_LSN_OFFSET, flag,
};
use borealis_wal::{BlockReference, Record};

use crate::block::listed;
use crate::btree::tuple;
use crate::bytes::{OffsetNumbers, Reader, put, u16_at, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::mask;
use crate::page::{self, Placing};
use crate::releases;

#[cfg(test)]
mod tests;

/// `GISTPageOpaqueData`: what a GiST index keeps in the special space of each page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Opaque {
    /// `nsn`: the LSN of the page's last split; two halves, the high one first.
    split_lsn: Lsn,
    /// `rightlink`
    right: u32,
    flags: u16,
}

impl Opaque {
    const SIZE: usize = SPECIAL_BYTES;

    fn read(page: &PageBytes) -> Redo<Opaque> {
        let special = page::special(page, Self::SIZE)?;
        let split_lsn = Lsn(u64::from(u32_at(special, SPLIT_LSN_OFFSET)?) << 32
            | u64::from(u32_at(special, SPLIT_LSN_OFFSET + 4)?));
        Ok(Opaque { split_lsn, right: u32_at(special, RIGHT_OFFSET)?, flags: u16_at(special, FLAGS_OFFSET)? })
    }

    /// Writes the fields; the page's identification stays.
    fn write(self, page: &mut PageBytes) -> Redo {
        let special = page::special_mut(page, Self::SIZE)?;
        put(special, SPLIT_LSN_OFFSET, &((self.split_lsn.0 >> 32) as u32).to_le_bytes())?;
        put(special, SPLIT_LSN_OFFSET + 4, &(self.split_lsn.0 as u32).to_le_bytes())?;
        put(special, RIGHT_OFFSET, &self.right.to_le_bytes())?;
        put(special, FLAGS_OFFSET, &self.flags.to_le_bytes())
    }

    /// `gistinitpage`, with this in the special space.
    fn init_page(self, page: &mut PageBytes) -> Redo {
        page::init(page, Self::SIZE);
        put(page::special_mut(page, Self::SIZE)?, PAGE_ID_OFFSET, &PAGE_ID.to_le_bytes())?;
        self.write(page)
    }
}

fn update_opaque(page: &mut PageBytes, change: impl FnOnce(&mut Opaque)) -> Redo {
    let mut opaque = Opaque::read(page)?;
    change(&mut opaque);
    opaque.write(page)
}

/// Applies a GiST record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    match (record.operation(), block.id) {
        (PAGE_UPDATE, 0) => update_page(record, block, page),
        (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0) => clear_follow_right(record, page),
        (DELETE, 0) => delete_dead(record, page),
        (PAGE_SPLIT, _) => split_page(record, block, page),
        (PAGE_DELETE, 0) => {
            let mut data = Reader::new(record.main_data);
            set_deleted(page, data.u64()?)
        }
        (PAGE_DELETE, 1) => {
            page::index_tuple_delete(page, u16_at(record.main_data, PAGE_DELETE_DOWNLINK_OFFSET)?)
        }
        (PAGE_UPDATE | DELETE | PAGE_REUSE | PAGE_DELETE | ASSIGN_LSN, _) => {
            Err(Fault::Failed("this GiST operation does not have such a block"))
        }
        _ => Err(Fault::Unknown),
    }?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// What redo does to a block after restoring its image: the left half of a split gets its split LSN after
/// the record that says so is written, so the image does not have it.
pub(crate) fn after_restore(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    match (record.operation(), block.id) {
        (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0) => {
            clear_follow_right(record, page)?;
            page::set_lsn(page, record.span.end);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// `gistRedoClearFollowRight`: the page's right sibling has its downlink now.
fn clear_follow_right(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    update_opaque(page, |opaque| {
        opaque.split_lsn = record.span.end;
        opaque.flags &= !flag::FOLLOW_RIGHT;
    })
}

/// The first tuple in `bytes`, in exactly its own size, and what follows it.
fn split_first(bytes: &[u8]) -> Redo<(&[u8], &[u8])> {
    let size = tuple::size(bytes)?;
    expect(size >= tuple::HEADER_BYTES, "an index tuple is smaller than its header")?;
    bytes.split_at_checked(size).ok_or(Fault::Failed("an index tuple is longer than its data"))
}

/// Appends the tuples in `data` and returns how many they are.
fn append_tuples(page: &mut PageBytes, data: &[u8]) -> Redo<usize> {
    let mut rest = data;
    let mut count = 0;
    while !rest.is_empty() {
        let (item, following) = split_first(rest)?;
        let offset_number = page::max_offset_number(page) + 1;
        page::add_item(page, item, offset_number, Placing::Shift)?;
        count += 1;
        rest = following;
    }
    Ok(count)
}

/// `gistRedoPageUpdateRecord`, the page itself. Data (`gistxlogPageUpdate`): how many tuples go and how many come;
/// block data: the offset numbers of the former, then the latter.
fn update_page(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let (deleted_count, inserted_count) = (data.u16()?, data.u16()?);
    let mut data = Reader::new(block.data);
    let deleted = OffsetNumbers::read(&mut data, deleted_count)?;
    if let (1, Some(offset_number), 1) = (deleted_count, deleted.iter().next(), inserted_count) {
        // One for one keeps its place on the page.
        let (item, rest) = split_first(data.rest())?;
        expect(rest.is_empty(), "a GiST record has more tuples than it says")?;
        return page::index_tuple_overwrite(page, offset_number, item);
    }
    if !deleted.is_empty() {
        page::index_multi_delete(page, deleted.iter())?;
        if releases::gist_marks_removed_tuples(record.server_version) {
            // `GistMarkTuplesDeleted`
            update_opaque(page, |opaque| {
                if opaque.flags & flag::LEAF != 0 {
                    opaque.flags |= flag::TUPLES_DELETED;
                }
            })?;
        }
    }
    let appended = append_tuples(page, data.rest())?;
    expect(appended == usize::from(inserted_count), "a GiST record has more or fewer tuples than it says")
}

/// `gistRedoDeleteRecord`. Data (`gistxlogDelete`): newest transaction removed, number of tuples, their offset
/// numbers.
///
/// The server that writes the record (`gistprunepage`) does not set the flag "some tuples were deleted". Older
/// releases' own redo does, so that their own consistency check fails; this does as the server did.
fn delete_dead(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let GistDelete { tuple_count, offset_numbers } = GistDelete::parse(record)?;
    if !offset_numbers.is_empty() {
        let deleted = OffsetNumbers::read(&mut Reader::new(offset_numbers), tuple_count)?;
        page::index_multi_delete(page, deleted.iter())?;
    }
    update_opaque(page, |opaque| opaque.flags &= !flag::HAS_GARBAGE)
}

/// `gistRedoPageSplitRecord`, one of the pages that the tuples of the old one are on now: block ids from one on,
/// in order from left to right. Block data: number of tuples, the tuples.
fn split_page(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    // `gistxlogPageSplit`
    let mut data = Reader::new(record.main_data);
    let old_right = data.u32()?;
    data.align(8)?;
    let old_split_lsn = Lsn(data.u64()?);
    let is_leaf = data.u8()? != 0;
    data.align(2)?;
    let page_count = data.u16()?;
    let mark_follow_right = data.u8()? != 0;

    let number = |id: u8| record.block(id).map(|block| block.key.block);
    let is_last = u16::from(block.id) == page_count;
    let splits_root = number(1) == Some(ROOT);
    let is_root = block.key.block == ROOT;
    let right = if is_root {
        NO_BLOCK
    } else if is_last {
        old_right
    } else {
        let next = block.id.checked_add(1).and_then(number);
        next.ok_or(Fault::Failed("the record lacks a block that its operation needs"))?
    };
    let mut flags = 0;
    if is_leaf && !is_root {
        flags |= flag::LEAF;
    }
    if !is_root && !is_last && !splits_root && mark_follow_right {
        flags |= flag::FOLLOW_RIGHT;
    }
    Opaque { split_lsn: old_split_lsn, right, flags }.init_page(page)?;
    let mut data = Reader::new(block.data);
    let tuple_count = data.u32()?;
    let appended = append_tuples(page, data.rest())?;
    expect(appended == tuple_count as usize, "a GiST record has more or fewer tuples than it says")
}

/// `GistPageSetDeleted`: the transaction after which nobody can still be on the way to the page.
fn set_deleted(page: &mut PageBytes, delete_full_xid: u64) -> Redo {
    update_opaque(page, |opaque| opaque.flags |= flag::DELETED)?;
    page::set_lower(page, (page::HEADER_BYTES + size_of::<u64>()) as u16);
    put(page, page::HEADER_BYTES, &delete_full_xid.to_le_bytes())
}

/// `gist_mask`: makes equal what redo does not reproduce.
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::page_hint_bits(page);
    mask::unused_space(page)?;
    update_opaque(page, |opaque| {
        opaque.split_lsn = Lsn(u64::from(mask::MARKER));
        // Cleared after the record is written.
        opaque.flags |= flag::FOLLOW_RIGHT;
        opaque.flags &= !flag::HAS_GARBAGE;
    })?;
    if Opaque::read(page)?.flags & flag::LEAF != 0 {
        // `LP_DEAD` is set without a record.
        mask::line_pointer_flags(page)?;
    }
    Ok(())
}
