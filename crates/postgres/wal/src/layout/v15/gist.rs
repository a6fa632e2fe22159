//! Records of GiST indexes (`src/include/access/gistxlog.h`).

/// `XLOG_GIST_PAGE_UPDATE`
pub const PAGE_UPDATE: u8 = 0x00;
/// `XLOG_GIST_DELETE`
pub const DELETE: u8 = 0x10;
/// `XLOG_GIST_PAGE_REUSE`: for hot standby only; lists no block.
pub const PAGE_REUSE: u8 = 0x20;
/// `XLOG_GIST_PAGE_SPLIT`
pub const PAGE_SPLIT: u8 = 0x30;
/// `XLOG_GIST_PAGE_DELETE`
pub const PAGE_DELETE: u8 = 0x60;
/// `XLOG_GIST_ASSIGN_LSN`: changes nothing.
pub const ASSIGN_LSN: u8 = 0x70;

/// `downlinkOffset`, in `gistxlogPageDelete`: after the transaction id.
pub const PAGE_DELETE_DOWNLINK_OFFSET: usize = 8;
