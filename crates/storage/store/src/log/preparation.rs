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
use crate::log::files::LogFile;
use crate::log::position::FILE_HEADER_BYTES;
use crate::log::writer::{file_path, spare_path};

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

#[derive(Debug)]
struct Next {
    /// The number of the next file.
    number: u32,
    /// A released file waits under the spare's name; its old name may still be the durable one.
    has_spare: bool,
    /// The next file, whose name is not known to be durable.
    named: Option<PreparedFile>,
    prepared: Option<PreparedFile>,
}

/// Prepares the next log file and disposes of old ones. Its locks are below the store's.
#[derive(Debug)]
pub(crate) struct Preparation {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    incarnation: u128,
    file_bytes: u64,
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
        has_spare: bool,
        prepared: Option<PreparedFile>,
    ) -> Preparation {
        Preparation {
            disk: Arc::clone(disk),
            folder,
            incarnation,
            file_bytes,
            next: Mutex::new(Next { number, has_spare, named: None, prepared }),
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

    /// Prepares the next file whenever the current one is half full, until [`Preparation::end`] is called.
    pub(crate) fn run(&self) {
        loop {
            let mut is_idle = |next: &mut Next| {
                let is_wanted = self.is_wanted.load(Ordering::Relaxed) && next.prepared.is_none();
                !is_wanted && !self.has_ended.load(Ordering::Relaxed)
            };
            drop(self.changed.wait_while(self.next(), &mut is_idle));
            if self.has_ended.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = self.prepare() {
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
    ///
    /// # Errors
    /// Nothing is lost then: it can be tried again.
    pub(crate) fn prepare(&self) -> Result<(), StoreError> {
        let mut next = self.next();
        if next.prepared.is_none() {
            self.make(&mut next, self.file_bytes)?;
        }
        Ok(())
    }

    /// Begins the next file, which follows one whose entries end at `previous_end` and has room for `size` bytes.
    /// What the file holds, its header too, is durable with the next sync of the file. Returns how far it is filled.
    pub(super) fn begin(&self, previous_end: u32, size: u64) -> Result<(Arc<LogFile>, u64), StoreError> {
        self.is_urgent.store(true, Ordering::Relaxed);
        let mut next = self.next();
        self.is_urgent.store(false, Ordering::Relaxed);
        if next.prepared.is_none() {
            self.make(&mut next, 0)?;
        }
        let number = next.number;
        let PreparedFile { file, size_bytes } = next.prepared.take().expect("it was just made");
        let path = file_path(&self.folder, number);
        let header = entry::encode_file_header(self.incarnation, number, previous_end);
        file.write_at(&header, 0).map_err(StoreError::io("write", &path))?;
        next.number += 1;
        self.is_wanted.store(false, Ordering::Relaxed);
        let filled = size_bytes.max(FILE_HEADER_BYTES);
        Ok((Arc::new(LogFile { number, path, file, size: size.max(size_bytes) }), filled))
    }

    /// Makes the next file, with zeros up to `zeros_through`. Its header and its name are durable on return.
    fn make(&self, next: &mut Next, zeros_through: u64) -> Result<(), StoreError> {
        let path = file_path(&self.folder, next.number);
        if next.named.is_none() {
            let spare = spare_path(&self.folder);
            if next.has_spare {
                // The spare was another log file. Its old name must be gone for good before its bytes change, or a
                // power loss could leave this file under that name, and the log would not open.
                self.sync_folder()?;
            }
            let made = || -> io::Result<PreparedFile> {
                let mode = if next.has_spare { OpenMode::Create } else { OpenMode::CreateEmpty };
                let file = self.disk.open(&spare, mode)?;
                let header = entry::encode_file_header(self.incarnation, next.number, entry::PREPARED);
                file.write_at(&header, 0)?;
                self.write_zeros(&*file, zeros_through)?;
                file.sync_all()?;
                self.disk.rename(&spare, &path)?;
                Ok(PreparedFile { size_bytes: file.size_bytes()?, file })
            };
            let made = made().map_err(StoreError::io("create", &path))?;
            next.has_spare = false;
            next.named = Some(made);
        }
        self.sync_folder()?;
        next.prepared = next.named.take();
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
        if next.has_spare || file.size != self.file_bytes {
            return Ok(false);
        }
        let spare = spare_path(&self.folder);
        self.disk.rename(&file.path, &spare).map_err(StoreError::io("rename", &file.path))?;
        next.has_spare = true;
        Ok(true)
    }

    fn sync_folder(&self) -> Result<(), StoreError> {
        self.disk.sync_folder(&self.folder).map_err(StoreError::io("sync", &self.folder))
    }
}
