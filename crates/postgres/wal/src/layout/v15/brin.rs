//! Records of block range indexes (`src/include/access/brin_xlog.h`).

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_BRIN_CREATE_INDEX`
pub const CREATE_INDEX: u8 = 0x00;
/// `XLOG_BRIN_INSERT`
pub const INSERT: u8 = 0x10;
/// `XLOG_BRIN_UPDATE`
pub const UPDATE: u8 = 0x20;
/// `XLOG_BRIN_SAMEPAGE_UPDATE`
pub const SAMEPAGE_UPDATE: u8 = 0x30;
/// `XLOG_BRIN_REVMAP_EXTEND`
pub const REVMAP_EXTEND: u8 = 0x40;
/// `XLOG_BRIN_DESUMMARIZE`
pub const DESUMMARIZE: u8 = 0x50;
/// `XLOG_BRIN_OPMASK`
pub const OPERATION_MASK: u8 = 0x70;
/// `XLOG_BRIN_INIT_PAGE`: the tuple is the first on its page.
pub const INIT_PAGE: u8 = 0x80;

/// `xl_brin_insert`, alone or at the end of an `xl_brin_update`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BrinInsert {
    /// `heapBlk`: the first block of the range.
    pub heap_block: u32,
    /// `pagesPerRange`
    pub pages_per_range: u32,
    /// `offnum`
    pub offset_number: u16,
}

impl BrinInsert {
    /// Reads the main data of an `XLOG_BRIN_INSERT` or `XLOG_BRIN_UPDATE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<BrinInsert, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            if record.info & OPERATION_MASK == UPDATE {
                // The old tuple's offset number, aligned.
                reader.take(4)?;
            }
            Some(BrinInsert {
                heap_block: reader.u32()?,
                pages_per_range: reader.u32()?,
                offset_number: reader.u16()?,
            })
        };
        parsed(record, read(), "BRIN record is cut short")
    }
}
