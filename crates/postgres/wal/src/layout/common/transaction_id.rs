//! Reserved transaction ids and OIDs (`src/include/access/transam.h`).

/// `InvalidTransactionId`: no transaction.
pub const INVALID_XID: u32 = 0;
/// `FrozenTransactionId`: older than every other.
pub const FROZEN_XID: u32 = 2;
/// `FirstNormalTransactionId`: the first id handed out to a transaction.
pub const FIRST_NORMAL_XID: u32 = 3;
/// `FirstNormalObjectId`: the first OID that `initdb` does not give away.
pub const FIRST_NORMAL_OID: u32 = 16_384;
