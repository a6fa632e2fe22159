//! Databases (`dbase_redo` in `src/backend/commands/dbcommands.c`).

use borealis_types::MetaKey;

use super::sink::{Effect, EffectError, Sink, unknown};
use crate::Record;
use crate::layout::database::{
    CREATE_FILE_COPY, CREATE_WAL_LOG, CreateDatabaseFileCopy, CreateDatabaseWalLog, DROP, DropDatabase,
};

pub(super) fn effects(record: &Record<'_>, sink: &mut Sink<'_>) -> Result<(), EffectError> {
    match record.operation() {
        CREATE_FILE_COPY => {
            let CreateDatabaseFileCopy { from, to } = CreateDatabaseFileCopy::parse(record)?;
            sink.push(Effect::CopyDatabase { from, to });
            sink.push(Effect::Meta(MetaKey::Database(to)));
            // The map's file is copied with the folder; its new value is the template's.
            sink.push(Effect::Meta(MetaKey::RelationMap(to)));
        }
        CREATE_WAL_LOG => {
            let create = CreateDatabaseWalLog::parse(record)?;
            sink.push(Effect::Meta(MetaKey::Database(create.database)));
        }
        DROP => {
            for folder in DropDatabase::parse(record)?.folders() {
                sink.push(Effect::DropDatabase(folder));
                sink.push(Effect::Meta(MetaKey::Database(folder)));
            }
        }
        _ => return Err(unknown(record)),
    }
    Ok(())
}
