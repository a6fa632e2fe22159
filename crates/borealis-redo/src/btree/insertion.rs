//! Inserting tuples, splitting pages, growing the tree, and merging duplicates.

use borealis_types::PageBytes;
use borealis_wal::{BlockReference, Record};

use super::tuple::{self, HEAP_POSITION_SIZE};
use super::{HIGH_KEY, NO_BLOCK, Opaque, flag};
use crate::bytes::{Reader, u16_at, u32_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::{self, Placing};

/// `MaxIndexTuplesPerPage`
const TUPLES_MAX: usize = 408;

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
    let mut new_item = data.rest().to_vec();
    let pointer = page::line_pointer(page, offset_number.wrapping_sub(1))?;
    tuple::swap_posting(&mut new_item, page::item_mut(page, pointer)?, posting_offset)?;
    add_at(page, &new_item, offset_number)
}

/// `xl_btree_split`
struct Split {
    level: u32,
    first_right: u16,
    new_item: u16,
    posting_offset: u16,
}

impl Split {
    fn read(record: &Record<'_>) -> Redo<Split> {
        let mut data = Reader::new(record.main_data);
        Ok(Split {
            level: data.u32()?,
            first_right: data.u16()?,
            new_item: data.u16()?,
            posting_offset: data.u16()?,
        })
    }

    fn leaf_flag(&self) -> u16 {
        if self.level == 0 { flag::LEAF } else { 0 }
    }
}

fn listed_number(record: &Record<'_>, id: u8) -> Redo<u32> {
    record
        .block(id)
        .map(|block| block.key.block)
        .ok_or(Fault::Failed("the record lacks a block that its operation needs"))
}

/// `btree_xlog_split`, the new right page: built from the record alone.
pub(super) fn split_right(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let split = Split::read(record)?;
    let right_sibling = record.block(2).map_or(NO_BLOCK, |sibling| sibling.key.block);
    Opaque {
        previous: listed_number(record, 0)?,
        next: right_sibling,
        level: split.level,
        flags: split.leaf_flag(),
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
    let split = Split::read(record)?;
    let original = *page;
    let mut opaque = Opaque::read(&original)?;

    let mut data = block.data;
    let mut new_item = Vec::new();
    let mut replacement: Option<(u16, Vec<u8>)> = None;
    if new_item_on_left || split.posting_offset != 0 {
        let (first, rest) = tuple::split_first(data)?;
        new_item.extend_from_slice(first);
        data = rest;
        if split.posting_offset != 0 {
            let offset_number = split.new_item.wrapping_sub(1);
            let old = page::item(&original, page::line_pointer(&original, offset_number)?)?;
            let mut posting = old.to_vec();
            tuple::swap_posting(&mut new_item, &mut posting, split.posting_offset)?;
            replacement = Some((offset_number, posting));
        }
    }
    let (high_key, rest) = tuple::split_first(data)?;
    expect(rest.is_empty(), "a B-tree split has more data than a high key")?;

    page::init(page, Opaque::SIZE);
    let mut next_number = HIGH_KEY;
    let mut append = |item: &[u8]| -> Redo {
        add_at(page, item, next_number)?;
        next_number += 1;
        Ok(())
    };
    append(high_key)?;
    let mut offset_number = opaque.first_data_key();
    while offset_number < split.first_right {
        match &replacement {
            Some((number, posting)) if *number == offset_number => append(posting)?,
            _ => {
                if new_item_on_left && offset_number == split.new_item {
                    append(&new_item)?;
                }
                append(page::item(&original, page::line_pointer(&original, offset_number)?)?)?;
            }
        }
        offset_number += 1;
    }
    if new_item_on_left && offset_number == split.new_item {
        append(&new_item)?;
    }

    opaque.flags = flag::INCOMPLETE_SPLIT | split.leaf_flag();
    opaque.next = listed_number(record, 1)?;
    opaque.cycle_id = 0;
    opaque.write(page)
}

/// `btree_xlog_newroot`, the root itself.
pub(super) fn new_root(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let level = u32_at(record.main_data, 4)?;
    let leaf = if level == 0 { flag::LEAF } else { 0 };
    Opaque { flags: flag::ROOT | leaf, level, ..Opaque::default() }.init_page(page)?;
    if level > 0 { restore_page(page, block.data) } else { Ok(()) }
}

/// `_bt_restore_page`: fills a fresh page with tuples as another page had them between its `pd_upper` and its
/// special space, so that the last one comes first.
fn restore_page(page: &mut PageBytes, data: &[u8]) -> Redo {
    let mut items: [&[u8]; TUPLES_MAX] = [&[]; TUPLES_MAX];
    let mut count = 0;
    let mut rest = data;
    while !rest.is_empty() {
        let (item, following) = tuple::split_first(rest)?;
        *items.get_mut(count).ok_or(Fault::Failed("more index tuples than fit a page"))? = item;
        count += 1;
        rest = following;
    }
    for (index, item) in items[..count].iter().rev().enumerate() {
        add_at(page, item, (index + 1) as u16)?;
    }
    Ok(())
}

/// A run of equal tuples that becomes one posting list.
struct Pending<'a> {
    base: &'a [u8],
    base_number: u16,
    item_count: u16,
    heap_positions: Vec<u8>,
}

impl<'a> Pending<'a> {
    /// `_bt_dedup_start_pending`
    fn start(base: &'a [u8], base_number: u16, mut buffer: Vec<u8>) -> Redo<Pending<'a>> {
        buffer.clear();
        buffer.extend_from_slice(tuple::heap_positions(base)?);
        Ok(Pending { base, base_number, item_count: 1, heap_positions: buffer })
    }

    /// `_bt_dedup_save_htid`
    fn add(&mut self, item: &[u8]) -> Redo {
        let positions = tuple::heap_positions(item)?;
        expect(
            self.heap_positions.len() + positions.len() <= HEAP_POSITION_SIZE * 0x0FFF,
            "a posting list has too many items",
        )?;
        self.heap_positions.extend_from_slice(positions);
        self.item_count += 1;
        Ok(())
    }

    /// `_bt_dedup_finish_pending`: appends the run to the new page and hands back the buffer.
    fn finish(self, page: &mut PageBytes) -> Redo<Vec<u8>> {
        let offset_number = page::max_offset_number(page) + 1;
        if self.item_count == 1 {
            let size = tuple::size(self.base)?;
            let item =
                self.base.get(..size).ok_or(Fault::Failed("an index tuple is longer than its item"))?;
            add_at(page, item, offset_number)?;
        } else {
            add_at(page, &tuple::form_posting(self.base, &self.heap_positions)?, offset_number)?;
        }
        Ok(self.heap_positions)
    }
}

/// `btree_xlog_dedup`: the record names runs of equal tuples (`BTDedupInterval`: number of the first, count).
pub(super) fn deduplicate(record: &Record<'_>, block: &BlockReference<'_>, page: &mut PageBytes) -> Redo {
    let interval_count = usize::from(u16_at(record.main_data, 0)?);
    let mut intervals = Reader::new(block.data);
    expect(intervals.remaining() >= interval_count * 4, "the record's data is too short")?;
    let mut next_interval = || -> Redo<(u16, u16)> {
        if intervals.remaining() < 4 { Ok((0, 0)) } else { Ok((intervals.u16()?, intervals.u16()?)) }
    };

    let original = *page;
    let mut opaque = Opaque::read(&original)?;
    page::init(page, Opaque::SIZE);
    if opaque.next != NO_BLOCK {
        add_at(page, page::item(&original, page::line_pointer(&original, HIGH_KEY)?)?, HIGH_KEY)?;
    }
    let (mut run_start, mut run_length) = next_interval()?;
    let mut runs_left = interval_count;
    let mut pending: Option<Pending<'_>> = None;
    for offset_number in opaque.first_data_key()..=page::max_offset_number(&original) {
        let item = page::item(&original, page::line_pointer(&original, offset_number)?)?;
        let buffer = match &mut pending {
            Some(run) if runs_left > 0 && run.base_number == run_start && run.item_count < run_length => {
                run.add(item)?;
                continue;
            }
            _ => match pending.take() {
                None => Vec::new(),
                Some(run) => {
                    if run.item_count > 1 {
                        runs_left -= 1;
                        (run_start, run_length) = next_interval()?;
                    }
                    run.finish(page)?
                }
            },
        };
        pending = Some(Pending::start(item, offset_number, buffer)?);
    }
    let last = pending.ok_or(Fault::Failed("a B-tree page without tuples cannot be deduplicated"))?;
    if last.item_count > 1 {
        runs_left -= 1;
    }
    last.finish(page)?;
    expect(runs_left == 0, "a run of duplicates is not on the page")?;
    opaque.flags &= !flag::HAS_GARBAGE;
    opaque.write(page)
}
