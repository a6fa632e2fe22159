//! The shim's side. Nothing here allocates, and nothing panics on what the driver wrote.
#![allow(clippy::result_large_err)] // A boxed error would allocate inside PostgreSQL; the paths are cold.

mod ask;
mod wait;

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use borealis_types::Lsn;

use crate::cache::CacheBook;
use crate::fill_lock::{self, FillGuard, Held, WriteGuard};
use crate::layout::{
    FILL_LOCKS, FixedConfig, GREETING_SINCE, Greeting, InstanceState, LAYOUT_VERSION, MAGIC, MAX_SLOTS,
    total_bytes,
};
use crate::mapping::Mapping;

pub use ask::RequestError;
pub use wait::WaitError;

/// How long a waiter sleeps before it checks that the driver is alive.
const CHECK_INTERVAL_MS: u32 = 1000;

/// Why the shared memory cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachError {
    /// It is not there, not finished, or this process may not use it.
    Unusable,
    /// The driver is of another build than this client.
    OtherBuild,
}

/// Which slot this process owns, and which lock it holds. One per process, in a `static`; not for several
/// threads at a time.
pub struct ClientSlot {
    /// The process that claimed; a child that inherited the memory sees another number than its own.
    pid: AtomicU32,
    index: AtomicU32,
    held: Held,
}

impl ClientSlot {
    /// The state of a process that has not asked for anything yet.
    #[must_use]
    pub const fn new() -> ClientSlot {
        ClientSlot { pid: AtomicU32::new(0), index: AtomicU32::new(0), held: Held::none() }
    }
}

impl Default for ClientSlot {
    fn default() -> ClientSlot {
        ClientSlot::new()
    }
}

/// A PostgreSQL process's handle on the shared memory. Children inherit it across `fork`.
pub struct ClientSide {
    mapping: Mapping,
    event_fd: RawFd,
}

fn report(greeting: &Greeting, fingerprint: u64) {
    greeting.shim_fingerprint.store(fingerprint, Ordering::Relaxed);
    // Release: whoever sees the process sees its fingerprint.
    greeting.shim_pid.store(std::process::id(), Ordering::Release);
}

impl ClientSide {
    /// Maps the file, for a client whose own build is `fingerprint` ([`crate::BUILD_FINGERPRINT`], or what its mark
    /// says).
    ///
    /// # Errors
    /// [`AttachError::Unusable`] when the file is not there, too short or unfinished; [`AttachError::OtherBuild`]
    /// when the driver is of another build. The driver is told then which this one is.
    pub fn attach(path: &CStr, event_fd: RawFd, fingerprint: u64) -> Result<ClientSide, AttachError> {
        // SAFETY: the path is a C string. The raw call, because this code runs inside the library that
        // replaces `open`.
        let descriptor = unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC, 0)
        };
        let descriptor = RawFd::try_from(descriptor).ok().filter(|&descriptor| descriptor >= 0);
        let descriptor = descriptor.ok_or(AttachError::Unusable)?;
        let mapping = Self::map(descriptor, fingerprint);
        // SAFETY: the descriptor was opened above and nobody else knows it.
        unsafe { libc::syscall(libc::SYS_close, descriptor) };
        Ok(ClientSide { mapping: mapping?, event_fd })
    }

    fn map(descriptor: RawFd, fingerprint: u64) -> Result<Mapping, AttachError> {
        // SAFETY: seeking to the end of an open descriptor touches no memory.
        let length = unsafe { libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_END) };
        let length = usize::try_from(length).map_err(|_| AttachError::Unusable)?;
        if length < total_bytes(1) {
            return Err(AttachError::Unusable);
        }
        let first = Mapping::new(descriptor, 1).ok_or(AttachError::Unusable)?;
        let header = first.header();
        let greeting = &header.greeting;
        if greeting.magic.load(Ordering::Acquire) != MAGIC {
            return Err(AttachError::Unusable);
        }
        let layout_version = greeting.layout_version.load(Ordering::Relaxed);
        let is_same = layout_version == LAYOUT_VERSION
            && greeting.driver_fingerprint.load(Ordering::Relaxed) == fingerprint;
        if !is_same {
            if layout_version >= GREETING_SINCE {
                report(greeting, fingerprint);
            }
            return Err(AttachError::OtherBuild);
        }
        let slot_count = header.config.slot_count as usize;
        if slot_count == 0 || slot_count > MAX_SLOTS || length < total_bytes(slot_count) {
            return Err(AttachError::Unusable);
        }
        Mapping::new(descriptor, slot_count).ok_or(AttachError::Unusable)
    }

    /// Tells the driver that the shim is loaded and active in this process, the postmaster, which executes the file
    /// with this identity (see [`crate::ShimReport`]) and path.
    pub fn announce_shim(&self, identity: [u64; 5], path: &[u8]) {
        let program = &self.mapping.header().program;
        for (word, value) in program.identity.iter().zip(identity) {
            word.store(value, Ordering::Relaxed);
        }
        // One that is too long is not said at all: a part of it would name another file.
        let path = if path.len() <= program.path.len() { path } else { &[] };
        for (place, &byte) in program.path.iter().zip(path) {
            place.store(byte, Ordering::Relaxed);
        }
        program.path_bytes.store(path.len() as u32, Ordering::Relaxed);
        let greeting = &self.mapping.header().greeting;
        // The driver's own number: nobody of another build gets a handle.
        report(greeting, greeting.driver_fingerprint.load(Ordering::Relaxed));
    }

    fn config(&self) -> &FixedConfig {
        &self.mapping.header().config
    }

    /// The absolute path of PostgreSQL's data directory, by which its files are known.
    #[must_use]
    pub fn data_directory(&self) -> &[u8] {
        let config = self.config();
        config.data_directory.get(..config.data_directory_bytes as usize).unwrap_or(&[])
    }

    /// Bytes of a WAL segment file; never zero.
    #[must_use]
    pub fn wal_segment_size_bytes(&self) -> u64 {
        self.config().wal_segment_size_bytes.max(1)
    }

    /// PostgreSQL's major version and catalog version, as in the folder name `PG_15_202209061`.
    #[must_use]
    pub fn versions(&self) -> (u32, u32) {
        (self.config().major_version, self.config().catalog_version)
    }

    /// Whether the instance may go on, as the driver said last.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        self.mapping.header().state()
    }

    /// Publishes that log was written up to `end_lsn`. Call it after the write. Wakes the driver.
    pub fn wal_wrote(&self, end_lsn: u64) {
        let wal = &self.mapping.header().wal;
        wal.written_lsn.fetch_max(end_lsn, Ordering::AcqRel);
        // SeqCst covers both needs: Release for the bytes and the position, and the store-then-load order
        // against the driver's announcement that it sleeps.
        wal.sequence.fetch_add(1, Ordering::SeqCst);
        self.wake_driver();
    }

    /// The number of the last WAL write, as [`ClientSide::wait_durable`] wants it.
    #[must_use]
    pub fn wal_sequence(&self) -> u64 {
        self.mapping.header().wal.sequence.load(Ordering::Acquire)
    }

    fn wake_driver(&self) {
        // SeqCst, after the SeqCst publication of the work: see `prepare_to_sleep`. Everyone who finds the
        // driver asleep wakes it, not only the first, because the first could be killed in between.
        if self.mapping.header().sleep.driver_sleeping.load(Ordering::SeqCst) == 0 {
            return;
        }
        let one = 1u64;
        // SAFETY: eight readable bytes, as eventfd(2) wants. The raw call, because this code runs inside the
        // library that replaces `write`. A full counter means that the driver has wakes enough.
        unsafe { libc::syscall(libc::SYS_write, self.event_fd, &raw const one, 8) };
    }

    /// Excludes fillers of the cached file with this hash while PostgreSQL's own bytes go into it.
    #[must_use]
    pub fn lock_for_write<'a>(&'a self, slot: &'a ClientSlot, file_hash: u64) -> WriteGuard<'a> {
        fill_lock::lock_for_write(&self.mapping.header().fill_locks, lock_index(file_hash), &slot.held)
    }

    /// Excludes writers of the cached file with this hash while a fetched block goes into it. The holder must
    /// look again whether the block is absent.
    #[must_use]
    pub fn lock_for_fill<'a>(&'a self, slot: &'a ClientSlot, file_hash: u64) -> FillGuard<'a> {
        fill_lock::lock_for_fill(&self.mapping.header().fill_locks, lock_index(file_hash), &slot.held)
    }

    /// As [`ClientSide::lock_for_fill`], but `None` when somebody else has the lock. A process that was killed keeps
    /// what it had until the instance ends, so whoever is to outlive that must not wait.
    #[must_use]
    pub fn try_lock_for_fill<'a>(&'a self, slot: &'a ClientSlot, file_hash: u64) -> Option<FillGuard<'a>> {
        fill_lock::try_lock_for_fill(&self.mapping.header().fill_locks, lock_index(file_hash), &slot.held)
    }

    /// The bookkeeping of the local page cache.
    #[inline]
    #[must_use]
    pub fn cache(&self) -> CacheBook<'_> {
        CacheBook(&self.mapping.header().cache)
    }

    /// End of the last durable record; zero before there is one.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        Lsn(self.mapping.header().durable.lsn.load(Ordering::Acquire))
    }
}

fn lock_index(file_hash: u64) -> usize {
    (file_hash % FILL_LOCKS as u64) as usize
}
