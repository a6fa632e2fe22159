//! Records of SP-GiST indexes (`src/include/access/spgxlog.h`).

/// `XLOG_SPGIST_ADD_LEAF`
pub const ADD_LEAF: u8 = 0x10;
/// `XLOG_SPGIST_MOVE_LEAFS`
pub const MOVE_LEAFS: u8 = 0x20;
/// `XLOG_SPGIST_ADD_NODE`
pub const ADD_NODE: u8 = 0x30;
/// `XLOG_SPGIST_SPLIT_TUPLE`
pub const SPLIT_TUPLE: u8 = 0x40;
/// `XLOG_SPGIST_PICKSPLIT`
pub const PICKSPLIT: u8 = 0x50;
/// `XLOG_SPGIST_VACUUM_LEAF`
pub const VACUUM_LEAF: u8 = 0x60;
/// `XLOG_SPGIST_VACUUM_ROOT`
pub const VACUUM_ROOT: u8 = 0x70;
/// `XLOG_SPGIST_VACUUM_REDIRECT`
pub const VACUUM_REDIRECT: u8 = 0x80;
