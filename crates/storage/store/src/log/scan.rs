//! Reading a log back: replay at opening, and old files that lagging peers ask for.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::entry::{
    self, ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FILE_HEADER_BYTES, decode_entry_header,
    decode_file_header,
};
use super::{FILE_BYTES_MAX, FILE_BYTES_MIN, Log, LogFile, LogFiles, LogPosition, file_path, spare_path};
use crate::StoreError;
use crate::directory::sync_folder;

/// An entry as it was read.
#[derive(Debug)]
pub(crate) struct ScannedEntry {
    /// Position of the payload.
    pub position: LogPosition,
    pub kind: EntryKind,
    pub payload: Vec<u8>,
}

/// Bytes of a payload read together: a length that a header announces allocates no more than the file has.
const READ_BYTES: usize = 1 << 20;

/// Bytes looked at together when searching for entries after the end of the log.
const SEARCH_BYTES: usize = 1 << 20;

/// Reads up to `buffer.len()` bytes; fewer at the end of the file.
fn read_up_to(file: &LogFile, buffer: &mut [u8], offset: u64) -> Result<usize, StoreError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(StoreError::io("read", &file.path)(source)),
        }
    }
    Ok(filled)
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
fn scan_entries(
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

/// What lies behind the end of the log.
struct Behind {
    /// The highest `durable_through` of any entry there.
    durable_through: LogPosition,
    /// Where the last of them ends.
    end: u64,
}

/// Looks for undamaged entries behind `offset`, where there is none.
fn search_behind(file: &LogFile, seed: u32, offset: u32) -> Result<Option<Behind>, StoreError> {
    let mut found: Option<Behind> = None;
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
            if decode_entry_header(seed, small_offset, header).is_none() {
                continue;
            }
            // The header alone proves that something was appended here after the end we found.
            let Some(header) = decode_entry_header(seed, small_offset, header) else { continue };
            let end = position + entry::entry_bytes(header.payload_length as usize);
            let durable_through = found.as_ref().map_or(LogPosition(0), |behind| behind.durable_through);
            let durable_through = durable_through.max(header.durable_through);
            found = Some(Behind { durable_through, end });
        }
        at += SEARCH_BYTES as u64;
    }
}

fn open_file(folder: &Path, number: u32, file_bytes: u64) -> Result<Arc<LogFile>, StoreError> {
    let path = file_path(folder, number);
    let file =
        OpenOptions::new().read(true).write(true).open(&path).map_err(StoreError::io("open", &path))?;
    let length = file.metadata().map_err(StoreError::io("stat", &path))?.len();
    Ok(Arc::new(LogFile { number, path, file, size: length.max(file_bytes) }))
}

fn read_file_header(file: &LogFile, incarnation: u128) -> Result<u32, StoreError> {
    let mut header = [0; FILE_HEADER_BYTES as usize];
    read_up_to(file, &mut header, 0)?;
    decode_file_header(&header, incarnation, file.number).ok_or_else(|| {
        let what = "its header is damaged, or it is not of this store";
        StoreError::corrupt(file.path.display().to_string(), what)
    })
}

/// The numbers of the log files in a folder.
fn list_files(folder: &Path) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    for item in fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
        let name = item.map_err(StoreError::io("list", folder))?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".log"));
        if let Some(number) = stem.and_then(|stem| stem.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Log {
    /// Opens a log and checks its entries from `replay_from` on; [`scan_from`] reads them.
    ///
    /// The first place without an entry ends the log, if what follows shows no sign that anything there was
    /// ever acknowledged: an entry behind it that knows it to be durable, or a later file. Entries behind the
    /// end that were never durable (a crash of the machine may keep a later write and lose an earlier one)
    /// are wiped, so that they cannot come back behind what is appended next. Damage to the very last entry
    /// cannot be told from a crash while it was written, unless the checkpoint knows it (the caller compares);
    /// peers then have what it held.
    ///
    /// # Errors
    /// When the files are not a whole log, or acknowledged entries are damaged.
    pub(crate) fn open(
        folder: &Path,
        incarnation: u128,
        file_bytes: u64,
        replay_from: LogPosition,
    ) -> Result<Log, StoreError> {
        let file_bytes = file_bytes.clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let numbers = list_files(folder)?;
        let missing = |number: u32| {
            let what = "is missing: the store is damaged; rebuild this node from its peers";
            StoreError::directory(&file_path(folder, number), what)
        };
        if let Some(gap) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
            return Err(missing(gap[0] + 1));
        }
        if !numbers.contains(&replay_from.file()) {
            return Err(missing(replay_from.file()));
        }
        let files = Arc::new(LogFiles::default());
        let mut end_before = None;
        let mut last = None;
        for number in numbers {
            let file = open_file(folder, number, file_bytes)?;
            let previous_end = read_file_header(&file, incarnation)?;
            if end_before.is_some_and(|end| end != previous_end) {
                let place = file_path(folder, number - 1).display().to_string();
                let what =
                    format!("its entries end at {end_before:?}, but were written up to {previous_end}");
                return Err(StoreError::corrupt(place, what));
            }
            if number >= replay_from.file() {
                let from = if number == replay_from.file() {
                    replay_from.offset()
                } else {
                    FILE_HEADER_BYTES as u32
                };
                let seed = entry::file_seed(incarnation, number);
                let end = scan_entries(&file, seed, from, &mut |_| Ok(()))?;
                end_before = Some(end);
                last = Some((Arc::clone(&file), end));
            }
            files.insert(file);
        }
        let (active, offset) = last.ok_or_else(|| missing(replay_from.file()))?;
        settle_end(&active, entry::file_seed(incarnation, active.number), offset)?;
        let length = active.file.metadata().map_err(StoreError::io("stat", &active.path))?.len();
        let spare = spare_path(folder);
        let spare = match fs::metadata(&spare) {
            Ok(metadata) if metadata.len() <= file_bytes => Some(spare),
            Ok(_) => {
                fs::remove_file(&spare).map_err(StoreError::io("delete", &spare))?;
                None
            }
            Err(_) => None,
        };
        Ok(Log {
            folder: folder.to_owned(),
            incarnation,
            file_bytes,
            files,
            active,
            offset,
            filled: length.max(u64::from(offset)),
            spare,
            buffer: Vec::new(),
        })
    }
}

/// Decides whether the log may end at `offset`, and wipes what must not come back.
fn settle_end(file: &LogFile, seed: u32, offset: u32) -> Result<(), StoreError> {
    let Some(behind) = search_behind(file, seed, offset)? else { return Ok(()) };
    if behind.durable_through > LogPosition::new(file.number, offset) {
        let place = format!("{} at offset {offset}", file.path.display());
        return Err(StoreError::corrupt(place, "an entry that was acknowledged is damaged"));
    }
    let zeros = vec![0; SEARCH_BYTES];
    let mut at = u64::from(offset);
    while at < behind.end {
        let count = zeros.len().min((behind.end - at) as usize);
        file.file.write_all_at(&zeros[..count], at).map_err(StoreError::io("write", &file.path))?;
        at += count as u64;
    }
    file.file.sync_data().map_err(StoreError::io("sync", &file.path))?;
    sync_folder(file.path.parent().unwrap_or(Path::new(".")))
}

/// The payload at a position, verified; `None` if it is not there any more, because the file went.
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
    if let Some((_, payload)) = read_entry(&file, entry::file_seed(incarnation, file.number), offset)? {
        return Ok(Some(payload));
    }
    if files.get(position.file()).is_none() {
        return Ok(None);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    fn reopen(folder: &Path) -> Result<(Log, Vec<Vec<u8>>), StoreError> {
        let mut seen = Vec::new();
        let log = Log::open(folder, 5, 64 << 10, Log::first_position())?;
        scan_from(&log.files(), 5, Log::first_position(), &mut |entry| {
            seen.push(entry.payload);
            Ok(())
        })?;
        Ok((log, seen))
    }

    fn payload(number: usize) -> Vec<u8> {
        vec![number as u8; 100 + number * 37 % 3000]
    }

    /// A log of some files; the entries of `durable` know that everything before them is.
    fn filled(folder: &Path, entries: Range<usize>, durable: bool) -> (Log, Vec<LogPosition>) {
        let mut log = Log::create(folder, 5, 64 << 10).unwrap();
        let mut positions = Vec::new();
        for number in entries {
            let through = if durable { log.end() } else { LogPosition(0) };
            positions.push(log.append(EntryKind::Batch, through, &[&payload(number)]).unwrap());
        }
        (log, positions)
    }

    fn flip(folder: &Path, position: LogPosition) {
        let file =
            OpenOptions::new().read(true).write(true).open(file_path(folder, position.file())).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, u64::from(position.offset())).unwrap();
        file.write_all_at(&[byte[0] ^ 1], u64::from(position.offset())).unwrap();
    }

    #[test]
    fn what_is_appended_is_read_back_over_several_files() {
        let folder = tempfile::tempdir().unwrap();
        let (log, _) = filled(folder.path(), 0..150, true);
        assert!(log.files().numbers().len() > 2);
        drop(log);
        let (log, seen) = reopen(folder.path()).unwrap();
        assert_eq!(seen, (0..150).map(payload).collect::<Vec<_>>());
        assert!(log.end().file() > 2);
    }

    #[test]
    fn a_damaged_acknowledged_entry_is_corruption_in_any_file() {
        for victim in [3, 60, 148] {
            let folder = tempfile::tempdir().unwrap();
            let (log, positions) = filled(folder.path(), 0..150, true);
            drop(log);
            flip(folder.path(), positions[victim]);
            let error = reopen(folder.path()).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
    }

    #[test]
    fn a_torn_tail_that_was_never_durable_is_cut_and_never_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let (log, positions) = filled(folder.path(), 0..20, false);
        drop(log);
        flip(folder.path(), positions[15]);
        let (mut log, seen) = reopen(folder.path()).unwrap();
        assert_eq!(seen.len(), 15);
        // An entry of the same length as the damaged one would connect to those behind it.
        log.append(EntryKind::Batch, LogPosition(0), &[&payload(15)]).unwrap();
        drop(log);
        assert_eq!(reopen(folder.path()).unwrap().1.len(), 16);
    }

    #[test]
    fn a_recycled_file_does_not_show_what_it_held_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = filled(folder.path(), 0..80, true);
        let last = log.end().file();
        log.release(1).unwrap();
        while log.end().file() == last {
            log.append(EntryKind::Batch, LogPosition(0), &[&payload(9)]).unwrap();
        }
        let end = log.end();
        drop(log);
        let mut count = 0;
        let position = LogPosition::new(2, FILE_HEADER_BYTES as u32);
        let log = Log::open(folder.path(), 5, 64 << 10, position).unwrap();
        scan_from(&log.files(), 5, position, &mut |_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(log.end(), end);
        assert!(count > 0);
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        drop(filled(folder.path(), 0..150, true));
        fs::remove_file(file_path(folder.path(), 2)).unwrap();
        assert!(reopen(folder.path()).unwrap_err().to_string().contains("0000000002.log is missing"));
    }

    #[test]
    fn random_bytes_in_place_of_a_log_never_panic() {
        let folder = tempfile::tempdir().unwrap();
        drop(filled(folder.path(), 0..30, true));
        let path = file_path(folder.path(), 1);
        let whole = fs::read(&path).unwrap();
        let mut state = 1u64;
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 20) as u8;
            }
            fs::write(&path, &bytes[..bytes.len() - (state >> 50) as usize % bytes.len()]).unwrap();
            let _ = reopen(folder.path());
        }
    }
}
