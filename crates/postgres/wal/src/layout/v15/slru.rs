//! Records about pages of the transaction-status stores, which are laid out alike.

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `CLOG_ZEROPAGE`, `COMMIT_TS_ZEROPAGE`
pub const ZERO_PAGE: u8 = 0x00;
/// `CLOG_TRUNCATE`, `COMMIT_TS_TRUNCATE`
pub const TRUNCATE: u8 = 0x10;

/// Reads the page number of a "zero page" record (of `pg_xact`, `pg_commit_ts` or either multixact store).
///
/// # Errors
/// When the data is too short or the number negative.
pub fn zeroed_page(record: &Record<'_>) -> Result<u32, RecordError> {
    let page = Reader::new(record.main_data).i32().and_then(|page| u32::try_from(page).ok());
    parsed(record, page, "zero-page record is malformed")
}

/// `xl_clog_truncate` (`src/include/access/clog.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClogTruncate {
    /// The page that holds `oldest_xid`.
    pub cutoff_page: u32,
    /// Statuses of older transactions are gone.
    pub oldest_xid: u32,
    /// The database that still needs it.
    pub oldest_xid_database: u32,
}

impl ClogTruncate {
    /// Reads the main data of a `CLOG_TRUNCATE` record.
    ///
    /// # Errors
    /// When the data is malformed.
    pub fn parse(record: &Record<'_>) -> Result<ClogTruncate, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            Some(ClogTruncate {
                cutoff_page: u32::try_from(reader.i32()?).ok()?,
                oldest_xid: reader.u32()?,
                oldest_xid_database: reader.u32()?,
            })
        };
        parsed(record, read(), "truncation of transaction status is malformed")
    }
}

/// `xl_commit_ts_truncate` (`src/include/access/commit_ts.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitTsTruncate {
    /// The page that holds `oldest_xid`.
    pub cutoff_page: u32,
    /// Timestamps of older transactions are gone.
    pub oldest_xid: u32,
}

impl CommitTsTruncate {
    /// Reads the main data of a `COMMIT_TS_TRUNCATE` record.
    ///
    /// # Errors
    /// When the data is malformed.
    pub fn parse(record: &Record<'_>) -> Result<CommitTsTruncate, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let cutoff_page = u32::try_from(reader.i32()?).ok()?;
            Some(CommitTsTruncate { cutoff_page, oldest_xid: reader.u32()? })
        };
        parsed(record, read(), "truncation of commit timestamps is malformed")
    }
}
