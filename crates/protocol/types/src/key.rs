//! What redo changes: 8 KiB pages and small named values.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A block's number inside its relation fork.
pub type BlockNumber = u32;

/// PostgreSQL's `RelFileNode` (15) / `RelFileLocator` (16 and later): which files a relation has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RelationLocator {
    /// Tablespace OID (1663 is `pg_default`, 1664 is `pg_global`).
    pub tablespace: u32,
    /// Database OID; zero for shared relations.
    pub database: u32,
    /// The relation's file number (`relfilenode`), not its OID.
    pub relation: u32,
}

impl fmt::Display for RelationLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relation)
    }
}

/// A file of a relation, with PostgreSQL's `ForkNumber` as its value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Fork {
    /// The relation's own pages: tuples or index entries.
    Main = 0,
    /// Free space map: a hint, mostly not logged.
    FreeSpaceMap = 1,
    /// Visibility map: two bits for each heap page.
    VisibilityMap = 2,
    /// What an unlogged relation is reset to.
    Init = 3,
}

/// A fork number PostgreSQL does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fork number {0} does not exist (0 to 3 do)")]
pub struct UnknownFork(pub u8);

impl Fork {
    /// Every fork, in number order.
    pub const ALL: [Fork; 4] = [Fork::Main, Fork::FreeSpaceMap, Fork::VisibilityMap, Fork::Init];

    /// The suffix of the fork's file name: `""`, `"_fsm"`, `"_vm"` or `"_init"`.
    #[must_use]
    pub fn file_suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::FreeSpaceMap => "_fsm",
            Fork::VisibilityMap => "_vm",
            Fork::Init => "_init",
        }
    }
}

impl TryFrom<u8> for Fork {
    type Error = UnknownFork;

    fn try_from(number: u8) -> Result<Self, UnknownFork> {
        Fork::ALL.get(usize::from(number)).copied().ok_or(UnknownFork(number))
    }
}

/// One fork of one relation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RelationFork {
    /// The relation that it is a file of.
    pub locator: RelationLocator,
    /// Pages, free space map, visibility map or init fork.
    pub fork: Fork,
}

impl fmt::Display for RelationFork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.locator, self.fork.file_suffix())
    }
}

/// One block of one relation fork.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BlockKey {
    /// The file that the block is in.
    pub relation_fork: RelationFork,
    /// The block's number in it.
    pub block: BlockNumber,
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} block {}", self.relation_fork, self.block)
    }
}

/// The transaction-status stores that PostgreSQL keeps as 8 KiB pages outside relations ("SLRU") and that
/// survive a restart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum SlruKind {
    /// `pg_xact`: two status bits for each transaction.
    Transactions = 0,
    /// Where the members of each multixact begin (`pg_multixact/offsets`).
    MultiXactOffsets = 1,
    /// The transactions in each multixact (`pg_multixact/members`).
    MultiXactMembers = 2,
    /// When each transaction committed (`pg_commit_ts`); kept only if it is switched on.
    CommitTimestamps = 3,
}

impl SlruKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [SlruKind; 4] = [
        SlruKind::Transactions,
        SlruKind::MultiXactOffsets,
        SlruKind::MultiXactMembers,
        SlruKind::CommitTimestamps,
    ];

    /// The folder below the data directory.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            SlruKind::Transactions => "pg_xact",
            SlruKind::MultiXactOffsets => "pg_multixact/offsets",
            SlruKind::MultiXactMembers => "pg_multixact/members",
            SlruKind::CommitTimestamps => "pg_commit_ts",
        }
    }
}

/// Anything that redo changes as an 8 KiB page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PageKey {
    /// A block of a relation.
    Block(BlockKey),
    /// A page of a transaction-status store.
    Slru {
        /// The transaction-status store it belongs to.
        kind: SlruKind,
        /// Page number, counted from the first page of the store (32 to a segment file).
        page: u32,
    },
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageKey::Block(block) => block.fmt(f),
            PageKey::Slru { kind, page } => write!(f, "{} page {page}", kind.folder()),
        }
    }
}

/// A database inside a tablespace: one folder of relation files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DatabaseKey {
    /// OID of the tablespace (`spcOid`).
    pub tablespace: u32,
    /// Database OID; zero (with `pg_global`) for shared relations.
    pub database: u32,
}

/// A small value that redo changes and that is not a page. All of them live in the meta group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum MetaKey {
    /// What a checkpoint record holds, kept current by every record (see `borealis_redo::counters`).
    Counters,
    /// The `pg_control` of the `initdb` the volume was made from, as bytes: the fixed fields of every later one.
    ControlFileTemplate,
    /// `pg_filenode.map` of one database (or of the shared relations), as PostgreSQL writes the file.
    RelationMap(DatabaseKey),
    /// A database exists in this tablespace; the value is empty.
    Database(DatabaseKey),
    /// A user tablespace; the value is its path, as `CREATE TABLESPACE` gave it.
    Tablespace(u32),
    /// A prepared transaction; the value is the body of its state file.
    PreparedTransaction(u32),
    /// A small file worth keeping, by its path below the data directory.
    SmallFile(String),
}
