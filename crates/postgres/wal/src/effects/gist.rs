//! GiST (`src/include/access/gistxlog.h`): every operation changes only the blocks it lists.

use super::{EffectError, Sink, listed_only};
use crate::Record;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, matches!(record.operation(), 0x00..=0x30 | 0x60 | 0x70))
}
