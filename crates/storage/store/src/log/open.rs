//! Opening a log that exists.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::StoreError;
use crate::disk::{Disk, OpenMode};
use crate::log::entry;
use crate::log::files::{LogFile, LogFiles};
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};
use crate::log::rewrite::rewrite;
use crate::log::scan::{read_file_header, scan_entries};
use crate::log::torn_tail::truncate_torn_tail;
use crate::log::writer::{FILE_BYTES_MAX, FILE_BYTES_MIN, Log, file_path, spare_path};

fn open_file(
    disk: &dyn Disk,
    folder: &Path,
    number: u32,
    file_bytes: u64,
    is_last: bool,
) -> Result<Arc<LogFile>, StoreError> {
    let path = file_path(folder, number);
    // The last one will be written and synced.
    let opened = if is_last {
        disk.open(&path, OpenMode::Write)
    } else {
        disk.open_one_of_many(&path, OpenMode::Write)
    };
    let file = opened.map_err(StoreError::io("open", &path))?;
    let length = file.size_bytes().map_err(StoreError::io("stat", &path))?;
    Ok(Arc::new(LogFile::new(number, path, file, length.max(file_bytes))))
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

/// The released file that is kept to become the next one. It is removed if it is longer than files are now.
fn open_spare(disk: &dyn Disk, folder: &Path, file_bytes: u64) -> Result<Option<PathBuf>, StoreError> {
    let spare = spare_path(folder);
    match disk.open(&spare, OpenMode::Read).and_then(|file| file.size_bytes()) {
        Ok(size_bytes) if size_bytes <= file_bytes => Ok(Some(spare)),
        Ok(_) => {
            disk.remove(&spare).map_err(StoreError::io("delete", &spare))?;
            Ok(None)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // Taken for absent it would be written over, and its old name may still be the durable one.
        Err(error) => Err(StoreError::io("open", &spare)(error)),
    }
}

impl Log {
    /// Opens a log and checks its entries from `replay_from` on; [`scan_from`](super::scan::scan_from) then
    /// reads them.
    ///
    /// The log ends at the first offset without a valid entry, provided that nothing there was acknowledged.
    /// A later entry whose `durable_through` is beyond that offset, a later file, or `synced_through` beyond it
    /// (from the checkpoint and the synced note) proves the opposite: then the log is damaged, is not opened, and is
    /// left as it is. Otherwise the tail is truncated (see `log/torn_tail.rs`).
    ///
    /// What lies behind `synced_through` is made durable before it is believed (see `log/rewrite.rs`).
    ///
    /// # Errors
    /// When files are missing, acknowledged entries are damaged, or the disk does not take what may be lost.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        folder: &Path,
        incarnation: u128,
        file_bytes: u64,
        replay_from: LogPosition,
        synced_through: LogPosition,
    ) -> Result<Log, StoreError> {
        let file_bytes = file_bytes.clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let numbers = list_files(&**disk, folder)?;
        let missing = |number: u32| {
            let what = "is missing: the store is damaged; replace this node (`borealis node replace`)";
            StoreError::directory(&file_path(folder, number), what)
        };
        if let Some(gap) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
            return Err(missing(gap[0] + 1));
        }
        if !numbers.contains(&replay_from.file()) {
            return Err(missing(replay_from.file()));
        }
        let files = Arc::new(LogFiles::new(Arc::clone(disk)));
        let last = numbers.last().copied();
        let mut end_before = None;
        let mut ends = Vec::new();
        for number in numbers {
            let file = open_file(&**disk, folder, number, file_bytes, Some(number) == last)?;
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
                ends.push((Arc::clone(&file), end));
            }
            files.insert(file);
        }
        let (active, offset) = ends.last().cloned().ok_or_else(|| missing(replay_from.file()))?;
        if LogPosition::new(active.number, offset) < synced_through {
            let place = format!("{} at offset {offset}", active.path.display());
            let what = format!(
                "an entry that was acknowledged is damaged: the log was synced to {synced_through:?}"
            );
            return Err(StoreError::corrupt(place, what));
        }
        truncate_torn_tail(&**disk, &active, entry::file_seed(incarnation, active.number), offset)?;
        let mut rewritten_bytes = 0;
        for (file, end) in &ends {
            rewritten_bytes += rewrite(file, synced_through, *end)?;
        }
        if rewritten_bytes > 0 {
            tracing::info!(rewritten_bytes, "wrote the end of the log again: no sync of it was noted");
        }
        let spare = open_spare(&**disk, folder, file_bytes)?;
        Ok(Log {
            disk: Arc::clone(disk),
            folder: folder.to_owned(),
            incarnation,
            file_bytes,
            files,
            active,
            offset,
            // Not to its end: a file that was copied may have holes, for which the disk may have no room.
            filled: u64::from(offset),
            broken: false,
            spare,
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
        let log = Log::open(&disk(), folder, 5, 64 << 10, Log::first_position(), LogPosition(0))?;
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
        let log = Log::open(&disk(), folder.path(), 5, 64 << 10, position, position).unwrap();
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
