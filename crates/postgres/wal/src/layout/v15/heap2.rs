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

/// `xl_heap_prune`, without the newest transaction removed, which is for conflicts on a standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapPrune {
    /// `nredirected`
    pub redirected_count: u16,
    /// `ndead`
    pub dead_count: u16,
}

impl HeapPrune {
    /// Reads the main data of an `XLOG_HEAP2_PRUNE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapPrune, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            reader.take(4)?;
            Some(HeapPrune { redirected_count: reader.u16()?, dead_count: reader.u16()? })
        };
        parsed(record, read(), "heap record is cut short")
    }
}

/// `xl_heap_vacuum`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapVacuum {
    /// `nunused`
    pub unused_count: u16,
}

impl HeapVacuum {
    /// Reads the main data of an `XLOG_HEAP2_VACUUM` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapVacuum, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || Some(HeapVacuum { unused_count: reader.u16()? });
        parsed(record, read(), "heap record is cut short")
    }
}

/// `xl_heap_freeze_page`, without the transaction that is for conflicts on a standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapFreezePage {
    /// `ntuples`: how many [`HeapFreezeTuple`]s the block's data has.
    pub tuple_count: u16,
}

impl HeapFreezePage {
    /// Reads the main data of an `XLOG_HEAP2_FREEZE_PAGE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapFreezePage, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            reader.take(4)?;
            Some(HeapFreezePage { tuple_count: reader.u16()? })
        };
        parsed(record, read(), "heap record is cut short")
    }
}

/// `xl_heap_freeze_tuple`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapFreezeTuple {
    /// The new `t_xmax`.
    pub xmax: u32,
    /// `offset`
    pub offset_number: u16,
    /// The new `t_infomask2`.
    pub infomask2: u16,
    /// The new `t_infomask`.
    pub infomask: u16,
    /// `XLH_FREEZE_XVAC`, `XLH_INVALID_XVAC`
    pub flags: u8,
}

impl HeapFreezeTuple {
    /// `sizeof(xl_heap_freeze_tuple)`, padding included.
    pub const BYTES: usize = 12;

    /// Reads one from a block's data.
    #[must_use]
    pub fn decode(bytes: [u8; HeapFreezeTuple::BYTES]) -> HeapFreezeTuple {
        let [x0, x1, x2, x3, o0, o1, m0, m1, n0, n1, flags, _] = bytes;
        HeapFreezeTuple {
            xmax: u32::from_le_bytes([x0, x1, x2, x3]),
            offset_number: u16::from_le_bytes([o0, o1]),
            infomask2: u16::from_le_bytes([m0, m1]),
            infomask: u16::from_le_bytes([n0, n1]),
            flags,
        }
    }
}

/// `xl_heap_visible`, without the transaction that is for conflicts on a standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapVisible {
    /// `VISIBILITYMAP_*` bits that are set for the heap page.
    pub bits: u8,
}

impl HeapVisible {
    /// Reads the main data of an `XLOG_HEAP2_VISIBLE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapVisible, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            reader.take(4)?;
            Some(HeapVisible { bits: reader.u8()? })
        };
        parsed(record, read(), "heap record is cut short")
    }
}
