//! Pages and tuples of SP-GiST indexes (`src/include/access/spgist_private.h`).

/// `SPGIST_PAGE_ID`
pub const PAGE_ID: u16 = 0xFF82;

/// `sizeof(SpGistPageOpaqueData)`: the special space of every page.
pub const SPECIAL_BYTES: usize = 8;
/// `flags`
pub const FLAGS_OFFSET: usize = 0;
/// `nRedirection`
pub const REDIRECTIONS_OFFSET: usize = 2;
/// `nPlaceholder`
pub const PLACEHOLDERS_OFFSET: usize = 4;
/// `spgist_page_id`
pub const PAGE_ID_OFFSET: usize = 6;

/// `SPGIST_LEAF`
pub const LEAF: u16 = 1 << 2;
/// `SPGIST_NULLS`
pub const NULLS: u16 = 1 << 3;

/// The two lowest bits of a tuple's first word are its state.
pub const STATE_MASK: u32 = 3;
/// `SPGIST_REDIRECT`
pub const STATE_REDIRECT: u32 = 1;
/// `SPGIST_DEAD`
pub const STATE_DEAD: u32 = 2;
/// `SPGIST_PLACEHOLDER`
pub const STATE_PLACEHOLDER: u32 = 3;
/// Where the size begins in the first word of a leaf tuple or a dead one.
pub const SIZE_SHIFT: u32 = 2;

/// `t_info` of a leaf tuple: flags, and the next tuple of its chain.
pub const LEAF_INFO_OFFSET: usize = 4;
/// The bits of a leaf tuple's `t_info` that are flags; the others are the offset number of the next in its chain.
pub const LEAF_INFO_FLAGS: u16 = 0xC000;

/// `sizeof(SpGistDeadTupleData)`, aligned.
pub const DEAD_TUPLE_BYTES: usize = 16;
/// `pointer` of a dead tuple, which a redirection leads to.
pub const DEAD_POINTER_OFFSET: usize = 6;
/// `xid` of a dead tuple, after which nobody needs a redirection.
pub const DEAD_XID_OFFSET: usize = 12;

/// `SGITHDRSZ`: where an inner tuple's prefix starts.
pub const INNER_HEADER_BYTES: usize = 8;
/// `size` of an inner tuple
pub const INNER_SIZE_OFFSET: usize = 4;
/// Where `nNodes` begins in the first word of an inner tuple.
pub const NODE_COUNT_SHIFT: u32 = 3;
/// `SGITMAXNNODES`: the bits of `nNodes`, shifted down.
pub const NODE_COUNT_MASK: u32 = 0x1FFF;
/// Where `prefixSize` begins in the first word of an inner tuple.
pub const PREFIX_SIZE_SHIFT: u32 = 16;
