//! The header, the line pointers, and putting an item on the page.

use borealis_types::{Lsn, PAGE_SIZE, PageBytes, invariant};

use borealis_wal::layout::item_id::{
    FLAGS_MASK, FLAGS_SHIFT, ITEM_ID_BYTES, LENGTH_SHIFT, LP_DEAD, LP_NORMAL, LP_REDIRECT, LP_UNUSED,
    OFFSET_MASK,
};
pub(crate) use borealis_wal::layout::page::{
    ALL_VISIBLE, HAS_FREE_LINES, HEADER_BYTES, LINE_POINTERS_MAX, PAGE_FULL, max_align,
};
use borealis_wal::layout::page::{
    CHECKSUM_OFFSET, FLAGS_OFFSET, HEAP_TUPLES_MAX, LOWER_OFFSET, LSN_OFFSET, PRUNE_XID_OFFSET,
    SIZE_AND_VERSION, SIZE_AND_VERSION_OFFSET, SPECIAL_OFFSET, UPPER_OFFSET,
};

use crate::fault::{Fault, Redo, expect};
use crate::transaction_id;

fn header_u16(page: &PageBytes, offset: usize) -> u16 {
    u16::from_le_bytes([page[offset], page[offset + 1]])
}

pub(super) fn set_header_u16(page: &mut PageBytes, offset: usize, value: u16) {
    page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

/// `PageGetLSN`
pub(crate) fn lsn(page: &PageBytes) -> Lsn {
    let half =
        |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn(half(LSN_OFFSET) << 32 | half(LSN_OFFSET + 4))
}

/// `PageSetLSN`: two halves, the high one first.
pub(crate) fn set_lsn(page: &mut PageBytes, lsn: Lsn) {
    page[LSN_OFFSET..LSN_OFFSET + 4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
    page[LSN_OFFSET + 4..LSN_OFFSET + 8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
}

/// Overwrites `pd_checksum`.
pub(crate) fn set_checksum(page: &mut PageBytes, checksum: u16) {
    set_header_u16(page, CHECKSUM_OFFSET, checksum);
}

/// `pd_flags`
pub(crate) fn flags(page: &PageBytes) -> u16 {
    header_u16(page, FLAGS_OFFSET)
}

/// Sets or clears bits of `pd_flags`.
pub(crate) fn set_flag(page: &mut PageBytes, flag: u16, on: bool) {
    let flags = if on { flags(page) | flag } else { flags(page) & !flag };
    set_header_u16(page, FLAGS_OFFSET, flags);
}

/// `pd_lower`: end of the line pointers.
pub(crate) fn lower(page: &PageBytes) -> u16 {
    header_u16(page, LOWER_OFFSET)
}

/// Overwrites `pd_lower`.
pub(crate) fn set_lower(page: &mut PageBytes, lower: u16) {
    set_header_u16(page, LOWER_OFFSET, lower);
}

/// `pd_upper`: start of the items.
pub(crate) fn upper(page: &PageBytes) -> u16 {
    header_u16(page, UPPER_OFFSET)
}

/// Overwrites `pd_upper`.
pub(crate) fn set_upper(page: &mut PageBytes, upper: u16) {
    set_header_u16(page, UPPER_OFFSET, upper);
}

/// `pd_special`: end of the items, start of what the access method keeps for itself.
pub(crate) fn special_start(page: &PageBytes) -> u16 {
    header_u16(page, SPECIAL_OFFSET)
}

/// `pd_prune_xid`
pub(crate) fn prune_xid(page: &PageBytes) -> u32 {
    let at = PRUNE_XID_OFFSET;
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

/// Overwrites `pd_prune_xid`.
pub(crate) fn set_prune_xid(page: &mut PageBytes, xid: u32) {
    page[PRUNE_XID_OFFSET..PRUNE_XID_OFFSET + 4].copy_from_slice(&xid.to_le_bytes());
}

/// `PageIsNew`: never initialized.
pub(crate) fn is_new(page: &PageBytes) -> bool {
    upper(page) == 0
}

/// `PageInit` with this much special space (rounded up to a multiple of eight).
pub(crate) fn init(page: &mut PageBytes, special_size: usize) {
    let special = PAGE_SIZE - max_align(special_size);
    invariant!("special-space-leaves-room", special > HEADER_BYTES, "{special_size} bytes");
    page.fill(0);
    set_lower(page, HEADER_BYTES as u16);
    set_upper(page, special as u16);
    set_header_u16(page, SPECIAL_OFFSET, special as u16);
    set_header_u16(page, SIZE_AND_VERSION_OFFSET, SIZE_AND_VERSION);
}

/// The special space: exactly `size` bytes, or a fault.
pub(crate) fn special(page: &PageBytes, size: usize) -> Redo<&[u8]> {
    let start = usize::from(special_start(page));
    expect(start + max_align(size) == PAGE_SIZE, "the page's special space is not the access method's")?;
    Ok(&page[start..start + size])
}

/// The special space: exactly `size` bytes, or a fault.
pub(crate) fn special_mut(page: &mut PageBytes, size: usize) -> Redo<&mut [u8]> {
    let start = usize::from(special_start(page));
    expect(start + max_align(size) == PAGE_SIZE, "the page's special space is not the access method's")?;
    Ok(&mut page[start..start + size])
}

/// `ItemIdData`: where an item is and in what state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LinePointer {
    /// Offset of the item in the page; the target for [`LP_REDIRECT`].
    pub(crate) offset: u16,
    /// `LP_*`
    pub(crate) flags: u8,
    /// Length of the item, zero if it has no storage.
    pub(crate) length: u16,
}

impl LinePointer {
    /// `ItemIdSetUnused`
    pub(crate) const UNUSED: LinePointer = LinePointer { offset: 0, flags: LP_UNUSED, length: 0 };
    /// `ItemIdSetDead`
    pub(crate) const DEAD: LinePointer = LinePointer { offset: 0, flags: LP_DEAD, length: 0 };

    /// `ItemIdSetNormal`
    pub(crate) fn normal(offset: u16, length: u16) -> Self {
        LinePointer { offset, flags: LP_NORMAL, length }
    }

    /// `ItemIdSetRedirect`
    pub(crate) fn redirect(target: u16) -> Self {
        LinePointer { offset: target, flags: LP_REDIRECT, length: 0 }
    }

    /// The C bit field `lp_off:15, lp_flags:2, lp_len:15`, lowest bits first.
    pub(super) fn decode(bytes: [u8; 4]) -> Self {
        let bits = u32::from_le_bytes(bytes);
        LinePointer {
            offset: (bits & OFFSET_MASK) as u16,
            flags: (bits >> FLAGS_SHIFT & FLAGS_MASK) as u8,
            length: (bits >> LENGTH_SHIFT) as u16,
        }
    }

    pub(super) fn encode(self) -> [u8; 4] {
        (u32::from(self.offset) & OFFSET_MASK
            | (u32::from(self.flags) & FLAGS_MASK) << FLAGS_SHIFT
            | (u32::from(self.length) & OFFSET_MASK) << LENGTH_SHIFT)
            .to_le_bytes()
    }

    /// `ItemIdIsUsed`
    pub(crate) fn is_used(self) -> bool {
        self.flags != LP_UNUSED
    }

    /// `ItemIdIsNormal`
    pub(crate) fn is_normal(self) -> bool {
        self.flags == LP_NORMAL
    }

    /// `ItemIdHasStorage`
    pub(crate) fn has_storage(self) -> bool {
        self.length != 0
    }
}

/// `PageGetMaxOffsetNumber`, bounded by what fits a page.
pub(crate) fn max_offset_number(page: &PageBytes) -> u16 {
    let lower = usize::from(lower(page)).min(PAGE_SIZE);
    (lower.saturating_sub(HEADER_BYTES) / ITEM_ID_BYTES) as u16
}

pub(super) fn line_pointer_at(offset_number: u16) -> usize {
    HEADER_BYTES + (usize::from(offset_number) - 1) * ITEM_ID_BYTES
}

/// `PageGetItemId` of an offset number (from one) that the page has.
pub(crate) fn line_pointer(page: &PageBytes, offset_number: u16) -> Redo<LinePointer> {
    expect(
        offset_number != 0 && offset_number <= max_offset_number(page),
        "the page has no such line pointer",
    )?;
    let at = line_pointer_at(offset_number);
    Ok(LinePointer::decode([page[at], page[at + 1], page[at + 2], page[at + 3]]))
}

/// Overwrites a line pointer that the page has.
pub(crate) fn set_line_pointer(page: &mut PageBytes, offset_number: u16, value: LinePointer) -> Redo {
    expect(
        offset_number != 0 && offset_number <= max_offset_number(page),
        "the page has no such line pointer",
    )?;
    put_line_pointer(page, offset_number, value);
    Ok(())
}

/// Overwrites a line pointer; the caller has checked that it lies on the page.
pub(super) fn put_line_pointer(page: &mut PageBytes, offset_number: u16, value: LinePointer) {
    let on_page = offset_number != 0 && usize::from(offset_number) <= LINE_POINTERS_MAX;
    invariant!("line-pointer-lies-on-the-page", on_page, "number {offset_number}");
    let at = line_pointer_at(offset_number);
    page[at..at + ITEM_ID_BYTES].copy_from_slice(&value.encode());
}

fn item_range(pointer: LinePointer) -> Redo<std::ops::Range<usize>> {
    let start = usize::from(pointer.offset);
    let end = start + usize::from(pointer.length);
    expect(
        pointer.has_storage() && start >= HEADER_BYTES && end <= PAGE_SIZE,
        "a line pointer points outside the page",
    )?;
    Ok(start..end)
}

/// `PageGetItem`: the bytes of an item that has storage.
pub(crate) fn item(page: &PageBytes, pointer: LinePointer) -> Redo<&[u8]> {
    item_range(pointer).map(|range| &page[range])
}

/// `PageGetItem`: the bytes of an item that has storage.
pub(crate) fn item_mut(page: &mut PageBytes, pointer: LinePointer) -> Redo<&mut [u8]> {
    item_range(pointer).map(|range| &mut page[range])
}

/// The header's pointers, when they are in order, as every function that moves items demands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) lower: usize,
    pub(super) upper: usize,
    pub(super) special: usize,
}

pub(super) fn bounds(page: &PageBytes) -> Redo<Bounds> {
    let bounds = Bounds {
        lower: usize::from(lower(page)),
        upper: usize::from(upper(page)),
        special: usize::from(special_start(page)),
    };
    expect(
        HEADER_BYTES <= bounds.lower
            && bounds.lower <= bounds.upper
            && bounds.upper <= bounds.special
            && bounds.special <= PAGE_SIZE,
        "the page header's pointers are corrupt",
    )?;
    Ok(bounds)
}

/// Says of a page that was changed what [`bounds`] asked of it before: the next record finds it so, or fails.
#[inline]
pub(super) fn assert_in_order(page: &PageBytes) {
    let (lower, upper, special) = (lower(page), upper(page), special_start(page));
    invariant!(
        "page-pointers-stay-in-order",
        HEADER_BYTES <= usize::from(lower)
            && lower <= upper
            && upper <= special
            && usize::from(special) <= PAGE_SIZE,
        "lower {lower}, upper {upper}, special {special}"
    );
}

/// How [`add_item`] treats the offset number it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Placing {
    /// `PAI_OVERWRITE | PAI_IS_HEAP`: that number, which must be unused or the next one, within a heap
    /// page's limit.
    Heap,
    /// `PAI_OVERWRITE`: that number, which must be unused or the next one.
    Overwrite,
    /// No flags: before the item that has the number now; later items move up by one number.
    Shift,
}

/// `PageAddItemExtended`: puts an item on the page and returns its offset number.
///
/// See [`reserve_item`].
pub(crate) fn add_item(page: &mut PageBytes, item: &[u8], offset_number: u16, placing: Placing) -> Redo<u16> {
    let (chosen, range) = reserve_item(page, item.len(), offset_number, placing)?;
    page[range].copy_from_slice(item);
    Ok(chosen)
}

/// All of `PageAddItemExtended` but copying the item: its offset number, and where on the page its bytes go. What
/// is there now is not part of any other item.
///
/// Offset number zero takes the first unused line pointer (if the page's hint says that there is one), else
/// the next. Every refusal, which PostgreSQL reports by returning zero and its redo functions by a panic, is a
/// fault.
pub(crate) fn reserve_item(
    page: &mut PageBytes,
    length: usize,
    offset_number: u16,
    placing: Placing,
) -> Redo<(u16, std::ops::Range<usize>)> {
    let bounds = bounds(page)?;
    let limit = max_offset_number(page) + 1;
    let mut chosen = offset_number;
    let mut shuffle = false;
    if offset_number != 0 {
        if offset_number < limit {
            if placing == Placing::Shift {
                shuffle = true;
            } else {
                let old = line_pointer(page, offset_number)?;
                expect(!old.is_used() && !old.has_storage(), "will not overwrite a used line pointer")?;
            }
        }
    } else {
        chosen = limit;
        if flags(page) & HAS_FREE_LINES != 0 {
            for candidate in 1..limit {
                let pointer = line_pointer(page, candidate)?;
                if !pointer.is_used() && !pointer.has_storage() {
                    chosen = candidate;
                    break;
                }
            }
            if chosen == limit {
                set_flag(page, HAS_FREE_LINES, false);
            }
        }
    }
    expect(chosen <= limit, "the item's offset number is too large")?;
    expect(placing != Placing::Heap || chosen <= HEAP_TUPLES_MAX, "too many line pointers for a heap page")?;

    let new_lower = if chosen == limit || shuffle { bounds.lower + ITEM_ID_BYTES } else { bounds.lower };
    let new_upper = bounds
        .upper
        .checked_sub(max_align(length))
        .filter(|new_upper| new_lower <= *new_upper)
        .ok_or(Fault::Failed("the item does not fit the page"))?;

    if shuffle {
        let at = line_pointer_at(chosen);
        page.copy_within(at..line_pointer_at(limit), at + ITEM_ID_BYTES);
    }
    put_line_pointer(page, chosen, LinePointer::normal(new_upper as u16, length as u16));
    set_lower(page, new_lower as u16);
    set_upper(page, new_upper as u16);
    assert_in_order(page);
    Ok((chosen, new_upper..new_upper + length))
}

/// `PageSetPrunable`
pub(crate) fn set_prunable(page: &mut PageBytes, xid: u32) {
    let old = prune_xid(page);
    if old == 0 || transaction_id::precedes(xid, old) {
        set_prune_xid(page, xid);
    }
}
