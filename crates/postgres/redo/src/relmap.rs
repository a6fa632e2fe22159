//! Relation maps (`RM_RELMAP_ID`): which files the catalogs that everything else depends on are in.
//!
//! Layout and redo: `RelMapFile`, `relmap_redo` in `src/backend/utils/cache/relmapper.c`.

use borealis_types::MetaKey;
use borealis_wal::Record;
use borealis_wal::layout::RelationMapUpdate;
use borealis_wal::layout::database::RELATION_MAP_UPDATE;
use borealis_wal::layout::relation_map::{
    CRC_OFFSET, FILE_BYTES, FILE_MAGIC, MAPPING_COUNT_OFFSET, MAPPINGS_MAX,
};

use crate::bytes::u32_at;
use crate::fault::{Fault, Redo, expect};

/// Applies a relation map update: the record has the whole file but for what `write_relmap_file` fills in.
pub(crate) fn redo_meta(
    record: &Record<'_>,
    key: &MetaKey,
    _value: Option<Vec<u8>>,
) -> Redo<Option<Vec<u8>>> {
    if record.operation() != RELATION_MAP_UPDATE {
        return Err(Fault::Unknown);
    }
    let update = RelationMapUpdate::parse(record)?;
    expect(*key == MetaKey::RelationMap(update.database), "the record updates another relation map")?;
    expect(update.map.len() == FILE_BYTES, "a relation map has another size")?;
    expect(u32_at(update.map, MAPPING_COUNT_OFFSET)? <= MAPPINGS_MAX, "a relation map has too many entries")?;
    let mut file = update.map.to_vec();
    file[..4].copy_from_slice(&FILE_MAGIC.to_le_bytes());
    let checksum = crc32c::crc32c(&file[..CRC_OFFSET]);
    file[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::DatabaseKey;
    use borealis_wal::ResourceManager;

    #[test]
    fn the_value_is_the_file_with_its_magic_and_checksum() {
        let mut data: Vec<u8> = [5_u32, 1663, 512].iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut map = [0_u8; FILE_BYTES];
        map[4] = 1;
        map[8..16].copy_from_slice(&[0xEB, 4, 0, 0, 0xEC, 4, 0, 0]);
        data.extend_from_slice(&map);
        let record = crate::test_record::record(ResourceManager::RelMap, RELATION_MAP_UPDATE, &data);
        let key = MetaKey::RelationMap(DatabaseKey { tablespace: 1663, database: 5 });
        let file = redo_meta(&record, &key, None).unwrap().unwrap();
        assert_eq!(file[..4], FILE_MAGIC.to_le_bytes());
        assert_eq!(file[4..504], map[4..504]);
        assert_eq!(file[504..508], crc32c::crc32c(&file[..504]).to_le_bytes());
        let other = MetaKey::RelationMap(DatabaseKey { tablespace: 1663, database: 6 });
        assert!(redo_meta(&record, &other, None).is_err());
    }
}
