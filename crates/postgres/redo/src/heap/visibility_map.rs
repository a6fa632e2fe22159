//! The visibility map: two bits for each heap page.
//!
//! Layout and operations: `src/backend/access/heap/visibilitymap.c`. The map has no checksum or image of its
//! own in the records that clear bits, and the clearing does not stamp the map's page.

use borealis_types::{BlockNumber, Fork, Lsn, PageBytes, PageKey, RelationLocator};
use borealis_wal::layout::visibility_map::{
    BITS_PER_HEAP_BLOCK, HEAP_BLOCKS_PER_BYTE, HEAP_BLOCKS_PER_PAGE, VALID_BITS, map_block,
};

use crate::fault::{Redo, expect};
use crate::page;

/// Where a heap block's bits are: byte on the map page, and shift in it.
fn position(heap_block: BlockNumber) -> (usize, u32) {
    let in_page = heap_block % HEAP_BLOCKS_PER_PAGE;
    let byte = page::HEADER_BYTES + (in_page / HEAP_BLOCKS_PER_BYTE) as usize;
    (byte, in_page % HEAP_BLOCKS_PER_BYTE * BITS_PER_HEAP_BLOCK)
}

/// Whether `key` is the map page that holds the bits of this heap block.
pub(crate) fn holds(key: &PageKey, locator: RelationLocator, heap_block: BlockNumber) -> bool {
    let PageKey::Block(block) = key else { return false };
    block.relation_fork.fork == Fork::VisibilityMap
        && block.relation_fork.locator == locator
        && block.block == map_block(heap_block)
}

/// `visibilitymap_clear`: on a page that was never initialized there is nothing to clear.
pub(crate) fn clear(page: &mut PageBytes, heap_block: BlockNumber, bits: u8) {
    let (byte, shift) = position(heap_block);
    page[byte] &= !((bits & VALID_BITS) << shift);
}

/// `visibilitymap_set`, as replay of its record calls it: makes a new page a map page first, and stamps it
/// only if a bit changes.
pub(crate) fn set(page: &mut PageBytes, heap_block: BlockNumber, bits: u8, lsn: Lsn) {
    if page::is_new(page) {
        page::init(page, 0);
    }
    let (byte, shift) = position(heap_block);
    let bits = bits & VALID_BITS;
    if page[byte] >> shift & VALID_BITS != bits {
        page[byte] |= bits << shift;
        page::set_lsn(page, lsn);
    }
}

/// `visibilitymap_prepare_truncate`: the heap now has `heap_blocks` blocks; clears the bits of those that are
/// gone on the map page that holds the bits of the first of them.
pub(crate) fn truncate(
    page: &mut PageBytes,
    map_block_number: BlockNumber,
    heap_blocks: BlockNumber,
) -> Redo {
    expect(
        map_block_number == map_block(heap_blocks),
        "the truncation does not end on this visibility map page",
    )?;
    let (byte, shift) = position(heap_blocks);
    page[byte] &= (1u8 << shift) - 1;
    page[byte + 1..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::PAGE_SIZE;
    use borealis_wal::layout::visibility_map::ALL_VISIBLE;
    use proptest::prelude::*;

    fn bits(page: &PageBytes, heap_block: BlockNumber) -> u8 {
        let (byte, shift) = position(heap_block);
        page[byte] >> shift & VALID_BITS
    }

    proptest! {
        #[test]
        fn set_and_clear_change_only_their_block(heap_block: u32, bits_set in 1u8..=3, bits_cleared in 1u8..=3) {
            let mut page = [0; PAGE_SIZE];
            for neighbour in [heap_block.wrapping_sub(1), heap_block, heap_block.wrapping_add(1)] {
                if map_block(neighbour) == map_block(heap_block) {
                    set(&mut page, neighbour, VALID_BITS, Lsn(8));
                }
            }
            clear(&mut page, heap_block, VALID_BITS);
            prop_assert_eq!(bits(&page, heap_block), 0);
            set(&mut page, heap_block, bits_set, Lsn(16));
            prop_assert_eq!(bits(&page, heap_block), bits_set);
            prop_assert_eq!(page::lsn(&page), Lsn(16));
            clear(&mut page, heap_block, bits_cleared);
            prop_assert_eq!(bits(&page, heap_block), bits_set & !bits_cleared);
            prop_assert_eq!(page::lsn(&page), Lsn(16));
            for neighbour in [heap_block.wrapping_sub(1), heap_block.wrapping_add(1)] {
                if map_block(neighbour) == map_block(heap_block) {
                    prop_assert_eq!(bits(&page, neighbour), VALID_BITS);
                }
            }
        }

        #[test]
        fn truncation_clears_exactly_the_tail(keep in 0..HEAP_BLOCKS_PER_PAGE) {
            let mut page = [0; PAGE_SIZE];
            for heap_block in 0..HEAP_BLOCKS_PER_PAGE {
                set(&mut page, heap_block, ALL_VISIBLE, Lsn(8));
            }
            truncate(&mut page, 0, keep).unwrap();
            for heap_block in [0, keep.saturating_sub(1), keep, keep + 1, HEAP_BLOCKS_PER_PAGE - 1] {
                if heap_block < HEAP_BLOCKS_PER_PAGE {
                    prop_assert_eq!(bits(&page, heap_block), u8::from(heap_block < keep), "block {}", heap_block);
                }
            }
        }
    }

    #[test]
    fn clearing_a_page_that_does_not_exist_leaves_it_so() {
        let mut page = [0; PAGE_SIZE];
        clear(&mut page, 77, VALID_BITS);
        truncate(&mut page, 0, 77).unwrap();
        assert_eq!(page, [0; PAGE_SIZE]);
    }

    #[test]
    fn a_truncation_elsewhere_is_refused() {
        assert!(truncate(&mut [0; PAGE_SIZE], 1, 5).is_err());
    }
}
