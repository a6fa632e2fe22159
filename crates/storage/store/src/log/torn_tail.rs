//! The end of the log after a crash: what may be truncated there, and what must not.

use std::path::Path;
use std::sync::Arc;

use crate::StoreError;
use crate::disk::Disk;
use crate::log::entry;
use crate::log::entry::{ENTRY_HEADER_BYTES, decode_entry_header};
use crate::log::files::LogFile;
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};
use crate::log::scan::read_up_to;

/// Bytes read at once when searching for entries after the end of the log.
const SEARCH_BYTES: usize = 1 << 20;

/// What was found after the end of the log.
struct PastEnd {
    /// The highest `durable_through` of any entry there.
    durable_through: LogPosition,
    /// Where the last of them ends.
    end: u64,
}

/// Searches for valid entry headers after `offset`, where there is no valid entry.
fn search_past_end(file: &LogFile, seed: u32, offset: u32) -> Result<Option<PastEnd>, StoreError> {
    let mut found: Option<PastEnd> = None;
    let mut buffer = vec![0; SEARCH_BYTES + ENTRY_HEADER_BYTES];
    let mut at = u64::from(offset) + 8;
    loop {
        let filled = read_up_to(file, &mut buffer, at)?;
        if filled < ENTRY_HEADER_BYTES {
            return Ok(found);
        }
        for start in (0..=(filled - ENTRY_HEADER_BYTES).min(SEARCH_BYTES - 8)).step_by(8) {
            let header: &[u8; ENTRY_HEADER_BYTES] =
                buffer[start..start + ENTRY_HEADER_BYTES].try_into().expect("the slice has that length");
            let position = at + start as u64;
            let Ok(small_offset) = u32::try_from(position) else { return Ok(found) };
            // A valid header alone proves that something was appended here after the end we found.
            let Some(header) = decode_entry_header(seed, small_offset, header) else { continue };
            let end = position + entry::entry_bytes(header.payload_length as usize);
            let durable_through = found.as_ref().map_or(LogPosition(0), |past_end| past_end.durable_through);
            let durable_through = durable_through.max(header.durable_through);
            found = Some(PastEnd { durable_through, end });
        }
        at += SEARCH_BYTES as u64;
    }
}

/// Truncates the log at `offset` of `active`, where its valid entries end. Entries beyond, there and in the later files
/// `beyond`, were written and never synced: a power loss may keep a later write and lose an earlier one. They are
/// overwritten with zeros, or they would become valid again behind the next entries. Of the later files the first one
/// becomes the prepared one, and the others are removed.
///
/// # Errors
/// When an entry beyond proves that something was acknowledged that is not there.
pub(super) fn truncate_torn_tail(
    disk: &dyn Disk,
    incarnation: u128,
    active: &LogFile,
    offset: u32,
    beyond: &[Arc<LogFile>],
) -> Result<(), StoreError> {
    let end = LogPosition::new(active.number, offset);
    let first_entry = FILE_HEADER_BYTES as u32;
    let mut torn = Vec::new();
    // The search begins behind the place it is given.
    let later = beyond.iter().map(|file| (&**file, first_entry - 8, first_entry));
    for (file, search_from, zeros_from) in std::iter::once((active, offset, offset)).chain(later) {
        let seed = entry::file_seed(incarnation, file.number);
        let Some(past_end) = search_past_end(file, seed, search_from)? else { continue };
        if past_end.durable_through > end {
            let place = format!("{} at offset {offset}", active.path.display());
            return Err(StoreError::corrupt(place, "an entry that was acknowledged is damaged"));
        }
        torn.push((file, zeros_from, past_end.end));
    }
    // From behind, so that after a crash in between this finds the same end again.
    for (file, from, through) in torn.into_iter().rev() {
        let zeros = vec![0; SEARCH_BYTES];
        let mut at = u64::from(from);
        while at < through {
            let count = zeros.len().min((through - at) as usize);
            file.file.write_at(&zeros[..count], at).map_err(StoreError::io("write", &file.path))?;
            at += count as u64;
        }
        file.file.sync_data().map_err(StoreError::io("sync", &file.path))?;
    }
    let Some((next, others)) = beyond.split_first() else { return Ok(()) };
    for file in others.iter().rev() {
        disk.remove(&file.path).map_err(StoreError::io("delete", &file.path))?;
    }
    let folder = active.path.parent().unwrap_or(Path::new("."));
    disk.sync_folder(folder).map_err(StoreError::io("sync", folder))?;
    let header = entry::encode_file_header(incarnation, next.number, entry::PREPARED);
    next.file.write_at(&header, 0).map_err(StoreError::io("write", &next.path))?;
    next.file.sync_data().map_err(StoreError::io("sync", &next.path))
}
