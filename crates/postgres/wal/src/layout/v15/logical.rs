//! Records for logical decoding, of which a primary's redo does nothing (`src/include/replication/message.h`) or keeps
//! what no page has (`src/include/replication/origin.h`).

/// `XLOG_LOGICAL_MESSAGE`
pub const MESSAGE: u8 = 0x00;
/// `XLOG_REPLORIGIN_SET`
pub const ORIGIN_SET: u8 = 0x00;
/// `XLOG_REPLORIGIN_DROP`
pub const ORIGIN_DROP: u8 = 0x10;
