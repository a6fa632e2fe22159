//! Replication progress (`src/include/replication/origin.h`): changes no page. Its state file is not kept
//! yet.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::logical::{ORIGIN_DROP, ORIGIN_SET};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, matches!(record.operation(), ORIGIN_SET | ORIGIN_DROP))
}
