//! B-tree (`src/include/access/nbtxlog.h`): every operation changes only the blocks it lists.
//! `XLOG_BTREE_REUSE_PAGE` lists none: it is for hot standby only.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::btree::META_CLEANUP;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() <= META_CLEANUP)
}
