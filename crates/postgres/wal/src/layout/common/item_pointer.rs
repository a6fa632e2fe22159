//! Positions of tuples (`ItemPointerData` in `src/include/storage/itemptr.h`): the block number in two halves, the
//! higher first (`BlockIdData` in `src/include/storage/block.h`), then the offset number.

/// `sizeof(ItemPointerData)`
pub const ITEM_POINTER_BYTES: usize = 6;
/// `ip_posid`
pub const OFFSET_NUMBER_OFFSET: usize = 4;

/// `InvalidBlockNumber` (`src/include/storage/block.h`)
pub const INVALID_BLOCK: u32 = u32::MAX;
/// `InvalidOffsetNumber` (`src/include/storage/off.h`)
pub const INVALID_OFFSET_NUMBER: u16 = 0;

/// `SpecTokenOffsetNumber`: such a `t_ctid` is the token of a speculative insertion.
pub const SPECULATIVE_OFFSET_NUMBER: u16 = 0xFFFE;
/// `MovedPartitionsOffsetNumber`: the row moved to another partition.
pub const MOVED_PARTITIONS_OFFSET_NUMBER: u16 = 0xFFFD;
