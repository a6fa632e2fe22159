//! Records of the log itself (`xlog_redo` in `src/backend/access/transam/xlog.c`).

use super::sink::{EffectError, Sink, malformed, unknown};
use crate::Record;
use crate::layout::xlog::{
    BACKUP_END, CHECKPOINT_ONLINE, CHECKPOINT_SHUTDOWN, END_OF_RECOVERY, FULL_PAGE_IMAGE,
    FULL_PAGE_IMAGE_FOR_HINT, FULL_PAGE_WRITES_CHANGE, NEXT_OID, NOOP, OVERWRITE_CONTINUATION,
    PARAMETER_CHANGE, RESTORE_POINT, SWITCH,
};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.operation() {
        CHECKPOINT_SHUTDOWN
        | CHECKPOINT_ONLINE
        | NEXT_OID
        | PARAMETER_CHANGE
        | FULL_PAGE_WRITES_CHANGE
        | END_OF_RECOVERY => sink.counters(),
        NOOP | SWITCH | BACKUP_END | RESTORE_POINT | OVERWRITE_CONTINUATION => {}
        FULL_PAGE_IMAGE => {
            if record.blocks.iter().any(|block| block.image.is_none()) {
                return Err(malformed(record, "full-page image record lists a block without an image"));
            }
            sink.listed(record);
        }
        FULL_PAGE_IMAGE_FOR_HINT => {
            // Without `full_page_writes` the block is listed and nothing happens to it.
            sink.listed_where(record, |block| block.image.is_some());
        }
        _ => return Err(unknown(record)),
    }
    Ok(())
}
