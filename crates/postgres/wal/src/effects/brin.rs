//! BRIN (`src/include/access/brin_xlog.h`): every operation changes only the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::brin::{DESUMMARIZE, OPERATION_MASK};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() & OPERATION_MASK <= DESUMMARIZE)
}
