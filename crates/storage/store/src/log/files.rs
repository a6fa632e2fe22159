//! The files of the log, for reading records back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use borealis_types::invariant;

use crate::StoreError;
use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at};
use crate::log::position::LogPosition;

/// A log file that is open for reading, and for writing if it is the last one.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub number: u32,
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    /// Entries end at or before this offset; the file may be shorter.
    pub(super) size: u64,
    /// A sync of it failed. Held during a sync.
    sync_failed: Mutex<bool>,
}

impl LogFile {
    pub(super) fn new(number: u32, path: PathBuf, file: Arc<dyn DiskFile>, size: u64) -> LogFile {
        LogFile { number, path, file, size, sync_failed: Mutex::new(false) }
    }

    /// Makes what was written durable. Once it failed it fails for ever, for everybody: of those who sync at the same time
    /// the kernel tells one, and the others succeed.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(StoreError::Poisoned(format!("an earlier sync of {} failed", self.path.display())));
        }
        let synced = self.file.sync_data().map_err(StoreError::lost("sync", &self.path));
        *failed = synced.is_err();
        synced
    }

    /// Reads `length` bytes into `bytes`, replacing what it held.
    pub(crate) fn read_into(
        &self,
        bytes: &mut Vec<u8>,
        offset: u32,
        length: usize,
    ) -> Result<(), StoreError> {
        bytes.resize(length, 0);
        read_exact_at(&*self.file, bytes, u64::from(offset)).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                StoreError::corrupt(self.path.display().to_string(), "it is cut short")
            } else {
                StoreError::io("read", &self.path)(source)
            }
        })
    }
}

pub(super) fn file_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.log"))
}

pub(super) fn spare_path(folder: &Path) -> PathBuf {
    folder.join("spare")
}

/// The files of a log, by number. Those that may not be durable are open, the others are some of many.
#[derive(Debug)]
pub(crate) struct LogFiles {
    disk: Arc<dyn Disk>,
    files: RwLock<BTreeMap<u32, Arc<LogFile>>>,
}

impl LogFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> LogFiles {
        LogFiles { disk, files: RwLock::default() }
    }

    pub(crate) fn get(&self, number: u32) -> Option<Arc<LogFile>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Sum of the sizes that the files may grow to, in bytes.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.files.read().unwrap_or_else(PoisonError::into_inner).values().map(|file| file.size).sum()
    }

    /// The file with this number, which must be there because a record in it is needed.
    pub(crate) fn needed(&self, number: u32) -> Result<Arc<LogFile>, StoreError> {
        let gone =
            || StoreError::corrupt(format!("log file {number}"), "a record in it is needed, and it is gone");
        self.get(number).ok_or_else(gone)
    }

    /// The bytes at a position, unverified: the caller checks their checksum.
    pub(crate) fn read(&self, position: LogPosition, length: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.needed(position.file())?.read_into(&mut bytes, position.offset(), length)?;
        Ok(bytes)
    }

    pub(super) fn insert(&self, file: Arc<LogFile>) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let last = files.last_key_value().map(|(number, _)| *number);
        invariant!(
            "log-files-ascend",
            last.is_none_or(|last| last + 1 == file.number),
            "file {} after {last:?}",
            file.number
        );
        files.insert(file.number, file);
    }

    /// Notes that a file was synced and is only read from here on: it becomes one of many. Needs no other lock.
    pub(crate) fn only_read(&self, file: &LogFile) {
        let Ok(reopened) = self.disk.open_one_of_many(&file.path, OpenMode::Write) else { return };
        let reopened = Arc::new(LogFile::new(file.number, file.path.clone(), reopened, file.size));
        // Unless it was released meanwhile.
        if let Some(known) = self.files.write().unwrap_or_else(PoisonError::into_inner).get_mut(&file.number)
        {
            *known = reopened;
        }
    }

    pub(super) fn remove(&self, number: u32) -> Option<Arc<LogFile>> {
        self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::{MemoryDisk, Operation};

    #[test]
    fn a_sync_that_failed_for_one_fails_for_all() {
        let disk = MemoryDisk::default();
        disk.create_folder(Path::new("/log")).unwrap();
        let path = PathBuf::from("/log/1");
        let file = disk.open(&path, OpenMode::Create).unwrap();
        let file = LogFile::new(1, path, file, 4096);
        file.sync().unwrap();
        disk.fail(Operation::Sync, "/log/1", 0);
        assert!(file.sync().is_err());
        assert!(file.sync().is_err(), "the kernel tells only one of two");
    }
}
