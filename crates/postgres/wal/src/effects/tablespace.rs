//! Tablespaces (`tblspc_redo` in `src/backend/commands/tablespace.c`).

use borealis_types::MetaKey;

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::database::{CreateTablespace, DropTablespace, TABLESPACE_CREATE, TABLESPACE_DROP};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    let tablespace = match record.operation() {
        TABLESPACE_CREATE => CreateTablespace::parse(record)?.tablespace,
        TABLESPACE_DROP => DropTablespace::parse(record)?.tablespace,
        _ => return Err(unknown(record)),
    };
    sink.push(Effect::Meta(MetaKey::Tablespace(tablespace)));
    Ok(())
}
