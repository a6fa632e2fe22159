//! A disk that keeps a bounded number of its files open.
//!
//! A store has a page file for each GiB of pages and a log file for each 64 MiB of redo, and a process may have few
//! descriptors: 1,024 by default. So a file that is one of many ([`Disk::open_one_of_many`]) is open while it is used, and
//! the one that was used the longest ago is closed when there are too many. When the process or the machine has no
//! descriptor left (EMFILE, ENFILE), files are closed here first, and the operation is tried again.
//!
//! A file with writes that were not synced is not closed just so: the kernel reports a failed write-back to those who
//! have the file open, and forgets it with the last of them. It is synced first, and if that fails, the next sync of that
//! file fails, whoever closed it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc::{EMFILE, ENFILE};

use super::{Disk, DiskFile, DiskLock, OpenMode, Space};

/// Another disk, of whose many files a bounded number is open. Clones share the bound.
#[derive(Clone, Debug)]
pub(crate) struct Descriptors {
    disk: Arc<dyn Disk>,
    limit: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Default, Debug)]
struct Open {
    files: BTreeMap<u64, OpenFile>,
    /// Files whose sync failed when they were closed: whoever syncs them next must hear of it.
    failed: BTreeSet<u64>,
    last_id: u64,
    uses: u64,
}

#[derive(Debug)]
struct OpenFile {
    file: Arc<dyn DiskFile>,
    last_use: u64,
    /// Writes since it was opened, and how many of them were synced.
    writes: u64,
    synced_writes: u64,
}

impl OpenFile {
    fn is_synced(&self) -> bool {
        self.writes == self.synced_writes
    }
}

impl Open {
    /// Closes the file that was used the longest ago, one without unsynced writes if there is any, and not `kept`. False if
    /// there is no other. One that is in use stays: a write under way would come after the sync.
    fn close_one(&mut self, kept: Option<u64>) -> bool {
        let others = self.files.iter().filter(|(id, open)| {
            let is_in_use = Arc::strong_count(&open.file) > 1;
            Some(**id) != kept && !is_in_use
        });
        let oldest = others.min_by_key(|(_, open)| (!open.is_synced(), open.last_use));
        let Some(id) = oldest.map(|(id, _)| *id) else { return false };
        if let Some(open) = self.files.remove(&id)
            && !open.is_synced()
            && let Err(error) = open.file.sync_data()
        {
            tracing::error!(%error, "a file that had to be closed could not be synced");
            self.failed.insert(id);
        }
        true
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

impl Descriptors {
    /// At most `limit` of the files that are some of many are open at a time, and at least one.
    pub(crate) fn new(disk: Arc<dyn Disk>, limit: usize) -> Descriptors {
        Descriptors { disk, limit: limit.max(1), open: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what needs a descriptor; closes files as long as there is none.
    fn with_descriptor<T>(&self, operation: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match operation() {
                Err(error) if is_out_of_descriptors(&error) && self.lock().close_one(None) => {}
                result => return result,
            }
        }
    }

    /// The file, opened again if it was closed. What `writes` will be written to it.
    fn use_file(&self, one: &OneOfMany, writes: u64) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.lock().touch(one.id, writes) {
            return Ok(file);
        }
        // Not under the lock: another thread may do it, too; then the later of them is closed again.
        let opened = self.with_descriptor(|| self.disk.open(&one.path, OpenMode::Write))?;
        let mut open = self.lock();
        Ok(match open.touch(one.id, writes) {
            Some(file) => file,
            None => {
                open.insert(one.id, Arc::clone(&opened), writes);
                while open.files.len() > self.limit && open.close_one(Some(one.id)) {}
                opened
            }
        })
    }

    #[cfg(test)]
    fn open_count(&self) -> usize {
        self.lock().files.len()
    }
}

impl Open {
    fn touch(&mut self, id: u64, writes: u64) -> Option<Arc<dyn DiskFile>> {
        self.uses += 1;
        let open = self.files.get_mut(&id)?;
        open.last_use = self.uses;
        open.writes += writes;
        Some(Arc::clone(&open.file))
    }

    fn insert(&mut self, id: u64, file: Arc<dyn DiskFile>, writes: u64) {
        self.uses += 1;
        self.files.insert(id, OpenFile { file, last_use: self.uses, writes, synced_writes: 0 });
    }
}

impl Disk for Descriptors {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.with_descriptor(|| self.disk.open(path, mode))
    }

    fn open_one_of_many(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.open(path, mode)?;
        let mut open = self.lock();
        open.last_id += 1;
        let id = open.last_id;
        open.insert(id, file, 0);
        while open.files.len() > self.limit && open.close_one(Some(id)) {}
        Ok(Arc::new(OneOfMany { descriptors: self.clone(), path: path.to_owned(), id }))
    }

    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.with_descriptor(|| self.disk.list(folder))
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.create_folder(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        self.disk.remove_folder(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.with_descriptor(|| self.disk.sync_folder(folder))
    }

    fn space(&self, folder: &Path) -> io::Result<Space> {
        self.disk.space(folder)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        self.with_descriptor(|| self.disk.lock(path))
    }
}

/// A file that may be closed between two operations.
#[derive(Debug)]
struct OneOfMany {
    descriptors: Descriptors,
    path: PathBuf,
    id: u64,
}

impl OneOfMany {
    fn sync(&self, sync: impl Fn(&dyn DiskFile) -> io::Result<()>) -> io::Result<()> {
        let file = self.descriptors.use_file(self, 0)?;
        if self.descriptors.lock().failed.remove(&self.id) {
            return Err(io::Error::other("it could not be synced when it was closed"));
        }
        let writes = self.descriptors.lock().files.get(&self.id).map(|open| open.writes);
        sync(&*file)?;
        if let (Some(open), Some(writes)) = (self.descriptors.lock().files.get_mut(&self.id), writes) {
            open.synced_writes = open.synced_writes.max(writes);
        }
        Ok(())
    }
}

impl Drop for OneOfMany {
    fn drop(&mut self) {
        let mut open = self.descriptors.lock();
        open.files.remove(&self.id);
        open.failed.remove(&self.id);
    }
}

impl DiskFile for OneOfMany {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.descriptors.use_file(self, 0)?.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.descriptors.use_file(self, 1)?.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(|file| file.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(|file| file.sync_all())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.descriptors.use_file(self, 0)?.size_bytes()
    }

    fn punch_hole(&self, offset: u64, size_bytes: u64) -> io::Result<()> {
        self.descriptors.use_file(self, 1)?.punch_hole(offset, size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::{MemoryDisk, Operation};

    fn many(limit: usize, count: usize) -> (MemoryDisk, Descriptors, Vec<Arc<dyn DiskFile>>) {
        let memory = MemoryDisk::default();
        memory.create_folder(Path::new("/disk")).unwrap();
        let descriptors = Descriptors::new(Arc::new(memory.clone()), limit);
        let open = |number: usize| {
            let path = format!("/disk/{number}");
            descriptors.open_one_of_many(Path::new(&path), OpenMode::Create).unwrap()
        };
        let files = (0..count).map(open).collect();
        (memory, descriptors, files)
    }

    #[test]
    fn many_files_are_used_with_few_open() {
        let (_, descriptors, files) = many(3, 20);
        for (number, file) in files.iter().enumerate() {
            file.write_at(&[number as u8; 10], 0).unwrap();
            assert!(descriptors.open_count() <= 3);
        }
        for (number, file) in files.iter().enumerate() {
            let mut bytes = [0; 10];
            assert_eq!((file.read_at(&mut bytes, 0).unwrap(), bytes), (10, [number as u8; 10]));
            file.sync_data().unwrap();
        }
        drop(files);
        assert_eq!(descriptors.open_count(), 0);
    }

    #[test]
    fn a_sync_that_failed_when_a_file_was_closed_is_heard_of_by_the_next_sync_of_it() {
        let (memory, _, files) = many(1, 2);
        files[0].write_at(&[1; 10], 0).unwrap();
        memory.fail(Operation::Sync, "/disk/0", 0);
        let mut bytes = [0; 1];
        files[1].read_at(&mut bytes, 0).unwrap();
        assert_eq!(memory.heal(), 1, "it had to be closed");
        assert!(files[0].sync_data().is_err(), "what was written is lost, and nobody was told");
        files[0].write_at(&[1; 10], 0).unwrap();
        files[0].sync_data().unwrap();
    }

    #[test]
    fn a_file_that_is_written_right_now_is_not_closed() {
        let (memory, descriptors, files) = many(1, 3);
        files[0].write_at(&[1; 10], 0).unwrap();
        let in_use = descriptors.lock().files.values().next().map(|open| Arc::clone(&open.file)).unwrap();
        let mut bytes = [0; 1];
        files[1].read_at(&mut bytes, 0).unwrap();
        assert_eq!(
            descriptors.open_count(),
            2,
            "its write would come after the sync with which it is closed"
        );
        drop(in_use);
        memory.fail(Operation::Sync, "/disk/0", 0);
        files[2].read_at(&mut bytes, 0).unwrap();
        assert_eq!(descriptors.open_count(), 1);
        files[0].sync_data().unwrap_err();
    }

    #[test]
    fn without_descriptors_files_are_closed_and_the_operation_is_tried_again() {
        let (memory, descriptors, files) = many(8, 8);
        memory.keep_failing(Operation::Open, "new", EMFILE);
        assert!(descriptors.open(Path::new("/disk/new"), OpenMode::Create).is_err());
        assert_eq!(descriptors.open_count(), 0, "all that could be done was done");
        assert!(memory.heal() > 8);
        descriptors.open(Path::new("/disk/new"), OpenMode::Create).unwrap();
        files[3].write_at(&[1], 0).unwrap();
    }
}
