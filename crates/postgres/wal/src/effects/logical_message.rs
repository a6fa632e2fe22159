//! Messages for logical decoding (`src/include/replication/message.h`): redo does nothing with them, but for those that
//! have the content of a kept file.

use super::sink::{Effect, EffectError, Sink, listed_only};
use crate::Record;
use crate::kept_file::kept_file;
use crate::layout::logical::MESSAGE;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    if let Some((file, _)) = kept_file(record) {
        sink.push(Effect::Meta(file.key()));
    }
    listed_only(record, sink, record.operation() == MESSAGE)
}
