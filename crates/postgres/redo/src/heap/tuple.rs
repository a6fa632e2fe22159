//! A heap tuple's header. Layout: `HeapTupleHeaderData` in `src/include/access/htup_details.h`.

use std::ops::Range;

use borealis_types::{BlockNumber, PageBytes, invariant};
use borealis_wal::layout::heap::infobit;
use borealis_wal::layout::heap_tuple::{
    COMBO_CID, COMMAND_ID_OFFSET, CTID_OFFSET, HEADER_BYTES, HOFF_OFFSET, HOT_UPDATED, INFOMASK_OFFSET,
    INFOMASK2_OFFSET, KEYS_UPDATED, LOCK_MASK, MOVED, XMAX_BITS, XMAX_EXCL_LOCK, XMAX_IS_MULTI,
    XMAX_KEYSHR_LOCK, XMAX_LOCK_ONLY, XMAX_OFFSET, XMIN_FROZEN, XMIN_OFFSET,
};
use borealis_wal::layout::item_pointer::{
    INVALID_BLOCK, ITEM_POINTER_BYTES, MOVED_PARTITIONS_OFFSET_NUMBER, OFFSET_NUMBER_OFFSET,
    SPECULATIVE_OFFSET_NUMBER,
};

use crate::bytes::{Reader, u16_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::{self, LinePointer, Placing};

/// Where a tuple is: `ItemPointerData`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ItemPointer {
    /// The block of the heap it is on.
    pub(crate) block: BlockNumber,
    /// The number of its line pointer, from one.
    pub(crate) offset_number: u16,
}

impl ItemPointer {
    /// What `HeapTupleHeaderSetMovedPartitions` writes: the row moved to another partition.
    pub(crate) const MOVED_PARTITIONS: ItemPointer =
        ItemPointer { block: INVALID_BLOCK, offset_number: MOVED_PARTITIONS_OFFSET_NUMBER };

    /// Two halves of the block number, the high one first, then the offset number.
    fn encode(self) -> [u8; ITEM_POINTER_BYTES] {
        let high = ((self.block >> 16) as u16).to_le_bytes();
        let low = (self.block as u16).to_le_bytes();
        let offset_number = self.offset_number.to_le_bytes();
        [high[0], high[1], low[0], low[1], offset_number[0], offset_number[1]]
    }
}

/// A tuple on a page, at least as long as its header.
pub(crate) struct Tuple<'p>(&'p mut [u8]);

impl<'p> Tuple<'p> {
    /// The tuple with this offset number; a fault unless its line pointer exists and is normal.
    pub(crate) fn on_page(page: &'p mut PageBytes, offset_number: u16) -> Redo<Tuple<'p>> {
        let pointer = page::line_pointer(page, offset_number)?;
        expect(pointer.is_normal(), "the tuple's line pointer is not normal")?;
        Tuple::at(page, pointer)
    }

    /// The tuple a line pointer points to.
    pub(crate) fn at(page: &'p mut PageBytes, pointer: LinePointer) -> Redo<Tuple<'p>> {
        Tuple::new(page::item_mut(page, pointer)?)
    }

    fn new(bytes: &'p mut [u8]) -> Redo<Tuple<'p>> {
        expect(bytes.len() >= HEADER_BYTES, "a heap tuple is shorter than its header")?;
        Ok(Tuple(bytes))
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        self.0[offset..offset + value.len()].copy_from_slice(value);
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.0[offset], self.0[offset + 1]])
    }

    /// `t_infomask`
    pub(crate) fn infomask(&self) -> u16 {
        self.u16(INFOMASK_OFFSET)
    }

    /// Overwrites `t_infomask`.
    pub(crate) fn set_infomask(&mut self, infomask: u16) {
        self.put(INFOMASK_OFFSET, &infomask.to_le_bytes());
    }

    fn infomask2(&self) -> u16 {
        self.u16(INFOMASK2_OFFSET)
    }

    /// Overwrites `t_infomask2`.
    pub(crate) fn set_infomask2(&mut self, infomask2: u16) {
        self.put(INFOMASK2_OFFSET, &infomask2.to_le_bytes());
    }

    /// Overwrites `t_xmin`.
    pub(crate) fn set_xmin(&mut self, xid: u32) {
        self.put(XMIN_OFFSET, &xid.to_le_bytes());
    }

    /// Overwrites `t_xmax`.
    pub(crate) fn set_xmax(&mut self, xid: u32) {
        self.put(XMAX_OFFSET, &xid.to_le_bytes());
    }

    /// Overwrites the field that holds a command id or, in tuples of old, `t_xvac`.
    pub(crate) fn set_command_id_field(&mut self, value: u32) {
        self.put(COMMAND_ID_OFFSET, &value.to_le_bytes());
    }

    /// `HeapTupleHeaderSetCmin` and `HeapTupleHeaderSetCmax` with `FirstCommandId`.
    pub(crate) fn set_first_command_id(&mut self) {
        self.set_command_id_field(0);
        self.set_infomask(self.infomask() & !COMBO_CID);
    }

    /// Overwrites `t_ctid`.
    pub(crate) fn set_ctid(&mut self, ctid: ItemPointer) {
        self.put(CTID_OFFSET, &ctid.encode());
    }

    /// `HeapTupleHeaderSetHotUpdated` and `HeapTupleHeaderClearHotUpdated`
    pub(crate) fn set_hot_updated(&mut self, hot_updated: bool) {
        let infomask2 = self.infomask2();
        self.set_infomask2(if hot_updated { infomask2 | HOT_UPDATED } else { infomask2 & !HOT_UPDATED });
    }

    /// Forgets what `t_xmax` meant and sets what a record's `infobits_set` says it means now.
    pub(crate) fn set_xmax_meaning(&mut self, infobits: u8) {
        let mut infomask = self.infomask() & !(XMAX_BITS | MOVED);
        let mut infomask2 = self.infomask2() & !KEYS_UPDATED;
        for (of_record, bit) in [
            (infobit::XMAX_IS_MULTI, XMAX_IS_MULTI),
            (infobit::XMAX_LOCK_ONLY, XMAX_LOCK_ONLY),
            (infobit::XMAX_EXCL_LOCK, XMAX_EXCL_LOCK),
            (infobit::XMAX_KEYSHR_LOCK, XMAX_KEYSHR_LOCK),
        ] {
            if infobits & of_record != 0 {
                infomask |= bit;
            }
        }
        if infobits & infobit::KEYS_UPDATED != 0 {
            infomask2 |= KEYS_UPDATED;
        }
        self.set_infomask(infomask);
        self.set_infomask2(infomask2);
    }

    /// `HEAP_XMAX_IS_LOCKED_ONLY`
    pub(crate) fn is_locked_only(&self) -> bool {
        let infomask = self.infomask();
        infomask & XMAX_LOCK_ONLY != 0 || infomask & (XMAX_IS_MULTI | LOCK_MASK) == XMAX_EXCL_LOCK
    }

    /// `HeapTupleHeaderXminFrozen`
    pub(crate) fn is_xmin_frozen(&self) -> bool {
        self.infomask() & XMIN_FROZEN == XMIN_FROZEN
    }

    /// `HeapTupleHeaderIsSpeculative`
    pub(crate) fn is_speculative(&self) -> bool {
        self.u16(CTID_OFFSET + OFFSET_NUMBER_OFFSET) == SPECULATIVE_OFFSET_NUMBER
    }

    /// What follows the header and null bitmap (`t_hoff` bytes).
    pub(crate) fn data_mut(&mut self) -> Redo<&mut [u8]> {
        let start = usize::from(self.0[HOFF_OFFSET]);
        self.0.get_mut(start..).ok_or(Fault::Failed("a heap tuple's header is longer than the tuple"))
    }
}

/// Where the tuple with this offset number is on the page, and where its data begins: after the header and null
/// bitmap (`t_hoff` bytes).
pub(crate) fn ranges_on_page(page: &PageBytes, offset_number: u16) -> Redo<(Range<usize>, usize)> {
    let pointer = page::line_pointer(page, offset_number)?;
    expect(pointer.is_normal(), "the tuple's line pointer is not normal")?;
    let length = page::item(page, pointer)?.len();
    expect(length >= HEADER_BYTES, "a heap tuple is shorter than its header")?;
    let start = usize::from(pointer.offset);
    let data_start = start + usize::from(page[start + HOFF_OFFSET]);
    expect(data_start <= start + length, "a heap tuple's header is longer than the tuple")?;
    Ok((start..start + length, data_start))
}

/// `xl_heap_header`: the fields of a tuple's header that a record stores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredHeader {
    infomask2: u16,
    infomask: u16,
    /// `t_hoff`: header, null bitmap and padding.
    pub(crate) hoff: u8,
}

impl StoredHeader {
    /// Reads one; five bytes, no padding.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Redo<StoredHeader> {
        Ok(StoredHeader { infomask2: reader.u16()?, infomask: reader.u16()?, hoff: reader.u8()? })
    }
}

/// Part of a new tuple, after its header.
#[derive(Clone, Debug)]
pub(crate) enum Piece<'r> {
    /// Bytes that the record stores.
    New(&'r [u8]),
    /// Bytes of an older tuple, by where they are on the page.
    OnPage(Range<usize>),
}

/// What the header of a new tuple says besides what the record stores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewTuple {
    /// The header fields that the record stores.
    pub(crate) header: StoredHeader,
    /// `t_xmin`
    pub(crate) xmin: u32,
    /// `t_xmax`
    pub(crate) xmax: u32,
    /// `t_ctid`
    pub(crate) ctid: ItemPointer,
    /// Which line pointer it gets.
    pub(crate) offset_number: u16,
}

impl NewTuple {
    /// Puts the tuple together right where it belongs on the page, as every redo function that inserts one does.
    pub(crate) fn add_to(self, page: &mut PageBytes, pieces: &[Piece<'_>]) -> Redo {
        let length = HEADER_BYTES
            + pieces
                .iter()
                .map(|piece| match piece {
                    Piece::New(bytes) => bytes.len(),
                    Piece::OnPage(range) => range.len(),
                })
                .sum::<usize>();
        let (_, range) = page::reserve_item(page, length, self.offset_number, Placing::Heap)?;
        self.fill(page, range, pieces);
        Ok(())
    }

    /// Writes the header and the pieces to where the item is to be.
    pub(super) fn fill(self, page: &mut PageBytes, range: Range<usize>, pieces: &[Piece<'_>]) {
        let mut header = [0; HEADER_BYTES];
        header[HOFF_OFFSET] = self.header.hoff;
        let mut tuple = Tuple(&mut header);
        tuple.set_infomask2(self.header.infomask2);
        tuple.set_infomask(self.header.infomask);
        tuple.set_xmin(self.xmin);
        tuple.set_first_command_id();
        tuple.set_xmax(self.xmax);
        tuple.set_ctid(self.ctid);
        let mut at = range.start + HEADER_BYTES;
        page[range.start..at].copy_from_slice(&header);
        for piece in pieces {
            match piece {
                Piece::New(bytes) => {
                    page[at..at + bytes.len()].copy_from_slice(bytes);
                    at += bytes.len();
                }
                Piece::OnPage(range) => {
                    page.copy_within(range.clone(), at);
                    at += range.len();
                }
            }
        }
        invariant!("new-tuple-fills-its-item", at == range.end, "written to {at}, item to {}", range.end);
    }
}

/// The name of the header field at `offset` in a tuple, for messages.
pub(crate) fn field_name(offset: usize) -> &'static str {
    match offset {
        0..XMAX_OFFSET => "t_xmin",
        XMAX_OFFSET..COMMAND_ID_OFFSET => "t_xmax",
        COMMAND_ID_OFFSET..CTID_OFFSET => "t_cid",
        CTID_OFFSET..INFOMASK2_OFFSET => "t_ctid",
        INFOMASK2_OFFSET..INFOMASK_OFFSET => "t_infomask2",
        INFOMASK_OFFSET..HOFF_OFFSET => "t_infomask",
        HOFF_OFFSET => "t_hoff",
        _ => "tuple data",
    }
}

/// The offset numbers a record stores as an array.
pub(crate) fn offset_numbers(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).filter_map(|pair| u16_at(pair, 0).ok())
}
