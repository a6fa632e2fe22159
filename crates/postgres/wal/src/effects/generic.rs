//! Generic WAL, for extensions (`src/backend/access/transam/generic_xlog.c`): every operation changes only
//! the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::generic::GENERIC;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() == GENERIC)
}
