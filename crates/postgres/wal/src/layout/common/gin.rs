//! Pages of inverted indexes (`src/include/access/ginblock.h`).

use borealis_types::PAGE_SIZE;

use super::item_pointer::INVALID_BLOCK;
use super::page;

/// `InvalidBlockNumber` in a page's right link.
pub const NO_BLOCK: u32 = INVALID_BLOCK;

/// `sizeof(GinPageOpaqueData)`: the special space of every page.
pub const SPECIAL_BYTES: usize = 8;
/// `rightlink`
pub const RIGHT_OFFSET: usize = 0;
/// `maxoff`
pub const COUNT_OFFSET: usize = 4;
/// `flags`
pub const FLAGS_OFFSET: usize = 6;

/// `GIN_*` in `flags`.
pub mod flag {
    /// `GIN_DATA`
    pub const DATA: u16 = 1 << 0;
    /// `GIN_LEAF`
    pub const LEAF: u16 = 1 << 1;
    /// `GIN_DELETED`
    pub const DELETED: u16 = 1 << 2;
    /// `GIN_META`
    pub const META: u16 = 1 << 3;
    /// `GIN_LIST`
    pub const LIST: u16 = 1 << 4;
    /// `GIN_LIST_FULLROW`
    pub const LIST_FULL_ROW: u16 = 1 << 5;
    /// `GIN_INCOMPLETE_SPLIT`
    pub const INCOMPLETE_SPLIT: u16 = 1 << 6;
    /// `GIN_COMPRESSED`
    pub const COMPRESSED: u16 = 1 << 7;
}

/// `sizeof(GinMetaPageData)`
pub const META_BYTES: usize = 56;

/// Bytes of the right bound at the start of a posting tree's page: a heap position, aligned.
pub const RIGHT_BOUND_BYTES: usize = 8;
/// Where a posting tree's page has its data (`GinDataPageGetData`): after the page header and the right bound.
pub const DATA_OFFSET: usize = page::HEADER_BYTES + RIGHT_BOUND_BYTES;
/// Most bytes of items on a page of a posting tree (`GinDataPageMaxDataSize`).
pub const POSTING_DATA_MAX: usize = PAGE_SIZE - DATA_OFFSET - SPECIAL_BYTES;
/// `sizeof(PostingItem)`
pub const POSTING_ITEM_BYTES: usize = 10;

/// Where the bytes of a `GinPostingList` start: after its first heap position and its length.
pub const SEGMENT_HEADER_BYTES: usize = 8;
/// `nbytes` in a `GinPostingList`
pub const SEGMENT_LENGTH_OFFSET: usize = 6;
/// `MaxHeapTuplesPerPageBits` (`src/backend/access/gin/ginpostinglist.c`)
pub const OFFSET_NUMBER_BITS: u32 = 11;
