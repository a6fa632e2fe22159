//! Borealis's own records.

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::native::{self, Native};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    if !native::is_known(record.operation()) {
        return Err(unknown(record));
    }
    match Native::parse(record)? {
        Native::PutPage { key, .. } => sink.page(key),
        Native::PutMeta { key, .. } => sink.push(Effect::Meta(key)),
        Native::CreateRelations(relations) => {
            for created in relations {
                sink.push(Effect::CreateRelation(created.relation_fork));
            }
        }
    }
    Ok(())
}
