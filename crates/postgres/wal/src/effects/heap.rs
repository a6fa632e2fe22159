//! Heap changes (`heap_redo` in `src/backend/access/heap/heapam.c`), and the visibility map bits that heap
//! changes clear without listing the map's block.

use borealis_types::{Fork, RelationFork};

use super::sink::{EffectError, Sink, malformed, unknown};
use crate::Record;
use crate::layout::heap::{
    CONFIRM, DELETE, DELETE_ALL_VISIBLE_CLEARED, HOT_UPDATE, INPLACE, INSERT, INSERT_ALL_VISIBLE_CLEARED,
    LOCK, LOCK_ALL_FROZEN_CLEARED, OPERATION_MASK, TRUNCATE, UPDATE, UPDATE_NEW_ALL_VISIBLE_CLEARED,
    UPDATE_OLD_ALL_VISIBLE_CLEARED,
};
use crate::layout::visibility_map::map_block;
use crate::layout::{HeapInsert, HeapUpdate, HeapXmax};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.info & OPERATION_MASK {
        INSERT => clears(record, sink, HeapInsert::parse(record)?.flags & INSERT_ALL_VISIBLE_CLEARED, 0)?,
        DELETE => clears(record, sink, HeapXmax::parse(record)?.flags & DELETE_ALL_VISIBLE_CLEARED, 0)?,
        LOCK => clears(record, sink, HeapXmax::parse(record)?.flags & LOCK_ALL_FROZEN_CLEARED, 0)?,
        UPDATE | HOT_UPDATE => {
            let flags = HeapUpdate::parse(record)?.flags;
            // Block 0 is the new tuple's; block 1 is the old one's, listed only if it is another block.
            let old = u8::from(record.block(1).is_some());
            clears(record, sink, flags & UPDATE_OLD_ALL_VISIBLE_CLEARED, old)?;
            clears(record, sink, flags & UPDATE_NEW_ALL_VISIBLE_CLEARED, 0)?;
        }
        // Truncations are logged for logical decoding only; the files' own records do the work.
        TRUNCATE | CONFIRM | INPLACE => {}
        _ => return Err(unknown(record)),
    }
    sink.listed(record);
    Ok(())
}

/// Adds the visibility map page of heap block `id` if a flag says that redo clears bits there.
pub(super) fn clears(record: &Record<'_>, sink: &mut Sink<'_>, flag: u8, id: u8) -> Result<(), EffectError> {
    if flag != 0 {
        let heap = record.block(id).ok_or_else(|| malformed(record, "heap record lists no block"))?;
        let locator = heap.key.relation_fork.locator;
        let map = RelationFork { locator, fork: Fork::VisibilityMap };
        sink.block(map, map_block(heap.key.block));
    }
    Ok(())
}
