//! Index tuples of a B-tree: plain ones, pivots, and posting lists.
//!
//! Layouts: `src/include/access/itup.h` and the notes on tuple formats in `src/include/access/nbtree.h`.
//! A tuple is its heap position (block number in two halves, offset number), its info word, then its keys.

use arrayvec::ArrayVec;
use borealis_types::PAGE_SIZE;
use borealis_wal::layout::btree::{ALTERNATIVE_POSITION, COUNT_MASK, IS_POSTING, STATUS_OFFSET};
pub(crate) use borealis_wal::layout::index_tuple::HEADER_BYTES;
use borealis_wal::layout::index_tuple::{INFO_OFFSET, SIZE_MASK};
use borealis_wal::layout::item_pointer::ITEM_POINTER_BYTES;

use crate::bytes::{put, u16_at};
use crate::fault::{Fault, Redo, expect};
use crate::page::max_align;

/// The bytes of a tuple that is put together.
pub(super) type IndexTuple = ArrayVec<u8, PAGE_SIZE>;
/// Heap positions being collected, as many as a posting list can count.
pub(super) type HeapPositions = ArrayVec<u8, { ITEM_POINTER_BYTES * COUNT_MASK as usize }>;

/// `IndexTupleSize`
pub(crate) fn size(tuple: &[u8]) -> Redo<usize> {
    u16_at(tuple, INFO_OFFSET).map(|info| usize::from(info & SIZE_MASK))
}

/// The first tuple in `bytes`, in as many bytes as it takes on a page (`MAXALIGN`), and what follows it.
pub(crate) fn split_first(bytes: &[u8]) -> Redo<(&[u8], &[u8])> {
    let aligned_size = max_align(size(bytes)?);
    expect(aligned_size >= HEADER_BYTES, "an index tuple is smaller than its header")?;
    bytes.split_at_checked(aligned_size).ok_or(Fault::Failed("an index tuple is longer than its data"))
}

/// `BTreeTupleGetDownLink`: the block number in the heap position.
pub(crate) fn block_number(tuple: &[u8]) -> Redo<u32> {
    Ok(u32::from(u16_at(tuple, 0)?) << 16 | u32::from(u16_at(tuple, 2)?))
}

/// `BTreeTupleSetDownLink`
pub(crate) fn set_block_number(tuple: &mut [u8], block: u32) -> Redo {
    put(tuple, 0, &((block >> 16) as u16).to_le_bytes())?;
    put(tuple, 2, &(block as u16).to_le_bytes())
}

/// The key-less high key of a half-dead page, which points to the topmost page of the doomed subtree
/// (`BTreeTupleSetTopParent`).
pub(super) fn top_parent_link(top_parent: u32) -> [u8; HEADER_BYTES] {
    let mut tuple = [0; HEADER_BYTES];
    tuple[..2].copy_from_slice(&((top_parent >> 16) as u16).to_le_bytes());
    tuple[2..4].copy_from_slice(&(top_parent as u16).to_le_bytes());
    tuple[INFO_OFFSET..].copy_from_slice(&(HEADER_BYTES as u16 | ALTERNATIVE_POSITION).to_le_bytes());
    tuple
}

/// `BTreeTupleIsPosting`
pub(super) fn is_posting(tuple: &[u8]) -> Redo<bool> {
    Ok(u16_at(tuple, INFO_OFFSET)? & ALTERNATIVE_POSITION != 0
        && u16_at(tuple, STATUS_OFFSET)? & IS_POSTING != 0)
}

/// Where a posting list's heap positions are in its tuple.
fn posting_range(posting: &[u8]) -> Redo<std::ops::Range<usize>> {
    expect(is_posting(posting)?, "the index tuple is not a posting list")?;
    let count = usize::from(u16_at(posting, STATUS_OFFSET)? & COUNT_MASK);
    let start = block_number(posting)? as usize;
    let end = start.saturating_add(count * ITEM_POINTER_BYTES);
    expect(start >= HEADER_BYTES && end <= posting.len(), "a posting list reaches outside its tuple")?;
    Ok(start..end)
}

/// The heap positions a leaf tuple stands for, six bytes each: those of its posting list, or its own one.
pub(super) fn heap_positions(tuple: &[u8]) -> Redo<&[u8]> {
    if is_posting(tuple)? {
        Ok(&tuple[posting_range(tuple)?])
    } else {
        tuple.get(..ITEM_POINTER_BYTES).ok_or(Fault::Failed("an index tuple is smaller than its header"))
    }
}

/// A plain tuple's own heap position.
pub(super) fn heap_position(tuple: &[u8]) -> Redo<[u8; ITEM_POINTER_BYTES]> {
    tuple.first_chunk().copied().ok_or(Fault::Failed("an index tuple is smaller than its header"))
}

/// `_bt_form_posting`: a tuple with `base`'s keys for these heap positions; a plain one if there is only one.
pub(super) fn form_posting(base: &[u8], heap_positions: &[u8]) -> Redo<IndexTuple> {
    let key_size = if is_posting(base)? { posting_range(base)?.start } else { size(base)? };
    let keys = base.get(..key_size).ok_or(Fault::Failed("an index tuple is longer than its item"))?;
    expect(
        key_size >= HEADER_BYTES && key_size == max_align(key_size),
        "an index tuple's size is not aligned",
    )?;
    let count = heap_positions.len() / ITEM_POINTER_BYTES;
    expect(count > 0 && count <= usize::from(COUNT_MASK), "a posting list has too few or too many items")?;
    let new_size = if count > 1 { max_align(key_size + heap_positions.len()) } else { key_size };
    expect(new_size <= usize::from(SIZE_MASK), "a posting list is too long for a tuple")?;

    // Only the padding after a posting list is neither keys nor heap positions.
    let mut tuple = IndexTuple::new();
    for part in [keys, if count > 1 { heap_positions } else { &[] }] {
        tuple
            .try_extend_from_slice(part)
            .map_err(|_| Fault::Failed("a posting list is longer than a page"))?;
    }
    while tuple.len() < new_size {
        tuple.try_push(0).map_err(|_| Fault::Failed("a posting list is longer than a page"))?;
    }
    let info = u16_at(base, INFO_OFFSET)? & !SIZE_MASK | new_size as u16;
    if count > 1 {
        put(&mut tuple, INFO_OFFSET, &(info | ALTERNATIVE_POSITION).to_le_bytes())?;
        put(&mut tuple, STATUS_OFFSET, &(count as u16 | IS_POSTING).to_le_bytes())?;
        set_block_number(&mut tuple, key_size as u32)?;
    } else {
        put(&mut tuple, INFO_OFFSET, &(info & !ALTERNATIVE_POSITION).to_le_bytes())?;
        put(&mut tuple, 0, heap_positions)?;
    }
    Ok(tuple)
}

/// `_bt_swap_posting`: puts the heap position of `new_item` into the posting list before its item number
/// `posting_offset`, and the one that falls out at the end into `new_item`.
pub(super) fn swap_posting(new_item: &mut [u8], posting: &mut [u8], posting_offset: u16) -> Redo {
    let range = posting_range(posting)?;
    let list = &mut posting[range];
    let at = usize::from(posting_offset) * ITEM_POINTER_BYTES;
    expect(at > 0 && at < list.len(), "a posting list cannot be split there")?;
    let swapped = new_item
        .first_chunk_mut::<ITEM_POINTER_BYTES>()
        .ok_or(Fault::Failed("an index tuple is smaller than its header"))?;
    let last = list.len() - ITEM_POINTER_BYTES;
    let mut fallen = [0; ITEM_POINTER_BYTES];
    fallen.copy_from_slice(&list[last..]);
    list.copy_within(at..last, at + ITEM_POINTER_BYTES);
    list[at..at + ITEM_POINTER_BYTES].copy_from_slice(swapped);
    *swapped = fallen;
    Ok(())
}

/// `_bt_update_posting`: the tuple without the items of its posting list that have these numbers (ascending,
/// from zero).
pub(super) fn update_posting(original: &[u8], deleted: impl Iterator<Item = u16>) -> Redo<IndexTuple> {
    let list = &original[posting_range(original)?];
    let mut kept = HeapPositions::new();
    let mut doomed = deleted.peekable();
    for (number, heap_position) in list.chunks_exact(ITEM_POINTER_BYTES).enumerate() {
        if doomed.next_if(|next| usize::from(*next) == number).is_none() {
            kept.try_extend_from_slice(heap_position)
                .map_err(|_| Fault::Failed("a posting list has too many items"))?;
        }
    }
    expect(doomed.peek().is_none(), "the items to delete are not in the posting list")?;
    form_posting(original, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A plain tuple with an eight-byte key.
    pub(crate) fn plain(key: u64, heap_block: u32, heap_offset: u16) -> Vec<u8> {
        let mut tuple = vec![0; 16];
        set_block_number(&mut tuple, heap_block).unwrap();
        tuple[4..6].copy_from_slice(&heap_offset.to_le_bytes());
        tuple[6..8].copy_from_slice(&16_u16.to_le_bytes());
        tuple[8..].copy_from_slice(&key.to_le_bytes());
        tuple
    }

    fn position(number: u8) -> [u8; ITEM_POINTER_BYTES] {
        [0, 0, number, 0, 1, 0]
    }

    #[test]
    fn a_posting_list_gives_back_its_heap_positions_and_can_shrink_to_a_plain_tuple() {
        let positions: Vec<u8> = (1..=3).flat_map(position).collect();
        let base = plain(7, 1, 1);
        let posting = form_posting(&base, &positions).unwrap();
        assert_eq!(posting.len(), 40);
        assert_eq!(heap_positions(&posting).unwrap(), positions);
        let smaller = update_posting(&posting, [1].into_iter()).unwrap();
        assert_eq!(heap_positions(&smaller).unwrap(), [position(1), position(3)].concat());
        assert_eq!(update_posting(&posting, [1, 2].into_iter()).unwrap()[..], plain(7, 1, 1));
        assert!(update_posting(&posting, [3].into_iter()).is_err(), "an item that is not there was deleted");
        assert!(update_posting(&posting, [0, 1, 2].into_iter()).is_err(), "every item was deleted");
    }

    #[test]
    fn swapping_puts_the_new_position_in_order_and_hands_out_the_last() {
        let positions: Vec<u8> = [1, 3, 4].into_iter().flat_map(position).collect();
        let mut posting = form_posting(&plain(7, 1, 1), &positions).unwrap();
        let mut new_item = plain(7, 2, 1);
        swap_posting(&mut new_item, &mut posting, 1).unwrap();
        assert_eq!(heap_positions(&posting).unwrap(), [position(1), position(2), position(3)].concat());
        assert_eq!(new_item, plain(7, 4, 1));
        assert!(swap_posting(&mut new_item, &mut posting, 0).is_err());
        assert!(swap_posting(&mut new_item, &mut posting, 3).is_err());
    }

    proptest! {
        #[test]
        fn hostile_tuples_never_panic(
            mut left in proptest::collection::vec(any::<u8>(), 0..80),
            mut right in proptest::collection::vec(any::<u8>(), 0..80),
            numbers in proptest::collection::vec(any::<u16>(), 0..4),
            offset: u16,
        ) {
            let _ = update_posting(&left, numbers.into_iter());
            let _ = form_posting(&left, &right);
            let _ = split_first(&right);
            let _ = swap_posting(&mut left, &mut right, offset);
        }
    }
}
