//! Tablespaces (`RM_TBLSPC_ID`).
//!
//! Redo: `tblspc_redo` in `src/backend/commands/tablespace.c`.

use borealis_types::MetaKey;
use borealis_wal::Record;
use borealis_wal::layout::database::{TABLESPACE_CREATE, TABLESPACE_DROP};
use borealis_wal::layout::{CreateTablespace, DropTablespace};

use crate::fault::{Fault, Redo, expect};

/// Applies the creation or removal of a tablespace: its value is its path.
pub(crate) fn redo_meta(
    record: &Record<'_>,
    key: &MetaKey,
    _value: Option<Vec<u8>>,
) -> Redo<Option<Vec<u8>>> {
    let (tablespace, path) = match record.operation() {
        TABLESPACE_CREATE => {
            let create = CreateTablespace::parse(record)?;
            (create.tablespace, Some(create.path.to_vec()))
        }
        TABLESPACE_DROP => (DropTablespace::parse(record)?.tablespace, None),
        _ => return Err(Fault::Unknown),
    };
    expect(*key == MetaKey::Tablespace(tablespace), "the record changes another tablespace")?;
    Ok(path)
}
