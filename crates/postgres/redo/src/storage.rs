//! Creation and truncation of relation files (`RM_SMGR_ID`).
//!
//! Redo: `smgr_redo` in `src/backend/catalog/storage.c`. Only a truncation changes pages: the last page that
//! stays of the visibility map and of the free space map.

use borealis_types::{Fork, PageBytes, PageKey};
use borealis_wal::Record;
use borealis_wal::layout::StorageTruncate;
use borealis_wal::layout::storage::{CREATE, TRUNCATE};

use crate::fault::{Fault, Redo, expect};
use crate::heap::{free_space_map, visibility_map};

/// Applies a truncation to a page of a map.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    match record.operation() {
        TRUNCATE => {
            let truncate = StorageTruncate::parse(record)?;
            let PageKey::Block(block) = key else {
                return Err(Fault::Failed("a truncation changes blocks only"));
            };
            expect(block.relation_fork.locator == truncate.locator, "the record truncates another relation")?;
            match block.relation_fork.fork {
                Fork::VisibilityMap => visibility_map::truncate(page, block.block, truncate.heap_blocks),
                Fork::FreeSpaceMap => free_space_map::truncate(page, truncate.heap_blocks),
                Fork::Main | Fork::Init => Err(Fault::Failed("a truncation changes pages of maps only")),
            }
        }
        CREATE => Err(Fault::Failed("a creation changes no page")),
        _ => Err(Fault::Unknown),
    }
}
