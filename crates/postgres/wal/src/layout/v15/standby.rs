//! Records for hot standby (`src/include/storage/standbydefs.h`). Redo does nothing with them; the snapshot
//! of running transactions proves which transaction ids are in use.

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_STANDBY_LOCK`
pub const LOCK: u8 = 0x00;
/// `XLOG_RUNNING_XACTS`
pub const RUNNING_TRANSACTIONS: u8 = 0x10;
/// `XLOG_INVALIDATIONS`
pub const INVALIDATIONS: u8 = 0x20;

/// `xl_running_xacts`, without the list itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunningTransactions {
    /// How many top-level transactions are listed.
    pub count: u32,
    /// How many subtransactions are listed after them.
    pub subtransaction_count: u32,
    /// Not all subtransactions are listed.
    pub overflowed: bool,
    /// The id handed out next (`nextXid`).
    pub next_xid: u32,
    /// `oldestRunningXid`: `next_xid` if none runs.
    pub oldest_running_xid: u32,
    /// `latestCompletedXid`: every newer one was running.
    pub latest_completed_xid: u32,
}

impl RunningTransactions {
    /// Reads the main data of an `XLOG_RUNNING_XACTS` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<RunningTransactions, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let count = reader.u32()?;
            let subtransaction_count = reader.u32()?;
            let overflowed = reader.flag()?;
            reader.take(3)?;
            Some(RunningTransactions {
                count,
                subtransaction_count,
                overflowed,
                next_xid: reader.u32()?,
                oldest_running_xid: reader.u32()?,
                latest_completed_xid: reader.u32()?,
            })
        };
        parsed(record, read(), "snapshot of running transactions is cut short")
    }
}
