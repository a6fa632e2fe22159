//! Messages for logical decoding (`src/include/replication/message.h`): redo does nothing with them.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::logical::MESSAGE;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() == MESSAGE)
}
