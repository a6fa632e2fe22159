//! More heap changes (`heap2_redo` in `src/backend/access/heap/heapam.c`).

use super::heap::clears;
use super::sink::{EffectError, Sink};
use crate::Record;
use crate::layout::heap::{INSERT_ALL_VISIBLE_CLEARED, LOCK_ALL_FROZEN_CLEARED, OPERATION_MASK};
use crate::layout::heap2::{LOCK_UPDATED, MULTI_INSERT};
use crate::layout::{HeapMultiInsert, HeapXmax};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.info & OPERATION_MASK {
        MULTI_INSERT => {
            clears(record, sink, HeapMultiInsert::parse(record)?.flags & INSERT_ALL_VISIBLE_CLEARED, 0)?
        }
        LOCK_UPDATED => clears(record, sink, HeapXmax::parse(record)?.flags & LOCK_ALL_FROZEN_CLEARED, 0)?,
        // Every value of the three bits is an operation. Rewrite mappings and command ids are for logical
        // decoding and list no block; the rest change what they list, the visibility map included.
        _ => {}
    }
    sink.listed(record);
    Ok(())
}
