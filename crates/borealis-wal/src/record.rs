//! One WAL record, parsed in place.
//!
//! Layouts: PostgreSQL's `src/include/access/xlogrecord.h`; order of parts: `DecodeXLogRecord` in
//! `src/backend/access/transam/xlogreader.c`.

use borealis_types::{BlockKey, Lsn, PostgresVersion, RecordSpan};

/// A parsed record. It borrows the contiguous bytes of the record (`xl_tot_len` of them).
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Where the record stands; `span.end` is what its pages are stamped with.
    pub span: RecordSpan,
    /// The version whose layouts apply.
    pub version: PostgresVersion,
    /// The whole record, header included.
    pub bytes: &'a [u8],
    /// Writing (sub)transaction, zero for none.
    pub xid: u32,
    /// Start of the previous record in the volume (`xl_prev`).
    pub previous_start: Lsn,
    /// Which resource manager applies it.
    pub resource_manager: ResourceManager,
    /// `xl_info`: the resource manager's operation in the high four bits, `XLR_*` flags in the low four.
    pub info: u8,
    /// Listed blocks, in block-id order.
    pub blocks: Vec<BlockReference<'a>>,
    /// Resource-manager data that belongs to no block.
    pub main_data: &'a [u8],
    /// Replication origin, if any.
    pub origin: Option<u16>,
    /// Top-level transaction, where the record carries it.
    pub top_level_xid: Option<u32>,
}

impl Record<'_> {
    /// The operation bits of `info` (without the `XLR_*` flags).
    #[must_use]
    pub fn operation(&self) -> u8 {
        self.info & 0xF0
    }

    /// The listed block with this id (`XLogRecGetBlock…`).
    #[must_use]
    pub fn block(&self, id: u8) -> Option<&BlockReference<'_>> {
        self.blocks.iter().find(|block| block.id == id)
    }
}

/// A block a record lists.
#[derive(Clone, Debug)]
pub struct BlockReference<'a> {
    /// The id the resource manager knows it by.
    pub id: u8,
    /// Which block.
    pub key: BlockKey,
    /// The record re-initializes the page (`BKPBLOCK_WILL_INIT`): its old bytes do not matter.
    pub will_init: bool,
    /// A full-page image, if the record has one.
    pub image: Option<BlockImage<'a>>,
    /// Resource-manager data of this block (empty if none).
    pub data: &'a [u8],
}

/// A full-page image as the record stores it: perhaps compressed, perhaps with its hole left out.
#[derive(Clone, Debug)]
pub struct BlockImage<'a> {
    /// The stored bytes.
    pub bytes: &'a [u8],
    /// Offset of the hole in the page; zero if none.
    pub hole_offset: u16,
    /// Length of the hole, which is all zeros; zero if none.
    pub hole_length: u16,
    /// How the bytes are compressed.
    pub compression: ImageCompression,
    /// Redo restores the page from this image (`BKPIMAGE_APPLY`); otherwise it is for checking only.
    pub apply: bool,
}

/// How a full-page image is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageCompression {
    /// As it is.
    None,
    /// PostgreSQL's own LZ.
    Pglz,
    /// LZ4 block format.
    Lz4,
    /// Zstandard.
    Zstd,
}

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

/// Bytes that are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes break the layout.
    #[error("malformed WAL record at {start}: {what}")]
    Malformed {
        /// Position of its header.
        start: Lsn,
        /// Which rule is broken.
        what: &'static str,
    },
    /// The checksum is not that of the bytes.
    #[error("WAL record at {start} fails its checksum")]
    Checksum {
        /// Position of its header.
        start: Lsn,
    },
}
