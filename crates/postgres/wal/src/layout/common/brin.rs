//! Pages of block range indexes (`src/include/access/brin_page.h`).

use borealis_types::PAGE_SIZE;

use super::item_pointer::ITEM_POINTER_BYTES;
use super::page;

/// `sizeof(BrinSpecialSpace)`: flags in the last but one, the page's type in the last two bytes.
pub const SPECIAL_BYTES: usize = 8;
/// `BrinPageFlags`, in the special space
pub const FLAGS_OFFSET: usize = 4;
/// `BrinPageType`, in the special space
pub const TYPE_OFFSET: usize = 6;
/// `BRIN_EVACUATE_PAGE`
pub const EVACUATE: u16 = 1 << 0;

/// `BRIN_PAGETYPE_META`
pub const META: u16 = 0xF091;
/// `BRIN_PAGETYPE_REVMAP`
pub const RANGE_MAP: u16 = 0xF092;
/// `BRIN_PAGETYPE_REGULAR`
pub const REGULAR: u16 = 0xF093;

/// `BRIN_META_MAGIC`
pub const META_MAGIC: u32 = 0xA810_9CFA;
/// `sizeof(BrinMetaPageData)`: magic, version, pages per range, last page of the range map.
pub const META_BYTES: usize = 16;
/// `lastRevmapPage`, in the metadata
pub const META_LAST_RANGE_MAP_PAGE_OFFSET: usize = 12;

/// Bytes of an entry of the range map: where in the index the range's summary is.
pub const RANGE_MAP_ENTRY_BYTES: usize = ITEM_POINTER_BYTES;
/// `REVMAP_PAGE_MAXITEMS`
pub const RANGE_MAP_ENTRIES: usize = (PAGE_SIZE - page::HEADER_BYTES - SPECIAL_BYTES) / RANGE_MAP_ENTRY_BYTES;
