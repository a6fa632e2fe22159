//! What `pg_waldump` calls each operation, for reports and messages.
//!
//! Source: the `*_identify` functions of `src/backend/access/rmgrdesc`.

use borealis_wal::ResourceManager;
use borealis_wal::layout::wal_record::OPERATION_MASK;
use borealis_wal::layout::{
    brin, btree, database, gin, gist, hash, heap, heap2, logical, multixact, sequence, slru, spgist, standby,
    storage, transaction, xlog,
};

use ResourceManager as Rm;

// Operations that make their page anew have another name.
const BRIN_INSERT_INIT: u8 = brin::INSERT | brin::INIT_PAGE;
const BRIN_UPDATE_INIT: u8 = brin::UPDATE | brin::INIT_PAGE;
const HEAP2_MULTI_INSERT_INIT: u8 = heap2::MULTI_INSERT | heap::INIT_PAGE;
const HEAP_HOT_UPDATE_INIT: u8 = heap::HOT_UPDATE | heap::INIT_PAGE;
const HEAP_INSERT_INIT: u8 = heap::INSERT | heap::INIT_PAGE;
const HEAP_UPDATE_INIT: u8 = heap::UPDATE | heap::INIT_PAGE;

/// The operation's name as `pg_waldump` prints it; `None` if PostgreSQL has no such operation.
///
/// `info` may carry the `XLR_*` flags in its low four bits. As long as the list of operations, of which each has a line.
#[must_use]
pub fn operation_name(resource_manager: ResourceManager, info: u8) -> Option<&'static str> {
    let operation = info & OPERATION_MASK;
    let name = match (resource_manager, operation) {
        (Rm::Xlog, xlog::CHECKPOINT_SHUTDOWN) => "CHECKPOINT_SHUTDOWN",
        (Rm::Xlog, xlog::CHECKPOINT_ONLINE) => "CHECKPOINT_ONLINE",
        (Rm::Xlog, xlog::NOOP) => "NOOP",
        (Rm::Xlog, xlog::NEXT_OID) => "NEXTOID",
        (Rm::Xlog, xlog::SWITCH) => "SWITCH",
        (Rm::Xlog, xlog::BACKUP_END) => "BACKUP_END",
        (Rm::Xlog, xlog::PARAMETER_CHANGE) => "PARAMETER_CHANGE",
        (Rm::Xlog, xlog::RESTORE_POINT) => "RESTORE_POINT",
        (Rm::Xlog, xlog::FULL_PAGE_WRITES_CHANGE) => "FPW_CHANGE",
        (Rm::Xlog, xlog::END_OF_RECOVERY) => "END_OF_RECOVERY",
        (Rm::Xlog, xlog::FULL_PAGE_IMAGE_FOR_HINT) => "FPI_FOR_HINT",
        (Rm::Xlog, xlog::FULL_PAGE_IMAGE) => "FPI",
        (Rm::Xlog, xlog::OVERWRITE_CONTINUATION) => "OVERWRITE_CONTRECORD",
        // The highest bit says whether the record has details, not which operation it is.
        (Rm::Transaction, _) => match operation & transaction::OPERATION_MASK {
            transaction::COMMIT => "COMMIT",
            transaction::PREPARE => "PREPARE",
            transaction::ABORT => "ABORT",
            transaction::COMMIT_PREPARED => "COMMIT_PREPARED",
            transaction::ABORT_PREPARED => "ABORT_PREPARED",
            transaction::ASSIGNMENT => "ASSIGNMENT",
            transaction::INVALIDATIONS => "INVALIDATION",
            _ => return None,
        },
        (Rm::Storage, storage::CREATE) => "CREATE",
        (Rm::Storage, storage::TRUNCATE) => "TRUNCATE",
        (Rm::Clog | Rm::CommitTs, slru::ZERO_PAGE) => "ZEROPAGE",
        (Rm::Clog | Rm::CommitTs, slru::TRUNCATE) => "TRUNCATE",
        (Rm::Database, database::CREATE_FILE_COPY) => "CREATE_FILE_COPY",
        (Rm::Database, database::CREATE_WAL_LOG) => "CREATE_WAL_LOG",
        (Rm::Database, database::DROP) => "DROP",
        (Rm::Tablespace, database::TABLESPACE_CREATE) => "CREATE",
        (Rm::Tablespace, database::TABLESPACE_DROP) => "DROP",
        (Rm::MultiXact, multixact::ZERO_OFFSETS_PAGE) => "ZERO_OFF_PAGE",
        (Rm::MultiXact, multixact::ZERO_MEMBERS_PAGE) => "ZERO_MEM_PAGE",
        (Rm::MultiXact, multixact::CREATE) => "CREATE_ID",
        (Rm::MultiXact, multixact::TRUNCATE) => "TRUNCATE_ID",
        (Rm::RelMap, database::RELATION_MAP_UPDATE) => "UPDATE",
        (Rm::Standby, standby::LOCK) => "LOCK",
        (Rm::Standby, standby::RUNNING_TRANSACTIONS) => "RUNNING_XACTS",
        (Rm::Standby, standby::INVALIDATIONS) => "INVALIDATIONS",
        (Rm::Heap2, heap2::REWRITE) => "REWRITE",
        (Rm::Heap2, heap2::PRUNE) => "PRUNE",
        (Rm::Heap2, heap2::VACUUM) => "VACUUM",
        (Rm::Heap2, heap2::FREEZE_PAGE) => "FREEZE_PAGE",
        (Rm::Heap2, heap2::VISIBLE) => "VISIBLE",
        (Rm::Heap2, heap2::MULTI_INSERT) => "MULTI_INSERT",
        (Rm::Heap2, HEAP2_MULTI_INSERT_INIT) => "MULTI_INSERT+INIT",
        (Rm::Heap2, heap2::LOCK_UPDATED) => "LOCK_UPDATED",
        (Rm::Heap2, heap2::NEW_CID) => "NEW_CID",
        (Rm::Heap, heap::INSERT) => "INSERT",
        (Rm::Heap, HEAP_INSERT_INIT) => "INSERT+INIT",
        (Rm::Heap, heap::DELETE) => "DELETE",
        (Rm::Heap, heap::UPDATE) => "UPDATE",
        (Rm::Heap, HEAP_UPDATE_INIT) => "UPDATE+INIT",
        (Rm::Heap, heap::TRUNCATE) => "TRUNCATE",
        (Rm::Heap, heap::HOT_UPDATE) => "HOT_UPDATE",
        (Rm::Heap, HEAP_HOT_UPDATE_INIT) => "HOT_UPDATE+INIT",
        (Rm::Heap, heap::CONFIRM) => "HEAP_CONFIRM",
        (Rm::Heap, heap::LOCK) => "LOCK",
        (Rm::Heap, heap::INPLACE) => "INPLACE",
        (Rm::Btree, btree::INSERT_LEAF) => "INSERT_LEAF",
        (Rm::Btree, btree::INSERT_UPPER) => "INSERT_UPPER",
        (Rm::Btree, btree::INSERT_META) => "INSERT_META",
        (Rm::Btree, btree::SPLIT_L) => "SPLIT_L",
        (Rm::Btree, btree::SPLIT_R) => "SPLIT_R",
        (Rm::Btree, btree::INSERT_POST) => "INSERT_POST",
        (Rm::Btree, btree::DEDUP) => "DEDUP",
        (Rm::Btree, btree::DELETE) => "DELETE",
        (Rm::Btree, btree::UNLINK_PAGE) => "UNLINK_PAGE",
        (Rm::Btree, btree::UNLINK_PAGE_META) => "UNLINK_PAGE_META",
        (Rm::Btree, btree::NEWROOT) => "NEWROOT",
        (Rm::Btree, btree::MARK_PAGE_HALFDEAD) => "MARK_PAGE_HALFDEAD",
        (Rm::Btree, btree::VACUUM) => "VACUUM",
        (Rm::Btree, btree::REUSE_PAGE) => "REUSE_PAGE",
        (Rm::Btree, btree::META_CLEANUP) => "META_CLEANUP",
        (Rm::Hash, hash::INIT_META_PAGE) => "INIT_META_PAGE",
        (Rm::Hash, hash::INIT_BITMAP_PAGE) => "INIT_BITMAP_PAGE",
        (Rm::Hash, hash::INSERT) => "INSERT",
        (Rm::Hash, hash::ADD_OVFL_PAGE) => "ADD_OVFL_PAGE",
        (Rm::Hash, hash::SPLIT_ALLOCATE_PAGE) => "SPLIT_ALLOCATE_PAGE",
        (Rm::Hash, hash::SPLIT_PAGE) => "SPLIT_PAGE",
        (Rm::Hash, hash::SPLIT_COMPLETE) => "SPLIT_COMPLETE",
        (Rm::Hash, hash::MOVE_PAGE_CONTENTS) => "MOVE_PAGE_CONTENTS",
        (Rm::Hash, hash::SQUEEZE_PAGE) => "SQUEEZE_PAGE",
        (Rm::Hash, hash::DELETE) => "DELETE",
        (Rm::Hash, hash::SPLIT_CLEANUP) => "SPLIT_CLEANUP",
        (Rm::Hash, hash::UPDATE_META_PAGE) => "UPDATE_META_PAGE",
        (Rm::Hash, hash::VACUUM_ONE_PAGE) => "VACUUM_ONE_PAGE",
        (Rm::Gin, gin::CREATE_PTREE) => "CREATE_PTREE",
        (Rm::Gin, gin::INSERT) => "INSERT",
        (Rm::Gin, gin::SPLIT) => "SPLIT",
        (Rm::Gin, gin::VACUUM_PAGE) => "VACUUM_PAGE",
        (Rm::Gin, gin::DELETE_PAGE) => "DELETE_PAGE",
        (Rm::Gin, gin::UPDATE_META_PAGE) => "UPDATE_META_PAGE",
        (Rm::Gin, gin::INSERT_LISTPAGE) => "INSERT_LISTPAGE",
        (Rm::Gin, gin::DELETE_LISTPAGE) => "DELETE_LISTPAGE",
        (Rm::Gin, gin::VACUUM_DATA_LEAF_PAGE) => "VACUUM_DATA_LEAF_PAGE",
        (Rm::Gist, gist::PAGE_UPDATE) => "PAGE_UPDATE",
        (Rm::Gist, gist::DELETE) => "DELETE",
        (Rm::Gist, gist::PAGE_REUSE) => "PAGE_REUSE",
        (Rm::Gist, gist::PAGE_SPLIT) => "PAGE_SPLIT",
        (Rm::Gist, gist::PAGE_DELETE) => "PAGE_DELETE",
        (Rm::Gist, gist::ASSIGN_LSN) => "ASSIGN_LSN",
        (Rm::Sequence, sequence::LOG) => "LOG",
        (Rm::Spgist, spgist::ADD_LEAF) => "ADD_LEAF",
        (Rm::Spgist, spgist::MOVE_LEAFS) => "MOVE_LEAFS",
        (Rm::Spgist, spgist::ADD_NODE) => "ADD_NODE",
        (Rm::Spgist, spgist::SPLIT_TUPLE) => "SPLIT_TUPLE",
        (Rm::Spgist, spgist::PICKSPLIT) => "PICKSPLIT",
        (Rm::Spgist, spgist::VACUUM_LEAF) => "VACUUM_LEAF",
        (Rm::Spgist, spgist::VACUUM_ROOT) => "VACUUM_ROOT",
        (Rm::Spgist, spgist::VACUUM_REDIRECT) => "VACUUM_REDIRECT",
        (Rm::Brin, brin::CREATE_INDEX) => "CREATE_INDEX",
        (Rm::Brin, brin::INSERT) => "INSERT",
        (Rm::Brin, BRIN_INSERT_INIT) => "INSERT+INIT",
        (Rm::Brin, brin::UPDATE) => "UPDATE",
        (Rm::Brin, BRIN_UPDATE_INIT) => "UPDATE+INIT",
        (Rm::Brin, brin::SAMEPAGE_UPDATE) => "SAMEPAGE_UPDATE",
        (Rm::Brin, brin::REVMAP_EXTEND) => "REVMAP_EXTEND",
        (Rm::Brin, brin::DESUMMARIZE) => "DESUMMARIZE",
        (Rm::ReplicationOrigin, logical::ORIGIN_SET) => "SET",
        (Rm::ReplicationOrigin, logical::ORIGIN_DROP) => "DROP",
        (Rm::Generic, _) => "Generic",
        (Rm::LogicalMessage, logical::MESSAGE) => "MESSAGE",
        _ => return None,
    };
    Some(name)
}

/// Every operation that PostgreSQL can write, in the order of resource managers' numbers and then of info
/// bytes, each name once.
pub fn operations() -> impl Iterator<Item = (Rm, &'static str)> {
    (0..=Rm::LogicalMessage.number()).map(Rm::from).flat_map(|resource_manager| {
        let mut names: Vec<&'static str> = Vec::new();
        for operation in 0..=OPERATION_MASK >> 4 {
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

/// Operations that PostgreSQL has a name for, and no code that writes them. A new version on the same page as the
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
