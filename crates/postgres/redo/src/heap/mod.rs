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

use crate::bytes::Reader;
use crate::fault::{Fault, Redo, expect};
use crate::{is_fork, page};
pub(crate) use mask::mask;
use tuple::{ItemPointer, NewTuple, Piece, StoredHeader, Tuple};

/// `XLOG_HEAP_OPMASK`
pub(crate) const OPERATION_MASK: u8 = 0x70;
/// `XLOG_HEAP_INIT_PAGE`
pub(crate) const INIT_PAGE: u8 = 0x80;

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const TRUNCATE: u8 = 0x30;
const HOT_UPDATE: u8 = 0x40;
const CONFIRM: u8 = 0x50;
const LOCK: u8 = 0x60;
const INPLACE: u8 = 0x70;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED` and `XLH_DELETE_ALL_VISIBLE_CLEARED`
pub(crate) const ALL_VISIBLE_CLEARED: u8 = 0x01;
const DELETE_IS_SUPER: u8 = 0x08;
const DELETE_IS_PARTITION_MOVE: u8 = 0x10;
const UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
const UPDATE_PREFIX_FROM_OLD: u8 = 0x20;
const UPDATE_SUFFIX_FROM_OLD: u8 = 0x40;
/// `XLH_LOCK_ALL_FROZEN_CLEARED`
pub(crate) const LOCK_ALL_FROZEN_CLEARED: u8 = 0x01;

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
    let valid_bits = visibility_map::VALID_BITS;
    let cleared = match operation {
        INSERT => {
            InsertRecord::read(record)?.flags & ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, 0, key, page, valid_bits)?
        }
        DELETE => {
            XmaxRecord::read(record)?.flags & ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, 0, key, page, valid_bits)?
        }
        UPDATE | HOT_UPDATE => {
            let flags = UpdateRecord::read(record)?.flags;
            let old_id = u8::from(record.block(1).is_some());
            // Not short-circuiting: both heap blocks may have their bits on this page.
            (flags & UPDATE_OLD_ALL_VISIBLE_CLEARED != 0
                && clear_visibility(record, old_id, key, page, valid_bits)?)
                | (flags & UPDATE_NEW_ALL_VISIBLE_CLEARED != 0
                    && clear_visibility(record, 0, key, page, valid_bits)?)
        }
        LOCK => {
            XmaxRecord::read(record)?.flags & LOCK_ALL_FROZEN_CLEARED != 0
                && clear_visibility(record, 0, key, page, visibility_map::ALL_FROZEN)?
        }
        _ => false,
    };
    expect(cleared, "the record does not change this visibility map page")
}

/// `xl_heap_insert`
struct InsertRecord {
    offset_number: u16,
    flags: u8,
}

impl InsertRecord {
    fn read(record: &Record<'_>) -> Redo<Self> {
        let mut reader = Reader::new(record.main_data);
        Ok(InsertRecord { offset_number: reader.u16()?, flags: reader.u8()? })
    }
}

/// `xl_heap_delete`, `xl_heap_lock` and `xl_heap_lock_updated`, which have one layout.
pub(crate) struct XmaxRecord {
    /// The new `t_xmax`.
    pub(crate) xmax: u32,
    /// Which tuple.
    pub(crate) offset_number: u16,
    /// `XLHL_*`: what `xmax` means.
    pub(crate) infobits: u8,
    /// `XLH_DELETE_*` or `XLH_LOCK_*`
    pub(crate) flags: u8,
}

impl XmaxRecord {
    /// Reads it from the main data.
    pub(crate) fn read(record: &Record<'_>) -> Redo<Self> {
        let mut reader = Reader::new(record.main_data);
        Ok(XmaxRecord {
            xmax: reader.u32()?,
            offset_number: reader.u16()?,
            infobits: reader.u8()?,
            flags: reader.u8()?,
        })
    }
}

/// `xl_heap_update`
struct UpdateRecord {
    old_xmax: u32,
    old_offset_number: u16,
    old_infobits: u8,
    flags: u8,
    new_xmax: u32,
    new_offset_number: u16,
}

impl UpdateRecord {
    fn read(record: &Record<'_>) -> Redo<Self> {
        let mut reader = Reader::new(record.main_data);
        Ok(UpdateRecord {
            old_xmax: reader.u32()?,
            old_offset_number: reader.u16()?,
            old_infobits: reader.u8()?,
            flags: reader.u8()?,
            new_xmax: reader.u32()?,
            new_offset_number: reader.u16()?,
        })
    }
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
    let InsertRecord { offset_number, flags } = InsertRecord::read(record)?;
    let mut reader = Reader::new(block_data(record, key)?);
    prepare_insertion(record, page, offset_number)?;

    let header = StoredHeader::read(&mut reader)?;
    let ctid = ItemPointer { block: heap_block(record, 0)?.block, offset_number };
    NewTuple { header, xmin: record.xid, xmax: 0, ctid, offset_number }
        .add_to(page, &[Piece::New(reader.rest())])?;

    page::set_lsn(page, record.span.end);
    if flags & ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    Ok(())
}

fn delete(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    expect(is_block(record, 0, key), "the record does not list this block")?;
    let XmaxRecord { xmax, offset_number, infobits, flags } = XmaxRecord::read(record)?;
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
    if flags & ALL_VISIBLE_CLEARED != 0 {
        page::set_flag(page, page::ALL_VISIBLE, false);
    }
    page::set_lsn(page, record.span.end);
    Ok(())
}

/// Block 0 is the page of the new tuple, block 1 that of the old one if it is another.
fn update(record: &Record<'_>, key: &PageKey, page: &mut PageBytes, hot: bool) -> Redo {
    let fields = UpdateRecord::read(record)?;
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
    fields: &UpdateRecord,
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
    fields: &UpdateRecord,
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
                .checked_sub(tuple::HEADER_SIZE)
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

/// A speculative insertion succeeded.
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
    let XmaxRecord { xmax, offset_number, infobits, .. } = XmaxRecord::read(record)?;
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
