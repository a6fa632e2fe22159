//! Records for logical decoding, of which a primary's redo does nothing (`src/include/replication/message.h`) or keeps
//! what no page has (`src/include/replication/origin.h`).

pub use borealis_types::kept_file::MESSAGE;

use crate::bytes::Reader;

/// `XLOG_REPLORIGIN_SET`
pub const ORIGIN_SET: u8 = 0x00;
/// `XLOG_REPLORIGIN_DROP`
pub const ORIGIN_DROP: u8 = 0x10;

/// `xl_logical_message`: what stands in an [`MESSAGE`] record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogicalMessage<'a> {
    /// The database of the session that wrote it; zero is none.
    pub database: u32,
    /// Shown by logical decoding only if its transaction commits.
    pub is_transactional: bool,
    /// Whose message it is, without the zero byte at its end.
    pub prefix: &'a [u8],
    /// The message itself.
    pub content: &'a [u8],
}

impl<'a> LogicalMessage<'a> {
    /// Reads a [`MESSAGE`] record's main data. `None` if they are not as PostgreSQL writes them, or without their end, as
    /// of a long record that was cut.
    #[must_use]
    pub fn read(main_data: &'a [u8]) -> Option<LogicalMessage<'a>> {
        let mut reader = Reader::new(main_data);
        let database = reader.u32()?;
        let is_transactional = reader.flag()?;
        reader.take(3)?;
        let prefix_bytes = usize::try_from(reader.u64()?).ok()?;
        let content_bytes = usize::try_from(reader.u64()?).ok()?;
        let (&zero, prefix) = reader.take(prefix_bytes)?.split_last()?;
        let content = reader.take(content_bytes)?;
        (zero == 0 && reader.remaining() == 0).then_some(LogicalMessage {
            database,
            is_transactional,
            prefix,
            content,
        })
    }
}
