//! Generic WAL, for extensions (`src/backend/access/transam/generic_xlog.c`).

/// The only operation there is (`GenericXLogFinish`).
pub const GENERIC: u8 = 0x00;
