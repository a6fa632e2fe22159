//! Records of B-trees (`src/include/access/nbtxlog.h`).

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

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

const CUT_SHORT: &str = "B-tree record is cut short";

/// `xl_btree_split`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BtreeSplit {
    /// `level`: zero for leaves.
    pub level: u32,
    /// `firstrightoff`: the first item of the original page that goes to the right one.
    pub first_right: u16,
    /// `newitemoff`: the number that the new item would have in the original page.
    pub new_item: u16,
    /// `postingoff`: where the new item splits a posting list; zero if it does not.
    pub posting_offset: u16,
}

impl BtreeSplit {
    /// Reads the main data of an `XLOG_BTREE_SPLIT_*` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<BtreeSplit, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            Some(BtreeSplit {
                level: reader.u32()?,
                first_right: reader.u16()?,
                new_item: reader.u16()?,
                posting_offset: reader.u16()?,
            })
        };
        parsed(record, read(), CUT_SHORT)
    }
}

/// `xl_btree_mark_page_halfdead`, without the leaf's own number, which is that of a listed block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BtreeMarkHalfDead {
    /// `poffset`: the downlink in the parent.
    pub parent_offset: u16,
    /// `leftblk`
    pub left: u32,
    /// `rightblk`
    pub right: u32,
    /// `topparent`: the topmost page of the subtree that goes.
    pub top_parent: u32,
}

impl BtreeMarkHalfDead {
    /// Reads the main data of an `XLOG_BTREE_MARK_PAGE_HALFDEAD` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<BtreeMarkHalfDead, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let parent_offset = reader.u16()?;
            // Padding, and `leafblk`.
            reader.take(2 + 4)?;
            Some(BtreeMarkHalfDead {
                parent_offset,
                left: reader.u32()?,
                right: reader.u32()?,
                top_parent: reader.u32()?,
            })
        };
        parsed(record, read(), CUT_SHORT)
    }
}

/// `xl_btree_unlink_page`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BtreeUnlinkPage {
    /// `leftsib`
    pub left: u32,
    /// `rightsib`
    pub right: u32,
    /// `level` of the page that goes
    pub level: u32,
    /// `safexid`: after it nobody can still be on the way to the page.
    pub safe_full_xid: u64,
    /// `leafleftsib`
    pub leaf_left: u32,
    /// `leafrightsib`
    pub leaf_right: u32,
    /// `leaftopparent`
    pub leaf_top_parent: u32,
}

impl BtreeUnlinkPage {
    /// Reads the main data of an `XLOG_BTREE_UNLINK_PAGE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<BtreeUnlinkPage, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let (left, right, level) = (reader.u32()?, reader.u32()?, reader.u32()?);
            // Padding, for `safexid` has eight bytes.
            reader.take(4)?;
            Some(BtreeUnlinkPage {
                left,
                right,
                level,
                safe_full_xid: reader.u64()?,
                leaf_left: reader.u32()?,
                leaf_right: reader.u32()?,
                leaf_top_parent: reader.u32()?,
            })
        };
        parsed(record, read(), CUT_SHORT)
    }
}
