//! The header of every page of a relation (`PageHeaderData` in `src/include/storage/bufpage.h`).

pub use borealis_types::PAGE_HEADER_BYTES as HEADER_BYTES;
use borealis_types::PAGE_SIZE;

use super::item_id::ITEM_ID_BYTES;

/// `pd_lsn`: two halves, the higher first (`PageXLogRecPtr`).
pub const LSN_OFFSET: usize = 0;
/// `pd_checksum`
pub const CHECKSUM_OFFSET: usize = 8;
/// `pd_flags`
pub const FLAGS_OFFSET: usize = 10;
/// `pd_lower`: end of the line pointers.
pub const LOWER_OFFSET: usize = 12;
/// `pd_upper`: start of the items; zero in a page that was never initialized.
pub const UPPER_OFFSET: usize = 14;
/// `pd_special`: end of the items.
pub const SPECIAL_OFFSET: usize = 16;
/// `pd_pagesize_version`
pub const SIZE_AND_VERSION_OFFSET: usize = 18;
/// `pd_prune_xid`
pub const PRUNE_XID_OFFSET: usize = 20;

/// `pd_pagesize_version` of an 8 KiB page: its size and `PG_PAGE_LAYOUT_VERSION`, which is 4.
pub const SIZE_AND_VERSION: u16 = PAGE_SIZE as u16 | 4;

/// `PD_HAS_FREE_LINES`: a hint that there are unused line pointers.
pub const HAS_FREE_LINES: u16 = 0x0001;
/// `PD_PAGE_FULL`: a hint that an update found no room.
pub const PAGE_FULL: u16 = 0x0002;
/// `PD_ALL_VISIBLE`: everybody sees all tuples of the page.
pub const ALL_VISIBLE: u16 = 0x0004;

/// `MaxHeapTuplesPerPage` (`src/include/access/htup_details.h`)
pub const HEAP_TUPLES_MAX: u16 = 291;
/// `MaxIndexTuplesPerPage` (`src/include/access/itup.h`)
pub const INDEX_TUPLES_MAX: usize = 408;
/// Line pointers that fit if nothing else is on the page: bounds every array indexed by them.
pub const LINE_POINTERS_MAX: usize = (PAGE_SIZE - HEADER_BYTES) / ITEM_ID_BYTES;

/// `MAXALIGN` (`src/include/c.h`): up to a multiple of `MAXIMUM_ALIGNOF`, which is eight.
#[must_use]
pub const fn max_align(length: usize) -> usize {
    length.next_multiple_of(8)
}
