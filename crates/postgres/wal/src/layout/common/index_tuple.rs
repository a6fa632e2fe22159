//! Tuples of indexes (`IndexTupleData` in `src/include/access/itup.h`): a heap position, an info word, the keys.

/// `sizeof(IndexTupleData)`: a tuple without keys.
pub const HEADER_BYTES: usize = 8;
/// `t_info`
pub const INFO_OFFSET: usize = 6;
/// `INDEX_SIZE_MASK`, in `t_info`
pub const SIZE_MASK: u16 = 0x1FFF;
