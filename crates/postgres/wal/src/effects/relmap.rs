//! Relation maps (`relmap_redo` in `src/backend/utils/cache/relmapper.c`).

use borealis_types::MetaKey;

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::database::{RELATION_MAP_UPDATE, RelationMapUpdate};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    if record.operation() != RELATION_MAP_UPDATE {
        return Err(unknown(record));
    }
    let update = RelationMapUpdate::parse(record)?;
    sink.push(Effect::Meta(MetaKey::RelationMap(update.database)));
    Ok(())
}
