//! Hash indexes (`RM_HASH_ID`).
//!
//! Records: `src/include/access/hash_xlog.h`; redo: `src/backend/access/hash/hash_xlog.c`.

mod meta;
mod opaque;

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::layout::hash::{
    ADD_OVFL_PAGE, DELETE, HashVacuumOnePage, INIT_BITMAP_PAGE, INIT_META_PAGE, INSERT, MOVE_PAGE_CONTENTS,
    NONE, SPLIT_ALLOCATE_PAGE, SPLIT_CLEANUP, SPLIT_COMPLETE, SPLIT_PAGE, SQUEEZE_PAGE, UPDATE_META_PAGE,
    VACUUM_ONE_PAGE, flag,
};
use borealis_wal::{BlockReference, Record};

use crate::block::listed;
use crate::btree::tuple;
use crate::bytes::{OffsetNumbers, Reader, u16_at, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::mask;
use crate::page::{self, Placing};
use opaque::{Opaque, update_opaque};

/// Applies a hash index record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    let mut data = Reader::new(record.main_data);
    match (record.operation(), block.id) {
        (INIT_META_PAGE, 0) => meta::init(record, page),
        (INIT_BITMAP_PAGE, 0) => init_bitmap(data.u16()?, page),
        (INIT_BITMAP_PAGE, 1) => meta::add_first_bitmap(page),
        (INSERT, 0) => insert(page, block.data, data.u16()?),
        (INSERT, 1) => meta::count_insertion(page),
        (ADD_OVFL_PAGE, 0) => init_overflow(record, block, page),
        (ADD_OVFL_PAGE, 1) => {
            let right = listed_number(record, 0)?;
            update_opaque(page, |opaque| opaque.next = right)
        }
        (ADD_OVFL_PAGE, 2) => set_bitmap_bit(block, page, true),
        (ADD_OVFL_PAGE, 3) => init_bitmap(data.u16()?, page),
        (ADD_OVFL_PAGE, 4) => meta::add_overflow(record, block, page),
        (SPLIT_ALLOCATE_PAGE, 0..=2) => split_allocate(record, block, page),
        (SPLIT_PAGE, 0) => Err(Fault::Failed("a hash index split lacks its full-page image")),
        (SPLIT_COMPLETE, id @ 0..=1) => {
            let flags = u16_at(record.main_data, usize::from(id) * 2)?;
            update_opaque(page, |opaque| opaque.flags = flags)
        }
        _ if only_locks(record, key) => return Ok(()),
        (MOVE_PAGE_CONTENTS, 1) => add_tuples(page, block.data, data.u16()?),
        (MOVE_PAGE_CONTENTS, 2) => delete_tuples(page, block.data),
        (SQUEEZE_PAGE, _) => squeeze(record, block, page),
        (DELETE, 1) => {
            let clear_dead_marking = data.u8()? != 0;
            delete_tuples(page, block.data)?;
            if clear_dead_marking { clear_flag(page, flag::HAS_DEAD_TUPLES) } else { Ok(()) }
        }
        (SPLIT_CLEANUP, 0) => clear_flag(page, flag::NEEDS_SPLIT_CLEANUP),
        (UPDATE_META_PAGE, 0) => meta::set_tuple_count(page, data.bytes(8)?),
        (VACUUM_ONE_PAGE, 0) => vacuum_one_page(record, page),
        (VACUUM_ONE_PAGE, 1) => meta::subtract_tuples(page, HashVacuumOnePage::parse(record)?.tuple_count),
        (..=VACUUM_ONE_PAGE, _) => Err(Fault::Failed("this hash index operation does not have such a block")),
        _ => Err(Fault::Unknown),
    }?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// Whether the page is a bucket's first that the record lists only to be locked.
pub(crate) fn only_locks(record: &Record<'_>, key: &PageKey) -> bool {
    matches!(record.operation(), MOVE_PAGE_CONTENTS | SQUEEZE_PAGE | DELETE)
        && listed(record, key).is_some_and(|block| block.id == 0)
}

fn listed_number(record: &Record<'_>, id: u8) -> Redo<u32> {
    record
        .block(id)
        .map(|block| block.key.block)
        .ok_or(Fault::Failed("the record lacks a block that its operation needs"))
}

fn clear_flag(page: &mut PageBytes, flag: u16) -> Redo {
    update_opaque(page, |opaque| opaque.flags &= !flag)
}

fn insert(page: &mut PageBytes, item: &[u8], offset_number: u16) -> Redo {
    expect(offset_number != 0, "an index tuple needs an offset number")?;
    page::add_item(page, item, offset_number, Placing::Shift).map(|_| ())
}

/// `_hash_initbitmapbuffer`: every overflow page it stands for is taken.
fn init_bitmap(bitmap_size: u16, page: &mut PageBytes) -> Redo {
    Opaque { previous: NONE, next: NONE, bucket: NONE, flags: flag::BITMAP }.init_page(page)?;
    let end = page::HEADER_BYTES + usize::from(bitmap_size);
    expect(end <= usize::from(page::special_start(page)), "a hash index bitmap is longer than its page")?;
    page[page::HEADER_BYTES..end].fill(0xFF);
    page::set_lower(page, end as u16);
    Ok(())
}

/// `SETBIT` or `CLRBIT` of the bitmap at the bit that the block's data names.
fn set_bitmap_bit(block: &BlockReference<'_>, page: &mut PageBytes, on: bool) -> Redo {
    let bit = u32_at(block.data, 0)?;
    // Words of 32 bits, lowest first, are bytes of eight on a little-endian machine.
    let at = page::HEADER_BYTES + (bit / 8) as usize;
    expect(at < usize::from(page::special_start(page)), "a bit lies outside its hash index bitmap")?;
    let byte = page.get_mut(at).ok_or(Fault::Failed("a bit lies outside its hash index bitmap"))?;
    if on {
        *byte |= 1 << (bit % 8)
    } else {
        *byte &= !(1 << (bit % 8))
    }
    Ok(())
}

/// `hash_xlog_add_ovfl_page`, the new overflow page.
fn init_overflow(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let bucket = u32_at(block.data, 0)?;
    Opaque { previous: listed_number(record, 1)?, next: NONE, bucket, flags: flag::OVERFLOW }.init_page(page)
}

/// `hash_xlog_split_allocate_page`: the old bucket, the new one, the metapage.
fn split_allocate(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let new_bucket = data.u32()?;
    let (old_flags, new_flags) = (data.u16()?, data.u16()?);
    let meta_flags = data.u8()?;
    match block.id {
        0 => update_opaque(page, |opaque| {
            opaque.flags = old_flags;
            opaque.previous = new_bucket;
        }),
        1 => {
            Opaque { previous: new_bucket, next: NONE, bucket: new_bucket, flags: new_flags }.init_page(page)
        }
        _ => meta::add_bucket(page, new_bucket, meta_flags, block.data),
    }
}

/// Adds tuples at the offset numbers that come before them.
fn add_tuples(page: &mut PageBytes, data: &[u8], count: u16) -> Redo {
    let mut data = Reader::new(data);
    let numbers = data.bytes(usize::from(count) * 2)?;
    let mut rest = if count == 0 { &[] } else { data.rest() };
    for number in numbers.as_chunks::<2>().0 {
        let (item, following) = tuple::split_first(rest)?;
        insert(page, item, u16::from_le_bytes(*number))?;
        rest = following;
    }
    expect(rest.is_empty(), "a hash index record has more tuples than it says")
}

/// Deletes the tuples with the offset numbers in `data`.
fn delete_tuples(page: &mut PageBytes, data: &[u8]) -> Redo {
    page::index_multi_delete(page, OffsetNumbers::new(data).iter())
}

/// `hash_xlog_squeeze_page`: an overflow page's tuples go to an earlier page, and the page becomes free.
fn squeeze(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let (previous, next, count) = (data.u32()?, data.u32()?, data.u16()?);
    // Whether the tuples go to the bucket's first page matters for locks only.
    data.skip(1)?;
    let written_is_previous = data.u8()? != 0;
    match block.id {
        1 => {
            add_tuples(page, block.data, count)?;
            if written_is_previous { update_opaque(page, |opaque| opaque.next = next) } else { Ok(()) }
        }
        2 => Opaque { previous: NONE, next: NONE, bucket: NONE, flags: flag::UNUSED }.init_page(page),
        3 => update_opaque(page, |opaque| opaque.next = next),
        4 => update_opaque(page, |opaque| opaque.previous = previous),
        5 => set_bitmap_bit(block, page, false),
        6 => meta::set_first_free(page, block.data),
        _ => Err(Fault::Failed("this hash index operation does not have such a block")),
    }
}

/// `hash_xlog_vacuum_one_page`, the bucket or overflow page. Data: the newest transaction removed, the number
/// of tuples, their offset numbers.
fn vacuum_one_page(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let HashVacuumOnePage { tuple_count, offset_numbers } = HashVacuumOnePage::parse(record)?;
    if !offset_numbers.is_empty() {
        let size =
            (tuple_count as usize).checked_mul(2).ok_or(Fault::Failed("a list is longer than memory"))?;
        delete_tuples(page, Reader::new(offset_numbers).bytes(size)?)?;
    }
    clear_flag(page, flag::HAS_DEAD_TUPLES)
}

/// `hash_mask`: makes equal what redo does not reproduce.
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::page_hint_bits(page);
    mask::unused_space(page)?;
    let opaque = Opaque::read(page)?;
    match opaque.flags & flag::TYPE {
        // All of it, the special space included.
        flag::UNUSED => {
            mask::page_content(page);
            return Ok(());
        }
        // `LP_DEAD` is set without a record.
        flag::BUCKET | flag::OVERFLOW => mask::line_pointer_flags(page)?,
        _ => {}
    }
    clear_flag(page, flag::HAS_DEAD_TUPLES)
}
