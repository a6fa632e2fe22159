//! Records of resource manager `Heap2` (`src/include/access/heapam_xlog.h`). The operation's bits are those of `Heap`.

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_HEAP2_REWRITE`: a file of `pg_logical/mappings`, for logical decoding only.
pub const REWRITE: u8 = 0x00;
/// `XLOG_HEAP2_PRUNE`
pub const PRUNE: u8 = 0x10;
/// `XLOG_HEAP2_VACUUM`
pub const VACUUM: u8 = 0x20;
/// `XLOG_HEAP2_FREEZE_PAGE`
pub const FREEZE_PAGE: u8 = 0x30;
/// `XLOG_HEAP2_VISIBLE`
pub const VISIBLE: u8 = 0x40;
/// `XLOG_HEAP2_MULTI_INSERT`
pub const MULTI_INSERT: u8 = 0x50;
/// `XLOG_HEAP2_LOCK_UPDATED`
pub const LOCK_UPDATED: u8 = 0x60;
/// `XLOG_HEAP2_NEW_CID`: for logical decoding only.
pub const NEW_CID: u8 = 0x70;

/// `XLH_FREEZE_XVAC`
pub const FREEZE_XVAC: u8 = 0x02;
/// `XLH_INVALID_XVAC`
pub const INVALID_XVAC: u8 = 0x04;

/// `xl_heap_multi_insert`, without the offset numbers that follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapMultiInsert {
    /// `XLH_INSERT_*`
    pub flags: u8,
    /// `ntuples`
    pub tuple_count: u16,
}

impl HeapMultiInsert {
    /// `SizeOfHeapMultiInsert`
    pub const BYTES: usize = 4;

    /// Reads the main data of an `XLOG_HEAP2_MULTI_INSERT` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapMultiInsert, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let flags = reader.u8()?;
            reader.take(1)?;
            Some(HeapMultiInsert { flags, tuple_count: reader.u16()? })
        };
        parsed(record, read(), "heap record is cut short")
    }
}
