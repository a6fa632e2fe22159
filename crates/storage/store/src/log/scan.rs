//! Reading a log back: replay at opening, and old files that lagging peers ask for.

use crate::StoreError;
use crate::log::entry;
use crate::log::entry::{
    ENTRY_HEADER_BYTES, EntryHeader, EntryKind, decode_entry_header, decode_file_header,
};
use crate::log::files::{LogFile, LogFiles};
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};

/// An entry that was read back; its checksums were right.
#[derive(Debug)]
pub(crate) struct ScannedEntry {
    /// Where the entry's payload begins.
    pub position: LogPosition,
    pub kind: EntryKind,
    pub payload: Vec<u8>,
}

/// Payloads are read in pieces of this size, so that a forged length cannot allocate much more than the file
/// has.
const READ_BYTES: usize = 1 << 20;

/// Reads up to `buffer.len()` bytes; fewer at the end of the file.
pub(super) fn read_up_to(file: &LogFile, buffer: &mut [u8], offset: u64) -> Result<usize, StoreError> {
    file.file.read_at(buffer, offset).map_err(StoreError::io("read", &file.path))
}

/// The entry at `offset`, or `None` if there is no whole and undamaged one.
fn read_entry(file: &LogFile, seed: u32, offset: u64) -> Result<Option<(EntryHeader, Vec<u8>)>, StoreError> {
    let mut header = [0; ENTRY_HEADER_BYTES];
    let Ok(small_offset) = u32::try_from(offset) else { return Ok(None) };
    if read_up_to(file, &mut header, offset)? < header.len() {
        return Ok(None);
    }
    let Some(header) = decode_entry_header(seed, small_offset, &header) else { return Ok(None) };
    let length = header.payload_length as usize;
    let mut payload = Vec::new();
    while payload.len() < length {
        let before = payload.len();
        payload.resize(length.min(before + READ_BYTES), 0);
        let position = offset + (ENTRY_HEADER_BYTES + before) as u64;
        if read_up_to(file, &mut payload[before..], position)? < payload.len() - before {
            return Ok(None);
        }
    }
    let whole = crc32c::crc32c(&payload) == header.payload_checksum;
    Ok(whole.then_some((header, payload)))
}

/// Visits the entries from `offset` on and returns where they end.
pub(super) fn scan_entries(
    file: &LogFile,
    seed: u32,
    offset: u32,
    visit: &mut dyn FnMut(ScannedEntry) -> Result<(), StoreError>,
) -> Result<u32, StoreError> {
    let mut offset = offset;
    while let Some((header, payload)) = read_entry(file, seed, u64::from(offset))? {
        let position = LogPosition::new(file.number, offset).plus(ENTRY_HEADER_BYTES);
        let next = u64::from(offset) + entry::entry_bytes(payload.len());
        visit(ScannedEntry { position, kind: header.kind, payload })?;
        let Ok(next) = u32::try_from(next) else { break };
        offset = next;
    }
    Ok(offset)
}

/// What stands at an offset of a log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checked {
    /// An undamaged entry; the next one is at `next`.
    Whole { next: u32 },
    /// A damaged entry. There is a later one, at `next`.
    Damaged { next: u32 },
    /// No entry, and none after it.
    End,
}

/// Bytes read at once when searching for the entry after a damaged header.
const SEARCH_BYTES: usize = 64 << 10;

/// Checks the entry at an offset.
pub(crate) fn check_entry(file: &LogFile, seed: u32, offset: u32) -> Result<Checked, StoreError> {
    if let Some((_, payload)) = read_entry(file, seed, u64::from(offset))? {
        let next = u64::from(offset) + entry::entry_bytes(payload.len());
        return Ok(u32::try_from(next).map_or(Checked::End, |next| Checked::Whole { next }));
    }
    let mut header = [0; ENTRY_HEADER_BYTES];
    if read_up_to(file, &mut header, u64::from(offset))? == header.len()
        && let Some(header) = decode_entry_header(seed, offset, &header)
    {
        let next = u64::from(offset) + entry::entry_bytes(header.payload_length as usize);
        return Ok(u32::try_from(next).map_or(Checked::End, |next| Checked::Damaged { next }));
    }
    Ok(next_header(file, seed, offset)?.map_or(Checked::End, |next| Checked::Damaged { next }))
}

/// Where the first entry after `offset` begins, at which there is none whose header is undamaged.
fn next_header(file: &LogFile, seed: u32, offset: u32) -> Result<Option<u32>, StoreError> {
    let mut buffer = vec![0; SEARCH_BYTES + ENTRY_HEADER_BYTES];
    let mut at = u64::from(offset) + 8;
    loop {
        let filled = read_up_to(file, &mut buffer, at)?;
        if filled < ENTRY_HEADER_BYTES {
            return Ok(None);
        }
        for start in (0..=(filled - ENTRY_HEADER_BYTES).min(SEARCH_BYTES - 8)).step_by(8) {
            let Ok(small_offset) = u32::try_from(at + start as u64) else { return Ok(None) };
            let header = buffer[start..].first_chunk().expect("the buffer is longer by a header");
            if decode_entry_header(seed, small_offset, header).is_some() {
                return Ok(Some(small_offset));
            }
        }
        at += SEARCH_BYTES as u64;
    }
}

pub(super) fn read_file_header(file: &LogFile, incarnation: u128) -> Result<u32, StoreError> {
    let mut header = [0; FILE_HEADER_BYTES as usize];
    read_up_to(file, &mut header, 0)?;
    decode_file_header(&header, incarnation, file.number).ok_or_else(|| {
        let what = "its header is damaged, or it is not of this store";
        StoreError::corrupt(file.path.display().to_string(), what)
    })
}

/// The verified payload at a position; `None` if its file has been released meanwhile.
///
/// # Errors
/// When the file is still there and the entry is damaged.
pub(crate) fn read_payload(
    files: &LogFiles,
    incarnation: u128,
    position: LogPosition,
) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(file) = files.get(position.file()) else { return Ok(None) };
    let offset = u64::from(position.offset()) - ENTRY_HEADER_BYTES as u64;
    let read = read_entry(&file, entry::file_seed(incarnation, file.number), offset);
    if let Ok(Some((_, payload))) = read {
        return Ok(Some(payload));
    }
    // It may have been closed meanwhile, and its name be gone.
    if files.get(position.file()).is_none() {
        return Ok(None);
    }
    read?;
    let place = format!("{} at offset {offset}", file.path.display());
    Err(StoreError::corrupt(place, "an entry is damaged"))
}

/// Visits the entries of an opened log from a position on.
///
/// # Errors
/// When the files cannot be read, and what `visit` returns.
pub(crate) fn scan_from(
    files: &LogFiles,
    incarnation: u128,
    from: LogPosition,
    visit: &mut dyn FnMut(ScannedEntry) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for number in files.numbers() {
        let Some(file) = files.get(number) else { continue };
        let offset = match number.cmp(&from.file()) {
            std::cmp::Ordering::Less => continue,
            std::cmp::Ordering::Equal => from.offset(),
            std::cmp::Ordering::Greater => FILE_HEADER_BYTES as u32,
        };
        scan_entries(&file, entry::file_seed(incarnation, number), offset, visit)?;
    }
    Ok(())
}

/// Reads every entry of a file that was complete before the newest checkpoint.
///
/// # Errors
/// When it is damaged.
pub(crate) fn scan_old_file(
    files: &LogFiles,
    incarnation: u128,
    number: u32,
    visit: &mut dyn FnMut(ScannedEntry) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Some(file) = files.get(number) else { return Ok(()) };
    read_file_header(&file, incarnation)?;
    let end = scan_entries(&file, entry::file_seed(incarnation, number), FILE_HEADER_BYTES as u32, visit)?;
    if let Some(next) = files.get(number + 1)
        && read_file_header(&next, incarnation)? != end
    {
        let what = format!("its entries end at {end} where more were written");
        return Err(StoreError::corrupt(file.path.display().to_string(), what));
    }
    Ok(())
}
