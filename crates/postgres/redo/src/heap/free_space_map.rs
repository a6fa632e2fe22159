//! The free space map page that a truncation cuts into.
//!
//! Layout: `src/include/storage/fsm_internals.h`; behaviour: `FreeSpaceMapPrepareTruncateRel` in
//! `src/backend/storage/freespace/freespace.c` and `fsm_truncate_avail` in `fsmpage.c`. A page is a binary tree
//! in an array, each inner node the larger of its two children; the leaves stand for heap blocks (on the
//! lowest level of pages) or for the pages of the level below.

use borealis_types::PageBytes;
use borealis_wal::layout::free_space_map::{INNER_NODE_COUNT, NODES_START, SLOTS_PER_PAGE};

use crate::fault::{Redo, expect};

/// `fsm_truncate_avail`: the heap now has `heap_blocks` blocks; empties the slots of those that are gone on
/// the lowest-level page that holds the slot of the first of them, and the tree above them.
pub(crate) fn truncate(page: &mut PageBytes, heap_blocks: u32) -> Redo {
    let first_removed_slot = (heap_blocks % SLOTS_PER_PAGE) as usize;
    expect(first_removed_slot > 0, "the truncation ends between free space map pages")?;
    let nodes = &mut page[NODES_START..];
    let removed = &mut nodes[INNER_NODE_COUNT + first_removed_slot..];
    if removed.iter().all(|available| *available == 0) {
        return Ok(());
    }
    removed.fill(0);
    for node in (0..INNER_NODE_COUNT).rev() {
        let child = |index: usize| nodes.get(index).copied().unwrap_or(0);
        nodes[node] = child(2 * node + 1).max(child(2 * node + 2));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page;
    use borealis_types::PAGE_SIZE;

    #[test]
    fn truncation_empties_the_tail_and_the_tree_above() {
        let mut page = [0; PAGE_SIZE];
        page::init(&mut page, 0);
        page[NODES_START + INNER_NODE_COUNT + 3] = 40;
        page[NODES_START + INNER_NODE_COUNT + 900] = 200;
        page[NODES_START] = 200;
        truncate(&mut page, SLOTS_PER_PAGE + 10).unwrap();
        assert_eq!(page[NODES_START + INNER_NODE_COUNT + 3], 40);
        assert_eq!(page[NODES_START + INNER_NODE_COUNT + 900], 0);
        assert_eq!(page[NODES_START], 40, "the root is the largest leaf");
    }

    #[test]
    fn a_page_that_does_not_exist_stays_so() {
        let mut page = [0; PAGE_SIZE];
        truncate(&mut page, 10).unwrap();
        assert_eq!(page, [0; PAGE_SIZE]);
    }
}
