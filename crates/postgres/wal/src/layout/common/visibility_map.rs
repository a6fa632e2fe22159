//! The visibility map (`src/include/access/visibilitymapdefs.h`, `src/backend/access/heap/visibilitymap.c`): two bits
//! for each heap page.

use borealis_types::PAGE_SIZE;

use super::page;

/// `VISIBILITYMAP_ALL_VISIBLE`
pub const ALL_VISIBLE: u8 = 0x01;
/// `VISIBILITYMAP_ALL_FROZEN`
pub const ALL_FROZEN: u8 = 0x02;
/// `VISIBILITYMAP_VALID_BITS`
pub const VALID_BITS: u8 = 0x03;

/// `BITS_PER_HEAPBLOCK`
pub const BITS_PER_HEAP_BLOCK: u32 = 2;
/// `HEAPBLOCKS_PER_BYTE`
pub const HEAP_BLOCKS_PER_BYTE: u32 = 8 / BITS_PER_HEAP_BLOCK;
/// `HEAPBLOCKS_PER_PAGE`
pub const HEAP_BLOCKS_PER_PAGE: u32 = (PAGE_SIZE - page::HEADER_BYTES) as u32 * HEAP_BLOCKS_PER_BYTE;

/// The block of the map that holds a heap block's bits (`HEAPBLK_TO_MAPBLOCK`).
#[must_use]
pub const fn map_block(heap_block: u32) -> u32 {
    heap_block / HEAP_BLOCKS_PER_PAGE
}
