//! Records that take the place of others and have no effect.

use borealis_types::Lsn;

use crate::bytes::Reader;
use crate::layout::common::wal_record::{CHECKSUM_OFFSET, ID_DATA_LONG, ID_DATA_SHORT, RECORD_HEADER_BYTES};
use crate::layout::xlog;
use crate::record::{RecordHeader, checksum, verify_checksum};
use crate::{RecordError, ResourceManager};

/// Where `xl_prev` stands in a record.
const LINK: std::ops::Range<usize> = 8..16;

/// A record with the length and the link of the one given, and without any effect (`XLOG_NOOP`). It takes the place of a record that
/// PostgreSQL does not know, one of Borealis's own, in a log that PostgreSQL is to read.
///
/// # Errors
/// When the bytes are no record, or of a length that no record has.
pub fn without_effect(record: &[u8], start: Lsn) -> Result<Vec<u8>, RecordError> {
    verify_checksum(record, start)?;
    let malformed = |what| RecordError::Malformed { start, what };
    let header = RecordHeader::read(&mut Reader::new(record)).ok_or_else(|| malformed("no whole header"))?;
    let total_bytes = u32::try_from(record.len()).ok().filter(|&bytes| bytes == header.total_bytes);
    let total_bytes = total_bytes.ok_or_else(|| malformed("not as long as its header says"))?;
    let mut bytes = front_without_effect(total_bytes, header.previous_start).to_vec();
    let data = data_header(record.len() - RECORD_HEADER_BYTES);
    bytes.extend_from_slice(&data.ok_or_else(|| malformed("no record has this length"))?);
    bytes.resize(record.len(), 0);
    let sum = checksum(&bytes).to_le_bytes();
    bytes[CHECKSUM_OFFSET..RECORD_HEADER_BYTES].copy_from_slice(&sum);
    Ok(bytes)
}

/// What stands between a record's header and its main data, if it has nothing else and this many bytes after its header.
pub(super) fn data_header(body_bytes: usize) -> Option<Vec<u8>> {
    match body_bytes {
        0 => Some(Vec::new()),
        1 => None,
        short @ 2..=257 => Some(vec![ID_DATA_SHORT, (short - 2) as u8]),
        long => {
            let length = u32::try_from(long - 5).ok()?;
            Some([&[ID_DATA_LONG][..], &length.to_le_bytes()].concat())
        }
    }
}

/// The record with another link: `previous_start` is where the record before it begins.
///
/// # Errors
/// When the bytes are no record.
pub fn relinked(record: &[u8], start: Lsn, previous_start: Lsn) -> Result<Vec<u8>, RecordError> {
    verify_checksum(record, start)?;
    let mut bytes = record.to_vec();
    bytes[LINK].copy_from_slice(&previous_start.0.to_le_bytes());
    let sum = checksum(&bytes).to_le_bytes();
    bytes[CHECKSUM_OFFSET..RECORD_HEADER_BYTES].copy_from_slice(&sum);
    Ok(bytes)
}

/// The header of an `XLOG_NOOP` record, without its checksum.
pub(super) fn front_without_effect(total_bytes: u32, previous_start: Lsn) -> [u8; RECORD_HEADER_BYTES] {
    let mut header = [0; RECORD_HEADER_BYTES];
    header[..4].copy_from_slice(&total_bytes.to_le_bytes());
    header[LINK].copy_from_slice(&previous_start.0.to_le_bytes());
    header[16..18].copy_from_slice(&[xlog::NOOP, ResourceManager::Xlog.number()]);
    header
}
