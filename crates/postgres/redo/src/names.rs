//! What `pg_waldump` calls each operation, for reports and messages.
//!
//! Source: the `*_identify` functions of `src/backend/access/rmgrdesc`.

use borealis_wal::ResourceManager;

use ResourceManager as Rm;

/// The operation's name as `pg_waldump` prints it; `None` if PostgreSQL 15 has no such operation.
///
/// `info` may carry the `XLR_*` flags in its low four bits.
#[expect(clippy::too_many_lines, reason = "a table: one line for each operation")]
#[must_use]
pub fn operation_name(resource_manager: ResourceManager, info: u8) -> Option<&'static str> {
    let operation = info & 0xF0;
    let name = match (resource_manager, operation) {
        (Rm::Xlog, 0x00) => "CHECKPOINT_SHUTDOWN",
        (Rm::Xlog, 0x10) => "CHECKPOINT_ONLINE",
        (Rm::Xlog, 0x20) => "NOOP",
        (Rm::Xlog, 0x30) => "NEXTOID",
        (Rm::Xlog, 0x40) => "SWITCH",
        (Rm::Xlog, 0x50) => "BACKUP_END",
        (Rm::Xlog, 0x60) => "PARAMETER_CHANGE",
        (Rm::Xlog, 0x70) => "RESTORE_POINT",
        (Rm::Xlog, 0x80) => "FPW_CHANGE",
        (Rm::Xlog, 0x90) => "END_OF_RECOVERY",
        (Rm::Xlog, 0xA0) => "FPI_FOR_HINT",
        (Rm::Xlog, 0xB0) => "FPI",
        (Rm::Xlog, 0xD0) => "OVERWRITE_CONTRECORD",
        // The highest bit says whether the record has details, not which operation it is.
        (Rm::Transaction, _) => match operation & 0x70 {
            0x00 => "COMMIT",
            0x10 => "PREPARE",
            0x20 => "ABORT",
            0x30 => "COMMIT_PREPARED",
            0x40 => "ABORT_PREPARED",
            0x50 => "ASSIGNMENT",
            0x60 => "INVALIDATION",
            _ => return None,
        },
        (Rm::Storage, 0x10) => "CREATE",
        (Rm::Storage, 0x20) => "TRUNCATE",
        (Rm::Clog | Rm::CommitTs, 0x00) => "ZEROPAGE",
        (Rm::Clog | Rm::CommitTs, 0x10) => "TRUNCATE",
        (Rm::Database, 0x00) => "CREATE_FILE_COPY",
        (Rm::Database, 0x10) => "CREATE_WAL_LOG",
        (Rm::Database, 0x20) => "DROP",
        (Rm::Tablespace, 0x00) => "CREATE",
        (Rm::Tablespace, 0x10) => "DROP",
        (Rm::MultiXact, 0x00) => "ZERO_OFF_PAGE",
        (Rm::MultiXact, 0x10) => "ZERO_MEM_PAGE",
        (Rm::MultiXact, 0x20) => "CREATE_ID",
        (Rm::MultiXact, 0x30) => "TRUNCATE_ID",
        (Rm::RelMap, 0x00) => "UPDATE",
        (Rm::Standby, 0x00) => "LOCK",
        (Rm::Standby, 0x10) => "RUNNING_XACTS",
        (Rm::Standby, 0x20) => "INVALIDATIONS",
        (Rm::Heap2, 0x00) => "REWRITE",
        (Rm::Heap2, 0x10) => "PRUNE",
        (Rm::Heap2, 0x20) => "VACUUM",
        (Rm::Heap2, 0x30) => "FREEZE_PAGE",
        (Rm::Heap2, 0x40) => "VISIBLE",
        (Rm::Heap2, 0x50) => "MULTI_INSERT",
        (Rm::Heap2, 0xD0) => "MULTI_INSERT+INIT",
        (Rm::Heap2, 0x60) => "LOCK_UPDATED",
        (Rm::Heap2, 0x70) => "NEW_CID",
        (Rm::Heap, 0x00) => "INSERT",
        (Rm::Heap, 0x80) => "INSERT+INIT",
        (Rm::Heap, 0x10) => "DELETE",
        (Rm::Heap, 0x20) => "UPDATE",
        (Rm::Heap, 0xA0) => "UPDATE+INIT",
        (Rm::Heap, 0x30) => "TRUNCATE",
        (Rm::Heap, 0x40) => "HOT_UPDATE",
        (Rm::Heap, 0xC0) => "HOT_UPDATE+INIT",
        (Rm::Heap, 0x50) => "HEAP_CONFIRM",
        (Rm::Heap, 0x60) => "LOCK",
        (Rm::Heap, 0x70) => "INPLACE",
        (Rm::Btree, _) => *BTREE.get(usize::from(operation >> 4))?,
        (Rm::Hash, _) => *HASH.get(usize::from(operation >> 4))?,
        (Rm::Gin, 0x10) => "CREATE_PTREE",
        (Rm::Gin, 0x20) => "INSERT",
        (Rm::Gin, 0x30) => "SPLIT",
        (Rm::Gin, 0x40) => "VACUUM_PAGE",
        (Rm::Gin, 0x50) => "DELETE_PAGE",
        (Rm::Gin, 0x60) => "UPDATE_META_PAGE",
        (Rm::Gin, 0x70) => "INSERT_LISTPAGE",
        (Rm::Gin, 0x80) => "DELETE_LISTPAGE",
        (Rm::Gin, 0x90) => "VACUUM_DATA_LEAF_PAGE",
        (Rm::Gist, 0x00) => "PAGE_UPDATE",
        (Rm::Gist, 0x10) => "DELETE",
        (Rm::Gist, 0x20) => "PAGE_REUSE",
        (Rm::Gist, 0x30) => "PAGE_SPLIT",
        (Rm::Gist, 0x60) => "PAGE_DELETE",
        (Rm::Gist, 0x70) => "ASSIGN_LSN",
        (Rm::Sequence, 0x00) => "LOG",
        (Rm::Spgist, 0x10) => "ADD_LEAF",
        (Rm::Spgist, 0x20) => "MOVE_LEAFS",
        (Rm::Spgist, 0x30) => "ADD_NODE",
        (Rm::Spgist, 0x40) => "SPLIT_TUPLE",
        (Rm::Spgist, 0x50) => "PICKSPLIT",
        (Rm::Spgist, 0x60) => "VACUUM_LEAF",
        (Rm::Spgist, 0x70) => "VACUUM_ROOT",
        (Rm::Spgist, 0x80) => "VACUUM_REDIRECT",
        (Rm::Brin, 0x00) => "CREATE_INDEX",
        (Rm::Brin, 0x10) => "INSERT",
        (Rm::Brin, 0x90) => "INSERT+INIT",
        (Rm::Brin, 0x20) => "UPDATE",
        (Rm::Brin, 0xA0) => "UPDATE+INIT",
        (Rm::Brin, 0x30) => "SAMEPAGE_UPDATE",
        (Rm::Brin, 0x40) => "REVMAP_EXTEND",
        (Rm::Brin, 0x50) => "DESUMMARIZE",
        (Rm::ReplicationOrigin, 0x00) => "SET",
        (Rm::ReplicationOrigin, 0x10) => "DROP",
        (Rm::Generic, _) => "Generic",
        (Rm::LogicalMessage, 0x00) => "MESSAGE",
        _ => return None,
    };
    Some(name)
}

/// By operation number.
const BTREE: [&str; 15] = [
    "INSERT_LEAF",
    "INSERT_UPPER",
    "INSERT_META",
    "SPLIT_L",
    "SPLIT_R",
    "INSERT_POST",
    "DEDUP",
    "DELETE",
    "UNLINK_PAGE",
    "UNLINK_PAGE_META",
    "NEWROOT",
    "MARK_PAGE_HALFDEAD",
    "VACUUM",
    "REUSE_PAGE",
    "META_CLEANUP",
];

/// By operation number.
const HASH: [&str; 13] = [
    "INIT_META_PAGE",
    "INIT_BITMAP_PAGE",
    "INSERT",
    "ADD_OVFL_PAGE",
    "SPLIT_ALLOCATE_PAGE",
    "SPLIT_PAGE",
    "SPLIT_COMPLETE",
    "MOVE_PAGE_CONTENTS",
    "SQUEEZE_PAGE",
    "DELETE",
    "SPLIT_CLEANUP",
    "UPDATE_META_PAGE",
    "VACUUM_ONE_PAGE",
];

/// Every operation that PostgreSQL 15 can write, in the order of resource managers' numbers and then of info
/// bytes, each name once.
pub fn operations() -> impl Iterator<Item = (Rm, &'static str)> {
    (0..=Rm::LogicalMessage.number()).map(Rm::from).flat_map(|resource_manager| {
        let mut names: Vec<&'static str> = Vec::new();
        for operation in 0..16 {
            if let Some(name) = operation_name(resource_manager, operation << 4)
                && !names.contains(&name)
                && !NEVER_WRITTEN.contains(&(resource_manager, name))
            {
                names.push(name);
            }
        }
        names.into_iter().map(move |name| (resource_manager, name))
    })
}

/// Operations that PostgreSQL 15 has a name for, and no code that writes them. A new version on the same page as the
/// old one is never the only tuple of its page.
const NEVER_WRITTEN: &[(Rm, &str)] = &[(Rm::Xlog, "NOOP"), (Rm::Heap, "HOT_UPDATE+INIT")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_listed_once() {
        let mut all: Vec<_> = operations().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.contains(&(Rm::Transaction, "COMMIT")));
        assert!(all.contains(&(Rm::Hash, "VACUUM_ONE_PAGE")));
        assert!(!all.contains(&(Rm::Xlog, "NOOP")));
    }
}
