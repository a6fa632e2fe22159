//! The open files of the log, for whoever reads records from them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use borealis_types::invariant;

use crate::StoreError;
use crate::disk::{DiskFile, read_exact_at};
use crate::log::position::LogPosition;

/// One file of the log.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub number: u32,
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    /// No entry goes beyond.
    pub(super) size: u64,
}

impl LogFile {
    /// Reads `length` bytes in the place of what `bytes` held.
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

/// The files of a log, for those who read records from them.
#[derive(Debug, Default)]
pub(crate) struct LogFiles(RwLock<BTreeMap<u32, Arc<LogFile>>>);

impl LogFiles {
    pub(crate) fn get(&self, number: u32) -> Option<Arc<LogFile>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Bytes all files may grow to.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().map(|file| file.size).sum()
    }

    /// A file from which a record is needed.
    pub(crate) fn needed(&self, number: u32) -> Result<Arc<LogFile>, StoreError> {
        let gone =
            || StoreError::corrupt(format!("log file {number}"), "a record in it is needed, and it is gone");
        self.get(number).ok_or_else(gone)
    }

    /// Bytes at a position; the caller verifies what they mean.
    pub(crate) fn read(&self, position: LogPosition, length: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.needed(position.file())?.read_into(&mut bytes, position.offset(), length)?;
        Ok(bytes)
    }

    pub(super) fn insert(&self, file: Arc<LogFile>) {
        let mut files = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let last = files.last_key_value().map(|(number, _)| *number);
        invariant!(
            "log-files-ascend",
            last.is_none_or(|last| last + 1 == file.number),
            "file {} after {last:?}",
            file.number
        );
        files.insert(file.number, file);
    }

    pub(super) fn remove(&self, number: u32) -> Option<Arc<LogFile>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}
