//! Hash index (`src/include/access/hash_xlog.h`): every operation changes only the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::hash::VACUUM_ONE_PAGE;

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, record.operation() <= VACUUM_ONE_PAGE)
}
