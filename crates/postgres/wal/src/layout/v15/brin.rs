//! Records of block range indexes (`src/include/access/brin_xlog.h`).

/// `XLOG_BRIN_CREATE_INDEX`
pub const CREATE_INDEX: u8 = 0x00;
/// `XLOG_BRIN_INSERT`
pub const INSERT: u8 = 0x10;
/// `XLOG_BRIN_UPDATE`
pub const UPDATE: u8 = 0x20;
/// `XLOG_BRIN_SAMEPAGE_UPDATE`
pub const SAMEPAGE_UPDATE: u8 = 0x30;
/// `XLOG_BRIN_REVMAP_EXTEND`
pub const REVMAP_EXTEND: u8 = 0x40;
/// `XLOG_BRIN_DESUMMARIZE`
pub const DESUMMARIZE: u8 = 0x50;
/// `XLOG_BRIN_OPMASK`
pub const OPERATION_MASK: u8 = 0x70;
/// `XLOG_BRIN_INIT_PAGE`: the tuple is the first on its page.
pub const INIT_PAGE: u8 = 0x80;

/// `xl_brin_update` is the old tuple's offset number, aligned, and then the `xl_brin_insert` of the new one.
pub const UPDATE_INSERT_OFFSET: usize = 4;
