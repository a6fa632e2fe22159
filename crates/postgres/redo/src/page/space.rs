//! Moving items: closing the gaps that removed ones leave.

use arrayvec::ArrayVec;
use borealis_types::{PAGE_SIZE, PageBytes, invariant};
use borealis_wal::layout::item_id::ITEM_ID_BYTES;
use borealis_wal::layout::page::INDEX_TUPLES_MAX;

use super::header::{
    Bounds, HAS_FREE_LINES, HEADER_BYTES, LINE_POINTERS_MAX, LinePointer, assert_in_order, bounds,
    line_pointer, line_pointer_at, max_align, max_offset_number, put_line_pointer, set_flag, set_lower,
    set_upper,
};
use crate::fault::{Fault, Redo, expect};

/// An item that stays: its offset number afterwards, and where its bytes are now.
#[derive(Clone, Copy)]
struct Kept {
    offset_number: u16,
    start: u16,
    aligned_length: u16,
}

/// Items that stay, in line pointer order.
struct KeptItems {
    items: ArrayVec<Kept, LINE_POINTERS_MAX>,
    total_length: usize,
}

impl KeptItems {
    fn new() -> Self {
        KeptItems { items: ArrayVec::new(), total_length: 0 }
    }

    fn push(&mut self, offset_number: u16, pointer: LinePointer) -> Redo {
        let aligned_length = max_align(usize::from(pointer.length));
        expect(usize::from(pointer.offset) + aligned_length <= PAGE_SIZE, "an item ends outside the page")?;
        let kept = Kept { offset_number, start: pointer.offset, aligned_length: aligned_length as u16 };
        self.items.try_push(kept).map_err(|_| Fault::Failed("too many items on the page"))?;
        self.total_length += aligned_length;
        Ok(())
    }

    /// `compactify_tuples`: lays the items out downwards from the special space, in line pointer order.
    ///
    /// Items at the start of the list that are where they belong already stay untouched, which after removing
    /// few is most of them. The others are copied from a copy of the item space, for they may change order.
    fn compactify(&self, page: &mut PageBytes, bounds: Bounds) -> Redo {
        expect(
            self.total_length <= bounds.special - bounds.lower,
            "the items are longer than the page has room for",
        )?;
        let mut upper = bounds.special;
        let in_place = self.items.iter().take_while(|kept| {
            let stays = usize::from(kept.start) + usize::from(kept.aligned_length) == upper;
            if stays {
                upper = usize::from(kept.start);
            }
            stays
        });
        let moving = &self.items[in_place.count()..];
        // Only what lies below the last item that stays can move.
        let mut before = ArrayVec::<u8, PAGE_SIZE>::new();
        let lowest = moving.iter().map(|kept| usize::from(kept.start)).min().unwrap_or(upper);
        let highest =
            moving.iter().map(|kept| usize::from(kept.start) + usize::from(kept.aligned_length)).max();
        before
            .try_extend_from_slice(&page[lowest..highest.unwrap_or(lowest)])
            .expect("a part of a page is no longer than a page");
        for kept in moving {
            let (start, length) = (usize::from(kept.start) - lowest, usize::from(kept.aligned_length));
            upper -= length;
            page[upper..upper + length].copy_from_slice(&before[start..start + length]);
            let pointer = line_pointer(page, kept.offset_number)?;
            put_line_pointer(page, kept.offset_number, LinePointer { offset: upper as u16, ..pointer });
        }
        let filled = bounds.special - self.total_length;
        invariant!("compacted-items-leave-no-gap", upper == filled, "upper {upper}, items to {filled}");
        set_upper(page, upper as u16);
        Ok(())
    }
}

fn aligned_bounds(page: &PageBytes) -> Redo<Bounds> {
    let bounds = bounds(page)?;
    expect(bounds.special == max_align(bounds.special), "the page's special space is not aligned")?;
    Ok(bounds)
}

/// `PageRepairFragmentation`, for heap pages: closes gaps, drops unused line pointers from the end, sets the
/// hint about unused ones.
pub(crate) fn repair_fragmentation(page: &mut PageBytes) -> Redo {
    let bounds = aligned_bounds(page)?;
    let line_count = max_offset_number(page);
    let mut kept = KeptItems::new();
    let mut unused_count = 0;
    let mut last_used = 0;
    for offset_number in 1..=line_count {
        let pointer = line_pointer(page, offset_number)?;
        if pointer.is_used() {
            if pointer.has_storage() {
                let start = usize::from(pointer.offset);
                expect(
                    bounds.upper <= start && start < bounds.special,
                    "an item lies outside the item space",
                )?;
                kept.push(offset_number, pointer)?;
            }
            last_used = offset_number;
        } else {
            put_line_pointer(page, offset_number, LinePointer::UNUSED);
            unused_count += 1;
        }
    }
    kept.compactify(page, bounds)?;
    let unused_at_end = line_count - last_used;
    set_lower(page, (bounds.lower - usize::from(unused_at_end) * ITEM_ID_BYTES) as u16);
    set_flag(page, HAS_FREE_LINES, unused_count > unused_at_end);
    assert_in_order(page);
    Ok(())
}

/// `PageTruncateLinePointerArray`, for heap pages: drops unused line pointers from the end, but never the
/// first, and sets the hint about unused ones.
pub(crate) fn truncate_line_pointer_array(page: &mut PageBytes) -> Redo {
    let bounds = bounds(page)?;
    let line_count = max_offset_number(page);
    let mut kept_count = line_count;
    while kept_count > 1 && !line_pointer(page, kept_count)?.is_used() {
        kept_count -= 1;
    }
    let mut unused_left = false;
    for offset_number in 1..=kept_count {
        unused_left |= !line_pointer(page, offset_number)?.is_used();
    }
    let dropped = usize::from(line_count - kept_count);
    set_lower(page, (bounds.lower - dropped * ITEM_ID_BYTES) as u16);
    set_flag(page, HAS_FREE_LINES, unused_left);
    assert_in_order(page);
    Ok(())
}

/// Where an index page's item lies; checked as every function that removes items checks it.
fn index_item(page: &PageBytes, bounds: Bounds, offset_number: u16) -> Redo<(LinePointer, usize, usize)> {
    let pointer = line_pointer(page, offset_number)?;
    let (start, length) = (usize::from(pointer.offset), usize::from(pointer.length));
    expect(
        bounds.upper <= start && start + length <= bounds.special && start == max_align(start),
        "a line pointer of an index page is corrupt",
    )?;
    Ok((pointer, start, length))
}

/// Moves everything in front of the item at `start` up by `by` (down if negative) and follows with the line
/// pointers of the first `line_count` items.
fn slide(page: &mut PageBytes, bounds: Bounds, start: usize, by: isize, line_count: u16) -> Redo {
    let new_upper = bounds
        .upper
        .checked_add_signed(by)
        .filter(|upper| *upper + (start - bounds.upper) <= bounds.special)
        .ok_or(Fault::Failed("an item's length reaches outside the item space"))?;
    page.copy_within(bounds.upper..start, new_upper);
    set_upper(page, new_upper as u16);
    for offset_number in 1..=line_count {
        let pointer = line_pointer(page, offset_number)?;
        if pointer.has_storage() && usize::from(pointer.offset) <= start {
            let moved = usize::from(pointer.offset)
                .checked_add_signed(by)
                .filter(|offset| *offset < PAGE_SIZE)
                .ok_or(Fault::Failed("an item would move outside the page"))?;
            put_line_pointer(page, offset_number, LinePointer { offset: moved as u16, ..pointer });
        }
    }
    Ok(())
}

/// `PageIndexTupleDelete`: removes an item and its line pointer; later items move down by one number.
pub(crate) fn index_tuple_delete(page: &mut PageBytes, offset_number: u16) -> Redo {
    let bounds = aligned_bounds(page)?;
    let (_, start, length) = index_item(page, bounds, offset_number)?;
    let line_count = max_offset_number(page);
    let at = line_pointer_at(offset_number);
    page.copy_within(at + ITEM_ID_BYTES..bounds.lower, at);
    set_lower(page, (bounds.lower - ITEM_ID_BYTES) as u16);
    slide(page, bounds, start, max_align(length) as isize, line_count - 1)?;
    assert_in_order(page);
    Ok(())
}

/// `PageIndexTupleDeleteNoCompact`: removes an item but leaves its line pointer unused, unless it is the last.
pub(crate) fn index_tuple_delete_no_compact(page: &mut PageBytes, offset_number: u16) -> Redo {
    let bounds = aligned_bounds(page)?;
    let (_, start, length) = index_item(page, bounds, offset_number)?;
    let mut line_count = max_offset_number(page);
    if offset_number < line_count {
        put_line_pointer(page, offset_number, LinePointer::UNUSED);
    } else {
        set_lower(page, (bounds.lower - ITEM_ID_BYTES) as u16);
        line_count -= 1;
    }
    slide(page, bounds, start, max_align(length) as isize, line_count)?;
    assert_in_order(page);
    Ok(())
}

/// `PageIndexMultiDelete`: removes the items with these offset numbers, which must ascend.
///
/// One or two leave the order of the others on the page as it is; more lay all of them out anew.
pub(crate) fn index_multi_delete(
    page: &mut PageBytes,
    offset_numbers: impl DoubleEndedIterator<Item = u16> + ExactSizeIterator,
) -> Redo {
    if offset_numbers.len() <= 2 {
        return offset_numbers.rev().try_for_each(|number| index_tuple_delete(page, number));
    }
    let bounds = aligned_bounds(page)?;
    let mut kept = KeptItems::new();
    let mut pointers = ArrayVec::<LinePointer, INDEX_TUPLES_MAX>::new();
    let mut doomed = offset_numbers.peekable();
    for offset_number in 1..=max_offset_number(page) {
        let (pointer, _, _) = index_item(page, bounds, offset_number)?;
        if doomed.next_if_eq(&offset_number).is_some() {
            continue;
        }
        pointers.try_push(pointer).map_err(|_| Fault::Failed("too many items on an index page"))?;
        kept.push(pointers.len() as u16, pointer)?;
    }
    expect(doomed.peek().is_none(), "the offset numbers to delete do not ascend or do not exist")?;
    for (index, pointer) in pointers.iter().enumerate() {
        put_line_pointer(page, (index + 1) as u16, *pointer);
    }
    let lower = HEADER_BYTES + pointers.len() * ITEM_ID_BYTES;
    set_lower(page, lower as u16);
    kept.compactify(page, bounds)?;
    assert_in_order(page);
    Ok(())
}

/// `PageIndexTupleOverwrite`: puts `item` where an old item is, moving the others to fit.
pub(crate) fn index_tuple_overwrite(page: &mut PageBytes, offset_number: u16, item: &[u8]) -> Redo {
    let bounds = aligned_bounds(page)?;
    let (pointer, start, old_length) = index_item(page, bounds, offset_number)?;
    let (old_size, new_size) = (max_align(old_length), max_align(item.len()));
    expect(new_size <= old_size + (bounds.upper - bounds.lower), "the item does not fit the page")?;
    let shrinks_by = old_size as isize - new_size as isize;
    let mut new_start = start;
    if shrinks_by != 0 {
        slide(page, bounds, start, shrinks_by, max_offset_number(page))?;
        new_start = start
            .checked_add_signed(shrinks_by)
            .filter(|new_start| new_start + item.len() <= PAGE_SIZE)
            .ok_or(Fault::Failed("an item would move outside the page"))?;
    }
    let replaced = LinePointer { offset: new_start as u16, length: item.len() as u16, ..pointer };
    put_line_pointer(page, offset_number, replaced);
    page.get_mut(new_start..new_start + item.len())
        .ok_or(Fault::Failed("an item would lie outside the page"))?
        .copy_from_slice(item);
    assert_in_order(page);
    Ok(())
}

/// For the test that sees the assertion fail: items whose length was counted wrongly.
#[cfg(test)]
pub(super) fn compactify_miscounted(page: &mut PageBytes) {
    let bounds = bounds(page).expect("an empty page");
    let _ = KeptItems { items: ArrayVec::new(), total_length: 8 }.compactify(page, bounds);
}
