//! Inserting tuples, splitting pages, growing the tree, and merging duplicates.

use arrayvec::ArrayVec;
use borealis_types::PageBytes;
use borealis_wal::layout::btree::{
    BtreeSplit, DEDUP_INTERVAL_BYTES, HIGH_KEY, NEWROOT_LEVEL_OFFSET, NO_BLOCK, flag,
};
use borealis_wal::layout::item_pointer::ITEM_POINTER_BYTES;
use borealis_wal::layout::page::INDEX_TUPLES_MAX;
use borealis_wal::{BlockReference, Record};

use super::opaque::Opaque;
use super::tuple::{self, HeapPositions};
use crate::bytes::{Reader, put, u16_at, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::{self, Placing};

/// `btree_xlog_insert`, the page inserted into, without a posting list split.
pub(super) fn insert(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let offset_number = u16_at(record.main_data, 0)?;
    add_at(page, block.data, offset_number)
}

/// Puts a tuple at a number, which must be a valid one: zero would mean "anywhere" to `page::add_item`.
fn add_at(page: &mut PageBytes, item: &[u8], offset_number: u16) -> Redo {
    expect(offset_number != 0, "an index tuple needs an offset number")?;
    page::add_item(page, item, offset_number, Placing::Shift).map(|_| ())
}

/// `btree_xlog_insert` with a posting list split: the tuple before the new one is a posting list that the new
/// tuple's heap position falls into.
pub(super) fn insert_with_posting_split(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut PageBytes,
) -> Redo {
    let offset_number = u16_at(record.main_data, 0)?;
    let mut data = Reader::new(block.data);
    let posting_offset = data.u16()?;
    let new_item = data.rest();
    let mut heap_position = tuple::heap_position(new_item)?;
    let pointer = page::line_pointer(page, offset_number.wrapping_sub(1))?;
    tuple::swap_posting(&mut heap_position, page::item_mut(page, pointer)?, posting_offset)?;
    add_with_position(page, new_item, heap_position, offset_number)
}

/// Puts a tuple at a number, with this heap position in place of its own.
fn add_with_position(
    page: &mut PageBytes,
    item: &[u8],
    heap_position: [u8; ITEM_POINTER_BYTES],
    offset_number: u16,
) -> Redo {
    add_at(page, item, offset_number)?;
    let pointer = page::line_pointer(page, offset_number)?;
    put(page::item_mut(page, pointer)?, 0, &heap_position)
}

fn leaf_flag(split: &BtreeSplit) -> u16 {
    if split.level == 0 { flag::LEAF } else { 0 }
}

fn listed_number(record: &Record<'_>, id: u8) -> Redo<u32> {
    record
        .block(id)
        .map(|block| block.key.block)
        .ok_or(Fault::Failed("the record lacks a block that its operation needs"))
}

/// `btree_xlog_split`, the new right page: built from the record alone.
pub(super) fn split_right(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let split = BtreeSplit::parse(record)?;
    let right_sibling = record.block(2).map_or(NO_BLOCK, |sibling| sibling.key.block);
    Opaque {
        previous: listed_number(record, 0)?,
        next: right_sibling,
        level: split.level,
        flags: leaf_flag(&split),
        cycle_id: 0,
    }
    .init_page(page)?;
    restore_page(page, block.data)
}

/// `btree_xlog_split`, the page to the right of the new one.
pub(super) fn split_sibling(record: &Record<'_>, page: &mut PageBytes) -> Redo {
    let mut opaque = Opaque::read(page)?;
    opaque.previous = listed_number(record, 1)?;
    opaque.write(page)
}

/// `btree_xlog_split`, the page that is split: keeps its left part, in item order, under a new high key.
pub(super) fn split_left(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut PageBytes,
    new_item_on_left: bool,
) -> Redo {
    let split = BtreeSplit::parse(record)?;
    let mut original = *page;
    let mut opaque = Opaque::read(&original)?;

    let mut data = block.data;
    let mut new_item = None;
    if new_item_on_left || split.posting_offset != 0 {
        let (first, rest) = tuple::split_first(data)?;
        data = rest;
        let mut heap_position = tuple::heap_position(first)?;
        if split.posting_offset != 0 {
            let pointer = page::line_pointer(&original, split.new_item.wrapping_sub(1))?;
            let posting = page::item_mut(&mut original, pointer)?;
            tuple::swap_posting(&mut heap_position, posting, split.posting_offset)?;
        }
        new_item = Some((first, heap_position)).filter(|_| new_item_on_left);
    }
    let (high_key, rest) = tuple::split_first(data)?;
    expect(rest.is_empty(), "a B-tree split has more data than a high key")?;

    page::init(page, Opaque::SIZE);
    let mut next_number = HIGH_KEY;
    let mut number = || {
        next_number += 1;
        next_number - 1
    };
    add_at(page, high_key, number())?;
    let mut offset_number = opaque.first_data_key();
    loop {
        if let Some((item, heap_position)) = new_item.filter(|_| offset_number == split.new_item) {
            add_with_position(page, item, heap_position, number())?;
        }
        if offset_number >= split.first_right {
            break;
        }
        let pointer = page::line_pointer(&original, offset_number)?;
        add_at(page, page::item(&original, pointer)?, number())?;
        offset_number += 1;
    }

    opaque.flags = flag::INCOMPLETE_SPLIT | leaf_flag(&split);
    opaque.next = listed_number(record, 1)?;
    opaque.cycle_id = 0;
    opaque.write(page)
}

/// `btree_xlog_newroot`, the root itself.
pub(super) fn new_root(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let level = u32_at(record.main_data, NEWROOT_LEVEL_OFFSET)?;
    let leaf = if level == 0 { flag::LEAF } else { 0 };
    Opaque { flags: flag::ROOT | leaf, level, ..Opaque::default() }.init_page(page)?;
    if level > 0 { restore_page(page, block.data) } else { Ok(()) }
}

/// `_bt_restore_page`: fills a fresh page with tuples as another page had them between its `pd_upper` and its
/// special space, so that the last one comes first.
fn restore_page(page: &mut PageBytes, data: &[u8]) -> Redo {
    let mut items = ArrayVec::<&[u8], INDEX_TUPLES_MAX>::new();
    let mut rest = data;
    while !rest.is_empty() {
        let (item, following) = tuple::split_first(rest)?;
        items.try_push(item).map_err(|_| Fault::Failed("more index tuples than fit a page"))?;
        rest = following;
    }
    for (number, item) in (1..).zip(items.iter().rev()) {
        add_at(page, item, number)?;
    }
    Ok(())
}

/// A run of equal tuples that becomes one posting list.
struct Pending<'a> {
    base: &'a [u8],
    base_number: u16,
    item_count: u16,
    heap_positions: HeapPositions,
}

impl<'a> Pending<'a> {
    /// `_bt_dedup_start_pending`
    fn start(&mut self, base: &'a [u8], base_number: u16) -> Redo {
        self.base = base;
        self.base_number = base_number;
        self.item_count = 0;
        self.heap_positions.clear();
        self.add(base)
    }

    /// `_bt_dedup_save_htid`
    fn add(&mut self, item: &[u8]) -> Redo {
        let positions = tuple::heap_positions(item)?;
        self.heap_positions
            .try_extend_from_slice(positions)
            .map_err(|_| Fault::Failed("a posting list has too many items"))?;
        self.item_count += 1;
        Ok(())
    }

    /// `_bt_dedup_finish_pending`: appends the run to the new page.
    fn finish(&self, page: &mut PageBytes) -> Redo {
        let offset_number = page::max_offset_number(page) + 1;
        if self.item_count == 1 {
            let size = tuple::size(self.base)?;
            let item =
                self.base.get(..size).ok_or(Fault::Failed("an index tuple is longer than its item"))?;
            add_at(page, item, offset_number)
        } else {
            add_at(page, &tuple::form_posting(self.base, &self.heap_positions)?, offset_number)
        }
    }
}

/// `btree_xlog_dedup`: the record names runs of equal tuples (`BTDedupInterval`: number of the first, count).
pub(super) fn deduplicate(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let interval_count = usize::from(u16_at(record.main_data, 0)?);
    let mut intervals = Reader::new(block.data);
    expect(intervals.remaining() >= interval_count * DEDUP_INTERVAL_BYTES, "the record's data is too short")?;
    let mut next_interval = || -> Redo<(u16, u16)> {
        if intervals.remaining() < DEDUP_INTERVAL_BYTES {
            Ok((0, 0))
        } else {
            Ok((intervals.u16()?, intervals.u16()?))
        }
    };

    let original = *page;
    let mut opaque = Opaque::read(&original)?;
    page::init(page, Opaque::SIZE);
    if opaque.next != NO_BLOCK {
        add_at(page, page::item(&original, page::line_pointer(&original, HIGH_KEY)?)?, HIGH_KEY)?;
    }
    let (mut run_start, mut run_length) = next_interval()?;
    let mut runs_left = interval_count;
    // No items yet: nothing is pending.
    let mut pending =
        Pending { base: &[], base_number: 0, item_count: 0, heap_positions: HeapPositions::new() };
    for offset_number in opaque.first_data_key()..=page::max_offset_number(&original) {
        let item = page::item(&original, page::line_pointer(&original, offset_number)?)?;
        if pending.item_count > 0 {
            if runs_left > 0 && pending.base_number == run_start && pending.item_count < run_length {
                pending.add(item)?;
                continue;
            }
            if pending.item_count > 1 {
                runs_left -= 1;
                (run_start, run_length) = next_interval()?;
            }
            pending.finish(page)?;
        }
        pending.start(item, offset_number)?;
    }
    expect(pending.item_count > 0, "a B-tree page without tuples cannot be deduplicated")?;
    if pending.item_count > 1 {
        runs_left -= 1;
    }
    pending.finish(page)?;
    expect(runs_left == 0, "a run of duplicates is not on the page")?;
    opaque.flags &= !flag::HAS_GARBAGE;
    opaque.write(page)
}
