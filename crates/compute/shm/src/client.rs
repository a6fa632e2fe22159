//! The shim's side. Nothing here allocates, and nothing panics on what the driver wrote.
#![allow(clippy::result_large_err)] // A boxed error would allocate inside PostgreSQL; the paths are cold.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use borealis_types::{BlockKey, DatabaseKey, Lsn, PageBytes, RelationFork, SlruKind, VolumeEpoch};

use crate::cache::CacheBook;
use crate::driver::monotonic_ms;
use crate::fill_lock::{self, FillGuard, Held, WriteGuard};
use crate::futex;
use crate::layout::{
    FILL_LOCKS, FixedConfig, GREETING_SINCE, Greeting, Header, InstanceState, LAYOUT_VERSION, MAGIC,
    MAX_MESSAGE_BYTES, MAX_SLOTS, PREFETCH_ENTRIES, SLOT_DONE, SLOT_IDLE, SLOT_REQUESTED, SLOT_TAKEN,
    STATE_FENCED, STATE_POISONED, STATE_STARTING, Slot, total_bytes,
};
use crate::mapping::Mapping;
use crate::request::{self, Message, STATUS_ERROR, STATUS_NONEXISTENT, STATUS_OK, Words};
use crate::{MAX_RELATION_ENTRIES, MAX_SLRU_ENTRIES, RelationEntry, RelationSize, Request, SlruEntry};

/// How long a waiter sleeps before it checks that the driver is alive.
const CHECK_INTERVAL_MS: u32 = 1000;
/// A heartbeat older than this makes waiters look whether the driver is a process that only waits to be
/// collected by its parent: such a one still has its number.
const STALE_HEARTBEAT_MS: u64 = 3000;

/// Why a wait for durability ended without it.
#[derive(Clone, Copy, Debug)]
pub enum WaitError {
    /// A newer writer took over, with this epoch.
    Fenced(VolumeEpoch),
    /// The driver stopped the instance, for this reason.
    Poisoned(Message),
    /// The driver process does not exist any more.
    DriverGone,
}

/// Why the shared memory cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachError {
    /// It is not there, not finished, or this process may not use it.
    Unusable,
    /// The driver is of another build than this client.
    OtherBuild,
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug)]
pub enum RequestError {
    /// The instance is finished.
    Instance(WaitError),
    /// The driver answered with an error.
    Refused(Message),
    /// The driver's answer does not fit the request: the two are of different builds.
    Malformed,
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
    /// No slot yet.
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

pub(crate) fn state_of(header: &Header) -> InstanceState {
    let words = &header.state;
    match words.state.load(Ordering::Acquire) {
        STATE_STARTING => InstanceState::Starting,
        STATE_FENCED => InstanceState::Fenced(VolumeEpoch(words.reason_epoch.load(Ordering::Relaxed))),
        STATE_POISONED => InstanceState::Poisoned,
        _ => InstanceState::Running,
    }
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

    /// PostgreSQL's data directory, absolute.
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

    /// The instance's state.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        state_of(self.mapping.header())
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

    /// Waits until everything complete in the first `sequence` WAL writes is durable.
    ///
    /// Signals do not end the wait. A commit that is reported must be durable, and one that is durable must
    /// not be reported as cancelled.
    ///
    /// # Errors
    /// When it will never become durable here. Never `Ok` before the driver said so.
    pub fn wait_durable(&self, sequence: u64) -> Result<(), WaitError> {
        let durable = &self.mapping.header().durable;
        self.wait_until(|| durable.sequence.load(Ordering::Acquire) >= sequence)
    }

    /// Waits while more log is written and not durable than the configuration allows.
    ///
    /// A record longer than the limit must not stop its own completion: when the driver has seen every write
    /// and made durable what was complete in them, the next write goes ahead.
    ///
    /// # Errors
    /// As [`ClientSide::wait_durable`].
    pub fn wait_for_log_space(&self) -> Result<(), WaitError> {
        let limit = self.config().log_ahead_limit_bytes;
        let header = self.mapping.header();
        self.wait_until(|| {
            let written = header.wal.written_lsn.load(Ordering::Acquire);
            let durable = header.durable.lsn.load(Ordering::Acquire);
            limit == 0
                || durable == 0
                || written.saturating_sub(durable) <= limit
                || header.durable.sequence.load(Ordering::Acquire)
                    >= header.wal.sequence.load(Ordering::Acquire)
        })
    }

    fn wait_until(&self, done: impl Fn() -> bool) -> Result<(), WaitError> {
        // Fenced comes first: an old acknowledgement must not let a fenced writer go on with a new write.
        self.check_state()?;
        if done() {
            return Ok(());
        }
        for _ in 0..self.config().spin_count {
            std::hint::spin_loop();
            if done() {
                return Ok(());
            }
        }
        let durable = &self.mapping.header().durable;
        loop {
            durable.waiters.fetch_add(1, Ordering::SeqCst);
            let generation = durable.generation.load(Ordering::SeqCst);
            let finished = done();
            let state = self.check_state();
            if !finished && state.is_ok() {
                // See `wake_waiters` for why no wake is lost.
                futex::wait(&durable.generation, generation, CHECK_INTERVAL_MS);
            }
            durable.waiters.fetch_sub(1, Ordering::SeqCst);
            if finished {
                return Ok(());
            }
            state?;
            self.check_driver()?;
        }
    }

    fn check_state(&self) -> Result<(), WaitError> {
        match self.state() {
            InstanceState::Starting | InstanceState::Running => Ok(()),
            InstanceState::Fenced(epoch) => Err(WaitError::Fenced(epoch)),
            InstanceState::Poisoned => {
                let words = &self.mapping.header().state;
                let mut text = [0; MAX_MESSAGE_BYTES];
                for (target, byte) in text.iter_mut().zip(&words.reason) {
                    *target = byte.load(Ordering::Relaxed);
                }
                let length = words.reason_bytes.load(Ordering::Relaxed) as usize;
                Err(WaitError::Poisoned(Message::new(text.get(..length).unwrap_or(&text))))
            }
        }
    }

    /// The driver process exists. It may be slow for as long as it likes: only its death ends a wait.
    fn check_driver(&self) -> Result<(), WaitError> {
        let words = &self.mapping.header().state;
        let pid = words.driver_pid.load(Ordering::Relaxed);
        if !process_exists(pid) {
            return Err(WaitError::DriverGone);
        }
        let age_ms = monotonic_ms().saturating_sub(words.heartbeat_ms.load(Ordering::Relaxed));
        if age_ms > STALE_HEARTBEAT_MS && process_is_zombie(pid) {
            return Err(WaitError::DriverGone);
        }
        Ok(())
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

    /// The block as of now, into `page`. `false` when it does not exist.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn read_block(
        &self,
        slot: &ClientSlot,
        key: BlockKey,
        page: &mut PageBytes,
    ) -> Result<bool, RequestError> {
        self.ask(slot, Request::ReadBlock(key), Some(page)).map(|words| words.is_some())
    }

    /// A page of a transaction-status store as of now, into `page`. `false` when it does not exist.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn read_slru_page(
        &self,
        slot: &ClientSlot,
        kind: SlruKind,
        number: u32,
        page: &mut PageBytes,
    ) -> Result<bool, RequestError> {
        let request = Request::ReadSlruPage { kind, page: number };
        self.ask(slot, request, Some(page)).map(|words| words.is_some())
    }

    /// Whether the fork exists and how long it is.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn relation_size(&self, slot: &ClientSlot, key: RelationFork) -> Result<RelationSize, RequestError> {
        let words = self.ask(slot, Request::RelationSize(key), None)?;
        let absent = RelationSize { blocks: None, has_init_fork: false };
        Ok(words.map_or(absent, request::relation_size))
    }

    /// Some relation forks of a database and the cursor for the next ones (zero after the last). `page` is
    /// scratch space that the entries are read from.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn list_relations<'a>(
        &self,
        slot: &ClientSlot,
        database: DatabaseKey,
        cursor: u64,
        page: &'a mut PageBytes,
    ) -> Result<(impl Iterator<Item = RelationEntry> + use<'a>, u64), RequestError> {
        let words = self.ask(slot, Request::ListRelations { database, cursor }, Some(page))?;
        let (count, next) = words.map_or((0, 0), |words| request::listing(words, MAX_RELATION_ENTRIES));
        Ok((request::relation_entries(page, count), next))
    }

    /// How many pages a segment file of a transaction-status store has; `None` when it does not exist.
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn slru_segment(
        &self,
        slot: &ClientSlot,
        kind: SlruKind,
        segment: u32,
    ) -> Result<Option<u32>, RequestError> {
        let words = self.ask(slot, Request::SlruSegment { kind, segment }, None)?;
        Ok(words.and_then(request::slru_segment))
    }

    /// Some segment files of a transaction-status store, like [`ClientSide::list_relations`].
    ///
    /// # Errors
    /// When the driver has no answer.
    pub fn list_slru_segments<'a>(
        &self,
        slot: &ClientSlot,
        kind: SlruKind,
        cursor: u64,
        page: &'a mut PageBytes,
    ) -> Result<(impl Iterator<Item = SlruEntry> + use<'a>, u64), RequestError> {
        let words = self.ask(slot, Request::ListSlruSegments { kind, cursor }, Some(page))?;
        let (count, next) = words.map_or((0, 0), |words| request::listing(words, MAX_SLRU_ENTRIES));
        Ok((request::slru_entries(page, count), next))
    }

    /// Tells the driver that the block will be read soon. Never waits; forgotten when the ring is full.
    pub fn prefetch(&self, slot: &ClientSlot, key: BlockKey) {
        if self.check_state().is_err() {
            return;
        }
        let Some((index, slot)) = self.own_slot(slot) else { return };
        let written = slot.prefetch_written.load(Ordering::Relaxed);
        // Acquire pairs with the driver's Release: it has read what the new entry overwrites.
        let read = slot.prefetch_read.load(Ordering::Acquire);
        if written.wrapping_sub(read) >= PREFETCH_ENTRIES {
            return;
        }
        let Some(entry) = slot.prefetch.get((written % PREFETCH_ENTRIES) as usize) else { return };
        let [a, b, c, d] = request::fork_words(key.relation_fork);
        for (word, value) in entry.iter().zip([a, b, c, d, key.block]) {
            word.store(value, Ordering::Relaxed);
        }
        slot.prefetch_written.store(written.wrapping_add(1), Ordering::Release);
        set_bit(&self.mapping.header().prefetch_pending, index);
        self.wake_driver();
    }

    /// Sends a request and waits for the answer. `None` for "nonexistent". The page buffer is copied to
    /// `page`, because the next request uses it again.
    fn ask(
        &self,
        client_slot: &ClientSlot,
        request: Request,
        page: Option<&mut PageBytes>,
    ) -> Result<Option<Words>, RequestError> {
        self.check_state().map_err(RequestError::Instance)?;
        let (index, slot) = loop {
            if let Some(found) = self.own_slot(client_slot) {
                if found.1.state.load(Ordering::Acquire) == SLOT_IDLE {
                    break found;
                }
                // A signal handler that ends the process, out of the middle of a request: the driver may be about
                // to answer that one, so this one needs a slot of its own.
                client_slot.pid.store(0, Ordering::Relaxed);
                continue;
            }
            // More processes than slots: wait for one to end. The driver sizes the slots so that this does
            // not happen.
            futex::wait(&AtomicU32::new(0), 0, 1);
            self.check_state().and_then(|()| self.check_driver()).map_err(RequestError::Instance)?;
        };
        request::store(&slot.request, request::request_to_words(request));
        slot.state.store(SLOT_REQUESTED, Ordering::Release);
        set_bit(&self.mapping.header().pending, index);
        self.wake_driver();

        let mut spins = self.config().spin_count;
        let mut slept = false;
        loop {
            let state = slot.state.load(Ordering::Acquire);
            if state == SLOT_DONE {
                break;
            }
            if spins > 0 {
                spins -= 1;
                std::hint::spin_loop();
                continue;
            }
            let checked = match self.check_state() {
                // The common case is a prompt answer; whether the driver lives is asked after the first
                // sleep without one.
                Ok(()) if slept => self.check_driver(),
                checked => checked,
            };
            if let Err(error) = checked {
                // The driver may still write into the slot, so it is left as it is and another one is
                // claimed if there is a next time.
                client_slot.pid.store(0, Ordering::Relaxed);
                return Err(RequestError::Instance(error));
            }
            futex::wait(&slot.state, state, CHECK_INTERVAL_MS);
            slept = true;
        }

        let words = request::load(&slot.reply);
        let result = match words[0] {
            STATUS_OK => {
                if let Some(page) = page {
                    // SAFETY: the state is DONE, so the buffer is this side's until it asks again.
                    page.copy_from_slice(unsafe { &*slot.page.get() });
                }
                Ok(Some(words))
            }
            STATUS_NONEXISTENT => Ok(None),
            STATUS_ERROR => {
                // SAFETY: as above.
                let text = unsafe { &*slot.message.get() };
                Err(RequestError::Refused(Message::new(text.get(..words[1] as usize).unwrap_or(text))))
            }
            _ => Err(RequestError::Malformed),
        };
        slot.state.store(SLOT_IDLE, Ordering::Release);
        result
    }

    /// This process's slot, claimed at first use; `None` when all are taken.
    fn own_slot(&self, client_slot: &ClientSlot) -> Option<(usize, &Slot)> {
        // A child of fork has its parent's memory but another number.
        let pid = std::process::id();
        if client_slot.pid.load(Ordering::Relaxed) == pid {
            let index = client_slot.index.load(Ordering::Relaxed) as usize;
            return self.mapping.slot(index).map(|slot| (index, slot));
        }
        let count = self.mapping.slot_count();
        // Start at a place of one's own, so that processes do not race for the first slots.
        let claimed = (0..count)
            .map(|step| (pid as usize + step) % count)
            .find(|&index| self.mapping.slot(index).is_some_and(|slot| claim(slot, pid)))?;
        client_slot.index.store(claimed as u32, Ordering::Relaxed);
        client_slot.pid.store(pid, Ordering::Relaxed);
        self.mapping.slot(claimed).map(|slot| (claimed, slot))
    }

    /// Gives the process's slot back. For a process that ends in an orderly way; the slots of others are
    /// found by their dead owner.
    pub fn release_slot(&self, client_slot: &ClientSlot) {
        client_slot.held.release(&self.mapping.header().fill_locks);
        if client_slot.pid.swap(0, Ordering::Relaxed) != std::process::id() {
            return;
        }
        let index = client_slot.index.load(Ordering::Relaxed) as usize;
        if let Some(slot) = self.mapping.slot(index)
            && slot.state.load(Ordering::Relaxed) == SLOT_IDLE
        {
            slot.owner.store(0, Ordering::Release);
        }
    }
}

fn lock_index(file_hash: u64) -> usize {
    (file_hash % FILL_LOCKS as u64) as usize
}

fn set_bit(bitmap: &[AtomicU64], index: usize) {
    if let Some(word) = bitmap.get(index / 64) {
        word.fetch_or(1 << (index % 64), Ordering::SeqCst);
    }
}

/// Makes the slot this process's own if it is free or its owner is dead.
fn claim(slot: &Slot, pid: u32) -> bool {
    let owner = slot.owner.load(Ordering::Relaxed);
    // Finding oneself: a process with the same number owned it once, and died.
    if owner != 0 && owner != pid && process_exists(owner) {
        return false;
    }
    // The driver still works for the dead owner and will write into the slot.
    if slot.state.load(Ordering::Relaxed) == SLOT_TAKEN {
        return false;
    }
    if slot.owner.compare_exchange(owner, pid, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return false;
    }
    // A request the driver has not taken yet is withdrawn; if it takes it at this moment, the slot goes back
    // to the dead owner until the driver has answered.
    let mut state = slot.state.load(Ordering::Acquire);
    loop {
        if state == SLOT_TAKEN {
            slot.owner.store(owner, Ordering::Release);
            return false;
        }
        match slot.state.compare_exchange(state, SLOT_IDLE, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(changed) => state = changed,
        }
    }
}

/// Whether a process has this number. One of another user counts.
fn process_exists(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    if pid <= 0 {
        return false;
    }
    // SAFETY: signal 0 is not delivered; only the number is checked.
    let status = unsafe { libc::syscall(libc::SYS_kill, pid, 0) };
    // SAFETY: the location of this thread's errno is always readable.
    status == 0 || unsafe { *libc::__errno_location() } != libc::ESRCH
}

/// Whether the process has ended and only waits for its parent: state `Z` (or `X`) in `/proc/<pid>/stat`.
fn process_is_zombie(pid: u32) -> bool {
    let mut path = [0u8; 32];
    let written = {
        use std::io::Write;
        let mut rest = &mut path[..31];
        write!(rest, "/proc/{pid}/stat").is_ok()
    };
    if !written {
        return false;
    }
    let mut text = [0u8; 128];
    // SAFETY: the path ends with a zero byte, since its last byte is never written; the buffer is writable
    // for the length given. Raw calls, because this code runs inside the library that replaces them.
    let length = unsafe {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let descriptor = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0);
        if descriptor < 0 {
            return false;
        }
        let length = libc::syscall(libc::SYS_read, descriptor, text.as_mut_ptr(), text.len());
        libc::syscall(libc::SYS_close, descriptor);
        length
    };
    let text = usize::try_from(length).ok().and_then(|length| text.get(..length)).unwrap_or(&[]);
    // The command's name is in parentheses and may contain anything, so the last one counts.
    let Some(end) = text.iter().rposition(|&byte| byte == b')') else { return false };
    matches!(text.get(end + 2), Some(b'Z' | b'X'))
}
