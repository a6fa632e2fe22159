//! Records of resource manager `Heap` (`src/include/access/heapam_xlog.h`).

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_HEAP_INSERT`
pub const INSERT: u8 = 0x00;
/// `XLOG_HEAP_DELETE`
pub const DELETE: u8 = 0x10;
/// `XLOG_HEAP_UPDATE`
pub const UPDATE: u8 = 0x20;
/// `XLOG_HEAP_TRUNCATE`: for logical decoding only.
pub const TRUNCATE: u8 = 0x30;
/// `XLOG_HEAP_HOT_UPDATE`
pub const HOT_UPDATE: u8 = 0x40;
/// `XLOG_HEAP_CONFIRM`: a speculative insertion succeeded.
pub const CONFIRM: u8 = 0x50;
/// `XLOG_HEAP_LOCK`
pub const LOCK: u8 = 0x60;
/// `XLOG_HEAP_INPLACE`
pub const INPLACE: u8 = 0x70;
/// `XLOG_HEAP_OPMASK`: the bits of `info` that tell the operation, in both heap resource managers.
pub const OPERATION_MASK: u8 = 0x70;
/// `XLOG_HEAP_INIT_PAGE`: the page is made anew.
pub const INIT_PAGE: u8 = 0x80;

/// `XLH_INSERT_ALL_VISIBLE_CLEARED`, also of multi-inserts
pub const INSERT_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// `XLH_INSERT_ALL_FROZEN_SET`, of multi-inserts
pub const INSERT_ALL_FROZEN_SET: u8 = 0x20;
/// `XLH_DELETE_ALL_VISIBLE_CLEARED`
pub const DELETE_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// `XLH_DELETE_IS_SUPER`: a speculative insertion did not succeed.
pub const DELETE_IS_SUPER: u8 = 0x08;
/// `XLH_DELETE_IS_PARTITION_MOVE`
pub const DELETE_IS_PARTITION_MOVE: u8 = 0x10;
/// `XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED`
pub const UPDATE_OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
/// `XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED`
pub const UPDATE_NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
/// `XLH_UPDATE_PREFIX_FROM_OLD`
pub const UPDATE_PREFIX_FROM_OLD: u8 = 0x20;
/// `XLH_UPDATE_SUFFIX_FROM_OLD`
pub const UPDATE_SUFFIX_FROM_OLD: u8 = 0x40;
/// `XLH_LOCK_ALL_FROZEN_CLEARED`: of the two bits, only all-frozen goes.
pub const LOCK_ALL_FROZEN_CLEARED: u8 = 0x01;

/// `XLHL_*`: what the new `t_xmax` means.
pub mod infobit {
    /// `XLHL_XMAX_IS_MULTI`
    pub const XMAX_IS_MULTI: u8 = 0x01;
    /// `XLHL_XMAX_LOCK_ONLY`
    pub const XMAX_LOCK_ONLY: u8 = 0x02;
    /// `XLHL_XMAX_EXCL_LOCK`
    pub const XMAX_EXCL_LOCK: u8 = 0x04;
    /// `XLHL_XMAX_KEYSHR_LOCK`
    pub const XMAX_KEYSHR_LOCK: u8 = 0x08;
    /// `XLHL_KEYS_UPDATED`
    pub const KEYS_UPDATED: u8 = 0x10;
}

const CUT_SHORT: &str = "heap record is cut short";

/// `xl_heap_insert`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapInsert {
    /// `offnum`
    pub offset_number: u16,
    /// `XLH_INSERT_*`
    pub flags: u8,
}

impl HeapInsert {
    /// Reads the main data of an `XLOG_HEAP_INSERT` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapInsert, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || Some(HeapInsert { offset_number: reader.u16()?, flags: reader.u8()? });
        parsed(record, read(), CUT_SHORT)
    }
}

/// `xl_heap_delete`, `xl_heap_lock` and `xl_heap_lock_updated`, which have one layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapXmax {
    /// The new `t_xmax`.
    pub xmax: u32,
    /// `offnum`
    pub offset_number: u16,
    /// [`infobit`]s
    pub infobits: u8,
    /// `XLH_DELETE_*` or `XLH_LOCK_*`
    pub flags: u8,
}

impl HeapXmax {
    /// Reads the main data of an `XLOG_HEAP_DELETE`, `XLOG_HEAP_LOCK` or `XLOG_HEAP2_LOCK_UPDATED` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapXmax, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            Some(HeapXmax {
                xmax: reader.u32()?,
                offset_number: reader.u16()?,
                infobits: reader.u8()?,
                flags: reader.u8()?,
            })
        };
        parsed(record, read(), CUT_SHORT)
    }
}

/// `xl_heap_update`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapUpdate {
    /// The old tuple's new `t_xmax`.
    pub old_xmax: u32,
    /// `old_offnum`
    pub old_offset_number: u16,
    /// [`infobit`]s of the old tuple
    pub old_infobits: u8,
    /// `XLH_UPDATE_*`
    pub flags: u8,
    /// The new tuple's `t_xmax`.
    pub new_xmax: u32,
    /// `new_offnum`
    pub new_offset_number: u16,
}

impl HeapUpdate {
    /// Reads the main data of an `XLOG_HEAP_UPDATE` or `XLOG_HEAP_HOT_UPDATE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<HeapUpdate, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            Some(HeapUpdate {
                old_xmax: reader.u32()?,
                old_offset_number: reader.u16()?,
                old_infobits: reader.u8()?,
                flags: reader.u8()?,
                new_xmax: reader.u32()?,
                new_offset_number: reader.u16()?,
            })
        };
        parsed(record, read(), CUT_SHORT)
    }
}
