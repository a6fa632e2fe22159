//! Opening a log that exists.

use std::path::Path;
use std::sync::Arc;

use crate::StoreError;
use crate::disk::{Disk, OpenMode};
use crate::log::entry;
use crate::log::files::{LogFile, LogFiles};
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};
use crate::log::preparation::{Preparation, PreparedFile};
use crate::log::scan::{read_file_header, scan_entries};
use crate::log::torn_tail::truncate_torn_tail;
use crate::log::writer::{FILE_BYTES_MAX, FILE_BYTES_MIN, Log, file_path, spare_path};

fn open_file(
    disk: &dyn Disk,
    folder: &Path,
    number: u32,
    file_bytes: u64,
) -> Result<Arc<LogFile>, StoreError> {
    let path = file_path(folder, number);
    let file = disk.open(&path, OpenMode::Write).map_err(StoreError::io("open", &path))?;
    let length = file.size_bytes().map_err(StoreError::io("stat", &path))?;
    Ok(Arc::new(LogFile { number, path, file, size: length.max(file_bytes) }))
}

/// The numbers of the log files in a folder.
fn list_files(disk: &dyn Disk, folder: &Path) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    for name in disk.list(folder).map_err(StoreError::io("list", folder))? {
        let stem = name.strip_suffix(".log");
        if let Some(number) = stem.and_then(|stem| stem.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whether a released file is kept to become the next one. It is removed if it is longer than files are now.
fn has_spare(disk: &dyn Disk, folder: &Path, file_bytes: u64) -> Result<bool, StoreError> {
    let spare = spare_path(folder);
    match disk.open(&spare, OpenMode::Read).and_then(|file| file.size_bytes()) {
        Ok(size_bytes) if size_bytes <= file_bytes => Ok(true),
        Ok(_) => {
            disk.remove(&spare).map_err(StoreError::io("delete", &spare))?;
            Ok(false)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        // Taken for absent it would be written over, and its old name may still be the durable one.
        Err(error) => Err(StoreError::io("open", &spare)(error)),
    }
}

impl Log {
    /// Opens a log and checks its entries from `replay_from` on; [`scan_from`](super::scan::scan_from) then
    /// reads them.
    ///
    /// The log ends at the first offset without a valid entry, provided that nothing there was acknowledged.
    /// A later entry, in this file or a later one, whose `durable_through` is beyond that offset proves the opposite:
    /// then the log is damaged and is not opened. Otherwise the tail is truncated (see `log/torn_tail.rs`).
    /// Damage to the very last entry looks like a crash while it was written, unless the checkpoint knows
    /// that entry (the caller compares); peers then have what it held.
    ///
    /// # Errors
    /// When files are missing, or acknowledged entries are damaged.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        folder: &Path,
        incarnation: u128,
        file_bytes: u64,
        replay_from: LogPosition,
    ) -> Result<Log, StoreError> {
        let file_bytes = file_bytes.clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let numbers = list_files(&**disk, folder)?;
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
        let mut last: Option<(Arc<LogFile>, u32)> = None;
        let mut beyond = Vec::new();
        for number in numbers {
            let file = open_file(&**disk, folder, number, file_bytes)?;
            let previous_end = read_file_header(&file, incarnation)?;
            if number <= replay_from.file() && previous_end == entry::PREPARED {
                let what = "its header is damaged: the newest checkpoint knows that it was begun";
                return Err(StoreError::corrupt(file.path.display().to_string(), what));
            }
            let follows = last.as_ref().is_none_or(|(_, end)| *end == previous_end);
            if !beyond.is_empty() || previous_end == entry::PREPARED || !follows {
                // Prepared and not begun, or begun before everything in the file before it was durable.
                beyond.push(file);
                continue;
            }
            if number >= replay_from.file() {
                let is_first = number == replay_from.file();
                let from = if is_first { replay_from.offset() } else { FILE_HEADER_BYTES as u32 };
                let seed = entry::file_seed(incarnation, number);
                let end = scan_entries(&file, seed, from, &mut |_| Ok(()))?;
                last = Some((Arc::clone(&file), end));
            }
            files.insert(file);
        }
        let (active, offset) = last.ok_or_else(|| missing(replay_from.file()))?;
        truncate_torn_tail(&**disk, incarnation, &active, offset, &beyond)?;
        let length = active.file.size_bytes().map_err(StoreError::io("stat", &active.path))?;
        let has_spare = has_spare(&**disk, folder, file_bytes)?;
        let prepared = beyond.first().map(|next| {
            let size_bytes = next.file.size_bytes().map_err(StoreError::io("stat", &next.path))?;
            Ok::<_, StoreError>(PreparedFile { file: Arc::clone(&next.file), size_bytes })
        });
        let number = active.number + 1;
        let folder = folder.to_owned();
        let preparation =
            Preparation::new(disk, folder, incarnation, file_bytes, number, has_spare, prepared.transpose()?);
        // What the files hold was read, and may never have been synced.
        let unsynced =
            files.numbers().into_iter().filter(|number| (replay_from.file()..active.number).contains(number));
        Ok(Log {
            preparation: Arc::new(preparation),
            incarnation,
            file_bytes,
            unsynced: unsynced.filter_map(|number| files.get(number)).collect(),
            files,
            active,
            offset,
            filled: length.max(u64::from(offset)),
            broken: false,
            buffer: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::ops::Range;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::disk::FileSystem;
    use crate::log::entry::EntryKind;
    use crate::log::scan::scan_from;

    fn disk() -> Arc<dyn Disk> {
        Arc::new(FileSystem)
    }

    fn reopen(folder: &Path) -> Result<(Log, Vec<Vec<u8>>), StoreError> {
        let mut seen = Vec::new();
        let log = Log::open(&disk(), folder, 5, 64 << 10, Log::first_position())?;
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
        let mut log = Log::create(&disk(), folder, 5, 64 << 10).unwrap();
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
    fn a_tail_that_is_torn_in_an_earlier_file_takes_the_later_ones_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (log, positions) = filled(folder.path(), 0..150, false);
        assert!(log.end().file() > 3);
        drop(log);
        flip(folder.path(), positions[10]);
        let (mut log, seen) = reopen(folder.path()).unwrap();
        assert_eq!((seen.len(), log.end().file()), (10, 1));
        assert_eq!(list_files(&FileSystem, folder.path()).unwrap(), [1, 2], "the next one is prepared");
        // The same entries again, to the first one of the next file: those behind it must not come back.
        let mut count = 10;
        while log.end().file() == 1 {
            log.append(EntryKind::Batch, LogPosition(0), &[&payload(count)]).unwrap();
            count += 1;
        }
        drop(log);
        let (log, seen) = reopen(folder.path()).unwrap();
        assert_eq!(seen, (0..count).map(payload).collect::<Vec<_>>());
        assert_eq!(log.end().file(), 2);
    }

    #[test]
    fn a_header_that_was_written_in_part_is_of_a_file_that_was_not_begun() {
        let folder = tempfile::tempdir().unwrap();
        let (log, positions) = filled(folder.path(), 0..150, false);
        let last = log.end().file();
        drop(log);
        let kept = positions.iter().filter(|position| position.file() < last).count();
        // The checksum's last byte.
        flip(folder.path(), LogPosition::new(last, FILE_HEADER_BYTES as u32 - 1));
        assert_eq!(reopen(folder.path()).unwrap().1.len(), kept);
        // If something in that file was acknowledged, it is damage.
        let folder = tempfile::tempdir().unwrap();
        let (log, _) = filled(folder.path(), 0..150, true);
        flip(folder.path(), LogPosition::new(log.end().file(), FILE_HEADER_BYTES as u32 - 1));
        drop(log);
        assert!(matches!(reopen(folder.path()), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn a_recycled_file_does_not_show_what_it_held_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = filled(folder.path(), 0..80, true);
        let last = log.end().file();
        let released = log.release(1).unwrap();
        log.preparation().dispose(vec![released]).unwrap();
        while log.end().file() == last {
            log.append(EntryKind::Batch, LogPosition(0), &[&payload(9)]).unwrap();
        }
        let end = log.end();
        drop(log);
        let mut count = 0;
        let position = LogPosition::new(2, FILE_HEADER_BYTES as u32);
        let log = Log::open(&disk(), folder.path(), 5, 64 << 10, position).unwrap();
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
