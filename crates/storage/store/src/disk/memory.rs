//! A disk in memory, for tests: operations fail when they are told to, and a power loss takes what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile, DiskLock, OpenMode, Space};

/// Writes are lost, or survive, in pieces of this size.
const SECTOR_BYTES: usize = 512;

/// What can be told to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Open,
    Read,
    Write,
    /// A write beyond the end of the file, which needs more of the disk.
    Grow,
    Sync,
    Rename,
    Remove,
    SyncFolder,
    CreateFolder,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<Names>>);

#[derive(Default)]
struct Names {
    folders: BTreeSet<PathBuf>,
    durable_folders: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Arc<Bytes>>,
    durable: BTreeMap<PathBuf, Arc<Bytes>>,
    /// Since their folder was last synced, in order.
    changes: Vec<NameChange>,
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
    faults: Arc<Mutex<Faults>>,
    available_bytes: Option<u64>,
}

#[derive(Clone)]
enum NameChange {
    Create(PathBuf, Arc<Bytes>),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    CreateFolder(PathBuf),
    RemoveFolder(PathBuf),
}

impl NameChange {
    fn folder(&self) -> Option<&Path> {
        let (NameChange::Create(path, _)
        | NameChange::Rename(path, _)
        | NameChange::Remove(path)
        | NameChange::CreateFolder(path)
        | NameChange::RemoveFolder(path)) = self;
        path.parent()
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, Arc<Bytes>>, folders: &mut BTreeSet<PathBuf>) {
        match self {
            NameChange::CreateFolder(path) => {
                folders.insert(path);
            }
            NameChange::RemoveFolder(path) => {
                folders.remove(&path);
            }
            NameChange::Create(path, bytes) => drop(names.insert(path, bytes)),
            NameChange::Rename(from, to) => {
                if let Some(bytes) = names.remove(&from) {
                    names.insert(to, bytes);
                }
            }
            NameChange::Remove(path) => drop(names.remove(&path)),
        }
    }
}

#[derive(Default)]
struct Faults {
    /// An operation on a path that contains the text, and how often it still succeeds before.
    next: Option<(Operation, String, u32)>,
    /// Keeps failing until it is healed.
    stays: bool,
    /// The system's error number that it fails with, if any.
    errno: Option<i32>,
    /// How often a planted fault came about.
    happened: u32,
    /// How many operations succeed before the power is gone.
    left: Option<u32>,
}

#[derive(Default)]
struct Bytes(Mutex<Content>);

#[derive(Default)]
struct Content {
    /// What a read returns: the page cache.
    cached: Vec<u8>,
    /// What a power loss leaves.
    durable: Vec<u8>,
    /// Not synced, in order. A sync that fails drops them: they stay in the cache, where they are taken for clean, and
    /// no later sync makes them durable.
    unsynced: Vec<Change>,
}

struct Change {
    offset: usize,
    bytes: Vec<u8>,
}

fn write_into(content: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl Content {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        write_into(&mut self.cached, bytes, offset);
        self.unsynced.push(Change { offset, bytes: bytes.to_vec() });
    }

    fn make_durable(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            write_into(&mut self.durable, &change.bytes, change.offset);
        }
    }

    fn drop_cache(&mut self) {
        self.cached.clone_from(&self.durable);
        for change in &self.unsynced {
            write_into(&mut self.cached, &change.bytes, change.offset);
        }
    }

    fn lose_power(&mut self, below: &mut dyn FnMut(u64) -> u64) {
        // Whole changes are kept or lost at least as often as parts of them.
        let style = below(3);
        for change in std::mem::take(&mut self.unsynced) {
            for (at, sector) in change.bytes.chunks(SECTOR_BYTES).enumerate() {
                let survives = match style {
                    0 => false,
                    1 => true,
                    _ => below(2) == 0,
                };
                if survives {
                    write_into(&mut self.durable, sector, change.offset + at * SECTOR_BYTES);
                }
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

struct OpenFile {
    bytes: Arc<Bytes>,
    path: PathBuf,
    faults: Arc<Mutex<Faults>>,
}

struct HeldLock(Arc<Mutex<BTreeSet<PathBuf>>>, PathBuf);

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.0.lock().unwrap().remove(&self.1);
    }
}

impl Faults {
    fn check(faults: &Mutex<Faults>, operation: Operation, path: &Path) -> io::Result<()> {
        let mut faults = faults.lock().unwrap();
        if let Some(left) = &mut faults.left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(io::Error::other("the power is gone")),
            }
        }
        let Some((planted, part, left)) = &mut faults.next else { return Ok(()) };
        if *planted != operation || !path.to_string_lossy().contains(part.as_str()) {
            return Ok(());
        }
        if *left > 0 {
            *left -= 1;
            return Ok(());
        }
        if !faults.stays {
            faults.next = None;
        }
        faults.happened += 1;
        Err(match faults.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::other("a planted fault"),
        })
    }
}

impl MemoryDisk {
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap()
    }

    /// The operation fails once, on the next path that contains `part`, after it succeeded on `after` such.
    pub(crate) fn fail(&self, operation: Operation, part: &str, after: u32) {
        let names = self.names();
        let mut faults = names.faults.lock().unwrap();
        faults.next = Some((operation, part.to_owned(), after));
        (faults.stays, faults.errno) = (false, None);
    }

    /// The operation fails with the system's error `errno` on every path that contains `part`, until
    /// [`MemoryDisk::heal`].
    pub(crate) fn keep_failing(&self, operation: Operation, part: &str, errno: i32) {
        let names = self.names();
        let mut faults = names.faults.lock().unwrap();
        faults.next = Some((operation, part.to_owned(), 0));
        (faults.stays, faults.errno) = (true, Some(errno));
    }

    /// The power is gone after so many operations more: nothing succeeds from then on, until [`MemoryDisk::lose_power`].
    pub(crate) fn stop_after(&self, operations: u32) {
        self.names().faults.lock().unwrap().left = Some(operations);
    }

    /// How much [`Disk::space`] says is free from now on; at first it is without bound.
    pub(crate) fn set_available_bytes(&self, bytes: u64) {
        self.names().available_bytes = Some(bytes);
    }

    /// Drops what the page cache holds and no write is pending for: reads return what is on disk.
    pub(crate) fn drop_cache(&self) {
        for bytes in self.names().files.values() {
            bytes.0.lock().unwrap().drop_cache();
        }
    }

    /// Clears a planted fault that has not triggered yet. Returns how many faults have triggered.
    pub(crate) fn heal(&self) -> u32 {
        let names = self.names();
        let mut faults = names.faults.lock().unwrap();
        faults.next = None;
        faults.happened
    }

    /// Loses what was not synced, or a part of it: `below` chooses a number below its argument. Files must be closed.
    pub(crate) fn lose_power(&self, mut below: impl FnMut(u64) -> u64) {
        let mut names = self.names();
        let changes = std::mem::take(&mut names.changes);
        let kept = below(changes.len() as u64 + 1) as usize;
        let mut durable = std::mem::take(&mut names.durable);
        let mut folders = std::mem::take(&mut names.durable_folders);
        changes.into_iter().take(kept).for_each(|change| change.apply(&mut durable, &mut folders));
        // What is in a folder whose name is lost cannot be found any more.
        let is_found = |path: &Path| path.ancestors().skip(1).all(|folder| folders.contains(folder));
        durable.retain(|path, _| is_found(path));
        let lost: Vec<PathBuf> = folders.iter().filter(|folder| !is_found(folder)).cloned().collect();
        folders.retain(|folder| !lost.contains(folder));
        (names.folders, names.durable_folders) = (folders.clone(), folders);
        for bytes in durable.values() {
            bytes.0.lock().unwrap().lose_power(&mut below);
        }
        names.files = durable.clone();
        names.durable = durable;
        names.locks.lock().unwrap().clear();
        names.faults.lock().unwrap().left = None;
    }
}

impl std::fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryDisk")
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OpenFile").field(&self.path).finish()
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names();
        Faults::check(&names.faults, Operation::Open, path)?;
        let bytes = match names.files.get(path) {
            Some(bytes) => Arc::clone(bytes),
            None if matches!(mode, OpenMode::Create | OpenMode::CreateEmpty) => {
                let in_folder = path.parent().is_some_and(|folder| names.folders.contains(folder));
                if !in_folder {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let bytes = Arc::new(Bytes::default());
                names.files.insert(path.to_owned(), Arc::clone(&bytes));
                names.changes.push(NameChange::Create(path.to_owned(), Arc::clone(&bytes)));
                bytes
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if mode == OpenMode::CreateEmpty {
            // In place, as a file system does: whatever name is durable for these bytes loses them too, and at once.
            *bytes.0.lock().unwrap() = Content::default();
        }
        let faults = Arc::clone(&names.faults);
        Ok(Arc::new(OpenFile { bytes, path: path.to_owned(), faults }))
    }

    fn exists(&self, path: &Path) -> bool {
        let names = self.names();
        names.files.contains_key(path) || names.folders.contains(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names = self.names();
        if !names.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = names.files.keys().chain(&names.folders);
        let inside = all.filter(|path| path.parent() == Some(folder)).filter_map(|path| path.file_name());
        Ok(inside.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let mut names = self.names();
        Faults::check(&names.faults, Operation::CreateFolder, folder)?;
        let absent: Vec<PathBuf> = folder
            .ancestors()
            .filter(|folder| !names.folders.contains(*folder))
            .map(Path::to_owned)
            .collect();
        for folder in absent.into_iter().rev() {
            names.folders.insert(folder.clone());
            // Nobody syncs the root of the file system, or the folder that a store is made in.
            match folder.parent().and_then(Path::parent) {
                None => {
                    names.durable_folders.insert(folder);
                }
                Some(_) => names.changes.push(NameChange::CreateFolder(folder)),
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names();
        Faults::check(&names.faults, Operation::Rename, from)?;
        let bytes = names.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.files.insert(to.to_owned(), bytes);
        names.changes.push(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names();
        Faults::check(&names.faults, Operation::Remove, path)?;
        names.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        names.changes.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        let mut names = self.names();
        Faults::check(&names.faults, Operation::Remove, folder)?;
        if names.files.keys().chain(&names.folders).any(|path| path.parent() == Some(folder)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if !names.folders.remove(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        names.changes.push(NameChange::RemoveFolder(folder.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut names = self.names();
        Faults::check(&names.faults, Operation::SyncFolder, folder)?;
        let (synced, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut names.changes)
            .into_iter()
            .partition(|change| change.folder() == Some(folder));
        names.changes = rest;
        let mut durable = std::mem::take(&mut names.durable);
        let mut folders = std::mem::take(&mut names.durable_folders);
        synced.into_iter().for_each(|change| change.apply(&mut durable, &mut folders));
        (names.durable, names.durable_folders) = (durable, folders);
        Ok(())
    }

    fn space(&self, _folder: &Path) -> io::Result<Space> {
        let available_bytes = self.names().available_bytes.unwrap_or(u64::MAX);
        Ok(Space { available_bytes, size_bytes: u64::MAX })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        drop(self.open(path, OpenMode::Create)?);
        let names = self.names();
        let taken = names.locks.lock().unwrap().insert(path.to_owned());
        let lock = || -> DiskLock { Box::new(HeldLock(Arc::clone(&names.locks), path.to_owned())) };
        Ok(taken.then(lock))
    }
}

impl OpenFile {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.bytes.0.lock().unwrap()
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.content();
        if let Err(error) = Faults::check(&self.faults, Operation::Sync, &self.path) {
            // As Linux does it: the pages are marked clean, and a later sync has nothing to do.
            content.unsynced.clear();
            return Err(error);
        }
        content.make_durable();
        Ok(())
    }
}

impl DiskFile for OpenFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        Faults::check(&self.faults, Operation::Read, &self.path)?;
        let content = self.content();
        let rest =
            usize::try_from(offset).ok().and_then(|offset| content.cached.get(offset..)).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let grows = offset as usize + bytes.len() > self.content().cached.len();
        let fault = Faults::check(&self.faults, Operation::Write, &self.path);
        let fault = if grows {
            fault.and_then(|()| Faults::check(&self.faults, Operation::Grow, &self.path))
        } else {
            fault
        };
        // A write that fails may have written a part.
        let written = if fault.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.content().write(written, offset as usize);
        fault
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.content().cached.len() as u64)
    }

    fn punch_hole(&self, offset: u64, size_bytes: u64) -> io::Result<()> {
        let mut content = self.content();
        let start = (offset as usize).min(content.cached.len());
        let end = (start + size_bytes as usize).min(content.cached.len());
        content.write(&vec![0; end - start], start);
        Ok(())
    }
}
