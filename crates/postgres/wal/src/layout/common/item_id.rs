//! Line pointers (`ItemIdData` in `src/include/storage/itemid.h`).

/// `sizeof(ItemIdData)`: 15 bits of offset, 2 of flags, 15 of length, lowest bits first.
pub const ITEM_ID_BYTES: usize = 4;

/// `LP_UNUSED`: free for another item.
pub const LP_UNUSED: u8 = 0;
/// `LP_NORMAL`: leads to an item.
pub const LP_NORMAL: u8 = 1;
/// `LP_REDIRECT`: leads to another line pointer.
pub const LP_REDIRECT: u8 = 2;
/// `LP_DEAD`: nobody needs its item any more.
pub const LP_DEAD: u8 = 3;

/// Bits of `lp_off`, and of `lp_len`.
pub const OFFSET_MASK: u32 = 0x7FFF;
/// Where `lp_flags` begins.
pub const FLAGS_SHIFT: u32 = 15;
/// The two bits of `lp_flags`, shifted down.
pub const FLAGS_MASK: u32 = 3;
/// Where `lp_len` begins.
pub const LENGTH_SHIFT: u32 = 17;
