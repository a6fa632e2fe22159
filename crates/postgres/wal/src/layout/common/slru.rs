//! Pages of the transaction-status stores (`src/include/access/slru.h`): `pg_xact`, `pg_commit_ts`, `pg_multixact`.

use borealis_types::PAGE_SIZE;
pub use borealis_types::SLRU_PAGES_PER_SEGMENT as PAGES_PER_SEGMENT;

/// `CLOG_BITS_PER_XACT` (`src/backend/access/transam/clog.c`)
pub const BITS_PER_TRANSACTION: u32 = 2;
/// `CLOG_XACTS_PER_BYTE`
pub const TRANSACTIONS_PER_BYTE: u32 = 8 / BITS_PER_TRANSACTION;
/// `CLOG_XACTS_PER_PAGE`: transactions on one page of `pg_xact`.
pub const TRANSACTIONS_PER_PAGE: u32 = PAGE_SIZE as u32 * TRANSACTIONS_PER_BYTE;
/// `TRANSACTION_STATUS_COMMITTED` (`src/include/access/clog.h`)
pub const STATUS_COMMITTED: u8 = 1;
/// `TRANSACTION_STATUS_ABORTED`
pub const STATUS_ABORTED: u8 = 2;

/// `SizeOfCommitTimestampEntry` (`src/backend/access/transam/commit_ts.c`): the time, then the replication origin.
pub const COMMIT_TIMESTAMP_BYTES: usize = 10;
/// `COMMIT_TS_XACTS_PER_PAGE`
pub const COMMIT_TIMESTAMPS_PER_PAGE: u32 = (PAGE_SIZE / COMMIT_TIMESTAMP_BYTES) as u32;

/// `MULTIXACT_OFFSETS_PER_PAGE` (`src/backend/access/transam/multixact.c`): four bytes each.
pub const MULTIXACTS_PER_PAGE: u32 = PAGE_SIZE as u32 / 4;
/// `MULTIXACT_MEMBERS_PER_MEMBERGROUP`: a flag byte each, then a transaction id each.
pub const MEMBERS_PER_GROUP: u32 = 4;
/// `MULTIXACT_MEMBERGROUP_SIZE`
pub const MEMBER_GROUP_BYTES: u32 = MEMBERS_PER_GROUP * 5;
/// `MULTIXACT_MEMBERGROUPS_PER_PAGE`; the page's last bytes stay unused.
pub const MEMBER_GROUPS_PER_PAGE: u32 = PAGE_SIZE as u32 / MEMBER_GROUP_BYTES;
/// `MULTIXACT_MEMBERS_PER_PAGE`
pub const MEMBERS_PER_PAGE: u32 = MEMBER_GROUPS_PER_PAGE * MEMBERS_PER_GROUP;
/// `MaxMultiXactStatus` (`src/include/access/multixact.h`)
pub const MULTIXACT_STATUS_MAX: u32 = 5;
/// `FirstMultiXactId`: the first multixact id that is used.
pub const FIRST_MULTIXACT: u32 = 1;

/// The page of `pg_xact` that holds a transaction's status.
#[must_use]
pub const fn transaction_page(xid: u32) -> u32 {
    xid / TRANSACTIONS_PER_PAGE
}

/// The first page that `SimpleLruTruncate` keeps: it removes segment files, so the one that holds
/// `cutoff_page` stays whole.
#[must_use]
pub const fn first_kept_page(cutoff_page: u32) -> u32 {
    cutoff_page - cutoff_page % PAGES_PER_SEGMENT
}
