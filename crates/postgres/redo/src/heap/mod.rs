//! Heap: resource managers `Heap` (this file) and `Heap2` ([`heap2`]).
//!
//! Behaviour: the `heap_xlog_*` functions of `src/backend/access/heap/heapam.c`; record layouts:
//! `src/include/access/heapam_xlog.h`.

pub(crate) mod free_space_map;
pub(crate) mod heap2;
mod mask;
#[cfg(test)]
mod tests;
pub(crate) mod tuple;
pub(crate) mod visibility_map;

use borealis_types::{BlockKey, Fork, PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::layout::heap::{
    CONFIRM, DELETE, DELETE_ALL_VISIBLE_CLEARED, DELETE_IS_PARTITION_MOVE, DELETE_IS_SUPER, HOT_UPDATE,
    INIT_PAGE, INPLACE, INSERT, INSERT_ALL_VISIBLE_CLEARED, LOCK, LOCK_ALL_FROZEN_CLEARED, OPERATION_MASK,
    TRUNCATE, UPDATE, UPDATE_NEW_ALL_VISIBLE_CLEARED, UPDATE_OLD_ALL_VISIBLE_CLEARED, UPDATE_PREFIX_FROM_OLD,
    UPDATE_SUFFIX_FROM_OLD,
};
use borealis_wal::layout::heap_tuple::HEADER_BYTES;
use borealis_wal::layout::visibility_map::{ALL_FROZEN, VALID_BITS};
use borealis_wal::layout::{HeapInsert, HeapUpdate, HeapXmax};

use crate::block::is_fork;
use crate::bytes::Reader;
use crate::fault::{Fault, Redo, expect};
use crate::page;
pub(crate) use mask::mask;
use tuple::{ItemPointer, NewTuple, Piece, StoredHeader, Tuple};

/// Applies a `Heap` record to a heap page or to the visibility map page it implies.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let operation = record.info & OPERATION_MASK;
    if is_fork(key, Fork::VisibilityMap) {
        return redo_visibility_map(record, key, page, operation);
    }
    match operation {
        INSERT => insert(record, key, page),
        DELETE => delete(record, key, page),
        UPDATE => update(record, key, page, false),
        HOT_UPDATE => update(record, key, page, true),
        CONFIRM => confirm(record, key, page),
        LOCK => lock(record, key, page),
        INPLACE => inplace(record, key, page),
        // For logical decoding only; the storage manager's records do the work.
        TRUNCATE => Err(Fault::Failed("a truncate record of the heap changes no page")),
        _ => Err(Fault::Unknown),
    }
}

/// The listed block with this id, if it is `key`.
pub(crate) fn is_block(record: &Record<'_>, id: u8, key: &PageKey) -> bool {
    record.block(id).is_some_and(|block| PageKey::Block(block.key) == *key)
}

/// The heap block with this id.
pub(crate) fn heap_block(record: &Record<'_>, id: u8) -> Redo<BlockKey> {
    record.block(id).map(|block| block.key).ok_or(Fault::Failed("the record does not list its heap block"))
}

/// The data of block 0, which must be `key`.
pub(crate) fn block_data<'a>(record: &Record<'a>, key: &PageKey) -> Redo<&'a [u8]> {
    expect(is_block(record, 0, key), "the record does not list this block")?;
    record.block(0).map(|block| block.data).ok_or(Fault::Failed("the record does not list this block"))
}

/// Clears `bits` of the heap block with this id if `page` is the map page that holds them.
pub(crate) fn clear_visibility(
    record: &Record<'_>,
    id: u8,
    key: &PageKey,
    page: &mut PageBytes,
    bits: u8,
) -> Redo<bool> {
    let heap = heap_block(record, id)?;
    let held = visibility_map::holds(key, heap.relation_fork.locator, heap.block);
    if held {
        visibility_map::clear(page, heap.block, bits);
    }
    Ok(held)
}

fn redo_visibility_map(record: &Record<'_>, key: &PageKey, page: &mut PageBytes, operation: u8) -> Redo {
    let cleared = match operation {
        INSERT => {
            HeapInsert::parse(record)?.flags & INSERT_ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, 0, key, page, VALID_BITS)?
        }
        DELETE => {
            HeapXmax::parse(record)?.flags & DELETE_ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, 0, key, page, VALID_BITS)?
        }
        UPDATE | HOT_UPDATE => {
            let flags = HeapUpdate::parse(record)?.flags;
            let old_id = u8::from(record.block(1).is_some());
            // Not short-circuiting: both heap blocks may have their bits on this page.
            (flags & UPDATE_OLD_ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, old_id, key, page, VALID_BITS)?)
                | (flags & UPDATE_NEW_ALL_VISIBLE_CLEARED != 0
                    && clear_visibility(record, 0, key, page, VALID_BITS)?)
        }
        LOCK => {
            HeapXmax::parse(record)?.flags & LOCK_ALL_FROZEN_CLEARED != 0
                && clear_visibility(record, 0, key, page, ALL_FROZEN)?
        }
        _ => false,
    };
    expect(cleared, "the record does not change this visibility map page")
}

/// Initializes the page if the record says so; otherwise checks that it has room in its numbering for
/// `offset_number`.
fn prepare_insertion(record: &Record<'_>, page: &mut PageBytes, offset_number: u16) -> Redo {
    if record.info & INIT_PAGE != 0 {
        page::init(page, 0);
    }
    check_next_offset_number(page, offset_number)
}

/// A heap page numbers its tuples without gaps.
pub(crate) fn check_next_offset_number(page: &PageBytes, offset_number: u16) -> Redo {
    expect(
        offset_number != 0 && offset_number <= page::max_offset_number(page) + 1,
        "the tuple's offset number is beyond the page's line pointers",
    )
}

fn insert(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let HeapInsert { offset_number, flags } = HeapInsert::parse(record)?;
    let mut reader = Reader::new(block_data(record, key)?);
    prepare_insertion(record, page, offset_number)?;

    let header = StoredHeader::read(&mut reader)?;
    let ctid = ItemPointer { block: heap_block(record, 0)?.block, offset_number };
    NewTuple { header, xmin: record.xid, xmax: 0, ctid, offset_number }
        .add_to(page, &[Piece::New(reader.rest())])?;

    page::set_lsn(page, record.span.end);
    if flags & INSERT_ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    Ok(())
}

fn delete(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    expect(is_block(record, 0, key), "the record does not list this block")?;
    let HeapXmax { xmax, offset_number, infobits, flags } = HeapXmax::parse(record)?;
    let mut tuple = Tuple::on_page(page, offset_number)?;
    tuple.set_xmax_meaning(infobits);
    tuple.set_hot_updated(false);
    if flags & DELETE_IS_SUPER == 0 {
        tuple.set_xmax(xmax);
    } else {
        // A speculative insertion that did not succeed: the tuple was never there.
        tuple.set_xmin(0);
    }
    tuple.set_first_command_id();
    tuple.set_ctid(if flags & DELETE_IS_PARTITION_MOVE != 0 {
        ItemPointer::MOVED_PARTITIONS
    } else {
        ItemPointer { block: heap_block(record, 0)?.block, offset_number }
    });

    page::set_prunable(page, record.xid);
    if flags & DELETE_ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// Block 0 is the page of the new tuple, block 1 that of the old one if it is another.
fn update(record: &Record<'_>, key: &PageKey, page: &mut PageBytes, hot: bool) -> Redo {
    let fields = HeapUpdate::parse(record)?;
    let same_page = record.block(1).is_none();
    expect(same_page || !hot, "a heap-only update never leaves its page")?;
    let new_tid =
        ItemPointer { block: heap_block(record, 0)?.block, offset_number: fields.new_offset_number };
    let is_new_page = is_block(record, 0, key);
    if is_block(record, if same_page { 0 } else { 1 }, key) {
        update_old_tuple(record, &fields, page, hot, new_tid)?;
    } else {
        expect(is_new_page, "the record does not list this block")?;
    }
    if is_new_page {
        update_new_tuple(record, &fields, page, same_page, new_tid)?;
    }
    Ok(())
}

fn update_old_tuple(
    record: &Record<'_>,
    fields: &HeapUpdate,
    page: &mut PageBytes,
    hot: bool,
    new_tid: ItemPointer,
) -> Redo {
    let mut tuple = Tuple::on_page(page, fields.old_offset_number)?;
    tuple.set_xmax_meaning(fields.old_infobits);
    tuple.set_hot_updated(hot);
    tuple.set_xmax(fields.old_xmax);
    tuple.set_first_command_id();
    tuple.set_ctid(new_tid);

    page::set_prunable(page, record.xid);
    if fields.flags & UPDATE_OLD_ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    page::set_lsn(page, record.span.end);
    Ok(())
}

fn update_new_tuple(
    record: &Record<'_>,
    fields: &HeapUpdate,
    page: &mut PageBytes,
    same_page: bool,
    new_tid: ItemPointer,
) -> Redo {
    if same_page {
        check_next_offset_number(page, fields.new_offset_number)?;
    } else {
        prepare_insertion(record, page, fields.new_offset_number)?;
    }
    let new_block = record.block(0).ok_or(Fault::Failed("the record does not list its heap block"))?;
    let mut reader = Reader::new(new_block.data);
    let has_prefix = fields.flags & UPDATE_PREFIX_FROM_OLD != 0;
    let has_suffix = fields.flags & UPDATE_SUFFIX_FROM_OLD != 0;
    expect(
        same_page || !(has_prefix || has_suffix),
        "an update shares bytes with an old tuple on another page",
    )?;
    let prefix_length = if has_prefix { usize::from(reader.u16()?) } else { 0 };
    let suffix_length = if has_suffix { usize::from(reader.u16()?) } else { 0 };
    let header = StoredHeader::read(&mut reader)?;

    // Null bitmap and padding; prefix of the old tuple's data; what is new; suffix of the old tuple.
    let (mut bitmap, mut prefix, mut suffix) = ([].as_slice(), 0..0, 0..0);
    if prefix_length > 0 || suffix_length > 0 {
        let (old, data_start) = tuple::ranges_on_page(page, fields.old_offset_number)?;
        if prefix_length > 0 {
            let bitmap_length = usize::from(header.hoff)
                .checked_sub(HEADER_BYTES)
                .ok_or(Fault::Failed("a heap tuple's header is too short"))?;
            bitmap = reader.bytes(bitmap_length)?;
            prefix = data_start..data_start + prefix_length;
            expect(prefix.end <= old.end, "the old tuple is shorter than the shared prefix")?;
        }
        expect(suffix_length <= old.len(), "the old tuple is shorter than the shared suffix")?;
        suffix = old.end - suffix_length..old.end;
    }
    let new = NewTuple {
        header,
        xmin: record.xid,
        xmax: fields.new_xmax,
        ctid: new_tid,
        offset_number: fields.new_offset_number,
    };
    let new_bytes = Piece::New(reader.rest());
    if prefix.is_empty() && suffix.is_empty() {
        new.add_to(page, &[new_bytes])?;
    } else {
        new.add_to(page, &[Piece::New(bitmap), Piece::OnPage(prefix), new_bytes, Piece::OnPage(suffix)])?;
    }

    if fields.flags & UPDATE_NEW_ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// A speculative insertion succeeded: its tuple points to itself.
fn confirm(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    expect(is_block(record, 0, key), "the record does not list this block")?;
    let offset_number = Reader::new(record.main_data).u16()?;
    let block = heap_block(record, 0)?.block;
    Tuple::on_page(page, offset_number)?.set_ctid(ItemPointer { block, offset_number });
    page::set_lsn(page, record.span.end);
    Ok(())
}

fn lock(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    expect(is_block(record, 0, key), "the record does not list this block")?;
    let HeapXmax { xmax, offset_number, infobits, .. } = HeapXmax::parse(record)?;
    let block = heap_block(record, 0)?.block;
    let mut tuple = Tuple::on_page(page, offset_number)?;
    tuple.set_xmax_meaning(infobits);
    if tuple.is_locked_only() {
        tuple.set_hot_updated(false);
        tuple.set_ctid(ItemPointer { block, offset_number });
    }
    tuple.set_xmax(xmax);
    tuple.set_first_command_id();
    page::set_lsn(page, record.span.end);
    Ok(())
}

fn inplace(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let data = block_data(record, key)?;
    let offset_number = Reader::new(record.main_data).u16()?;
    let mut tuple = Tuple::on_page(page, offset_number)?;
    let old = tuple.data_mut()?;
    expect(old.len() == data.len(), "an in-place update changes the tuple's length")?;
    old.copy_from_slice(data);
    page::set_lsn(page, record.span.end);
    Ok(())
}
