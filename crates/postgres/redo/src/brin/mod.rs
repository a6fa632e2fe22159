//! Block range indexes (`RM_BRIN_ID`).
//!
//! Records: `src/include/access/brin_xlog.h`; pages: `src/include/access/brin_page.h`; redo:
//! `src/backend/access/brin/brin_xlog.c`. Regular pages hold a summary for each range of heap blocks; the range
//! map says where each summary is.

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::layout::brin::{
    BrinInsert, CREATE_INDEX, DESUMMARIZE, EVACUATE, FLAGS_OFFSET, INIT_PAGE, INSERT, META, META_BYTES,
    META_LAST_RANGE_MAP_PAGE_OFFSET, META_MAGIC, OPERATION_MASK, RANGE_MAP, RANGE_MAP_ENTRIES,
    RANGE_MAP_ENTRY_BYTES, REGULAR, REVMAP_EXTEND, SAMEPAGE_UPDATE, SPECIAL_BYTES, TYPE_OFFSET, UPDATE,
};
use borealis_wal::layout::item_pointer::{INVALID_BLOCK, INVALID_OFFSET_NUMBER, OFFSET_NUMBER_OFFSET};
use borealis_wal::{BlockReference, Record};

use crate::block::listed;
use crate::btree::tuple;
use crate::bytes::{Reader, put, u16_at, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::mask;
use crate::page::{self, Placing};

/// `brin_page_init`
fn init_page(page: &mut PageBytes, page_type: u16) -> Redo {
    page::init(page, SPECIAL_BYTES);
    put(page::special_mut(page, SPECIAL_BYTES)?, TYPE_OFFSET, &page_type.to_le_bytes())
}

/// Applies a BRIN record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    match (record.info & OPERATION_MASK, block.id) {
        (CREATE_INDEX, 0) => create_index(record, page),
        (INSERT | UPDATE, 0) => insert(record, block, page),
        (INSERT | UPDATE, 1) => point_to_summary(record, page),
        (UPDATE, 2) => page::index_tuple_delete_no_compact(page, u16_at(record.main_data, 0)?),
        (SAMEPAGE_UPDATE, 0) => page::index_tuple_overwrite(page, u16_at(record.main_data, 0)?, block.data),
        (REVMAP_EXTEND, 0) => extend_range_map(record, page),
        (REVMAP_EXTEND, 1) => init_page(page, RANGE_MAP),
        (DESUMMARIZE, 0) => {
            let pages_per_range = u32_at(record.main_data, 0)?;
            let heap_block = u32_at(record.main_data, 4)?;
            set_range_map_entry(page, pages_per_range, heap_block, INVALID_BLOCK, INVALID_OFFSET_NUMBER)
        }
        (DESUMMARIZE, 1) => page::index_tuple_delete_no_compact(page, u16_at(record.main_data, 8)?),
        (CREATE_INDEX..=DESUMMARIZE, _) => {
            Err(Fault::Failed("this BRIN operation does not have such a block"))
        }
        _ => Err(Fault::Unknown),
    }?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// `brin_metapage_init`
fn create_index(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let (pages_per_range, version) = (data.u32()?, data.u16()?);
    init_page(page, META)?;
    let words = [META_MAGIC, u32::from(version), pages_per_range, 0];
    put(page, page::HEADER_BYTES, words.map(u32::to_le_bytes).as_flattened())?;
    page::set_lower(page, (page::HEADER_BYTES + META_BYTES) as u16);
    Ok(())
}

/// `brin_xlog_insert_update`, the regular page.
fn insert(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let insert = BrinInsert::parse(record)?;
    if record.info & INIT_PAGE != 0 {
        init_page(page, REGULAR)?;
    }
    expect(insert.offset_number != 0, "an index tuple needs an offset number")?;
    page::add_item(page, block.data, insert.offset_number, Placing::Overwrite).map(|_| ())
}

/// `brin_xlog_insert_update`, the range map.
fn point_to_summary(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let insert = BrinInsert::parse(record)?;
    let regular =
        record.block(0).ok_or(Fault::Failed("the record lacks a block that its operation needs"))?;
    let regular = regular.key.block;
    set_range_map_entry(page, insert.pages_per_range, insert.heap_block, regular, insert.offset_number)
}

/// `brinSetHeapBlockItemptr`
fn set_range_map_entry(
    page: &mut PageBytes,
    pages_per_range: u32,
    heap_block: u32,
    block: u32,
    offset_number: u16,
) -> Redo {
    let range = heap_block.checked_div(pages_per_range).ok_or(Fault::Failed("a BRIN range has no pages"))?;
    let at = page::HEADER_BYTES + range as usize % RANGE_MAP_ENTRIES * RANGE_MAP_ENTRY_BYTES;
    let entry = &mut page[at..at + RANGE_MAP_ENTRY_BYTES];
    tuple::set_block_number(entry, block)?;
    put(entry, OFFSET_NUMBER_OFFSET, &offset_number.to_le_bytes())
}

/// `brin_xlog_revmap_extend`, the metapage.
fn extend_range_map(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let last = u32_at(record.main_data, 0)?;
    put(page, page::HEADER_BYTES + META_LAST_RANGE_MAP_PAGE_OFFSET, &last.to_le_bytes())?;
    page::set_lower(page, (page::HEADER_BYTES + META_BYTES) as u16);
    Ok(())
}

/// `brin_mask`: makes equal what redo does not reproduce.
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    mask::page_hint_bits(page);
    let special = page::special(page, SPECIAL_BYTES)?;
    let (flags, page_type) = (u16_at(special, FLAGS_OFFSET)?, u16_at(special, TYPE_OFFSET)?);
    let has_data = usize::from(page::lower(page)) > page::HEADER_BYTES;
    if page_type == REGULAR || (page_type == META && has_data) {
        mask::unused_space(page)?;
    }
    put(page::special_mut(page, SPECIAL_BYTES)?, FLAGS_OFFSET, &(flags & !EVACUATE).to_le_bytes())
}
