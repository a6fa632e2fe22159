//! Opening a log that exists.

use std::path::Path;
use std::sync::Arc;

use crate::StoreError;
use crate::disk::{Disk, OpenMode};
use crate::log::entry;
use crate::log::files::{LogFile, LogFiles, file_path};
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};
use crate::log::preparation::{Preparation, PreparedFile};
use crate::log::rewrite::rewrite;
use crate::log::scan::{read_file_header, scan_entries};
use crate::log::torn_tail::truncate_torn_tail;
use crate::log::writer::{FILE_BYTES_MAX, FILE_BYTES_MIN, Log};

fn open_file(
    disk: &dyn Disk,
    folder: &Path,
    number: u32,
    file_bytes: u64,
) -> Result<Arc<LogFile>, StoreError> {
    let path = file_path(folder, number);
    let file = disk.open_one_of_many(&path, OpenMode::Write).map_err(StoreError::io("open", &path))?;
    let length = file.size_bytes().map_err(StoreError::io("stat", &path))?;
    Ok(Arc::new(LogFile::new(number, path, file, length.max(file_bytes))))
}

/// The same file for writing and syncing: it stays open.
fn to_write(disk: &dyn Disk, file: &LogFile) -> Result<Arc<LogFile>, StoreError> {
    let open = disk.open(&file.path, OpenMode::Write).map_err(StoreError::io("open", &file.path))?;
    Ok(Arc::new(LogFile::new(file.number, file.path.clone(), open, file.size)))
}

/// The file after `active`, if it has its name already and nothing in it counts.
fn prepared(disk: &dyn Disk, beyond: &[Arc<LogFile>]) -> Result<Option<PreparedFile>, StoreError> {
    let Some(next) = beyond.first() else { return Ok(None) };
    let file = Arc::clone(&to_write(disk, next)?.file);
    // A file that was copied may have holes, for which the disk may have no room.
    Ok(Some(PreparedFile { file, size_bytes: 0 }))
}

/// What was found when the files were read in order.
struct Found {
    /// Those that count, in order; the last one is the active one.
    files: Vec<Arc<LogFile>>,
    /// Where the entries of those end that were scanned.
    ends: Vec<(Arc<LogFile>, u32)>,
    /// The files after them: prepared and not begun, or begun before everything in the file before was durable.
    beyond: Vec<Arc<LogFile>>,
}

impl Found {
    /// Reads the next file.
    fn add(
        &mut self,
        file: Arc<LogFile>,
        incarnation: u128,
        replay_from: LogPosition,
    ) -> Result<(), StoreError> {
        let number = file.number;
        let previous_end = read_file_header(&file, incarnation)?;
        if number <= replay_from.file() && previous_end == entry::PREPARED {
            let what = "its header is damaged: the newest checkpoint knows that it was begun";
            return Err(StoreError::corrupt(file.path.display().to_string(), what));
        }
        let follows = self.ends.last().is_none_or(|(_, end)| *end == previous_end);
        if !self.beyond.is_empty() || previous_end == entry::PREPARED || !follows {
            self.beyond.push(file);
            return Ok(());
        }
        if number >= replay_from.file() {
            let is_first = number == replay_from.file();
            let from = if is_first { replay_from.offset() } else { FILE_HEADER_BYTES as u32 };
            let seed = entry::file_seed(incarnation, number);
            let end = scan_entries(&file, seed, from, &mut |_| Ok(()))?;
            self.ends.push((Arc::clone(&file), end));
        }
        self.files.push(file);
        Ok(())
    }
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

impl Log {
    /// Opens a log and checks its entries from `replay_from` on; [`scan_from`](super::scan::scan_from) then
    /// reads them.
    ///
    /// The log ends at the first offset without a valid entry, provided that nothing there was acknowledged.
    /// A later entry, in this file or a later one, whose `durable_through` is beyond that offset, or `synced_through`
    /// beyond it (from the checkpoint and the synced note) proves the opposite: then the log is damaged, is not opened,
    /// and is left as it is. Otherwise the tail is truncated (see `log/torn_tail.rs`). That a later file was begun proves
    /// nothing.
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
        let mut found = Found { files: Vec::new(), ends: Vec::new(), beyond: Vec::new() };
        for number in numbers {
            found.add(open_file(&**disk, folder, number, file_bytes)?, incarnation, replay_from)?;
        }
        let Found { files: in_use, mut ends, beyond } = found;
        let (last, offset) = ends.pop().ok_or_else(|| missing(replay_from.file()))?;
        if LogPosition::new(last.number, offset) < synced_through {
            let place = format!("{} at offset {offset}", last.path.display());
            let what = format!(
                "an entry that was acknowledged is damaged: the log was synced to {synced_through:?}"
            );
            return Err(StoreError::corrupt(place, what));
        }
        let active = to_write(&**disk, &last)?;
        ends.push((Arc::clone(&active), offset));
        let files = Arc::new(LogFiles::new(Arc::clone(disk)));
        let earlier = in_use.into_iter().filter(|file| file.number < active.number);
        earlier.chain([Arc::clone(&active)]).for_each(|file| files.insert(file));
        truncate_torn_tail(&**disk, incarnation, &active, offset, &beyond)?;
        let mut rewritten_bytes = 0;
        for (file, end) in &ends {
            rewritten_bytes += rewrite(file, synced_through, *end)?;
        }
        if rewritten_bytes > 0 {
            tracing::info!(rewritten_bytes, "wrote the end of the log again: no sync of it was noted");
        }
        let next = prepared(&**disk, &beyond)?;
        let number = active.number + 1;
        let preparation = Preparation::new(disk, folder.to_owned(), incarnation, file_bytes, number, next);
        Ok(Log {
            preparation: Arc::new(preparation),
            incarnation,
            file_bytes,
            files,
            active,
            // What no note vouched for was just written again and synced.
            unsynced: Vec::new(),
            offset,
            // Not to its end: a file that was copied may have holes, for which the disk may have no room.
            filled: u64::from(offset),
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
    fn a_tail_that_is_torn_below_what_is_known_to_be_synced_is_damage_in_any_file() {
        for victim in [10, 60, 148] {
            let folder = tempfile::tempdir().unwrap();
            // No entry knows that another one is durable: only the note does.
            let (log, positions) = filled(folder.path(), 0..150, false);
            let (end, files) = (log.end(), log.files().numbers());
            drop(log);
            flip(folder.path(), positions[victim]);
            let reopen =
                |synced| Log::open(&disk(), folder.path(), 5, 64 << 10, Log::first_position(), synced);
            for synced in [positions[victim], end] {
                let error = reopen(synced).unwrap_err();
                assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
                assert_eq!(list_files(&FileSystem, folder.path()).unwrap(), files, "it is left as it is");
            }
            flip(folder.path(), positions[victim]);
            assert_eq!(reopen(end).unwrap().end(), end, "nothing was overwritten");
            // What no note vouches for may be torn.
            flip(folder.path(), positions[victim]);
            let start = LogPosition(positions[victim].0 - entry::ENTRY_HEADER_BYTES as u64);
            assert_eq!(reopen(start).unwrap().end(), start);
        }
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
