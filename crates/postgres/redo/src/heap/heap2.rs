//! Resource manager `Heap2`: prune, vacuum, freeze, visibility, multi-insert.

use borealis_types::{Fork, PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::layout::heap::{
    INIT_PAGE, INSERT_ALL_FROZEN_SET, INSERT_ALL_VISIBLE_CLEARED, LOCK_ALL_FROZEN_CLEARED, OPERATION_MASK,
};
use borealis_wal::layout::heap2::{
    FREEZE_PAGE, FREEZE_XVAC, INVALID_XVAC, LOCK_UPDATED, MULTI_INSERT, NEW_CID, PRUNE, REWRITE, VACUUM,
    VISIBLE,
};
use borealis_wal::layout::visibility_map::{ALL_FROZEN, VALID_BITS};
use borealis_wal::layout::{
    FROZEN_XID, HeapFreezePage, HeapFreezeTuple, HeapMultiInsert, HeapPrune, HeapVacuum, HeapVisible,
    HeapXmax,
};

use super::tuple::{ItemPointer, NewTuple, Piece, StoredHeader, Tuple, offset_numbers};
use super::{block_data, check_next_offset_number, clear_visibility, heap_block, is_block, visibility_map};
use crate::block::is_fork;
use crate::bytes::Reader;
use crate::fault::{Fault, Redo, expect};
use crate::page::{self, LinePointer};

/// Applies a `Heap2` record to a heap page or a visibility map page.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let operation = record.info & OPERATION_MASK;
    if is_fork(key, Fork::VisibilityMap) && operation != VISIBLE {
        return redo_visibility_map(record, key, page, operation);
    }
    match operation {
        PRUNE => prune(record, key, page),
        VACUUM => vacuum(record, key, page),
        FREEZE_PAGE => freeze_page(record, key, page),
        VISIBLE => visible(record, key, page),
        MULTI_INSERT => multi_insert(record, key, page),
        LOCK_UPDATED => lock_updated(record, key, page),
        // For logical decoding only.
        REWRITE | NEW_CID => Err(Fault::Failed("this record changes no page")),
        _ => Err(Fault::Unknown),
    }
}

fn redo_visibility_map(record: &Record<'_>, key: &PageKey, page: &mut PageBytes, operation: u8) -> Redo {
    let cleared = match operation {
        MULTI_INSERT => {
            HeapMultiInsert::parse(record)?.flags & INSERT_ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, 0, key, page, VALID_BITS)?
        }
        LOCK_UPDATED => {
            HeapXmax::parse(record)?.flags & LOCK_ALL_FROZEN_CLEARED != 0
                && clear_visibility(record, 0, key, page, ALL_FROZEN)?
        }
        _ => false,
    };
    expect(cleared, "the record does not change this visibility map page")
}

/// Block data: pairs (from, to) to redirect, then the now dead, then the now unused.
fn prune(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let HeapPrune { redirected_count, dead_count } = HeapPrune::parse(record)?;
    let mut reader = Reader::new(block_data(record, key)?);

    for _ in 0..redirected_count {
        let (from, to) = (reader.u16()?, reader.u16()?);
        page::set_line_pointer(page, from, LinePointer::redirect(to))?;
    }
    for offset_number in offset_numbers(reader.bytes(usize::from(dead_count) * 2)?) {
        page::set_line_pointer(page, offset_number, LinePointer::DEAD)?;
    }
    for offset_number in offset_numbers(reader.rest()) {
        page::set_line_pointer(page, offset_number, LinePointer::UNUSED)?;
    }
    page::repair_fragmentation(page)?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// Block data: line pointers that were dead and are unused now.
fn vacuum(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let HeapVacuum { unused_count } = HeapVacuum::parse(record)?;
    let mut reader = Reader::new(block_data(record, key)?);
    for offset_number in offset_numbers(reader.bytes(usize::from(unused_count) * 2)?) {
        page::set_line_pointer(page, offset_number, LinePointer::UNUSED)?;
    }
    page::truncate_line_pointer_array(page)?;
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// Block data: an array of `xl_heap_freeze_tuple`.
fn freeze_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let HeapFreezePage { tuple_count } = HeapFreezePage::parse(record)?;
    let bytes = usize::from(tuple_count) * HeapFreezeTuple::BYTES;
    let frozen = Reader::new(block_data(record, key)?).bytes(bytes)?;
    for bytes in frozen.as_chunks::<{ HeapFreezeTuple::BYTES }>().0 {
        let HeapFreezeTuple { xmax, offset_number, infomask2, infomask, flags } =
            HeapFreezeTuple::decode(*bytes);
        let mut tuple = Tuple::on_page(page, offset_number)?;
        tuple.set_xmax(xmax);
        if flags & FREEZE_XVAC != 0 {
            tuple.set_command_id_field(FROZEN_XID);
        }
        if flags & INVALID_XVAC != 0 {
            tuple.set_command_id_field(0);
        }
        tuple.set_infomask(infomask);
        tuple.set_infomask2(infomask2);
    }
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// Block 0 is the visibility map page, block 1 the heap page.
///
/// The heap page is not stamped. PostgreSQL stamps it when checksums or `wal_log_hints` are on, which the
/// record does not tell; versions here are told apart by the record, not by the stamp.
fn visible(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let HeapVisible { bits } = HeapVisible::parse(record)?;
    let heap = heap_block(record, 1)?;
    if is_block(record, 1, key) {
        page::set_flag(page, page::ALL_VISIBLE, true);
        return Ok(());
    }
    expect(
        is_block(record, 0, key) && visibility_map::holds(key, heap.relation_fork.locator, heap.block),
        "the visibility map page does not hold the heap block's bits",
    )?;
    visibility_map::set(page, heap.block, bits, record.span.end);
    Ok(())
}

/// Block data: for each tuple, aligned to two bytes, its length, header and bytes. The main data names their
/// offset numbers unless the page is initialized, when they count from one.
fn multi_insert(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let fields = HeapMultiInsert::parse(record)?;
    let mut tuples = Reader::new(block_data(record, key)?);
    let mut numbers = Reader::new(record.main_data);
    numbers.skip(HeapMultiInsert::BYTES)?;
    let initialize = record.info & INIT_PAGE != 0;
    if initialize {
        page::init(page, 0);
    }
    let block = heap_block(record, 0)?.block;
    for index in 0..fields.tuple_count {
        let offset_number = if initialize {
            index.checked_add(1).ok_or(Fault::Failed("too many tuples"))?
        } else {
            numbers.u16()?
        };
        check_next_offset_number(page, offset_number)?;
        tuples.align(2)?;
        let length = usize::from(tuples.u16()?);
        let header = StoredHeader::read(&mut tuples)?;
        let ctid = ItemPointer { block, offset_number };
        NewTuple { header, xmin: record.xid, xmax: 0, ctid, offset_number }
            .add_to(page, &[Piece::New(tuples.bytes(length)?)])?;
    }
    expect(tuples.remaining() == 0, "the tuples are not as long as the record says")?;

    page::set_lsn(page, record.span.end);
    if fields.flags & INSERT_ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    if fields.flags & INSERT_ALL_FROZEN_SET != 0 {
        page::set_flag(page, page::ALL_VISIBLE, true);
    }
    Ok(())
}

fn lock_updated(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    expect(is_block(record, 0, key), "the record does not list this block")?;
    let HeapXmax { xmax, offset_number, infobits, .. } = HeapXmax::parse(record)?;
    let mut tuple = Tuple::on_page(page, offset_number)?;
    tuple.set_xmax_meaning(infobits);
    tuple.set_xmax(xmax);
    page::set_lsn(page, record.span.end);
    Ok(())
}
