//! The next log file, prepared before it is needed.
//!
//! To begin a file costs syncs of the file and of its folder. Appends wait for whoever holds the store's lock, and all
//! nodes of a volume come to the end of a file at about the same LSN, so no quorum would hide that time. So a file is
//! prepared ahead, when the current one is half full, without that lock: it has its name, its space is written with zeros, and its header says that it is
//! prepared and holds nothing. To begin it is one write of its header, which the next sync of the log makes durable
//! together with the first entries. If none is prepared in time, it is made on the spot.
//!
//! Released files are removed here for the same reason; one of them is kept as the spare, whose space the next file
//! takes over.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::StoreError;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::log::entry;
use crate::log::files::{LogFile, file_path, spare_path};
use crate::log::position::FILE_HEADER_BYTES;

/// Zeros written between two syncs while a file is prepared: little, so that the log's own syncs need not wait for
/// much.
const ZEROS_PER_SYNC_BYTES: u64 = 4 << 20;
/// Most zeros written by one system call. ext4 caches what one call writes as one large folio, and each later small
/// write or sync in it visits every block of the folio. With zeros of 4 MiB, writing and syncing an ordinary entry
/// took 1.5 times the processor time.
pub(super) const ZERO_PIECE_BYTES: usize = 32 << 10;
/// How long to wait after a file could not be prepared.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// A file that has its name and holds nothing.
#[derive(Debug)]
pub(super) struct PreparedFile {
    pub file: Arc<dyn DiskFile>,
    /// How far it is filled with bytes that mean nothing.
    pub size_bytes: u64,
}

/// What is under the spare's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spare {
    /// Nothing that is of use.
    None,
    /// A released file; its old name may still be the durable one.
    Released,
    /// A released file whose old name may be the durable one for ever, or whatever was there when the log was opened.
    Unfit,
}

#[derive(Debug)]
struct Next {
    /// The number of the next file.
    number: u32,
    spare: Spare,
    prepared: Option<PreparedFile>,
}

/// Prepares the next log file and disposes of old ones. Its locks are below the store's.
#[derive(Debug)]
pub(crate) struct Preparation {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    incarnation: u128,
    file_bytes: u64,
    /// Files from this number on were filled here. Earlier ones may have been copied with holes, for which the disk may
    /// have no room: none of them becomes a spare.
    filled_from: u32,
    next: Mutex<Next>,
    /// The next file is wanted, or nobody shall prepare another one.
    changed: Condvar,
    /// The current file is half full.
    is_wanted: AtomicBool,
    /// An append waits: whoever prepares a file shall leave out what can be left out.
    is_urgent: AtomicBool,
    has_ended: AtomicBool,
    /// Released files that still have their names, oldest first.
    released: Mutex<VecDeque<Arc<LogFile>>>,
}

impl Preparation {
    pub(super) fn new(
        disk: &Arc<dyn Disk>,
        folder: PathBuf,
        incarnation: u128,
        file_bytes: u64,
        number: u32,
        prepared: Option<PreparedFile>,
    ) -> Preparation {
        Preparation {
            disk: Arc::clone(disk),
            folder,
            incarnation,
            file_bytes,
            filled_from: number + u32::from(prepared.is_some()),
            next: Mutex::new(Next { number, spare: Spare::Unfit, prepared }),
            changed: Condvar::new(),
            is_wanted: AtomicBool::new(false),
            is_urgent: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            released: Mutex::default(),
        }
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares the next file whenever the current one is half full, until [`Preparation::end`] is called. Without room
    /// it has its name and no more.
    pub(crate) fn run(&self, has_room: impl Fn() -> bool) {
        loop {
            let mut is_idle = |next: &mut Next| {
                let is_wanted = self.is_wanted.load(Ordering::Relaxed) && next.prepared.is_none();
                !is_wanted && !self.has_ended.load(Ordering::Relaxed)
            };
            drop(self.changed.wait_while(self.next(), &mut is_idle));
            if self.has_ended.load(Ordering::Relaxed) {
                return;
            }
            let zeros_through = if has_room() { self.file_bytes } else { 0 };
            if let Err(error) = self.prepare_through(zeros_through) {
                tracing::warn!(%error, "the next log file is not prepared; appends make it if they need it before");
                let has_not_ended = |_: &mut Next| !self.has_ended.load(Ordering::Relaxed);
                drop(self.changed.wait_timeout_while(self.next(), RETRY_PAUSE, has_not_ended));
            }
        }
    }

    /// Notes that the next file will be wanted soon.
    pub(super) fn want(&self) {
        if !self.is_wanted.swap(true, Ordering::Relaxed) {
            // Between the check and the wait of whoever prepares, the lock is held. Nobody holds it for long: what
            // takes long is done only when a file is wanted.
            drop(self.next());
            self.changed.notify_all();
        }
    }

    /// Makes [`Preparation::run`] return.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        drop(self.next());
        self.changed.notify_all();
    }

    /// Prepares the next file, unless one is prepared.
    #[cfg(test)]
    pub(crate) fn prepare(&self) -> Result<(), StoreError> {
        self.prepare_through(self.file_bytes)
    }

    /// Prepares the next file, with zeros up to `zeros_through`, unless one is prepared.
    ///
    /// # Errors
    /// Nothing is lost then: it can be tried again.
    fn prepare_through(&self, zeros_through: u64) -> Result<(), StoreError> {
        let mut next = self.next();
        if next.prepared.is_none() {
            self.make(&mut next, zeros_through)?;
        }
        Ok(())
    }

    /// Begins the next file, which follows one whose entries end at `previous_end` and has room for `size` bytes.
    /// What the file holds, its header too, is durable with the next sync of the file. Returns how far it is filled.
    ///
    /// # Errors
    /// Nothing has begun then: the next attempt writes the header again.
    pub(super) fn begin(&self, previous_end: u32, size: u64) -> Result<(Arc<LogFile>, u64), StoreError> {
        self.is_urgent.store(true, Ordering::Relaxed);
        let mut next = self.next();
        self.is_urgent.store(false, Ordering::Relaxed);
        if next.prepared.is_none() {
            self.make(&mut next, 0)?;
        }
        let number = next.number;
        let path = file_path(&self.folder, number);
        let header = entry::encode_file_header(self.incarnation, number, previous_end);
        let prepared = next.prepared.as_ref().expect("it was just made");
        prepared.file.write_at(&header, 0).map_err(StoreError::io("write", &path))?;
        let PreparedFile { file, size_bytes } = next.prepared.take().expect("it was just written to");
        next.number += 1;
        self.is_wanted.store(false, Ordering::Relaxed);
        let filled = size_bytes.max(FILE_HEADER_BYTES);
        Ok((Arc::new(LogFile::new(number, path, file, size.max(size_bytes))), filled))
    }

    /// Makes the next file, with zeros up to `zeros_through`. Its header and its name are durable on return.
    ///
    /// # Errors
    /// The next attempt makes it anew and gives it its name again, as a new file if a sync of the folder failed: whether
    /// a name is durable after that is unknown, and a sync that succeeds later does not tell.
    fn make(&self, next: &mut Next, zeros_through: u64) -> Result<(), StoreError> {
        let path = file_path(&self.folder, next.number);
        let spare = spare_path(&self.folder);
        if next.spare == Spare::Released {
            // The spare was another log file. Its old name must be gone for good before its bytes change, or a
            // power loss could leave this file under that name, and the log would not open.
            self.sync_folder().inspect_err(|_| next.spare = Spare::Unfit)?;
        }
        if next.spare == Spare::Unfit {
            // Not written over: it may still be another file by its old name.
            match self.disk.remove(&spare) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("delete", &spare)(error));
                }
                _ => next.spare = Spare::None,
            }
        }
        let made = || -> io::Result<PreparedFile> {
            let mode = if next.spare == Spare::None { OpenMode::CreateEmpty } else { OpenMode::Create };
            let file = self.disk.open(&spare, mode)?;
            let header = entry::encode_file_header(self.incarnation, next.number, entry::PREPARED);
            file.write_at(&header, 0)?;
            self.write_zeros(&*file, zeros_through)?;
            file.sync_all()?;
            self.disk.rename(&spare, &path)?;
            Ok(PreparedFile { size_bytes: file.size_bytes()?, file })
        };
        let made = made().map_err(StoreError::io("create", &path));
        if made.is_err() && next.spare == Spare::None {
            // What it takes of a disk that may be full is of no use. It may be gone, or have its name already.
            let _ = self.disk.remove(&spare);
        }
        let made = made?;
        next.spare = Spare::None;
        self.sync_folder()?;
        next.prepared = Some(made);
        Ok(())
    }

    /// Writes zeros behind what the file has, as long as nobody waits.
    fn write_zeros(&self, file: &dyn DiskFile, through: u64) -> io::Result<()> {
        let zeros = [0; ZERO_PIECE_BYTES];
        let mut at = file.size_bytes()?;
        let mut unsynced = 0;
        let is_wanted = || !self.is_urgent.load(Ordering::Relaxed) && !self.has_ended.load(Ordering::Relaxed);
        while at < through && is_wanted() {
            let piece = (through - at).min(ZERO_PIECE_BYTES as u64);
            file.write_at(&zeros[..piece as usize], at)?;
            at += piece;
            unsynced += piece;
            if unsynced >= ZEROS_PER_SYNC_BYTES {
                file.sync_data()?;
                unsynced = 0;
            }
        }
        Ok(())
    }

    /// Takes the names of released files away, oldest first: one may become the spare, the others are removed. Those
    /// that it cannot remove are tried again at the next call.
    pub(crate) fn dispose(&self, files: Vec<Arc<LogFile>>) -> Result<(), StoreError> {
        let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.extend(files);
        while let Some(file) = released.front() {
            if !self.keep_as_spare(file)? {
                self.disk.remove(&file.path).map_err(StoreError::io("delete", &file.path))?;
            }
            released.pop_front();
        }
        Ok(())
    }

    fn keep_as_spare(&self, file: &LogFile) -> Result<bool, StoreError> {
        let mut next = self.next();
        if next.spare == Spare::Released || file.number < self.filled_from || file.size != self.file_bytes {
            return Ok(false);
        }
        let spare = spare_path(&self.folder);
        self.disk.rename(&file.path, &spare).map_err(StoreError::io("rename", &file.path))?;
        next.spare = Spare::Released;
        Ok(true)
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        self.disk.sync_folder(&self.folder).map_err(StoreError::io("sync", &self.folder))
    }
}
