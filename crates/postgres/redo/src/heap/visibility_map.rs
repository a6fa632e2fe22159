//! The visibility map: two bits for each heap page.
//!
//! Layout and operations: `src/backend/access/heap/visibilitymap.c`. The map has no checksum or image of its
//! own in the records that clear bits, and the clearing does not stamp the map's page.

use borealis_types::{BlockNumber, Fork, Lsn, PAGE_SIZE, PageBytes, PageKey, RelationLocator};

use crate::fault::{Redo, expect};
use crate::page;

/// `VISIBILITYMAP_ALL_VISIBLE`
#[cfg(test)]
const ALL_VISIBLE: u8 = 0x01;
/// `VISIBILITYMAP_ALL_FROZEN`
pub(crate) const ALL_FROZEN: u8 = 0x02;
/// `VISIBILITYMAP_VALID_BITS`
pub(crate) const VALID_BITS: u8 = 0x03;

const MAP_SIZE: usize = PAGE_SIZE - page::HEADER_SIZE;
const HEAP_BLOCKS_PER_BYTE: u32 = 4;
const HEAP_BLOCKS_PER_PAGE: u32 = MAP_SIZE as u32 * HEAP_BLOCKS_PER_BYTE;

/// The block of the map that holds a heap block's bits (`HEAPBLK_TO_MAPBLOCK`).
pub(crate) fn map_block(heap_block: BlockNumber) -> BlockNumber {
    heap_block / HEAP_BLOCKS_PER_PAGE
}

/// Where a heap block's bits are: byte on the map page, and shift in it.
fn position(heap_block: BlockNumber) -> (usize, u32) {
    let in_page = heap_block % HEAP_BLOCKS_PER_PAGE;
    let byte = page::HEADER_SIZE + (in_page / HEAP_BLOCKS_PER_BYTE) as usize;
    (byte, in_page % HEAP_BLOCKS_PER_BYTE * 2)
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
