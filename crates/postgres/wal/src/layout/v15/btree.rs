//! Records of B-trees (`src/include/access/nbtxlog.h`).

/// `XLOG_BTREE_INSERT_LEAF`
pub const INSERT_LEAF: u8 = 0x00;
/// `XLOG_BTREE_INSERT_UPPER`
pub const INSERT_UPPER: u8 = 0x10;
/// `XLOG_BTREE_INSERT_META`
pub const INSERT_META: u8 = 0x20;
/// `XLOG_BTREE_SPLIT_L`: the new tuple goes to the left page.
pub const SPLIT_L: u8 = 0x30;
/// `XLOG_BTREE_SPLIT_R`: the new tuple goes to the right page.
pub const SPLIT_R: u8 = 0x40;
/// `XLOG_BTREE_INSERT_POST`: the new tuple splits a posting list.
pub const INSERT_POST: u8 = 0x50;
/// `XLOG_BTREE_DEDUP`
pub const DEDUP: u8 = 0x60;
/// `XLOG_BTREE_DELETE`
pub const DELETE: u8 = 0x70;
/// `XLOG_BTREE_UNLINK_PAGE`
pub const UNLINK_PAGE: u8 = 0x80;
/// `XLOG_BTREE_UNLINK_PAGE_META`
pub const UNLINK_PAGE_META: u8 = 0x90;
/// `XLOG_BTREE_NEWROOT`
pub const NEWROOT: u8 = 0xA0;
/// `XLOG_BTREE_MARK_PAGE_HALFDEAD`
pub const MARK_PAGE_HALFDEAD: u8 = 0xB0;
/// `XLOG_BTREE_VACUUM`
pub const VACUUM: u8 = 0xC0;
/// `XLOG_BTREE_REUSE_PAGE`: for hot standby only; lists no block.
pub const REUSE_PAGE: u8 = 0xD0;
/// `XLOG_BTREE_META_CLEANUP`
pub const META_CLEANUP: u8 = 0xE0;

/// Bytes of a `BTDedupInterval`: offset number of the first tuple, count.
pub const DEDUP_INTERVAL_BYTES: usize = 4;
/// `level`, in `xl_btree_newroot`: after the root's block number.
pub const NEWROOT_LEVEL_OFFSET: usize = 4;
/// Bytes of an `xl_btree_metadata` that stand in the metapage as they are, from `btm_version` on: version, root, its
/// level, fast root, its level, pages deleted by the last cleanup.
pub const METADATA_COPIED_BYTES: usize = 24;
