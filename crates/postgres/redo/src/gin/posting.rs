//! Pages of posting trees, which hold heap positions in order.
//!
//! Layout: `src/include/access/ginblock.h`. After the page header comes the page's right bound, then the data:
//! on inner pages items of a child block and the child's right bound, ten bytes each; on leaves compressed
//! posting lists ("segments", `src/backend/access/gin/ginpostinglist.c`).

use arrayvec::ArrayVec;
use borealis_types::PageBytes;
use borealis_wal::layout::gin::{
    DATA_OFFSET, OFFSET_NUMBER_BITS, POSTING_DATA_MAX, POSTING_ITEM_BYTES, SEGMENT_HEADER_BYTES,
    SEGMENT_LENGTH_OFFSET, flag, segment_action as action,
};
use borealis_wal::layout::item_pointer::ITEM_POINTER_BYTES;

use super::opaque::Opaque;
use crate::btree::tuple;
use crate::bytes::{Reader, u16_at};
use crate::fault::{Fault, Redo, expect};
use crate::page;

/// `GinDataPageSetDataSize`
fn set_data_size(page: &mut PageBytes, size: usize) -> Redo {
    expect(size <= POSTING_DATA_MAX, "a posting tree page's data does not fit the page")?;
    page::set_lower(page, (DATA_OFFSET + size) as u16);
    Ok(())
}

/// Replaces the data of a leaf.
pub(super) fn set_leaf_data(page: &mut PageBytes, data: &[u8]) -> Redo {
    set_data_size(page, data.len())?;
    page[DATA_OFFSET..DATA_OFFSET + data.len()].copy_from_slice(data);
    Ok(())
}

/// An inner page's items, with room for one more. Nothing else says how many there are.
fn items(page: &mut PageBytes) -> Redo<(Opaque, &mut [u8])> {
    let opaque = Opaque::read(page)?;
    expect(opaque.flags & flag::LEAF == 0, "a leaf of a posting tree has no items")?;
    let size = (usize::from(opaque.count) + 1) * POSTING_ITEM_BYTES;
    expect(size <= POSTING_DATA_MAX + POSTING_ITEM_BYTES, "a posting tree page has too many items")?;
    let room = size.min(POSTING_DATA_MAX);
    Ok((opaque, &mut page[DATA_OFFSET..DATA_OFFSET + room]))
}

fn set_count(page: &mut PageBytes, opaque: Opaque, count: u16) -> Redo {
    Opaque { count, ..opaque }.write(page)?;
    set_data_size(page, usize::from(count) * POSTING_ITEM_BYTES)
}

/// `ginRedoInsertData` on an inner page (`GinDataPageAddPostingItem`): the item that is there now leads to the
/// right half of the child that was split, and a new item for the left half goes before it. Data
/// (`ginxlogInsertDataInternal`): item number, the new item.
pub(super) fn insert_item(page: &mut PageBytes, data: &[u8], right_child: u32) -> Redo {
    let mut data = Reader::new(data);
    let number = usize::from(data.u16()?);
    let new_item = data.bytes(POSTING_ITEM_BYTES)?;
    let (opaque, items) = items(page)?;
    let count = usize::from(opaque.count);
    expect((1..=count).contains(&number), "a posting tree page has no such item")?;
    expect(items.len() == (count + 1) * POSTING_ITEM_BYTES, "a posting tree page is full")?;
    let at = (number - 1) * POSTING_ITEM_BYTES;
    tuple::set_block_number(&mut items[at..at + POSTING_ITEM_BYTES], right_child)?;
    items.copy_within(at..count * POSTING_ITEM_BYTES, at + POSTING_ITEM_BYTES);
    items[at..at + POSTING_ITEM_BYTES].copy_from_slice(new_item);
    set_count(page, opaque, (count + 1) as u16)
}

/// `GinPageDeletePostingItem`
pub(super) fn delete_item(page: &mut PageBytes, number: u16) -> Redo {
    let (opaque, items) = items(page)?;
    expect((1..=opaque.count).contains(&number), "a posting tree page has no such item")?;
    let (at, end) =
        (usize::from(number - 1) * POSTING_ITEM_BYTES, usize::from(opaque.count) * POSTING_ITEM_BYTES);
    items.copy_within(at + POSTING_ITEM_BYTES..end, at);
    set_count(page, opaque, opaque.count - 1)
}

/// `SizeOfGinPostingList` of the segment at the start of `bytes`, and the bytes after it.
fn split_segment(bytes: &[u8]) -> Redo<(&[u8], &[u8])> {
    let size = SEGMENT_HEADER_BYTES + usize::from(u16_at(bytes, SEGMENT_LENGTH_OFFSET)?).next_multiple_of(2);
    bytes.split_at_checked(size).ok_or(Fault::Failed("a posting list segment is longer than its data"))
}

/// A heap position as a number, in the order of heap positions (`itemptr_to_uint64`).
fn position_number(bytes: &[u8]) -> Redo<u64> {
    let offset = u16_at(bytes, 4)?;
    expect(
        offset < 1 << OFFSET_NUMBER_BITS,
        "a heap position's offset number is too large for a posting list",
    )?;
    Ok(u64::from(tuple::block_number(bytes)?) << OFFSET_NUMBER_BITS | u64::from(offset))
}

/// The numbers of a segment's heap positions (`ginPostingListDecode`).
struct Decoder<'a> {
    /// The next number; `None` after the last.
    next: Option<u64>,
    /// The differences of those after it.
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn new(segment: &'a [u8]) -> Redo<Decoder<'a>> {
        let length = usize::from(u16_at(segment, SEGMENT_LENGTH_OFFSET)?);
        let bytes = segment
            .get(SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + length)
            .ok_or(Fault::Failed("a posting list segment is longer than its data"))?;
        Ok(Decoder { next: Some(position_number(segment)?), bytes })
    }

    /// The number that comes next, which stays.
    fn peek(&self) -> Option<u64> {
        self.next
    }

    /// Passes the number that comes next.
    fn advance(&mut self) -> Redo {
        let Some(number) = self.next.take().filter(|_| !self.bytes.is_empty()) else { return Ok(()) };
        let mut difference = 0;
        for shift in (0..49).step_by(7) {
            let (byte, rest) = self
                .bytes
                .split_first()
                .ok_or(Fault::Failed("a posting list segment ends inside a number"))?;
            self.bytes = rest;
            difference |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            expect(shift < 42, "a number in a posting list segment is too long")?;
        }
        let number = number + difference;
        expect(number >> OFFSET_NUMBER_BITS <= u64::from(u32::MAX), "a posting list leads outside the heap")?;
        self.next = Some(number);
        Ok(())
    }
}

/// The data of a leaf being made.
type LeafData = ArrayVec<u8, POSTING_DATA_MAX>;

fn append(data: &mut LeafData, bytes: &[u8]) -> Redo {
    data.try_extend_from_slice(bytes)
        .map_err(|_| Fault::Failed("a posting tree page's data does not fit the page"))
}

/// Writes a segment of heap positions, which ascend (`ginCompressPostingList`): the first in full, then the
/// differences, seven bits to a byte, the lowest first.
struct Encoder<'d> {
    data: &'d mut LeafData,
    /// Where the segment starts in the data.
    start: usize,
    /// The last number written; `None` before the first.
    last: Option<u64>,
}

impl<'d> Encoder<'d> {
    fn new(data: &'d mut LeafData) -> Encoder<'d> {
        let start = data.len();
        Encoder { data, start, last: None }
    }

    fn push(&mut self, number: u64) -> Redo {
        let Some(last) = self.last.replace(number) else {
            let mut header = [0; SEGMENT_HEADER_BYTES];
            tuple::set_block_number(&mut header, (number >> OFFSET_NUMBER_BITS) as u32)?;
            header[4..6].copy_from_slice(&((number & ((1 << OFFSET_NUMBER_BITS) - 1)) as u16).to_le_bytes());
            return append(self.data, &header);
        };
        let mut difference =
            number.checked_sub(last).ok_or(Fault::Failed("the items of a posting list do not ascend"))?;
        while difference > 0x7F {
            append(self.data, &[0x80 | (difference & 0x7F) as u8])?;
            difference >>= 7;
        }
        append(self.data, &[difference as u8])
    }

    fn finish(self) -> Redo {
        expect(self.last.is_some(), "a posting list segment has no items")?;
        let length = self.data.len() - self.start - SEGMENT_HEADER_BYTES;
        // No longer than a page, so it fits two bytes.
        self.data[self.start + SEGMENT_LENGTH_OFFSET..self.start + SEGMENT_HEADER_BYTES]
            .copy_from_slice(&(length as u16).to_le_bytes());
        if length % 2 == 1 { append(self.data, &[0]) } else { Ok(()) }
    }
}

/// Appends the segment with `added`, which ascend, put among its items, each item once
/// (`ginMergeItemPointers`).
fn append_merged(data: &mut LeafData, segment: &[u8], added: &[u8]) -> Redo {
    let mut old = Decoder::new(segment)?;
    let mut encoder = Encoder::new(data);
    for heap_position in added.chunks_exact(ITEM_POINTER_BYTES) {
        let number = position_number(heap_position)?;
        while let Some(old_number) = old.peek().filter(|old_number| *old_number <= number) {
            if old_number < number {
                encoder.push(old_number)?;
            }
            old.advance()?;
        }
        // What repeats the one before it is the same item.
        if encoder.last != Some(number) {
            encoder.push(number)?;
        }
    }
    while let Some(number) = old.peek() {
        encoder.push(number)?;
        old.advance()?;
    }
    encoder.finish()
}

/// The data of a leaf, in the present format. Leaves from before version 9.4 have plain heap positions.
fn leaf_data(page: &PageBytes, opaque: Opaque) -> Redo<LeafData> {
    let mut data = LeafData::new();
    if opaque.flags & flag::COMPRESSED != 0 {
        let end = usize::from(page::lower(page));
        let old = page.get(DATA_OFFSET..end.min(DATA_OFFSET + POSTING_DATA_MAX));
        append(&mut data, old.ok_or(Fault::Failed("a posting tree leaf's data has no valid end"))?)?;
    } else if opaque.count > 0 {
        let size = usize::from(opaque.count) * ITEM_POINTER_BYTES;
        expect(size <= POSTING_DATA_MAX, "a posting tree page has too many items")?;
        let mut encoder = Encoder::new(&mut data);
        for heap_position in page[DATA_OFFSET..DATA_OFFSET + size].chunks_exact(ITEM_POINTER_BYTES) {
            encoder.push(position_number(heap_position)?)?;
        }
        encoder.finish()?;
    }
    Ok(data)
}

/// `ginRedoRecompress`. Data (`ginxlogRecompressDataLeaf`): number of actions, then for each the number of the
/// segment it is about, what is done, and the segment or items that are new.
pub(super) fn recompress(page: &mut PageBytes, data: &[u8]) -> Redo {
    let opaque = Opaque::read(page)?;
    let old = leaf_data(page, opaque)?;
    let mut data = Reader::new(data);
    let mut new = LeafData::new();
    let mut rest = old.as_slice();
    let mut segment_number = 0;
    for _ in 0..data.u16()? {
        let (number, kind) = (data.u8()?, data.u8()?);
        while segment_number < number {
            let (segment, following) = split_segment(rest)?;
            append(&mut new, segment)?;
            rest = following;
            segment_number += 1;
        }
        let mut remove_old = || -> Redo<&[u8]> {
            let (segment, following) = split_segment(rest)?;
            rest = following;
            segment_number = segment_number.saturating_add(1);
            Ok(segment)
        };
        match kind {
            action::DELETE => {
                remove_old()?;
            }
            action::INSERT => append(&mut new, read_segment(&mut data)?)?,
            action::REPLACE => {
                append(&mut new, read_segment(&mut data)?)?;
                remove_old()?;
            }
            action::ADD_ITEMS => {
                let count = usize::from(data.u16()?);
                let added = data.bytes(count * ITEM_POINTER_BYTES)?;
                append_merged(&mut new, remove_old()?, added)?;
            }
            _ => return Err(Fault::Failed("a GIN record does something unknown to a posting list segment")),
        }
    }
    append(&mut new, rest)?;
    if opaque.flags & flag::COMPRESSED == 0 {
        Opaque { flags: opaque.flags | flag::COMPRESSED, count: 0, ..opaque }.write(page)?;
    }
    set_leaf_data(page, &new)
}

/// The segment that comes next in a record.
fn read_segment<'a>(data: &mut Reader<'a>) -> Redo<&'a [u8]> {
    let header = data.bytes(SEGMENT_HEADER_BYTES)?;
    let length = usize::from(u16_at(header, SEGMENT_LENGTH_OFFSET)?).next_multiple_of(2);
    data.rejoin(SEGMENT_HEADER_BYTES, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(numbers: &[u64]) -> Vec<u8> {
        let mut data = LeafData::new();
        let mut encoder = Encoder::new(&mut data);
        numbers.iter().try_for_each(|number| encoder.push(*number)).unwrap();
        encoder.finish().unwrap();
        data.to_vec()
    }

    fn decode(segment: &[u8]) -> Vec<u64> {
        let mut decoder = Decoder::new(segment).unwrap();
        std::iter::from_fn(|| {
            let number = decoder.peek();
            decoder.advance().unwrap();
            number
        })
        .collect()
    }

    proptest! {
        #[test]
        fn encode_and_decode_are_inverse(positions in proptest::collection::btree_set((any::<u32>(), 1_u16..2048), 1..60)) {
            let numbers: Vec<u64> = positions
                .iter()
                .map(|(block, offset)| u64::from(*block) << OFFSET_NUMBER_BITS | u64::from(*offset))
                .collect();
            let segment = encode(&numbers);
            prop_assert_eq!(segment.len() % 2, 0);
            prop_assert_eq!(split_segment(&segment).unwrap(), (segment.as_slice(), [].as_slice()));
            prop_assert_eq!(decode(&segment), numbers);
        }

        #[test]
        fn merging_puts_both_lists_in_order_with_each_item_once(
            old in proptest::collection::btree_set((0_u32..40, 1_u16..9), 1..60),
            added in proptest::collection::btree_set((0_u32..40, 1_u16..9), 1..60),
        ) {
            let number = |position: &(u32, u16)| u64::from(position.0) << OFFSET_NUMBER_BITS | u64::from(position.1);
            let bytes: Vec<u8> = added
                .iter()
                .flat_map(|(block, offset)| [[0, 0], (*block as u16).to_le_bytes(), offset.to_le_bytes()])
                .flatten()
                .collect();
            let mut merged = LeafData::new();
            append_merged(&mut merged, &encode(&old.iter().map(number).collect::<Vec<_>>()), &bytes).unwrap();
            let expected: Vec<u64> = old.union(&added).map(number).collect();
            prop_assert_eq!(decode(&merged), expected);
        }

        #[test]
        fn hostile_leaves_never_panic(
            leaf in proptest::collection::vec(prop_oneof![0_u8..10, any::<u8>()], 0..60),
            data in proptest::collection::vec(prop_oneof![0_u8..5, any::<u8>()], 0..60),
            flags: u16, count in 0_u16..2000, lower: u16,
        ) {
            let mut page = [0; borealis_types::PAGE_SIZE];
            super::super::opaque::init_page(&mut page, flags).unwrap();
            page[DATA_OFFSET..DATA_OFFSET + leaf.len()].copy_from_slice(&leaf);
            page::set_lower(&mut page, lower);
            let opaque = Opaque::read(&page).unwrap();
            Opaque { count, ..opaque }.write(&mut page).unwrap();
            let _ = recompress(&mut page.clone(), &data);
            let _ = insert_item(&mut page.clone(), &data, 7);
            let _ = delete_item(&mut page, count / 2);
        }
    }

    #[test]
    fn every_action_does_its_part() {
        let segment = |numbers: &[u64]| encode(numbers);
        let number = |block: u64, offset: u64| block << OFFSET_NUMBER_BITS | offset;
        let old = [
            segment(&[number(1, 1), number(1, 2)]),
            segment(&[number(2, 1)]),
            segment(&[number(3, 1), number(9, 1)]),
            segment(&[number(10, 1)]),
        ];
        let mut page = [0; borealis_types::PAGE_SIZE];
        super::super::opaque::init_page(&mut page, flag::DATA | flag::LEAF | flag::COMPRESSED).unwrap();
        set_leaf_data(&mut page, &old.concat()).unwrap();
        let mut data = vec![4, 0, 0, action::DELETE, 1, action::REPLACE];
        data.extend(segment(&[number(2, 5)]));
        data.extend([2, action::ADD_ITEMS, 2, 0, 0, 0, 3, 0, 1, 0, 0, 0, 5, 0, 1, 0]);
        data.extend([4, action::INSERT]);
        data.extend(segment(&[number(11, 1)]));
        recompress(&mut page, &data).unwrap();
        let expected = [
            segment(&[number(2, 5)]),
            segment(&[number(3, 1), number(5, 1), number(9, 1)]),
            segment(&[number(10, 1)]),
            segment(&[number(11, 1)]),
        ];
        assert_eq!(page[DATA_OFFSET..usize::from(page::lower(&page))], expected.concat());
    }
}
