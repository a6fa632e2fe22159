//! Records of the log itself (`src/include/catalog/pg_control.h`, `src/include/access/xlog_internal.h`).

use borealis_types::Lsn;

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_CHECKPOINT_SHUTDOWN`
pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
/// `XLOG_CHECKPOINT_ONLINE`
pub const CHECKPOINT_ONLINE: u8 = 0x10;
/// `XLOG_NOOP`
pub const NOOP: u8 = 0x20;
/// `XLOG_NEXTOID`
pub const NEXT_OID: u8 = 0x30;
/// `XLOG_SWITCH`
pub const SWITCH: u8 = 0x40;
/// `XLOG_BACKUP_END`
pub const BACKUP_END: u8 = 0x50;
/// `XLOG_PARAMETER_CHANGE`
pub const PARAMETER_CHANGE: u8 = 0x60;
/// `XLOG_RESTORE_POINT`
pub const RESTORE_POINT: u8 = 0x70;
/// `XLOG_FPW_CHANGE`
pub const FULL_PAGE_WRITES_CHANGE: u8 = 0x80;
/// `XLOG_END_OF_RECOVERY`
pub const END_OF_RECOVERY: u8 = 0x90;
/// `XLOG_FPI_FOR_HINT`
pub const FULL_PAGE_IMAGE_FOR_HINT: u8 = 0xA0;
/// `XLOG_FPI`
pub const FULL_PAGE_IMAGE: u8 = 0xB0;
/// `XLOG_OVERWRITE_CONTRECORD`
pub const OVERWRITE_CONTINUATION: u8 = 0xD0;

/// Reads the next OID of an `XLOG_NEXTOID` record.
///
/// # Errors
/// When the data is too short.
pub fn next_oid(record: &Record<'_>) -> Result<u32, RecordError> {
    parsed(record, Reader::new(record.main_data).u32(), "next OID is cut short")
}

/// Reads the new setting of an `XLOG_FPW_CHANGE` record.
///
/// # Errors
/// When the data is too short.
pub fn full_page_writes(record: &Record<'_>) -> Result<bool, RecordError> {
    parsed(record, Reader::new(record.main_data).flag(), "full_page_writes change is cut short")
}

/// `xl_parameter_change`: settings that `pg_control` keeps because a standby, or the next start, has to know them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParameterChange {
    /// `max_connections`
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_transaction: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// `wal_log_hints`
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`
    pub track_commit_timestamp: bool,
}

impl ParameterChange {
    /// Reads the main data of an `XLOG_PARAMETER_CHANGE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<ParameterChange, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            Some(ParameterChange {
                max_connections: reader.i32()?,
                max_worker_processes: reader.i32()?,
                max_wal_senders: reader.i32()?,
                max_prepared_transactions: reader.i32()?,
                max_locks_per_transaction: reader.i32()?,
                wal_level: reader.i32()?,
                wal_log_hints: reader.flag()?,
                track_commit_timestamp: reader.flag()?,
            })
        };
        parsed(record, read(), "parameter change is cut short")
    }
}

/// `xl_end_of_recovery`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndOfRecovery {
    /// When it was written, in microseconds since 2000.
    pub end_time: i64,
    /// The time line that the log goes on with.
    pub timeline: u32,
    /// The time line that the log left here.
    pub previous_timeline: u32,
}

impl EndOfRecovery {
    /// Reads the main data of an `XLOG_END_OF_RECOVERY` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<EndOfRecovery, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let end_time = reader.i64()?;
            Some(EndOfRecovery { end_time, timeline: reader.u32()?, previous_timeline: reader.u32()? })
        };
        parsed(record, read(), "end of recovery is cut short")
    }
}

/// `xl_overwrite_contrecord`: a record was never finished, and this one stands where its rest would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverwriteContinuation {
    /// Start of the unfinished record.
    pub overwritten: Lsn,
    /// When it was written, in microseconds since 2000.
    pub time: i64,
}

impl OverwriteContinuation {
    /// Reads the main data of an `XLOG_OVERWRITE_CONTRECORD` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<OverwriteContinuation, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read =
            || Some(OverwriteContinuation { overwritten: Lsn(reader.u64()?), time: reader.i64()? });
        parsed(record, read(), "overwrite of an unfinished record is cut short")
    }
}
