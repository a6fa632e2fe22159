//! The free space map (`src/include/storage/fsm_internals.h`, `src/backend/storage/freespace/freespace.c`): on each page
//! a binary tree in an array, whose leaves stand for heap blocks or for pages of the level below.

use borealis_types::PAGE_SIZE;

use super::page;

/// Where a page has its nodes: after its header and `fp_next_slot`.
pub const NODES_START: usize = page::HEADER_BYTES + 4;
/// `NodesPerPage`
pub const NODE_COUNT: usize = PAGE_SIZE - NODES_START;
/// `NonLeafNodesPerPage`
pub const INNER_NODE_COUNT: usize = PAGE_SIZE / 2 - 1;
/// `SlotsPerFSMPage`
pub const SLOTS_PER_PAGE: u32 = (NODE_COUNT - INNER_NODE_COUNT) as u32;
/// `FSM_TREE_DEPTH`: levels of pages.
pub const LEVELS: u32 = 3;

/// The block of the map that holds a heap block's slot, and the slot. Upper-level pages stand before the leaves they lead
/// to, depth first (`fsm_logical_to_physical`).
#[must_use]
pub fn location(heap_block: u32) -> (u32, u32) {
    let mut page = heap_block / SLOTS_PER_PAGE;
    let mut pages = 0;
    for _ in 0..LEVELS {
        pages += page + 1;
        page /= SLOTS_PER_PAGE;
    }
    (pages - 1, heap_block % SLOTS_PER_PAGE)
}
