//! Writing the log: appending entries, beginning the next file, releasing old ones.

use std::path::Path;
use std::sync::Arc;

use borealis_types::invariant;

use crate::StoreError;
use crate::disk::Disk;
use crate::log::entry;
use crate::log::entry::{ENTRY_HEADER_BYTES, EntryKind, PAYLOAD_BYTES_MAX};
use crate::log::files::{LogFile, LogFiles};
use crate::log::position::{FILE_HEADER_BYTES, LogPosition};
use crate::log::preparation::{Preparation, ZERO_PIECE_BYTES};

/// Bounds of the size of a file. The lower one is for tests; the upper one leaves room for a long entry in what
/// a position can name.
pub(crate) const FILE_BYTES_MIN: u64 = 4 << 10;

pub(crate) const FILE_BYTES_MAX: u64 = 2 << 30;

/// Bytes of zeros written ahead of the entries at a time.
pub(super) const ZERO_STRETCH_BYTES: u64 = 4 << 20;

/// Most bytes of entries written by one system call; as for zeros, `ZERO_PIECE_BYTES`.
const PIECE_BYTES: usize = 128 << 10;

/// From this size on, an entry extends the file itself instead of being preceded by zeros.
pub(super) const LARGE_ENTRY_BYTES: u64 = 64 << 10;

/// Memory that the entry buffer keeps after a larger entry, in bytes.
const BUFFER_KEPT_BYTES: usize = 1 << 20;

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    pub(super) preparation: Arc<Preparation>,
    pub(super) incarnation: u128,
    pub(super) file_bytes: u64,
    pub(super) files: Arc<LogFiles>,
    pub(super) active: Arc<LogFile>,
    /// Files before the active one with entries that may not be durable, oldest first.
    pub(super) unsynced: Vec<Arc<LogFile>>,
    /// Where the next entry goes.
    pub(super) offset: u32,
    /// The active file has entries or zeros up to this offset.
    pub(super) filled: u64,
    /// An earlier operation failed, and what is in the files is unknown.
    pub(super) broken: bool,
    /// Entries are encoded here before they are written.
    pub(super) buffer: Vec<u8>,
}

impl Log {
    /// Starts an empty log with file 1.
    pub(crate) fn create(
        disk: &Arc<dyn Disk>,
        folder: &Path,
        incarnation: u128,
        file_bytes: u64,
    ) -> Result<Log, StoreError> {
        let file_bytes = file_bytes.clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let preparation = Preparation::new(disk, folder.to_owned(), incarnation, file_bytes, 1, None);
        let (active, filled) = preparation.begin(0, file_bytes)?;
        active.file.sync_data().map_err(StoreError::io("sync", &active.path))?;
        let files = Arc::new(LogFiles::new(Arc::clone(disk)));
        files.insert(Arc::clone(&active));
        let offset = FILE_HEADER_BYTES as u32;
        Ok(Log {
            preparation: Arc::new(preparation),
            incarnation,
            file_bytes,
            files,
            active,
            unsynced: Vec::new(),
            offset,
            filled,
            broken: false,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn files(&self) -> Arc<LogFiles> {
        Arc::clone(&self.files)
    }

    pub(crate) fn preparation(&self) -> Arc<Preparation> {
        Arc::clone(&self.preparation)
    }

    /// The files whose entries may not all be durable, oldest first, to be synced in this order; the last is the one
    /// that entries are appended to.
    pub(crate) fn to_sync(&self) -> (Vec<Arc<LogFile>>, Arc<LogFile>) {
        (self.unsynced.clone(), Arc::clone(&self.active))
    }

    /// Notes that every file before `number` is durable.
    pub(crate) fn note_synced_before(&mut self, number: u32) {
        self.unsynced.retain(|file| file.number >= number);
    }

    /// Where the next entry will begin: everything appended so far is before it.
    pub(crate) fn end(&self) -> LogPosition {
        LogPosition::new(self.active.number, self.offset)
    }

    /// Where the first entry of the first file is.
    pub(crate) fn first_position() -> LogPosition {
        LogPosition::new(1, 0).file_start()
    }

    /// Writes an entry, without syncing it, and returns the position of its payload.
    ///
    /// # Errors
    /// After any error, what is on disk is unknown, and nothing may be appended any more.
    pub(crate) fn append(
        &mut self,
        kind: EntryKind,
        durable_through: LogPosition,
        payload: &[&[u8]],
    ) -> Result<LogPosition, StoreError> {
        invariant!("broken-log-takes-nothing", !self.broken);
        invariant!(
            "durable-within-log",
            durable_through <= self.end(),
            "durable through {durable_through:?}, and the log ends at {:?}",
            self.end()
        );
        self.broken = true;
        let position = self.try_append(kind, durable_through, payload)?;
        self.broken = false;
        Ok(position)
    }

    fn try_append(
        &mut self,
        kind: EntryKind,
        durable_through: LogPosition,
        payload: &[&[u8]],
    ) -> Result<LogPosition, StoreError> {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        invariant!("entry-within-limit", length <= PAYLOAD_BYTES_MAX, "an entry of {length} bytes");
        let bytes_needed = entry::entry_bytes(length);
        if u64::from(self.offset) + bytes_needed > self.active.size {
            self.roll(bytes_needed)?;
        }
        self.write_entry(kind, durable_through, payload)
    }

    /// Writes an entry that the active file has room for.
    fn write_entry(
        &mut self,
        kind: EntryKind,
        durable_through: LogPosition,
        payload: &[&[u8]],
    ) -> Result<LogPosition, StoreError> {
        let seed = entry::file_seed(self.incarnation, self.active.number);
        entry::encode_entry(&mut self.buffer, seed, self.offset, kind, durable_through, payload);
        let end = u64::from(self.offset) + self.buffer.len() as u64;
        invariant!(
            "entry-within-file",
            end <= self.active.size,
            "an entry ends at {end}, and file {} at {}",
            self.active.number,
            self.active.size
        );
        self.fill_ahead(end)?;
        for (offset, piece) in
            (u64::from(self.offset)..).step_by(PIECE_BYTES).zip(self.buffer.chunks(PIECE_BYTES))
        {
            let written = self.active.file.write_at(piece, offset);
            written.map_err(StoreError::io("write", &self.active.path))?;
        }
        self.buffer.shrink_to(BUFFER_KEPT_BYTES);
        let position = self.end().plus(ENTRY_HEADER_BYTES);
        self.offset = end as u32;
        if end >= self.active.size / 2 {
            self.preparation.want();
        }
        Ok(position)
    }

    /// Writes zeros ahead when an entry that ends at `end` would go beyond what is filled. Not for a large
    /// entry: zeros would make the disk write everything twice, and the cost of growing the file is small
    /// beside that of its sync.
    fn fill_ahead(&mut self, end: u64) -> Result<(), StoreError> {
        if end <= self.filled {
            return Ok(());
        }
        if end - u64::from(self.offset) >= LARGE_ENTRY_BYTES {
            self.filled = end;
            return Ok(());
        }
        let stretch = ZERO_STRETCH_BYTES.min(self.file_bytes / 4).next_multiple_of(8);
        self.write_zeros_to((end + stretch).min(self.active.size))
    }

    /// Writes zeros from where the file is filled to `target`.
    pub(super) fn write_zeros_to(&mut self, target: u64) -> Result<(), StoreError> {
        let zeros = [0; ZERO_PIECE_BYTES];
        invariant!(
            "zeros-only-past-the-end",
            self.filled >= u64::from(self.offset),
            "zeros from {}, and entries up to {}",
            self.filled,
            self.offset
        );
        while self.filled < target {
            let piece = (target - self.filled).min(ZERO_PIECE_BYTES as u64);
            let written = self.active.file.write_at(&zeros[..piece as usize], self.filled);
            written.map_err(StoreError::io("write", &self.active.path))?;
            self.filled += piece;
        }
        Ok(())
    }

    /// Begins the next file. What is in this one is synced by the next sync of the log.
    ///
    /// # Errors
    /// Nothing has happened then.
    pub(super) fn roll(&mut self, bytes_needed: u64) -> Result<(), StoreError> {
        let size = self.file_bytes.max(FILE_HEADER_BYTES + bytes_needed);
        let (next, filled) = self.preparation.begin(self.offset, size)?;
        self.files.insert(Arc::clone(&next));
        self.unsynced.push(std::mem::replace(&mut self.active, next));
        self.filled = filled;
        self.offset = FILE_HEADER_BYTES as u32;
        Ok(())
    }

    /// Releases a file that nobody needs. The caller hands it to [`Preparation::dispose`] when it holds no lock.
    pub(crate) fn release(&mut self, number: u32) -> Option<Arc<LogFile>> {
        invariant!("active-log-file-kept", number < self.active.number, "file {number} is being written");
        self.files.remove(number)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::OpenMode;
    use crate::disk::memory::{MemoryDisk, Operation};
    use crate::log::files::file_path;

    const FOLDER: &str = "/log";

    /// A log in memory with one entry.
    fn log() -> (MemoryDisk, Log) {
        let memory = MemoryDisk::default();
        memory.create_folder(Path::new(FOLDER)).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(memory.clone());
        let mut log = Log::create(&disk, Path::new(FOLDER), 7, FILE_BYTES_MIN).unwrap();
        append(&mut log).unwrap();
        (memory, log)
    }

    fn append(log: &mut Log) -> Result<LogPosition, StoreError> {
        log.append(EntryKind::Batch, LogPosition(0), &[&[1; 100]])
    }

    #[test]
    #[should_panic(expected = "invariant broken-log-takes-nothing is broken")]
    fn a_log_whose_write_failed_takes_nothing() {
        let (memory, mut log) = log();
        memory.fail(Operation::Write, FOLDER, 0);
        assert!(append(&mut log).is_err());
        let _ = append(&mut log);
    }

    /// The next file is begun, and the first one released: it becomes the spare, and nothing makes that durable.
    fn with_spare() -> (MemoryDisk, Log, u32) {
        let (memory, mut log) = log();
        let first = log.end().file();
        while log.end().file() == first {
            append(&mut log).unwrap();
        }
        let released = log.release(first).unwrap();
        log.preparation().dispose(vec![released]).unwrap();
        (memory, log, first)
    }

    #[test]
    fn a_spare_is_not_written_while_its_old_name_may_come_back() {
        let (memory, log, first) = with_spare();
        memory.fail(Operation::SyncFolder, FOLDER, 0);
        assert!(log.preparation().prepare().is_err(), "power is lost in the middle");
        drop(log);
        memory.lose_power(|_| 0);
        let file = memory.open(&file_path(Path::new(FOLDER), first), OpenMode::Read).unwrap();
        let mut header = [0; FILE_HEADER_BYTES as usize];
        assert_eq!(file.read_at(&mut header, 0).unwrap(), header.len());
        assert_eq!(header, entry::encode_file_header(7, first, 0), "another file's bytes are under its name");
    }

    #[test]
    fn a_file_that_could_not_be_prepared_is_prepared_later() {
        for operation in
            [Operation::Open, Operation::Write, Operation::Sync, Operation::Rename, Operation::SyncFolder]
        {
            for after in 0..2 {
                let (memory, mut log, _) = with_spare();
                memory.fail(operation, FOLDER, after);
                let _ = log.preparation().prepare();
                memory.heal();
                log.preparation().prepare().unwrap();
                let before = log.end().file();
                while log.end().file() < before + 2 {
                    append(&mut log).unwrap();
                }
            }
        }
    }

    #[test]
    fn the_next_file_is_prepared_when_the_one_before_is_half_full() {
        let (memory, mut log) = log();
        let preparation = log.preparation();
        let is_there = || memory.exists(&file_path(Path::new(FOLDER), 2));
        std::thread::scope(|scope| {
            scope.spawn(|| preparation.run(|| true));
            let mut before_half = true;
            for _ in 0..1000 {
                before_half &= u64::from(log.end().offset()) < FILE_BYTES_MIN / 2;
                if !before_half {
                    break;
                }
                assert!(!is_there(), "nobody needs it yet");
                append(&mut log).unwrap();
            }
            let began = std::time::Instant::now();
            while !is_there() && began.elapsed() < std::time::Duration::from_secs(20) {
                std::thread::yield_now();
            }
            preparation.end();
        });
        assert!(is_there() && log.end().file() == 1);
    }

    #[test]
    fn a_file_whose_name_may_not_be_durable_is_made_anew() {
        let (memory, mut log) = log();
        memory.fail(Operation::SyncFolder, FOLDER, 0);
        assert!(log.preparation().prepare().is_err());
        let before = memory.open(&file_path(Path::new(FOLDER), 2), OpenMode::Write).unwrap();
        log.preparation().prepare().unwrap();
        before.write_at(&[9; 64], 0).unwrap();
        while log.end().file() == 1 {
            append(&mut log).unwrap();
        }
        let after = memory.open(&file_path(Path::new(FOLDER), 2), OpenMode::Read).unwrap();
        let mut header = [0; FILE_HEADER_BYTES as usize];
        assert_eq!(before.read_at(&mut header, 0).unwrap(), header.len());
        assert_eq!(header, [9; 64], "it is another file");
        assert_eq!(after.read_at(&mut header, 0).unwrap(), header.len());
        assert_ne!(header, [9; 64]);
    }

    #[test]
    fn a_file_whose_beginning_failed_is_begun_again_at_the_end_of_then() {
        let (memory, mut log) = log();
        log.preparation().prepare().unwrap();
        let large = FILE_BYTES_MIN as usize;
        memory.fail(Operation::Write, FOLDER, 0);
        assert!(matches!(log.reserve(large, false), Err(StoreError::Io { .. })) && memory.heal() == 1);
        append(&mut log).unwrap();
        let end = log.end();
        log.reserve(large, false).unwrap();
        assert_eq!((end.file(), log.end().file()), (1, 2));
        let file = memory.open(&file_path(Path::new(FOLDER), 2), OpenMode::Read).unwrap();
        let mut header = [0; FILE_HEADER_BYTES as usize];
        assert_eq!(file.read_at(&mut header, 0).unwrap(), header.len());
        assert_eq!(header, entry::encode_file_header(7, 2, end.offset()));
    }

    #[test]
    fn to_begin_a_prepared_file_syncs_nothing_and_names_nothing() {
        let (memory, mut log) = log();
        log.preparation().prepare().unwrap();
        for operation in [Operation::Sync, Operation::SyncFolder, Operation::Rename, Operation::Open] {
            let before = log.end().file();
            memory.fail(operation, FOLDER, 0);
            while log.end().file() == before {
                append(&mut log).unwrap();
            }
            assert_eq!(memory.heal(), 0, "{operation:?}");
            log.preparation().prepare().unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "invariant durable-within-log is broken")]
    fn what_is_not_written_is_not_durable() {
        let (_, mut log) = log();
        let beyond = log.end().plus(8);
        let _ = log.append(EntryKind::Batch, beyond, &[&[1; 100]]);
    }

    #[test]
    #[should_panic(expected = "invariant entry-within-limit is broken")]
    fn an_entry_that_no_reader_accepts_is_not_written() {
        let (_, mut log) = log();
        let part = vec![0; 1 << 20];
        let _ = log.append(EntryKind::Batch, LogPosition(0), &[&part[..]; 81]);
    }

    #[test]
    #[should_panic(expected = "invariant entry-within-file is broken")]
    fn an_entry_does_not_go_beyond_its_file() {
        let (_, mut log) = log();
        let _ = log.write_entry(EntryKind::Batch, LogPosition(0), &[&[1; FILE_BYTES_MIN as usize]]);
    }

    #[test]
    #[should_panic(expected = "invariant zeros-only-past-the-end is broken")]
    fn zeros_are_never_written_over_entries() {
        let (_, mut log) = log();
        log.filled = FILE_HEADER_BYTES;
        let _ = append(&mut log);
    }

    #[test]
    #[should_panic(expected = "invariant active-log-file-kept is broken")]
    fn the_file_that_is_written_is_not_released() {
        let (_, mut log) = log();
        let active = log.end().file();
        let _ = log.release(active);
    }

    #[test]
    #[should_panic(expected = "invariant log-files-ascend is broken")]
    fn no_log_file_is_left_out() {
        let (_, log) = log();
        let (_, active) = log.to_sync();
        let beyond =
            LogFile::new(active.number + 2, active.path.clone(), Arc::clone(&active.file), active.size);
        log.files().insert(Arc::new(beyond));
    }
}
