//! GIN (`src/include/access/ginxlog.h`): every operation changes only the blocks it lists.

use super::{EffectError, Sink, listed_only};
use crate::Record;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, matches!(record.operation(), 0x10..=0x90))
}
