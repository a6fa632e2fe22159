//! Record layouts and operation codes of PostgreSQL 15.
//!
//! Field names follow PostgreSQL's structs, written out in words where that helps; each type names its source
//! file. All of them are reached as `borealis_wal::layout`.

pub mod checkpoint;
pub mod database;
pub mod heap;
pub mod multixact;
pub mod slru;
pub mod standby;
pub mod storage;
pub mod transaction;
pub mod xlog;

pub use checkpoint::CheckPointRecord;
pub use database::{CreateDatabaseFileCopy, CreateDatabaseWalLog, DropDatabase, RelationMapUpdate};
pub use database::{CreateTablespace, DropTablespace};
pub use multixact::{MultiXactCreate, MultiXactMember, MultiXactTruncate};
pub use slru::{ClogTruncate, CommitTsTruncate};
pub use standby::RunningTransactions;
pub use storage::{StorageCreate, StorageTruncate};
pub use transaction::{Assignment, DroppedStatistic, Prepare, TransactionEnd};
pub use xlog::{EndOfRecovery, OverwriteContinuation, ParameterChange};

/// `XLOG_PAGE_MAGIC` (`src/include/access/xlog_internal.h`).
pub const PAGE_MAGIC: u16 = 0xD110;

use crate::{Record, RecordError};

/// The first transaction id that is not reserved (`FirstNormalTransactionId`).
pub const FIRST_NORMAL_XID: u32 = 3;

/// A parsed part of the record, or the error that names the record and the layout it breaks.
pub(crate) fn parsed<T>(record: &Record<'_>, part: Option<T>, what: &'static str) -> Result<T, RecordError> {
    part.ok_or(RecordError::Malformed { start: record.span.start, what })
}
