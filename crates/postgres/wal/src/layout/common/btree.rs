//! Pages and tuples of B-trees (`src/include/access/nbtree.h`).

/// `P_NONE`: no sibling.
pub const NO_BLOCK: u32 = 0;
/// `P_HIKEY`: the offset number of the high key, where there is one.
pub const HIGH_KEY: u16 = 1;
/// `P_FIRSTKEY`: the first item after the high key.
pub const FIRST_KEY: u16 = 2;

/// `sizeof(BTPageOpaqueData)`: the special space of every page.
pub const SPECIAL_BYTES: usize = 16;
/// `btpo_prev`
pub const PREVIOUS_OFFSET: usize = 0;
/// `btpo_next`
pub const NEXT_OFFSET: usize = 4;
/// `btpo_level`
pub const LEVEL_OFFSET: usize = 8;
/// `btpo_flags`
pub const FLAGS_OFFSET: usize = 12;
/// `btpo_cycleid`
pub const CYCLE_ID_OFFSET: usize = 14;

/// `MAX_BT_CYCLE_ID`. Other access methods with as much special space have a page id above it in the same place.
pub const CYCLE_ID_MAX: u16 = 0xFF7F;

/// `BTP_*` in `btpo_flags`.
pub mod flag {
    /// `BTP_LEAF`
    pub const LEAF: u16 = 1 << 0;
    /// `BTP_ROOT`
    pub const ROOT: u16 = 1 << 1;
    /// `BTP_DELETED`
    pub const DELETED: u16 = 1 << 2;
    /// `BTP_META`
    pub const META: u16 = 1 << 3;
    /// `BTP_HALF_DEAD`
    pub const HALF_DEAD: u16 = 1 << 4;
    /// `BTP_SPLIT_END`
    pub const SPLIT_END: u16 = 1 << 5;
    /// `BTP_HAS_GARBAGE`
    pub const HAS_GARBAGE: u16 = 1 << 6;
    /// `BTP_INCOMPLETE_SPLIT`
    pub const INCOMPLETE_SPLIT: u16 = 1 << 7;
    /// `BTP_HAS_FULLXID`
    pub const HAS_FULLXID: u16 = 1 << 8;
}

/// `BTREE_MAGIC`
pub const META_MAGIC: u32 = 0x0005_3162;
/// `sizeof(BTMetaPageData)`
pub const META_BYTES: usize = 48;
/// `btm_version`; root, levels, fast root and deleted pages follow it, as in `xl_btree_metadata`.
pub const META_VERSION_OFFSET: usize = 4;
/// `btm_last_cleanup_num_heap_tuples`, which is no longer used.
pub const META_LAST_CLEANUP_OFFSET: usize = 32;
/// `btm_allequalimage`
pub const META_ALL_EQUAL_IMAGE_OFFSET: usize = 40;

/// `INDEX_ALT_TID_MASK`, in `t_info`: the heap position holds something else.
pub const ALTERNATIVE_POSITION: u16 = 0x2000;
/// Where a tuple with [`ALTERNATIVE_POSITION`] has its count and status bits: in place of the offset number.
pub const STATUS_OFFSET: usize = super::item_pointer::OFFSET_NUMBER_OFFSET;
/// `BT_OFFSET_MASK`
pub const COUNT_MASK: u16 = 0x0FFF;
/// `BT_IS_POSTING`
pub const IS_POSTING: u16 = 0x2000;
