//! What is where in the shared memory.
//!
//! ```text
//! Header                 configuration, state, WAL and durability words, pending bitmaps, fill locks, cache tables
//! Slot 0 … Slot N-1      one outstanding request each, with an 8 KiB page buffer and a ring of prefetch hints
//! ```
//!
//! Both sides are built from this crate, but an old process may outlive an upgrade, and an old library may stand
//! beside a new program. So the header begins with a [`Greeting`], whose layout never changes: a client of another
//! build refuses to go on, and says there which one it is.

use std::cell::UnsafeCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use borealis_types::{PAGE_SIZE, VolumeEpoch};

use crate::cache::CacheWords;

/// First word of the file, written last: `BOREALIS` in ASCII, little endian.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"BOREALIS");
/// Raised with every change of this file's structures or of the protocol.
pub(crate) const LAYOUT_VERSION: u32 = 4;

/// The most request slots an instance can have.
pub const MAX_SLOTS: usize = 4096;
/// Longest path of a data directory, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// Longest message in a reply or a state, in bytes; longer ones are cut.
pub const MAX_MESSAGE_BYTES: usize = 200;

/// Words of a bitmap with a bit for each slot.
pub(crate) const BITMAP_WORDS: usize = MAX_SLOTS / 64;
/// Fill locks; two files that share one only wait for each other now and then.
pub(crate) const FILL_LOCKS: usize = 4096;
/// Words of a request or of a reply.
pub(crate) const MESSAGE_WORDS: usize = 8;
/// Prefetch hints a process can have outstanding; a power of two.
pub(crate) const PREFETCH_ENTRIES: u32 = 128;
/// Words of one prefetch hint.
pub(crate) const PREFETCH_WORDS: usize = 5;

/// What the driver fixes when it creates the shared memory.
#[derive(Clone, Debug)]
pub struct Config {
    /// PostgreSQL's data directory, absolute, on a memory file system.
    pub data_directory: PathBuf,
    /// Bytes of a WAL segment file (`wal_segment_size`).
    pub wal_segment_size_bytes: u64,
    /// A WAL write waits while more than this many bytes are written and not durable; zero for no limit.
    pub log_ahead_limit_bytes: u64,
    /// PostgreSQL's major version, for the folder name inside a tablespace.
    pub major_version: u32,
    /// PostgreSQL's catalog version number, for the folder name inside a tablespace.
    pub catalog_version: u32,
    /// How often a waiter looks before it sleeps; zero suits a machine with few processors.
    pub spin_count: u32,
    /// Request slots: one for each PostgreSQL process that can exist at the same time.
    pub slot_count: u32,
    /// User and group that own the file, when PostgreSQL runs as another user than the driver.
    pub owner: Option<(u32, u32)>,
}

/// Whether the instance may acknowledge anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstanceState {
    /// The driver is not ready; waits simply wait.
    Starting,
    /// Requests are answered, and what becomes durable is published.
    Running,
    /// A newer writer took the volume over, with this epoch. Final.
    Fenced(VolumeEpoch),
    /// The driver met something it must not continue after (the reason is kept beside the state). Final.
    Poisoned,
}

pub(crate) const STATE_STARTING: u32 = 0;
pub(crate) const STATE_RUNNING: u32 = 1;
pub(crate) const STATE_FENCED: u32 = 2;
pub(crate) const STATE_POISONED: u32 = 3;

/// Written by the driver before [`Header::magic`] and never changed afterwards.
#[repr(C)]
pub(crate) struct FixedConfig {
    pub wal_segment_size_bytes: u64,
    pub log_ahead_limit_bytes: u64,
    pub major_version: u32,
    pub catalog_version: u32,
    pub spin_count: u32,
    pub slot_count: u32,
    pub data_directory_bytes: u32,
    pub data_directory: [u8; MAX_PATH_BYTES],
}

/// The instance's state and the driver's sign of life. Rarely written.
#[repr(C, align(64))]
pub(crate) struct StateWords {
    pub state: AtomicU32,
    pub driver_pid: AtomicU32,
    /// Milliseconds of `CLOCK_MONOTONIC` at the driver's last sign of life.
    pub heartbeat_ms: AtomicU64,
    pub reason_epoch: AtomicU64,
    pub reason_bytes: AtomicU32,
    pub reason: [AtomicU8; MAX_MESSAGE_BYTES],
}

/// Written by PostgreSQL's processes. A line of its own, so that the driver's words do not bounce with it.
#[repr(C, align(64))]
pub(crate) struct WalWords {
    /// End of the bytes written so far (rounded up to PostgreSQL's write, which is whole pages).
    pub written_lsn: AtomicU64,
    /// How many WAL writes have finished.
    pub sequence: AtomicU64,
}

/// Whether the driver sleeps in its event loop. Read after every publication.
#[repr(C, align(64))]
pub(crate) struct SleepWord {
    pub driver_sleeping: AtomicU32,
}

/// Written by the driver; waited for by PostgreSQL's processes.
#[repr(C, align(64))]
pub(crate) struct DurableWords {
    /// Everything complete in the WAL writes up to this one is durable.
    pub sequence: AtomicU64,
    /// End of the last durable record.
    pub lsn: AtomicU64,
    /// Futex: changes with every publication and every change of state.
    pub generation: AtomicU32,
    /// How many processes sleep or are about to; a process that was killed stays counted, which only
    /// costs needless wakes.
    pub waiters: AtomicU32,
}

/// The first words of the file, where they are in every layout from 3 on.
#[repr(C, align(64))]
pub(crate) struct Greeting {
    /// Written last by the driver.
    pub magic: AtomicU64,
    pub layout_version: AtomicU32,
    /// The process that loaded a shim last; zero before. Written after its fingerprint.
    pub shim_pid: AtomicU32,
    /// [`crate::BUILD_FINGERPRINT`] of the driver.
    pub driver_fingerprint: AtomicU64,
    /// That of the shim in process `shim_pid`.
    pub shim_fingerprint: AtomicU64,
}

/// The program that loaded the shim, as it sees itself: a driver with another user may not look.
#[repr(C, align(64))]
pub(crate) struct ProgramWords {
    /// Device, inode, size, and the seconds and nanoseconds of its last change.
    pub identity: [AtomicU64; 5],
    pub path_bytes: AtomicU32,
    pub path: [AtomicU8; MAX_PATH_BYTES],
}

/// The first layout that begins with a [`Greeting`].
pub(crate) const GREETING_SINCE: u32 = 3;

#[repr(C, align(64))]
pub(crate) struct Header {
    pub greeting: Greeting,
    pub program: ProgramWords,
    pub config: FixedConfig,
    pub state: StateWords,
    pub wal: WalWords,
    pub sleep: SleepWord,
    pub durable: DurableWords,
    /// A bit for each slot that may hold a request.
    pub pending: [AtomicU64; BITMAP_WORDS],
    /// A bit for each slot that may hold prefetch hints.
    pub prefetch_pending: [AtomicU64; BITMAP_WORDS],
    /// Keeps one that fills a fetched block from overwriting what another wrote, by file: see `fill_lock`.
    pub fill_locks: [AtomicU32; FILL_LOCKS],
    /// What must be known of a cached block before it may be dropped: see `cache`.
    pub cache: CacheWords,
}

impl Header {
    /// The instance's state. Whoever sees a final one sees its reason, too.
    pub(crate) fn state(&self) -> InstanceState {
        let words = &self.state;
        match words.state.load(Ordering::Acquire) {
            STATE_STARTING => InstanceState::Starting,
            STATE_FENCED => InstanceState::Fenced(VolumeEpoch(words.reason_epoch.load(Ordering::Relaxed))),
            STATE_POISONED => InstanceState::Poisoned,
            _ => InstanceState::Running,
        }
    }
}

/// Nobody waits; the owner may write a request.
pub(crate) const SLOT_IDLE: u32 = 0;
/// The request is complete and belongs to the driver.
pub(crate) const SLOT_REQUESTED: u32 = 1;
/// The driver works on it.
pub(crate) const SLOT_TAKEN: u32 = 2;
/// The reply is complete and belongs to the owner.
pub(crate) const SLOT_DONE: u32 = 3;

/// One process's place for requests.
///
/// `state` hands everything below it from one side to the other: client `IDLE → REQUESTED`, driver
/// `REQUESTED → TAKEN → DONE`, client `DONE → IDLE`.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// Process that owns the slot; zero when it is free.
    pub owner: AtomicU32,
    /// Futex: one of the `SLOT_` constants.
    pub state: AtomicU32,
    pub request: [AtomicU32; MESSAGE_WORDS],
    pub reply: [AtomicU32; MESSAGE_WORDS],
    /// Prefetch hints written so far (by the owner) and read so far (by the driver); both only count up.
    pub prefetch_written: AtomicU32,
    pub prefetch_read: AtomicU32,
    pub prefetch: [[AtomicU32; PREFETCH_WORDS]; PREFETCH_ENTRIES as usize],
    pub message: UnsafeCell<[u8; MAX_MESSAGE_BYTES]>,
    pub page: UnsafeCell<[u8; PAGE_SIZE]>,
}

/// Bytes of the whole file.
pub(crate) fn total_bytes(slot_count: usize) -> usize {
    size_of::<Header>() + slot_count * size_of::<Slot>()
}
