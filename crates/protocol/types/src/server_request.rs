//! What a PostgreSQL server asks of storage, as plain data: the shim asks, the shared memory carries, and the driver's
//! read path answers.

use crate::{BlockKey, BlockNumber, DatabaseKey, Fork, RelationFork, SlruKind};

/// The most entries of one answer to [`Request::ListRelations`]: an answer's listing is at most a page, and an entry
/// takes twelve bytes there.
pub const MAX_RELATION_ENTRIES: usize = crate::PAGE_SIZE / 12;
/// The most entries of one answer to [`Request::ListSlruSegments`]: eight bytes each.
pub const MAX_SLRU_ENTRIES: usize = crate::PAGE_SIZE / 8;

/// What a PostgreSQL process asks of the driver. Every answer is as of now; the driver chooses the LSN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// A block that is absent from the local cache. Answer: the page (a block below the relation's size that no
    /// record ever touched is a page of zeros), or that it does not exist when the relation is gone.
    ReadBlock(BlockKey),
    /// A page of a transaction-status store. Answer: the page, or that it does not exist.
    ReadSlruPage {
        /// The transaction-status store.
        kind: SlruKind,
        /// Page number in the whole store.
        page: u32,
    },
    /// Whether a fork exists, and how long it is. Answer: a [`RelationSize`].
    RelationSize(RelationFork),
    /// The relation forks of one database. Answer: at most [`MAX_RELATION_ENTRIES`] of them, and
    /// the next cursor.
    ListRelations {
        /// The database in its tablespace.
        database: DatabaseKey,
        /// Zero at first, then what the last reply said. Opaque to the shim.
        cursor: u64,
    },
    /// Whether a segment file of a transaction-status store exists. Answer: how many pages it has, if it does.
    SlruSegment {
        /// The transaction-status store.
        kind: SlruKind,
        /// Number of the segment file (32 pages each).
        segment: u32,
    },
    /// The segment files of a transaction-status store. Answer: at most [`MAX_SLRU_ENTRIES`] of
    /// them, and the next cursor.
    ListSlruSegments {
        /// The transaction-status store.
        kind: SlruKind,
        /// Zero at first, then what the last reply said. Opaque to the shim.
        cursor: u64,
    },
}

/// A relation fork's size as storage knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationSize {
    /// Blocks of the fork; `None` when it does not exist.
    pub blocks: Option<BlockNumber>,
    /// Whether the relation has an `_init` fork (it is unlogged).
    pub has_init_fork: bool,
}

/// One relation fork of a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationEntry {
    /// The relation's file number (`relfilenode`).
    pub relation: u32,
    /// The fork that the length is of.
    pub fork: Fork,
    /// Its length in blocks; zero when it exists and is empty.
    pub blocks: BlockNumber,
    /// Whether the relation has an `_init` fork (it is unlogged).
    pub has_init_fork: bool,
}

/// One segment file of a transaction-status store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlruEntry {
    /// Number of the segment file.
    pub segment: u32,
    /// Pages in it, counted to the last one that exists (at most 32).
    pub pages: u32,
}
