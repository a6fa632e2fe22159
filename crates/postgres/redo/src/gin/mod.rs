//! Inverted indexes (`RM_GIN_ID`).
//!
//! Records: `src/include/access/ginxlog.h`; pages: `src/include/access/ginblock.h`; redo:
//! `src/backend/access/gin/ginxlog.c`. An entry tree of keys leads to posting lists or to posting trees of heap
//! positions ([`posting`]); new entries wait in a list of pages until they are moved into the tree.

mod opaque;
mod posting;

use borealis_types::{BlockNumber, PageBytes, PageKey};
use borealis_wal::layout::gin::{
    CREATE_PTREE, DELETE_LISTPAGE, DELETE_PAGE, INSERT, INSERT_IS_DATA, INSERT_IS_LEAF, INSERT_LISTPAGE,
    META_BYTES, NO_BLOCK, SPLIT, UPDATE_META_METADATA_OFFSET, UPDATE_META_PAGE, VACUUM_DATA_LEAF_PAGE,
    VACUUM_PAGE, flag,
};
use borealis_wal::{BlockReference, Record};

use crate::block::listed;
use crate::btree::tuple;
use crate::bytes::{Reader, put, u16_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::mask;
use crate::page::{self, Placing};
use opaque::{Opaque, init_page, update_opaque};

/// Applies a GIN record to one of the blocks it lists.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let block = listed(record, key).ok_or(Fault::Failed("the record does not list the block"))?;
    match (record.operation(), block.id) {
        (CREATE_PTREE, 0) => {
            let mut data = Reader::new(record.main_data);
            let size = data.u32()? as usize;
            init_page(page, flag::DATA | flag::LEAF | flag::COMPRESSED)?;
            posting::set_leaf_data(page, data.bytes(size)?)
        }
        (INSERT, 0) => insert(record, block, page),
        (INSERT, 1) | (SPLIT, 3) => update_opaque(page, |opaque| opaque.flags &= !flag::INCOMPLETE_SPLIT),
        (SPLIT, 0..=2) | (VACUUM_PAGE, 0) => Err(Fault::Failed("a GIN record lacks its full-page image")),
        (VACUUM_DATA_LEAF_PAGE, 0) => posting::recompress(page, block.data),
        (DELETE_PAGE, 0..=2) => delete_page(record, block.id, page),
        (UPDATE_META_PAGE, 0) => restore_meta(page, record.main_data, UPDATE_META_METADATA_OFFSET),
        (UPDATE_META_PAGE, 1) => update_tail(record, block, page),
        (INSERT_LISTPAGE, 0) => insert_list_page(record, block, page),
        (DELETE_LISTPAGE, 0) => restore_meta(page, record.main_data, 0),
        (DELETE_LISTPAGE, _) => init_page(page, flag::DELETED),
        (CREATE_PTREE..=VACUUM_DATA_LEAF_PAGE, _) => {
            Err(Fault::Failed("this GIN operation does not have such a block"))
        }
        _ => Err(Fault::Unknown),
    }?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// `ginRedoInsert`. Data: flags and, unless on a leaf, the two children whose split this completes.
fn insert(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let flags = u16_at(record.main_data, 0)?;
    let right_child = match flags & INSERT_IS_LEAF {
        // Block numbers in two halves, the high one first, as at the start of an index tuple.
        0 => Some(tuple::block_number(record.main_data.get(6..).unwrap_or_default())?),
        _ => None,
    };
    match (flags & INSERT_IS_DATA, right_child) {
        (0, _) => insert_entry(block.data, right_child, page),
        (_, None) => posting::recompress(page, block.data),
        (_, Some(right_child)) => posting::insert_item(page, block.data, right_child),
    }
}

/// `ginRedoInsertEntry`. Data (`ginxlogInsertEntry`): offset number, whether it replaces, padding, the tuple.
fn insert_entry(data: &[u8], right_child: Option<u32>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(data);
    let offset_number = data.u16()?;
    let replaces = data.u8()? != 0;
    data.align(2)?;
    if let Some(right_child) = right_child {
        let pointer = page::line_pointer(page, offset_number)?;
        let item = page::item_mut(page, pointer)?;
        tuple::set_block_number(item, right_child)?;
        put(item, 4, &0_u16.to_le_bytes())?;
    }
    if replaces {
        page::index_tuple_delete(page, offset_number)?;
    }
    add_tuple(page, data.rest(), offset_number).map(|_| ())
}

/// Puts the first tuple of `data` on the page and returns what follows it.
fn add_tuple<'a>(page: &mut PageBytes, data: &'a [u8], offset_number: u16) -> Redo<&'a [u8]> {
    let size = tuple::size(data)?;
    expect(size >= tuple::HEADER_BYTES && offset_number != 0, "a GIN tuple is smaller than its header")?;
    let (item, rest) =
        data.split_at_checked(size).ok_or(Fault::Failed("a GIN tuple is longer than its data"))?;
    page::add_item(page, item, offset_number, Placing::Shift)?;
    Ok(rest)
}

/// Appends `count` tuples, and nothing may be left of `data`.
fn append_tuples(page: &mut PageBytes, data: &[u8], count: u32) -> Redo {
    let mut rest = data;
    for _ in 0..count {
        rest = add_tuple(page, rest, page::max_offset_number(page) + 1)?;
    }
    expect(rest.is_empty(), "a GIN record has more tuples than it says")
}

/// `ginRedoDeletePage`. Data (`ginxlogDeletePage`): number of the downlink in the parent, right sibling, the
/// newest transaction that may still be on its way to the page.
fn delete_page(record: &Record<'_>, block_id: u8, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let parent_offset = data.u16()?;
    data.align(4)?;
    let (right, delete_xid) = (data.u32()?, data.u32()?);
    match block_id {
        0 => {
            page::set_prune_xid(page, delete_xid);
            update_opaque(page, |opaque| opaque.flags |= flag::DELETED)
        }
        1 => posting::delete_item(page, parent_offset),
        _ => update_opaque(page, |opaque| opaque.right = right),
    }
}

/// Writes the metapage anew from the metadata at `offset` of the record's data.
fn restore_meta(page: &mut PageBytes, data: &[u8], offset: usize) -> Redo {
    let meta = data
        .get(offset..)
        .and_then(|data| data.get(..META_BYTES))
        .ok_or(Fault::Failed("the record's data is too short"))?;
    init_page(page, flag::META)?;
    put(page, page::HEADER_BYTES, meta)?;
    page::set_lower(page, (page::HEADER_BYTES + META_BYTES) as u16);
    Ok(())
}

/// `ginRedoUpdateMetapage`, the last page of the pending list: new tuples, or its new successor.
fn update_tail(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    data.skip(UPDATE_META_METADATA_OFFSET + META_BYTES)?;
    let (previous_tail, new_right, tuple_count) = (data.u32()?, data.u32()?, data.u32()?.cast_signed());
    if tuple_count > 0 {
        append_tuples(page, block.data, tuple_count.unsigned_abs())?;
        let opaque = Opaque::read(page)?;
        let count = opaque.count.checked_add(1).ok_or(Fault::Failed("a GIN page has too many rows"))?;
        Opaque { count, ..opaque }.write(page)
    } else {
        expect(previous_tail != NO_BLOCK, "a GIN list without a tail cannot be continued")?;
        update_opaque(page, |opaque| opaque.right = new_right)
    }
}

/// `ginRedoInsertListPage`. Data (`ginxlogInsertListPage`): right sibling, number of tuples.
fn insert_list_page(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let mut data = Reader::new(record.main_data);
    let (right, tuple_count) = (data.u32()?, data.u32()?);
    init_page(page, flag::LIST)?;
    let is_tail = right == NO_BLOCK;
    update_opaque(page, |opaque| {
        opaque.right = right;
        if is_tail {
            opaque.flags |= flag::LIST_FULL_ROW;
            opaque.count = 1;
        }
    })?;
    append_tuples(page, block.data, tuple_count)
}

/// `gin_mask`: makes equal what redo does not reproduce.
pub(crate) fn mask(page: &mut PageBytes, _block: BlockNumber) -> Redo {
    mask::page_lsn_and_checksum(page);
    let opaque = Opaque::read(page)?;
    mask::page_hint_bits(page);
    if opaque.flags & flag::DELETED != 0 {
        mask::page_content(page);
    } else if usize::from(page::lower(page)) > page::HEADER_BYTES {
        // Indexes from before version 9.4 have pages whose `pd_lower` was never set.
        mask::unused_space(page)?;
    }
    Ok(())
}
