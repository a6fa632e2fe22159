//! Resource managers: whose record it is.

use std::fmt;

/// Resource managers, numbered as in `src/include/access/rmgrlist.h` (equal in 15 to 18).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ResourceManager {
    /// `RM_XLOG_ID`
    Xlog,
    /// `RM_XACT_ID`
    Transaction,
    /// `RM_SMGR_ID`
    Storage,
    /// `RM_CLOG_ID`
    Clog,
    /// `RM_DBASE_ID`
    Database,
    /// `RM_TBLSPC_ID`
    Tablespace,
    /// `RM_MULTIXACT_ID`
    MultiXact,
    /// `RM_RELMAP_ID`
    RelMap,
    /// `RM_STANDBY_ID`
    Standby,
    /// `RM_HEAP2_ID`
    Heap2,
    /// `RM_HEAP_ID`
    Heap,
    /// `RM_BTREE_ID`
    Btree,
    /// `RM_HASH_ID`
    Hash,
    /// `RM_GIN_ID`
    Gin,
    /// `RM_GIST_ID`
    Gist,
    /// `RM_SEQ_ID`
    Sequence,
    /// `RM_SPGIST_ID`
    Spgist,
    /// `RM_BRIN_ID`
    Brin,
    /// `RM_COMMIT_TS_ID`
    CommitTs,
    /// `RM_REPLORIGIN_ID`
    ReplicationOrigin,
    /// `RM_GENERIC_ID`
    Generic,
    /// `RM_LOGICALMSG_ID`
    LogicalMessage,
    /// Borealis's own records: number 127, which PostgreSQL neither uses nor gives to extensions. They put
    /// the imported `initdb`'s status pages and small values into the stream (see `borealis_wal::native`).
    Borealis,
    /// Any other number: an extension's, or a later version's.
    Other(u8),
}

/// The number of Borealis's own resource manager.
const BOREALIS_NUMBER: u8 = 127;

/// PostgreSQL's resource managers with the names `pg_waldump` prints; the position is the number.
const KNOWN: [(ResourceManager, &str); 22] = [
    (ResourceManager::Xlog, "XLOG"),
    (ResourceManager::Transaction, "Transaction"),
    (ResourceManager::Storage, "Storage"),
    (ResourceManager::Clog, "CLOG"),
    (ResourceManager::Database, "Database"),
    (ResourceManager::Tablespace, "Tablespace"),
    (ResourceManager::MultiXact, "MultiXact"),
    (ResourceManager::RelMap, "RelMap"),
    (ResourceManager::Standby, "Standby"),
    (ResourceManager::Heap2, "Heap2"),
    (ResourceManager::Heap, "Heap"),
    (ResourceManager::Btree, "Btree"),
    (ResourceManager::Hash, "Hash"),
    (ResourceManager::Gin, "Gin"),
    (ResourceManager::Gist, "Gist"),
    (ResourceManager::Sequence, "Sequence"),
    (ResourceManager::Spgist, "SPGist"),
    (ResourceManager::Brin, "BRIN"),
    (ResourceManager::CommitTs, "CommitTs"),
    (ResourceManager::ReplicationOrigin, "ReplicationOrigin"),
    (ResourceManager::Generic, "Generic"),
    (ResourceManager::LogicalMessage, "LogicalMessage"),
];

impl From<u8> for ResourceManager {
    fn from(number: u8) -> Self {
        match KNOWN.get(usize::from(number)) {
            Some((known, _)) => *known,
            None if number == BOREALIS_NUMBER => ResourceManager::Borealis,
            None => ResourceManager::Other(number),
        }
    }
}

impl ResourceManager {
    /// The number records carry (`xl_rmid`).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            ResourceManager::Borealis => BOREALIS_NUMBER,
            ResourceManager::Other(number) => number,
            ResourceManager::Xlog => 0,
            ResourceManager::Transaction => 1,
            ResourceManager::Storage => 2,
            ResourceManager::Clog => 3,
            ResourceManager::Database => 4,
            ResourceManager::Tablespace => 5,
            ResourceManager::MultiXact => 6,
            ResourceManager::RelMap => 7,
            ResourceManager::Standby => 8,
            ResourceManager::Heap2 => 9,
            ResourceManager::Heap => 10,
            ResourceManager::Btree => 11,
            ResourceManager::Hash => 12,
            ResourceManager::Gin => 13,
            ResourceManager::Gist => 14,
            ResourceManager::Sequence => 15,
            ResourceManager::Spgist => 16,
            ResourceManager::Brin => 17,
            ResourceManager::CommitTs => 18,
            ResourceManager::ReplicationOrigin => 19,
            ResourceManager::Generic => 20,
            ResourceManager::LogicalMessage => 21,
        }
    }

    /// The name `pg_waldump` prints; `custom` for any number PostgreSQL leaves to extensions (the full form,
    /// with its number, is what `Display` writes) and `unknown` for the rest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ResourceManager::Borealis => "Borealis",
            ResourceManager::Other(128..) => "custom",
            ResourceManager::Other(_) => "unknown",
            known => KNOWN[usize::from(known.number())].1,
        }
    }
}

impl fmt::Display for ResourceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResourceManager::Other(number) => write!(f, "{}{number:03}", self.name()),
            known => f.write_str(known.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_maps_to_one_resource_manager_and_back() {
        for number in 0..=u8::MAX {
            assert_eq!(ResourceManager::from(number).number(), number);
        }
        assert_eq!(ResourceManager::from(11).name(), "Btree");
        assert_eq!(ResourceManager::from(130).to_string(), "custom130");
    }
}
