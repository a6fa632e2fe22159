//! Records of inverted indexes (`src/include/access/ginxlog.h`).

/// `XLOG_GIN_CREATE_PTREE`
pub const CREATE_PTREE: u8 = 0x10;
/// `XLOG_GIN_INSERT`
pub const INSERT: u8 = 0x20;
/// `XLOG_GIN_SPLIT`
pub const SPLIT: u8 = 0x30;
/// `XLOG_GIN_VACUUM_PAGE`
pub const VACUUM_PAGE: u8 = 0x40;
/// `XLOG_GIN_DELETE_PAGE`
pub const DELETE_PAGE: u8 = 0x50;
/// `XLOG_GIN_UPDATE_META_PAGE`
pub const UPDATE_META_PAGE: u8 = 0x60;
/// `XLOG_GIN_INSERT_LISTPAGE`
pub const INSERT_LISTPAGE: u8 = 0x70;
/// `XLOG_GIN_DELETE_LISTPAGE`
pub const DELETE_LISTPAGE: u8 = 0x80;
/// `XLOG_GIN_VACUUM_DATA_LEAF_PAGE`
pub const VACUUM_DATA_LEAF_PAGE: u8 = 0x90;

/// `GIN_INSERT_ISDATA`: the page is one of a posting tree.
pub const INSERT_IS_DATA: u16 = 0x01;
/// `GIN_INSERT_ISLEAF`
pub const INSERT_IS_LEAF: u16 = 0x02;

/// `metadata`, in `ginxlogUpdateMeta`: after the relation and its alignment.
pub const UPDATE_META_METADATA_OFFSET: usize = 16;

/// What a `ginxlogRecompressDataLeaf` does to a segment.
pub mod segment_action {
    /// `GIN_SEGMENT_DELETE`
    pub const DELETE: u8 = 1;
    /// `GIN_SEGMENT_INSERT`
    pub const INSERT: u8 = 2;
    /// `GIN_SEGMENT_REPLACE`
    pub const REPLACE: u8 = 3;
    /// `GIN_SEGMENT_ADDITEMS`
    pub const ADD_ITEMS: u8 = 4;
}
