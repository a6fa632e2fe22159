//! Replication progress (`src/include/replication/origin.h`): changes no page. Its state file is not kept
//! yet.

use super::{EffectError, Sink, listed_only};
use crate::Record;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, matches!(record.operation(), 0x00 | 0x10))
}
