//! Pages of GiST indexes (`src/include/access/gist.h`).

use super::item_pointer::INVALID_BLOCK;

/// `InvalidBlockNumber` in a page's right link.
pub const NO_BLOCK: u32 = INVALID_BLOCK;
/// `GIST_ROOT_BLKNO`
pub const ROOT: u32 = 0;
/// `GIST_PAGE_ID`
pub const PAGE_ID: u16 = 0xFF81;

/// `sizeof(GISTPageOpaqueData)`: the special space of every page.
pub const SPECIAL_BYTES: usize = 16;
/// `nsn`: two halves, the higher first.
pub const SPLIT_LSN_OFFSET: usize = 0;
/// `rightlink`
pub const RIGHT_OFFSET: usize = 8;
/// `flags`
pub const FLAGS_OFFSET: usize = 12;
/// `gist_page_id`
pub const PAGE_ID_OFFSET: usize = 14;

/// `F_*` in `flags`.
pub mod flag {
    /// `F_LEAF`
    pub const LEAF: u16 = 1 << 0;
    /// `F_DELETED`
    pub const DELETED: u16 = 1 << 1;
    /// `F_TUPLES_DELETED`
    pub const TUPLES_DELETED: u16 = 1 << 2;
    /// `F_FOLLOW_RIGHT`
    pub const FOLLOW_RIGHT: u16 = 1 << 3;
    /// `F_HAS_GARBAGE`
    pub const HAS_GARBAGE: u16 = 1 << 4;
}
