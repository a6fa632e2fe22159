//! Databases (`RM_DBASE_ID`).
//!
//! Redo: `dbase_redo` in `src/backend/commands/dbcommands.c`.

use borealis_types::MetaKey;
use borealis_wal::layout::CreateDatabaseFileCopy;
use borealis_wal::layout::database::{CREATE_FILE_COPY, CREATE_WAL_LOG, DROP};
use borealis_wal::{Record, ResourceManager};

use crate::fault::{Fault, Redo};

/// Applies the creation or removal of a database to its existence or its relation map.
pub(crate) fn redo_meta(record: &Record<'_>, key: &MetaKey, value: Option<Vec<u8>>) -> Redo<Option<Vec<u8>>> {
    match (record.operation(), key) {
        (CREATE_FILE_COPY | CREATE_WAL_LOG, MetaKey::Database(_)) => Ok(Some(Vec::new())),
        // The value before the record is the template's (see `meta_before`).
        (CREATE_FILE_COPY, MetaKey::RelationMap(_)) => Ok(value),
        (DROP, MetaKey::Database(_) | MetaKey::RelationMap(_)) => Ok(None),
        (CREATE_FILE_COPY | CREATE_WAL_LOG | DROP, _) => {
            Err(Fault::Failed("the record does not change such a value"))
        }
        _ => Err(Fault::Unknown),
    }
}

/// The value that `key` continues from when the record is applied to it, if that is not its own: a database
/// made by copying files starts with its template's relation map.
pub(crate) fn meta_before(record: &Record<'_>, key: &MetaKey) -> Redo<Option<MetaKey>> {
    let MetaKey::RelationMap(copy) = key else { return Ok(None) };
    if record.resource_manager != ResourceManager::Database || record.operation() != CREATE_FILE_COPY {
        return Ok(None);
    }
    let create = CreateDatabaseFileCopy::parse(record)?;
    Ok((create.to == *copy).then_some(MetaKey::RelationMap(create.from)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::DatabaseKey;

    #[test]
    fn a_file_copy_starts_with_the_relation_map_of_its_template() {
        let data: Vec<u8> = [5_u32, 1663, 1, 1700].iter().flat_map(|word| word.to_le_bytes()).collect();
        let record = crate::test_record::record(ResourceManager::Database, CREATE_FILE_COPY, &data);
        let copy = MetaKey::RelationMap(DatabaseKey { tablespace: 1663, database: 5 });
        let template = MetaKey::RelationMap(DatabaseKey { tablespace: 1700, database: 1 });
        assert_eq!(meta_before(&record, &copy), Ok(Some(template.clone())));
        assert_eq!(meta_before(&record, &template), Ok(None));
        assert_eq!(redo_meta(&record, &copy, Some(vec![7])), Ok(Some(vec![7])));
    }
}
