//! SP-GiST (`src/include/access/spgxlog.h`): every operation changes only the blocks it lists.

use super::sink::{EffectError, Sink, listed_only};
use crate::Record;
use crate::layout::spgist::{ADD_LEAF, VACUUM_REDIRECT};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    listed_only(record, sink, matches!(record.operation(), ADD_LEAF..=VACUUM_REDIRECT))
}
