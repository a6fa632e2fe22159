//! Pages of hash indexes (`src/include/access/hash.h`).

use super::item_pointer::INVALID_BLOCK;

/// `InvalidBlockNumber` as a neighbour, and also `InvalidBucket`.
pub const NONE: u32 = INVALID_BLOCK;
/// `HASHO_PAGE_ID`
pub const PAGE_ID: u16 = 0xFF80;

/// `sizeof(HashPageOpaqueData)`: the special space of every page.
pub const SPECIAL_BYTES: usize = 16;
/// `hasho_prevblkno`
pub const PREVIOUS_OFFSET: usize = 0;
/// `hasho_nextblkno`
pub const NEXT_OFFSET: usize = 4;
/// `hasho_bucket`
pub const BUCKET_OFFSET: usize = 8;
/// `hasho_flag`
pub const FLAGS_OFFSET: usize = 12;
/// `hasho_page_id`
pub const PAGE_ID_OFFSET: usize = 14;

/// `LH_*` in `hasho_flag`.
pub mod flag {
    /// `LH_UNUSED_PAGE`
    pub const UNUSED: u16 = 0;
    /// `LH_OVERFLOW_PAGE`
    pub const OVERFLOW: u16 = 1 << 0;
    /// `LH_BUCKET_PAGE`
    pub const BUCKET: u16 = 1 << 1;
    /// `LH_BITMAP_PAGE`
    pub const BITMAP: u16 = 1 << 2;
    /// `LH_META_PAGE`
    pub const META: u16 = 1 << 3;
    /// `LH_BUCKET_NEEDS_SPLIT_CLEANUP`
    pub const NEEDS_SPLIT_CLEANUP: u16 = 1 << 6;
    /// `LH_PAGE_HAS_DEAD_TUPLES`
    pub const HAS_DEAD_TUPLES: u16 = 1 << 7;
    /// `LH_PAGE_TYPE`
    pub const TYPE: u16 = OVERFLOW | BUCKET | BITMAP | META;
}

/// `HASH_MAGIC`
pub const META_MAGIC: u32 = 0x0644_0640;
/// `HASH_VERSION`
pub const META_VERSION: u32 = 4;

/// Offsets in the metadata (`HashMetaPageData`).
pub mod meta {
    /// `hashm_magic`
    pub const MAGIC: usize = 0;
    /// `hashm_version`
    pub const VERSION: usize = 4;
    /// `hashm_ntuples`
    pub const TUPLE_COUNT: usize = 8;
    /// `hashm_ffactor`
    pub const FILL_FACTOR: usize = 16;
    /// `hashm_bsize`
    pub const PAGE_SIZE: usize = 18;
    /// `hashm_bmsize`
    pub const BITMAP_SIZE: usize = 20;
    /// `hashm_bmshift`
    pub const BITMAP_SHIFT: usize = 22;
    /// `hashm_maxbucket`
    pub const MAX_BUCKET: usize = 24;
    /// `hashm_highmask`
    pub const HIGH_MASK: usize = 28;
    /// `hashm_lowmask`
    pub const LOW_MASK: usize = 32;
    /// `hashm_ovflpoint`
    pub const OVERFLOW_POINT: usize = 36;
    /// `hashm_firstfree`
    pub const FIRST_FREE: usize = 40;
    /// `hashm_nmaps`
    pub const BITMAP_COUNT: usize = 44;
    /// `hashm_procid`
    pub const PROCEDURE: usize = 48;
    /// `hashm_spares`
    pub const SPARES: usize = 52;
    /// `hashm_mapp`
    pub const BITMAPS: usize = SPARES + 4 * super::SPLIT_POINTS_MAX;
    /// `sizeof(HashMetaPageData)`
    pub const END: usize = (BITMAPS + 4 * super::BITMAPS_MAX).next_multiple_of(8);
}

/// `HASH_MAX_SPLITPOINTS`
pub const SPLIT_POINTS_MAX: usize = 98;
/// `HASH_MAX_BITMAPS`
pub const BITMAPS_MAX: usize = 1024;
/// `HASH_SPLITPOINT_GROUPS_WITH_ONE_PHASE`
pub const GROUPS_WITH_ONE_PHASE: u32 = 10;
/// `HASH_SPLITPOINT_PHASE_BITS`
pub const PHASE_BITS: u32 = 2;
/// Most buckets a new index begins with (`_hash_init_metabuffer` in `src/backend/access/hash/hashpage.c`).
pub const INITIAL_BUCKETS_MAX: u32 = 0x4000_0000;
