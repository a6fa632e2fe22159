//! GIN (`src/include/access/ginxlog.h`): every operation changes only the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::gin::{CREATE_PTREE, VACUUM_DATA_LEAF_PAGE};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, matches!(record.operation(), CREATE_PTREE..=VACUUM_DATA_LEAF_PAGE))
}
