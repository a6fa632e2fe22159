//! Log entries and file headers, as bytes.
//!
//! A file is a [`FILE_HEADER_BYTES`] header and entries, each aligned to eight bytes:
//!
//! ```text
//! header_checksum u32   CRC-32C of the 28 bytes after it, seeded with the store's incarnation and the file's
//!                       number, so that what a recycled file held before is never taken for an entry
//! payload_checksum u32
//! payload_length u32
//! kind u8, 3 zero bytes
//! durable_through u64   position below which the log was durable when the entry was written: tells an entry
//!                       lost by a crash before its sync (fine) from damage to an acknowledged one (not fine)
//! offset u32            of the entry in its file
//! zero u32
//! payload
//! ```

use crate::log::position::{FILE_HEADER_BYTES, LogPosition};

/// Bytes before an entry's payload.
pub(crate) const ENTRY_HEADER_BYTES: usize = 32;
/// Longest payload of an entry: a frame is 64 MiB at most, and what the store itself writes is shorter.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 80 << 20;

/// In the place of `previous_end`: the file was prepared and not begun. It has no entry, or none that was synced.
pub(crate) const PREPARED: u32 = u32::MAX;

const FILE_MAGIC: [u8; 8] = *b"BORLOG\0\x01";

/// What an entry holds. The number is the `kind` byte of its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum EntryKind {
    /// Records: a mask of the groups that took them (`u64`), then a redo batch.
    Batch = 1,
    /// A promise to a writer.
    Fence = 2,
    /// Histories installed in segments: what a recovery decided.
    Install = 3,
    /// Durable positions and minimum read points.
    Positions = 4,
    /// A history adopted for a recovery that is still under way.
    Adopt = 5,
    /// Nothing: in the place of a damaged entry whose records were appended again.
    Void = 6,
    /// A segment goes on from the point as of which peers brought everything.
    Jump = 7,
    /// A segment promised an attempt to choose the next membership of its group.
    Prepare = 8,
    /// A segment accepted a proposed membership.
    Accept = 9,
    /// A membership of a group: with it a segment comes to this node, stays, or leaves.
    Members = 10,
    /// A segment that was joining has everything as of a point, and is full.
    Base = 11,
}

impl EntryKind {
    fn from_number(number: u8) -> Option<EntryKind> {
        match number {
            1 => Some(EntryKind::Batch),
            2 => Some(EntryKind::Fence),
            3 => Some(EntryKind::Install),
            4 => Some(EntryKind::Positions),
            5 => Some(EntryKind::Adopt),
            6 => Some(EntryKind::Void),
            7 => Some(EntryKind::Jump),
            8 => Some(EntryKind::Prepare),
            9 => Some(EntryKind::Accept),
            10 => Some(EntryKind::Members),
            11 => Some(EntryKind::Base),
            _ => None,
        }
    }
}

/// The seed of all entry header checksums in one log file.
pub(crate) fn file_seed(incarnation: u128, number: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&incarnation.to_le_bytes()), &number.to_le_bytes())
}

/// A decoded entry header; its checksum was right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryHeader {
    pub kind: EntryKind,
    pub payload_length: u32,
    pub payload_checksum: u32,
    pub durable_through: LogPosition,
}

/// Bytes that an entry occupies in its file, with header and padding.
pub(crate) fn entry_bytes(payload_length: usize) -> u64 {
    (ENTRY_HEADER_BYTES as u64 + payload_length as u64).next_multiple_of(8)
}

/// Encodes an entry with header, payload and padding into `bytes`, replacing what it held.
pub(crate) fn encode_entry(
    bytes: &mut Vec<u8>,
    seed: u32,
    offset: u32,
    kind: EntryKind,
    durable_through: LogPosition,
    payload: &[&[u8]],
) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let checksum = payload.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    bytes.clear();
    bytes.reserve(entry_bytes(length) as usize);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&[kind as u8, 0, 0, 0]);
    bytes.extend_from_slice(&durable_through.0.to_le_bytes());
    bytes.extend_from_slice(&offset.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    let header_checksum = crc32c::crc32c_append(seed, &bytes[4..]);
    bytes[..4].copy_from_slice(&header_checksum.to_le_bytes());
    for part in payload {
        bytes.extend_from_slice(part);
    }
    bytes.resize(entry_bytes(length) as usize, 0);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Decodes the header of the entry at `offset`, or `None` if there is none.
pub(crate) fn decode_entry_header(
    seed: u32,
    offset: u32,
    bytes: &[u8; ENTRY_HEADER_BYTES],
) -> Option<EntryHeader> {
    // The cheap tests come first: a search for entries calls this at every eighth byte of a file.
    if u32_at(bytes, 24) != offset || u32_at(bytes, 8) as usize > PAYLOAD_BYTES_MAX {
        return None;
    }
    let kind = EntryKind::from_number(bytes[12])?;
    if crc32c::crc32c_append(seed, &bytes[4..]) != u32_at(bytes, 0) {
        return None;
    }
    Some(EntryHeader {
        kind,
        payload_length: u32_at(bytes, 8),
        payload_checksum: u32_at(bytes, 4),
        durable_through: LogPosition(u64_at(bytes, 16)),
    })
}

/// Encodes a file's header. `previous_end` is the offset at which the entries of the previous file end: a
/// scan that ends earlier knows that entries are damaged, or were never synced. [`PREPARED`] until the file begins.
pub(crate) fn encode_file_header(
    incarnation: u128,
    number: u32,
    previous_end: u32,
) -> [u8; FILE_HEADER_BYTES as usize] {
    let mut bytes = [0; FILE_HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    bytes[12..16].copy_from_slice(&previous_end.to_le_bytes());
    bytes[16..32].copy_from_slice(&incarnation.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The `previous_end` in the header of this store's file `number`; `None` if the bytes are not that header. A header
/// whose checksum alone is wrong counts as [`PREPARED`]: it was written in part when the file was begun.
pub(crate) fn decode_file_header(
    bytes: &[u8; FILE_HEADER_BYTES as usize],
    incarnation: u128,
    number: u32,
) -> Option<u32> {
    let previous_end = u32_at(bytes, 12);
    let whole = encode_file_header(incarnation, number, previous_end);
    if *bytes == whole {
        return Some(previous_end);
    }
    (bytes[..60] == whole[..60]).then_some(PREPARED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_survives_the_round_trip_and_no_flip_of_its_header_is_missed(
            payload in prop::collection::vec(any::<u8>(), 0..100), flip in 0usize..256, number: u32,
        ) {
            let seed = file_seed(7, number);
            let mut bytes = vec![1; 7];
            encode_entry(&mut bytes, seed, 64, EntryKind::Batch, LogPosition(9), &[&payload]);
            let header: [u8; ENTRY_HEADER_BYTES] = bytes[..ENTRY_HEADER_BYTES].try_into().unwrap();
            let decoded = decode_entry_header(seed, 64, &header).expect("just encoded");
            prop_assert_eq!(decoded.payload_length as usize, payload.len());
            prop_assert_eq!(decoded.payload_checksum, crc32c::crc32c(&payload));
            prop_assert_eq!(decoded.durable_through, LogPosition(9));
            prop_assert_eq!(decode_entry_header(file_seed(7, number.wrapping_add(1)), 64, &header), None);
            bytes[flip / 8] ^= 1 << (flip % 8);
            let header: [u8; ENTRY_HEADER_BYTES] = bytes[..ENTRY_HEADER_BYTES].try_into().unwrap();
            prop_assert_eq!(decode_entry_header(seed, 64, &header), None);
        }

        #[test]
        fn hostile_headers_are_refused(bytes: [u8; ENTRY_HEADER_BYTES], offset: u32) {
            prop_assert_eq!(decode_entry_header(1, offset, &bytes), None);
        }
    }
}
