//! Records of hash indexes (`src/include/access/hash_xlog.h`).

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_HASH_INIT_META_PAGE`
pub const INIT_META_PAGE: u8 = 0x00;
/// `XLOG_HASH_INIT_BITMAP_PAGE`
pub const INIT_BITMAP_PAGE: u8 = 0x10;
/// `XLOG_HASH_INSERT`
pub const INSERT: u8 = 0x20;
/// `XLOG_HASH_ADD_OVFL_PAGE`
pub const ADD_OVFL_PAGE: u8 = 0x30;
/// `XLOG_HASH_SPLIT_ALLOCATE_PAGE`
pub const SPLIT_ALLOCATE_PAGE: u8 = 0x40;
/// `XLOG_HASH_SPLIT_PAGE`
pub const SPLIT_PAGE: u8 = 0x50;
/// `XLOG_HASH_SPLIT_COMPLETE`
pub const SPLIT_COMPLETE: u8 = 0x60;
/// `XLOG_HASH_MOVE_PAGE_CONTENTS`
pub const MOVE_PAGE_CONTENTS: u8 = 0x70;
/// `XLOG_HASH_SQUEEZE_PAGE`
pub const SQUEEZE_PAGE: u8 = 0x80;
/// `XLOG_HASH_DELETE`
pub const DELETE: u8 = 0x90;
/// `XLOG_HASH_SPLIT_CLEANUP`
pub const SPLIT_CLEANUP: u8 = 0xA0;
/// `XLOG_HASH_UPDATE_META_PAGE`
pub const UPDATE_META_PAGE: u8 = 0xB0;
/// `XLOG_HASH_VACUUM_ONE_PAGE`
pub const VACUUM_ONE_PAGE: u8 = 0xC0;

/// `XLH_SPLIT_META_UPDATE_MASKS`
pub const SPLIT_UPDATES_MASKS: u8 = 1 << 0;
/// `XLH_SPLIT_META_UPDATE_SPLITPOINT`
pub const SPLIT_UPDATES_SPLIT_POINT: u8 = 1 << 1;

/// `xl_hash_vacuum_one_page`, without the newest transaction removed, which is for conflicts on a standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashVacuumOnePage<'a> {
    /// `ntuples`
    pub tuple_count: u32,
    /// The tuples' offset numbers, two bytes each; none if the page comes as an image.
    pub offset_numbers: &'a [u8],
}

impl<'a> HashVacuumOnePage<'a> {
    /// Reads the main data of an `XLOG_HASH_VACUUM_ONE_PAGE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<HashVacuumOnePage<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            reader.take(4)?;
            Some(HashVacuumOnePage { tuple_count: reader.u32()?, offset_numbers: reader.rest() })
        };
        parsed(record, read(), "hash index record is cut short")
    }
}
