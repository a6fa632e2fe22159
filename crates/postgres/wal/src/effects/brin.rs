//! BRIN (`src/include/access/brin_xlog.h`): every operation changes only the blocks it lists.

use super::{EffectError, Sink, listed_only};
use crate::Record;

/// `XLOG_BRIN_OPMASK`: the highest bit says that the page is made anew.
const OPERATION_MASK: u8 = 0x70;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() & OPERATION_MASK <= 0x50)
}
