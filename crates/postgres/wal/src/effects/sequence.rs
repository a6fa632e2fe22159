//! Sequences (`src/include/commands/sequence.h`): every operation changes only the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::sequence::LOG;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() == LOG)
}
