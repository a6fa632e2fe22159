//! Checksums of a store's files, made right after bytes were changed.
//!
//! Formats: `borealis-store`'s `directory.rs` (small files), `synced_note.rs`, `log/entry.rs` (the log), `pages/page_files.rs` (page slots).

const SMALL_FILE_HEADER_BYTES: usize = 20;
const LOG_FILE_HEADER_BYTES: usize = 64;
const ENTRY_HEADER_BYTES: usize = 32;
const NOTE_SLOT_BYTES: usize = 4096;
const NOTE_BYTES: usize = 52;
/// Bytes of a page slot: a header and the page.
pub(crate) const SLOT_BYTES: usize = 64 + 8192;

/// Makes length and checksum of an `identity` or `checkpoint` file right.
pub(crate) fn seal_small_file(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().max(SMALL_FILE_HEADER_BYTES), 0);
    let length = (bytes.len() - SMALL_FILE_HEADER_BYTES) as u64;
    bytes[8..16].copy_from_slice(&length.to_le_bytes());
    let (header, body) = bytes.split_at(SMALL_FILE_HEADER_BYTES);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), body);
    bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes the checksums of both notes of a `synced` file right.
pub(crate) fn seal_notes(bytes: &mut [u8]) {
    for slot in bytes.chunks_mut(NOTE_SLOT_BYTES) {
        if let Some(note) = slot.get_mut(..NOTE_BYTES) {
            let checksum = crc32c::crc32c(&note[..NOTE_BYTES - 4]);
            note[NOTE_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

/// Makes the checksums of a log file's header and entries right, as far as their lengths lead.
pub(crate) fn seal_log(bytes: &mut [u8], incarnation: u128, number: u32) {
    if let Some(header) = bytes.get_mut(..LOG_FILE_HEADER_BYTES) {
        let checksum = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&checksum.to_le_bytes());
    }
    let seed = entry_seed(incarnation, number);
    let mut at = LOG_FILE_HEADER_BYTES;
    while let Some(header) = bytes.get(at..at + ENTRY_HEADER_BYTES) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        // The free rest of the file.
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let payload = bytes.get(at + ENTRY_HEADER_BYTES..at + ENTRY_HEADER_BYTES + length);
        let checksum = payload.map_or(0, crc32c::crc32c);
        bytes[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
        seal_entry_header(&mut bytes[at..at + ENTRY_HEADER_BYTES], seed);
        at += (ENTRY_HEADER_BYTES + length).next_multiple_of(8);
    }
}

/// Appends an entry of this kind at the first free place, if there is one.
pub(crate) fn forge_entry(bytes: &mut [u8], incarnation: u128, number: u32, kind: u8, payload: &[u8]) {
    let mut at = LOG_FILE_HEADER_BYTES;
    while let Some(header) = bytes.get(at..at + ENTRY_HEADER_BYTES) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        at += (ENTRY_HEADER_BYTES + length).next_multiple_of(8);
    }
    let Some(place) = bytes.get_mut(at..at + ENTRY_HEADER_BYTES + payload.len()) else { return };
    let (header, body) = place.split_at_mut(ENTRY_HEADER_BYTES);
    body.copy_from_slice(payload);
    header.fill(0);
    header[4..8].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[12] = kind;
    header[24..28].copy_from_slice(&(at as u32).to_le_bytes());
    seal_entry_header(header, entry_seed(incarnation, number));
}

fn entry_seed(incarnation: u128, number: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&incarnation.to_le_bytes()), &number.to_le_bytes())
}

fn seal_entry_header(header: &mut [u8], seed: u32) {
    let checksum = crc32c::crc32c_append(seed, &header[4..]);
    header[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes the checksums of the page slots in use right.
pub(crate) fn seal_pages(bytes: &mut [u8]) {
    for slot in bytes.chunks_exact_mut(SLOT_BYTES) {
        let (header, page) = slot.split_at_mut(64);
        if header.iter().any(|byte| *byte != 0) {
            let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..60]), page);
            header[60..].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}
