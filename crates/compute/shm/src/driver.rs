//! The driver's side: creates the memory, takes requests, answers, publishes what is durable.
//!
//! Every method returns at once, so one thread with an event loop can own it:
//!
//! ```text
//! loop {
//!     let position = shm.wal_written();              // decode and ship up to there
//!     shm.take_pending(|slot, request| …);           // complete(slot, …) now or later
//!     shm.take_prefetch(|block| …);
//!     …
//!     let sleep = shm.prepare_to_sleep(position.sequence);
//!     poll(event_fd, other descriptors, if sleep { until the next heartbeat } else { no time });
//!     shm.woke(event_fd was readable);
//!     shm.heartbeat();
//! }
//! ```

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use borealis_types::{BlockKey, Lsn, invariant};

use crate::build::BUILD_FINGERPRINT;
use crate::futex;
use crate::layout::{
    BITMAP_WORDS, Config, FixedConfig, InstanceState, LAYOUT_VERSION, MAGIC, MAX_PATH_BYTES, MAX_SLOTS,
    PREFETCH_ENTRIES, SLOT_DONE, SLOT_REQUESTED, SLOT_TAKEN, STATE_FENCED, STATE_POISONED, STATE_RUNNING,
    STATE_STARTING, Slot, total_bytes,
};
use crate::liveness::monotonic_ms;
use crate::mapping::Mapping;
use crate::request::{self, Message, Reply};
use crate::{ENVIRONMENT_EVENT_FD, ENVIRONMENT_SHM, Request};

/// The shared memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    /// The shared memory's file could not be made, mapped or watched.
    #[error("{action} {}: {source}", path.display())]
    System {
        /// The operation, for the message.
        action: &'static str,
        /// The shared memory's file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The configuration cannot be kept in the shared memory.
    #[error("shared memory of the instance: {0}")]
    Config(String),
}

/// A slot with an unanswered request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotIndex(u32);

/// How far PostgreSQL has written its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalPosition {
    /// How many WAL writes have finished: what [`DriverSide::publish_durable`] acknowledges.
    pub sequence: u64,
    /// The files hold PostgreSQL's bytes up to here. PostgreSQL writes whole pages, so the last record may
    /// end earlier, with zeros after it, or be incomplete.
    pub lsn: Lsn,
}

/// What a shim said of itself when it was loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShimReport {
    /// The process that loaded the shim.
    pub process_id: u32,
    /// Its [`BUILD_FINGERPRINT`]. One that differs from the driver's has refused to go on.
    pub fingerprint: u64,
    /// The file that the process executes: device, inode, size in bytes, seconds and nanoseconds of its last change.
    pub program_identity: [u64; 5],
    /// Where that file is, or was; empty if that is not known.
    pub program_path: PathBuf,
}

/// The driver's handle on the shared memory of one instance.
pub struct DriverSide {
    mapping: Mapping,
    event: OwnedFd,
    path: PathBuf,
}

impl DriverSide {
    /// Creates the file at `path`, on a memory file system, and the eventfd. An older file there is replaced.
    ///
    /// The eventfd is inherited by child processes, because PostgreSQL is one. All memory is allocated now:
    /// a full file system is an error here and not a signal later.
    ///
    /// # Errors
    /// When a system call fails or the configuration is out of range.
    pub fn create(path: &Path, config: &Config) -> Result<DriverSide, ShmError> {
        check(config)?;
        let slot_count = config.slot_count as usize;
        let directory = config.data_directory.as_os_str().as_bytes();
        let system = |action, source| ShmError::System { action, path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system("removing", error)),
            _ => {}
        }
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| system("creating", error))?;
        let length = libc::off_t::try_from(total_bytes(slot_count)).expect("a few MiB fit into off_t");
        // SAFETY: the descriptor is open; no memory is involved.
        let status = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) };
        if status != 0 {
            return Err(system("allocating", io::Error::from_raw_os_error(status)));
        }
        if let Some((user, group)) = config.owner {
            fchown(&file, Some(user), Some(group)).map_err(|error| system("changing the owner of", error))?;
        }
        let mut mapping = Mapping::new(file.as_raw_fd(), slot_count)
            .ok_or_else(|| system("mapping", io::Error::last_os_error()))?;

        let mut data_directory = [0; MAX_PATH_BYTES];
        data_directory[..directory.len()].copy_from_slice(directory);
        let fixed = FixedConfig {
            wal_segment_size_bytes: config.wal_segment_size_bytes,
            log_ahead_limit_bytes: config.log_ahead_limit_bytes,
            major_version: config.major_version,
            catalog_version: config.catalog_version,
            spin_count: config.spin_count,
            slot_count: config.slot_count,
            data_directory_bytes: directory.len() as u32,
            data_directory,
        };
        // SAFETY: the file is new and mapped nowhere else, no reference into it exists, and the field is
        // inside the mapping. Everything else starts as zero, which is every field's initial value.
        unsafe { (&raw mut (*mapping.header_pointer()).config).write(fixed) };

        // SAFETY: no memory is involved; the descriptor returned is owned by nobody else.
        let event = unsafe {
            let descriptor = libc::eventfd(0, libc::EFD_NONBLOCK);
            if descriptor < 0 {
                return Err(system("creating the eventfd for", io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(descriptor)
        };
        let side = DriverSide { mapping, event, path: path.to_owned() };
        let header = side.mapping.header();
        header.state.driver_pid.store(std::process::id(), Ordering::Relaxed);
        side.heartbeat();
        header.greeting.layout_version.store(LAYOUT_VERSION, Ordering::Relaxed);
        header.greeting.driver_fingerprint.store(BUILD_FINGERPRINT, Ordering::Relaxed);
        // Release: whoever sees the magic sees everything above.
        header.greeting.magic.store(MAGIC, Ordering::Release);
        Ok(side)
    }

    /// Path of the shared memory's file, for clients.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to add to PostgreSQL's environment (besides `LD_PRELOAD`).
    #[must_use]
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [
            (ENVIRONMENT_SHM, self.path.clone().into_os_string()),
            (ENVIRONMENT_EVENT_FD, self.event.as_raw_fd().to_string().into()),
        ]
    }

    /// The eventfd to watch for readability; [`DriverSide::woke`] empties it.
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// How far PostgreSQL has written. Decode from the files up to `lsn` and remember `sequence`.
    #[must_use]
    pub fn wal_written(&self) -> WalPosition {
        let wal = &self.mapping.header().wal;
        // The sequence first and with Acquire: the bytes and the position of every write it counts are
        // visible afterwards. The position may already be further, which does no harm.
        let sequence = wal.sequence.load(Ordering::Acquire);
        WalPosition { sequence, lsn: Lsn(wal.written_lsn.load(Ordering::Acquire)) }
    }

    /// Says that everything complete in the WAL writes up to `sequence` is durable, the last record ending at
    /// `lsn`, and wakes who waits for it. `sequence` must have come from [`DriverSide::wal_written`].
    ///
    /// Call it too when a write completed no record: someone may wait for the sequence number.
    ///
    /// # Panics
    /// If the sequence is beyond what was written, or either value goes backwards: durability is final.
    pub fn publish_durable(&self, sequence: u64, lsn: Lsn) {
        let header = self.mapping.header();
        let durable = &header.durable;
        let written = header.wal.sequence.load(Ordering::Acquire);
        invariant!("durable-was-written", sequence <= written, "write {sequence} of {written} is durable");
        let before = (durable.sequence.load(Ordering::Relaxed), Lsn(durable.lsn.load(Ordering::Relaxed)));
        invariant!(
            "durable-never-falls",
            sequence >= before.0 && lsn >= before.1,
            "write {} and {} were durable, and now {sequence} and {lsn} are",
            before.0,
            before.1
        );
        durable.lsn.store(lsn.0, Ordering::Release);
        durable.sequence.store(sequence, Ordering::Release);
        self.wake_waiters();
    }

    /// Says where the oldest transaction that is not over began to log ([`Lsn::MAX`] without one), as of all log
    /// that was decoded. Call it before [`DriverSide::publish_durable`]: whoever sees a durable point must see
    /// the transactions below it.
    pub fn publish_oldest_open(&self, lsn: Lsn) {
        self.mapping.header().cache.oldest_open_lsn.store(lsn.0, Ordering::Release);
    }

    /// Every waiter for durability looks again.
    fn wake_waiters(&self) {
        let durable = &self.mapping.header().durable;
        // A waiter announces itself (SeqCst), then looks at generation and condition, then sleeps while the
        // generation stands. Here the generation changes (SeqCst) before the announcement is read (SeqCst).
        // In the one total order either we see the waiter, or the waiter sees the new generation.
        durable.generation.fetch_add(1, Ordering::SeqCst);
        if durable.waiters.load(Ordering::SeqCst) > 0 {
            futex::wake_all(&durable.generation);
        }
    }

    /// Takes every new request. Each must be answered with [`DriverSide::complete`], once, whenever it is
    /// ready.
    pub fn take_pending(&self, mut take: impl FnMut(SlotIndex, Request)) {
        for (word, bits) in self.mapping.header().pending.iter().enumerate() {
            // A look before the swap keeps an idle pass over the bitmap from dirtying its lines.
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = bits.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(slot) = self.mapping.slot(index) else { continue };
                // Acquire pairs with the client's Release of REQUESTED: the words are complete. A failure
                // means the request was withdrawn because its process died.
                let taken = slot.state.compare_exchange(
                    SLOT_REQUESTED,
                    SLOT_TAKEN,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if taken.is_err() {
                    continue;
                }
                let index = SlotIndex(index as u32);
                match request::request_from_words(request::load(&slot.request)) {
                    Some(request) => take(index, request),
                    None => self.complete(index, Reply::Error("the driver does not know this request")),
                }
            }
        }
    }

    /// Answers a request and wakes the process that waits for it.
    ///
    /// # Panics
    /// If the slot holds no request that [`DriverSide::take_pending`] handed out, or a listing is too long.
    pub fn complete(&self, slot: SlotIndex, reply: Reply<'_>) {
        let index = slot.0;
        let slot: &Slot = self.mapping.slot(index as usize).expect("a slot index comes from take_pending");
        let state = slot.state.load(Ordering::Relaxed);
        invariant!("request-is-answered-once", state == SLOT_TAKEN, "slot {index} is in state {state}");
        // SAFETY: while the state is TAKEN the buffers are this side's alone; a client that gives up leaves
        // the slot as it is, and nobody claims a slot that is TAKEN.
        let (page, message) = unsafe { (&mut *slot.page.get(), &mut *slot.message.get()) };
        let words = request::encode_reply(reply, page, message);
        request::store(&slot.reply, words);
        // Release: whoever sees DONE sees the reply. The wake is unconditional: one system call per answered
        // request, and a client that looked first just is not there.
        slot.state.store(SLOT_DONE, Ordering::Release);
        futex::wake_all(&slot.state);
    }

    /// Takes the hints which blocks will be asked for soon, in no particular order. They may be stale.
    pub fn take_prefetch(&self, mut take: impl FnMut(BlockKey)) {
        for (word, bits) in self.mapping.header().prefetch_pending.iter().enumerate() {
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = bits.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let index = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(slot) = self.mapping.slot(index) else { continue };
                // Acquire pairs with the owner's Release after it wrote the entries.
                let written = slot.prefetch_written.load(Ordering::Acquire);
                let mut read = slot.prefetch_read.load(Ordering::Relaxed);
                // A ring never holds more than its capacity; more would be somebody's scribbling.
                if written.wrapping_sub(read) > PREFETCH_ENTRIES {
                    read = written;
                }
                while read != written {
                    let entry = &slot.prefetch[(read % PREFETCH_ENTRIES) as usize];
                    let [a, b, c, d, block] = std::array::from_fn(|i| entry[i].load(Ordering::Relaxed));
                    if let Some(relation_fork) = request::fork_from_words([a, b, c, d]) {
                        take(BlockKey { relation_fork, block });
                    }
                    read = read.wrapping_add(1);
                }
                // Release: the owner writes over the entries only after they were read.
                slot.prefetch_read.store(read, Ordering::Release);
            }
        }
    }

    /// Announces that the driver is about to wait for its eventfd. `seen_sequence` is the last
    /// [`WalPosition::sequence`] it handled. `false`: there is new work, do not wait.
    ///
    /// Wait with a time limit (the heartbeat's) all the same: a process that is killed between publishing and
    /// waking would leave its work unnoticed until then.
    #[must_use]
    pub fn prepare_to_sleep(&self, seen_sequence: u64) -> bool {
        let header = self.mapping.header();
        // The classic pair: here "sleeping" is stored, then the work is read; the other side stores the work,
        // then reads "sleeping". With everything SeqCst at least one sees the other.
        header.sleep.driver_sleeping.store(1, Ordering::SeqCst);
        let any = |words: &[std::sync::atomic::AtomicU64; BITMAP_WORDS]| {
            words.iter().any(|word| word.load(Ordering::SeqCst) != 0)
        };
        let work = header.wal.sequence.load(Ordering::SeqCst) != seen_sequence
            || any(&header.pending)
            || any(&header.prefetch_pending);
        if work {
            header.sleep.driver_sleeping.store(0, Ordering::SeqCst);
        }
        !work
    }

    /// Ends what [`DriverSide::prepare_to_sleep`] began, and empties the eventfd if it was found readable.
    pub fn woke(&self, event_was_readable: bool) {
        self.mapping.header().sleep.driver_sleeping.store(0, Ordering::SeqCst);
        if !event_was_readable {
            return;
        }
        let mut count = 0u64;
        // SAFETY: the buffer is eight bytes, as eventfd(2) wants. The descriptor does not block; that it had
        // nothing to say is no error.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    /// The driver is alive. Call it at least once a second.
    pub fn heartbeat(&self) {
        self.mapping.header().state.heartbeat_ms.store(monotonic_ms(), Ordering::Relaxed);
    }

    /// The `postgres` process that loaded a shim last, and which; `None` before.
    ///
    /// Check both before anything is promised to anybody: a program that ignored `LD_PRELOAD` (a static build, a
    /// set-user-id binary, a library that could not be read) runs without the shim.
    #[must_use]
    pub fn shim_report(&self) -> Option<ShimReport> {
        let greeting = &self.mapping.header().greeting;
        // Acquire pairs with the shim's Release after it wrote its fingerprint.
        let process_id = greeting.shim_pid.load(Ordering::Acquire);
        let fingerprint = greeting.shim_fingerprint.load(Ordering::Relaxed);
        if process_id == 0 {
            return None;
        }
        let program = &self.mapping.header().program;
        let bytes = program.path.iter().take(program.path_bytes.load(Ordering::Relaxed) as usize);
        let path: Vec<u8> = bytes.map(|byte| byte.load(Ordering::Relaxed)).collect();
        Some(ShimReport {
            process_id,
            fingerprint,
            program_identity: std::array::from_fn(|at| program.identity[at].load(Ordering::Relaxed)),
            program_path: PathBuf::from(OsString::from_vec(path)),
        })
    }

    /// The state the instance is in.
    #[must_use]
    pub fn state(&self) -> InstanceState {
        self.mapping.header().state()
    }

    /// Changes the state. Fenced and poisoned are final; for [`InstanceState::Poisoned`] `reason` says why.
    ///
    /// # Panics
    /// If the state was already final and the new one differs, or the new one is the one every instance begins in.
    pub fn set_state(&self, new: InstanceState, reason: &str) {
        let old = self.state();
        if old == new {
            return;
        }
        invariant!(
            "instance-state-only-moves-forward",
            !matches!(old, InstanceState::Fenced(_) | InstanceState::Poisoned)
                && new != InstanceState::Starting,
            "the instance is {old:?} and cannot become {new:?}"
        );
        let words = &self.mapping.header().state;
        let text = Message::new(reason.as_bytes());
        for (target, &byte) in words.reason.iter().zip(text.as_bytes()) {
            target.store(byte, Ordering::Relaxed);
        }
        words.reason_bytes.store(text.as_bytes().len() as u32, Ordering::Relaxed);
        let number = match new {
            InstanceState::Starting => STATE_STARTING,
            InstanceState::Running => STATE_RUNNING,
            InstanceState::Fenced(epoch) => {
                words.reason_epoch.store(epoch.0, Ordering::Relaxed);
                STATE_FENCED
            }
            InstanceState::Poisoned => STATE_POISONED,
        };
        // Release: whoever sees the state sees its reason.
        words.state.store(number, Ordering::Release);
        self.wake_waiters();
        for index in 0..self.mapping.slot_count() {
            if let Some(slot) = self.mapping.slot(index) {
                futex::wake_all(&slot.state);
            }
        }
    }
}

/// What the shared memory cannot hold is refused before anything is made.
fn check(config: &Config) -> Result<(), ShmError> {
    let refuse = |why: &str| Err(ShmError::Config(why.to_owned()));
    let slot_count = config.slot_count as usize;
    if slot_count == 0 || slot_count > MAX_SLOTS {
        return refuse(&format!("{slot_count} slots; 1 to {MAX_SLOTS} are possible"));
    }
    let directory = config.data_directory.as_os_str().as_bytes();
    if !config.data_directory.is_absolute() || directory.len() > MAX_PATH_BYTES {
        return refuse(&format!(
            "data directory {} must be absolute and at most {MAX_PATH_BYTES} bytes long",
            config.data_directory.display()
        ));
    }
    if !config.wal_segment_size_bytes.is_power_of_two() || config.wal_segment_size_bytes < 1 << 20 {
        return refuse(&format!("WAL segment size {} bytes", config.wal_segment_size_bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::SLOT_IDLE;
    use borealis_types::VolumeEpoch;

    /// A driver's side without any process on the other.
    fn driver() -> (tempfile::TempDir, DriverSide) {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let config = Config {
            data_directory: folder.path().join("data"),
            wal_segment_size_bytes: 16 << 20,
            log_ahead_limit_bytes: 0,
            major_version: 15,
            catalog_version: 202_209_061,
            spin_count: 0,
            slot_count: 1,
            owner: None,
        };
        let driver = DriverSide::create(&folder.path().join("shm"), &config).expect("created");
        (folder, driver)
    }

    #[test]
    #[should_panic(expected = "invariant durable-was-written is broken: write 1 of 0")]
    fn what_was_not_written_cannot_be_durable() {
        driver().1.publish_durable(1, Lsn(100));
    }

    #[test]
    #[should_panic(expected = "invariant durable-never-falls is broken")]
    fn a_durable_point_is_never_taken_back() {
        let (_folder, driver) = driver();
        driver.publish_durable(0, Lsn(100));
        driver.publish_durable(0, Lsn(99));
    }

    #[test]
    #[should_panic(expected = "invariant instance-state-only-moves-forward is broken")]
    fn a_fenced_instance_does_not_run_again() {
        let (_folder, driver) = driver();
        driver.set_state(InstanceState::Fenced(VolumeEpoch(3)), "");
        driver.set_state(InstanceState::Running, "");
    }

    #[test]
    #[should_panic(expected = "invariant instance-state-only-moves-forward is broken")]
    fn an_instance_starts_once() {
        let (_folder, driver) = driver();
        driver.set_state(InstanceState::Running, "");
        driver.set_state(InstanceState::Starting, "");
    }

    #[test]
    #[should_panic(expected = "invariant request-is-answered-once is broken: slot 0 is in state 3")]
    fn a_second_answer_is_noticed() {
        let (_folder, driver) = driver();
        let slot = driver.mapping.slot(0).expect("there is one");
        assert_eq!(slot.state.load(Ordering::Relaxed), SLOT_IDLE);
        slot.state.store(SLOT_TAKEN, Ordering::Relaxed);
        driver.complete(SlotIndex(0), Reply::Nonexistent);
        driver.complete(SlotIndex(0), Reply::Nonexistent);
    }
}
