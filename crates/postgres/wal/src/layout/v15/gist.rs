//! Records of GiST indexes (`src/include/access/gistxlog.h`).

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_GIST_PAGE_UPDATE`
pub const PAGE_UPDATE: u8 = 0x00;
/// `XLOG_GIST_DELETE`
pub const DELETE: u8 = 0x10;
/// `XLOG_GIST_PAGE_REUSE`: for hot standby only; lists no block.
pub const PAGE_REUSE: u8 = 0x20;
/// `XLOG_GIST_PAGE_SPLIT`
pub const PAGE_SPLIT: u8 = 0x30;
/// `XLOG_GIST_PAGE_DELETE`
pub const PAGE_DELETE: u8 = 0x60;
/// `XLOG_GIST_ASSIGN_LSN`: changes nothing.
pub const ASSIGN_LSN: u8 = 0x70;

/// `downlinkOffset`, in `gistxlogPageDelete`: after the transaction id.
pub const PAGE_DELETE_DOWNLINK_OFFSET: usize = 8;

/// `gistxlogDelete`, without the newest transaction removed, which is for conflicts on a standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GistDelete<'a> {
    /// `ntodelete`
    pub tuple_count: u16,
    /// The tuples' offset numbers, two bytes each; none if the page comes as an image.
    pub offset_numbers: &'a [u8],
}

impl<'a> GistDelete<'a> {
    /// Reads the main data of an `XLOG_GIST_DELETE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<GistDelete<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            reader.take(4)?;
            Some(GistDelete { tuple_count: reader.u16()?, offset_numbers: reader.rest() })
        };
        parsed(record, read(), "GiST record is cut short")
    }
}
