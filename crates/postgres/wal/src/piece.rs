//! Pieces of long records: their bytes, and putting them together again.
//!
//! ```text
//! piece   = checksum: u32 (little-endian) | content
//! ```
//!
//! The checksum is CRC-32C of the content and of where the piece starts (its LSN, eight bytes, little-endian). It goes with
//! the piece from the driver, which makes it, to the node that applies the record, through every log and every peer in
//! between. The record's own checksum (`xl_crc`) covers all contents together: whoever cuts a record verifies it before
//! the last piece leaves, and whoever puts it together verifies it again.
//!
//! Which pieces belong together is said by [`Part`] alone, see [`Part::continues`].

use borealis_types::{Lsn, Part, RecordSpan, invariant};

use crate::bytes::Reader;
use crate::encode::RecordBuilder;
use crate::layout::common::wal_record::{ID_DATA_LONG, ID_ORIGIN, ID_TOP_LEVEL_XID};
use crate::record::RecordHeader;
use crate::{RecordError, ResourceManager};

/// Content of a piece, at least, unless it is a record's last: records that are not longer are never cut. Larger than
/// any record that lists blocks (33 of them, each with an image, are 270 KiB), so that only what an SQL command makes
/// long is cut, and small beside every bound of memory on a record's way.
pub const PIECE_BYTES: usize = 1 << 20;

/// Bytes before a piece's content: its checksum.
pub const PIECE_PREFIX_BYTES: usize = 4;

fn checksum(start: Lsn, content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(content), &start.0.to_le_bytes())
}

/// Puts the checksum into the first bytes of a piece that starts at `start`, which are kept free for it.
///
/// # Panics
/// If there is no room for it.
pub fn seal(piece: &mut [u8], start: Lsn) {
    invariant!("piece-has-content", piece.len() > PIECE_PREFIX_BYTES, "{} bytes at {start}", piece.len());
    let (prefix, content) = piece.split_at_mut(PIECE_PREFIX_BYTES);
    prefix.copy_from_slice(&checksum(start, content).to_le_bytes());
}

/// The content of a piece that starts at `start`, verified.
///
/// # Errors
/// When it has none, or the checksum does not match.
pub fn open(piece: &[u8], start: Lsn) -> Result<&[u8], RecordError> {
    let Some((prefix, content)) = piece.split_first_chunk::<PIECE_PREFIX_BYTES>() else {
        return Err(RecordError::Malformed { start, what: "a piece shorter than its checksum" });
    };
    if content.is_empty() {
        return Err(RecordError::Malformed { start, what: "a piece without content" });
    }
    if u32::from_le_bytes(*prefix) == checksum(start, content) {
        Ok(content)
    } else {
        Err(RecordError::Checksum { start })
    }
}

/// A record as short as its front that redo cannot tell from the one that `front` is the beginning of, if that is a message
/// for logical decoding: redo does nothing with its text, and looks only at whose it is. `None` of any other, which redo
/// needs whole. So the records that anybody can make as long as they like never have to be put together.
#[must_use]
pub fn without_body(front: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(front);
    let header = RecordHeader::read(&mut reader)?;
    let resource_manager = ResourceManager::from(header.resource_manager);
    if resource_manager != ResourceManager::LogicalMessage {
        return None;
    }
    let (mut origin, mut top_level_xid) = (None, None);
    loop {
        match reader.u8()? {
            ID_ORIGIN => origin = Some(reader.u16()?),
            ID_TOP_LEVEL_XID => top_level_xid = Some(reader.u32()?),
            ID_DATA_LONG => break,
            _ => return None,
        }
    }
    let record = RecordBuilder::new(resource_manager, header.info)
        .xid(header.xid)
        .previous_start(header.previous_start)
        .origin(origin)
        .top_level_xid(top_level_xid);
    Some(record.finish())
}

/// Puts pieces together.
#[derive(Clone, Debug, Default)]
pub struct Assembly {
    span: RecordSpan,
    part: Part,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Takes the next entry's content. `true` once the record is whole: see [`Assembly::record`]. What does not go on
    /// with what was begun replaces it; a piece that goes on with nothing is dropped.
    pub fn take(&mut self, span: RecordSpan, part: Part, content: &[u8]) -> bool {
        if part.begins_record() {
            self.bytes.clear();
            self.span = span;
        } else if !part.continues(self.part, self.span.end, span.start) {
            self.clear();
            return false;
        }
        self.span.end = span.end;
        self.part = part;
        self.bytes.extend_from_slice(content);
        part.ends_record()
    }

    /// The whole record after [`Assembly::take`] has said that there is one.
    #[must_use]
    pub fn record(&self) -> (RecordSpan, &[u8]) {
        (self.span, &self.bytes)
    }

    /// Drops what was begun, and its memory.
    pub fn clear(&mut self) {
        *self = Assembly::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Record;
    use borealis_types::ServerVersion;
    use proptest::prelude::*;

    fn span(start: u64, length: usize) -> RecordSpan {
        RecordSpan { start: Lsn(start), end: Lsn(start + length as u64) }
    }

    #[test]
    fn a_piece_opens_at_its_own_place_only() {
        let mut piece = vec![0, 0, 0, 0, 7, 8, 9];
        seal(&mut piece, Lsn(800));
        assert_eq!(open(&piece, Lsn(800)).unwrap(), [7, 8, 9]);
        assert!(open(&piece, Lsn(808)).is_err(), "another place");
        piece[5] ^= 1;
        assert!(open(&piece, Lsn(800)).is_err(), "another content");
        for short in [&[][..], &[1, 2, 3], &[1, 2, 3, 4]] {
            assert!(open(short, Lsn(800)).is_err());
        }
    }

    #[test]
    fn a_message_is_applied_without_its_text() {
        let text = vec![7; 5000];
        let message = |manager| {
            RecordBuilder::new(manager, 0)
                .xid(900)
                .previous_start(Lsn(8))
                .top_level_xid(Some(899))
                .main_data(&text)
        };
        let bytes = message(ResourceManager::LogicalMessage).finish();
        let short = without_body(&bytes[..600]).unwrap();
        crate::verify_checksum(&short, Lsn(80)).unwrap();
        let record = Record::parse(ServerVersion::NEWEST_TESTED, span(80, short.len()), &short).unwrap();
        assert_eq!((record.xid, record.top_level_xid, record.previous_start), (900, Some(899), Lsn(8)));
        assert!(record.main_data.is_empty());
        assert_eq!(without_body(&message(ResourceManager::Transaction).finish()), None);
        for length in 0..40 {
            let _ = without_body(&bytes[..length]);
        }
    }

    #[test]
    #[should_panic(expected = "invariant piece-has-content is broken")]
    fn a_piece_without_content_is_not_sealed() {
        seal(&mut [0; 4], Lsn(8));
    }

    proptest! {
        #[test]
        fn what_is_cut_is_put_together(lengths in prop::collection::vec(1usize..50, 2..9), cut_at in prop::option::of(0usize..8)) {
            let count = lengths.len();
            let stays = cut_at.map_or(count, |at| at.min(count - 1));
            let (mut assembly, mut expected, mut at, mut whole) = (Assembly::default(), Vec::new(), 800, false);
            for (number, length) in lengths.iter().enumerate().take(stays) {
                let part = match number {
                    0 => Part::First,
                    last if last + 1 == count => Part::Last,
                    _ => Part::Middle,
                };
                let content = vec![number as u8; *length];
                whole = assembly.take(span(at, *length), part, &content);
                expected.extend(content);
                at += *length as u64;
            }
            prop_assert_eq!(whole, stays == count);
            if whole {
                prop_assert_eq!(assembly.record(), (RecordSpan { start: Lsn(800), end: Lsn(at) }, &expected[..]));
            } else {
                // What was begun is over as soon as anything else follows.
                prop_assert!(assembly.take(span(at, 8), Part::Whole, &[1; 8]));
                prop_assert_eq!(assembly.record(), (span(at, 8), &[1; 8][..]));
                prop_assert!(!assembly.take(span(at + 8, 8), Part::Last, &[1; 8]));
            }
        }
    }
}
