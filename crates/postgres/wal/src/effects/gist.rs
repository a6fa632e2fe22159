//! GiST (`src/include/access/gistxlog.h`): every operation changes only the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::gist::{ASSIGN_LSN, PAGE_DELETE, PAGE_SPLIT, PAGE_UPDATE};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(
        record,
        sink,
        matches!(record.operation(), PAGE_UPDATE..=PAGE_SPLIT | PAGE_DELETE | ASSIGN_LSN),
    )
}
