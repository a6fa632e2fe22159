//! Keeps the local page cache within its limit.
//!
//! The cache is the data directory on the memory file system. A thread of its own looks, now and then, how much of
//! it there is, and makes holes of blocks that storage can give back ([`rule`]), those first that were not used since
//! it came by last ("clock"). What must stay stays, even beyond the limit; the thread says so.
//!
//! It works on the files from outside, as one more client of the shared memory: PostgreSQL's writes to a file, and
//! fillers, are excluded while its blocks are looked at and dropped.
//!
//! Invariant: a block is dropped only when a read of the durable point, now or later, brings back a page that
//! PostgreSQL cannot tell from it, but for hints it can do without.

mod files;
pub mod rule;

use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use borealis_shm::{CachedBlock, ClientSide, ClientSlot};
use borealis_types::{BLOCKS_PER_SEGMENT_FILE, Lsn, PAGE_SIZE};

use files::{CacheFile, RelationFile};
use rule::{Keep, Known};

/// How often the thread looks whether the cache can have grown beyond its limit.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long it leaves the cache alone after it found nothing more to drop, at first and at most.
const REST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);
/// A cache this much beyond its limit is worth a line in the log, but not more often than that.
const COMPLAIN_BEYOND: u64 = 2;
const COMPLAIN_INTERVAL: Duration = Duration::from_secs(60);
/// Blocks looked at under one lock: writers of the file wait that long.
const BLOCKS_PER_LOCK: usize = 8;

/// What the cache looks like, for whoever wants to know.
#[derive(Debug, Default)]
pub struct CacheFigures {
    /// Bytes of relation files in memory when they were last counted.
    pub bytes: AtomicU64,
    /// Blocks dropped since the start.
    pub dropped_blocks: AtomicU64,
}

/// The running thread. It ends when this is dropped; the shared memory must have been given up before (see
/// [`ClientSide`]), or an answer it waits for must still come.
#[derive(Debug)]
pub struct Evictor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    figures: Arc<CacheFigures>,
    limit_bytes: u64,
}

impl Evictor {
    /// Starts to keep the cache in `data_directory` below `limit_bytes`, as a client of the shared memory at
    /// `shared_memory`.
    ///
    /// # Errors
    /// When the shared memory is none of this build, or the thread cannot be started.
    pub fn start(
        data_directory: &Path,
        shared_memory: &Path,
        event_fd: RawFd,
        limit_bytes: u64,
    ) -> anyhow::Result<Evictor> {
        let path = CString::new(shared_memory.as_os_str().as_bytes()).context("a zero byte in a path")?;
        let client = ClientSide::attach(&path, event_fd)
            .with_context(|| format!("cannot attach to {}", shared_memory.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let figures = Arc::new(CacheFigures::default());
        let mut keeper = Keeper {
            data_directory: data_directory.to_path_buf(),
            client,
            slot: ClientSlot::new(),
            limit_bytes,
            stop: stop.clone(),
            figures: figures.clone(),
            hand: PathBuf::new(),
            complained: None,
        };
        let thread = std::thread::Builder::new()
            .name("evictor".to_owned())
            .spawn(move || keeper.run())
            .context("cannot start a thread")?;
        Ok(Evictor { stop, thread: Some(thread), figures, limit_bytes })
    }

    /// The limit it keeps.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What the cache looks like.
    #[must_use]
    pub fn figures(&self) -> &CacheFigures {
        &self.figures
    }
}

impl Drop for Evictor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Why pages stayed, counted.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    not_logged: u64,
    not_durable: u64,
    open_transaction: u64,
    other: u64,
}

impl Kept {
    fn count(&mut self, why: Keep) {
        *match why {
            Keep::NotLogged => &mut self.not_logged,
            Keep::NotDurable => &mut self.not_durable,
            Keep::OpenTransaction => &mut self.open_transaction,
            Keep::Empty | Keep::VacuumCycle | Keep::Sequence => &mut self.other,
        } += 1;
    }
}

/// The thread's state.
struct Keeper {
    data_directory: PathBuf,
    client: ClientSide,
    slot: ClientSlot,
    limit_bytes: u64,
    stop: Arc<AtomicBool>,
    figures: Arc<CacheFigures>,
    /// The file at which the next round begins.
    hand: PathBuf,
    complained: Option<Instant>,
}

impl Keeper {
    fn run(&mut self) {
        // How far the cache can grow before it is beyond its limit, counted from where it had grown to.
        let mut counted_at = 0;
        let mut room_blocks = 0;
        // While it is beyond: what keeps blocks in place passes with time, but there is no hurry.
        let mut rest = None;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(rest.map_or(LOOK_INTERVAL, |rest: Duration| rest.max(LOOK_INTERVAL)));
            let grown = self.client.cache().growth_blocks();
            if rest.is_none() && grown - counted_at <= room_blocks {
                continue;
            }
            let has_grown = grown != counted_at;
            counted_at = grown;
            match self.round() {
                Ok(bytes) => {
                    self.figures.bytes.store(bytes, Ordering::Relaxed);
                    let full = bytes >= self.limit_bytes;
                    self.client.cache().set_full(full);
                    room_blocks = self.limit_bytes.saturating_sub(bytes) / PAGE_SIZE as u64;
                    let longer = rest.filter(|_| !has_grown).map_or(REST, |rest| (rest * 2).min(REST_MAX));
                    rest = full.then_some(longer);
                }
                Err(error) if !self.stop.load(Ordering::Relaxed) => {
                    tracing::warn!("the page cache could not be looked through: {error:#}");
                    rest = Some(REST_MAX);
                }
                Err(_) => {}
            }
        }
        self.client.release_slot(&self.slot);
    }

    /// Counts the cache and makes room in it if need be. Returns its bytes afterwards.
    fn round(&mut self) -> anyhow::Result<u64> {
        let files =
            files::list(&self.data_directory, self.client.wal_segment_size_bytes(), self.client.versions())?;
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        if bytes <= self.limit_bytes {
            return Ok(bytes);
        }
        // Some room at once, or the next block would be beyond the limit again.
        let goal = self.limit_bytes - self.limit_bytes / 8;
        let mut kept = Kept::default();
        let first = files.partition_point(|file| file.path <= self.hand);
        // Twice around: what was used since the last time is passed by once.
        for circle in 0..2 {
            kept = Kept::default();
            for file in files[first..].iter().chain(&files[..first]) {
                if bytes <= goal || self.stop.load(Ordering::Relaxed) {
                    return Ok(bytes);
                }
                let excess_blocks = (bytes - goal).div_ceil(PAGE_SIZE as u64);
                let dropped = self.evict(file, excess_blocks, circle == 1, &mut kept)?;
                bytes = bytes.saturating_sub(dropped * PAGE_SIZE as u64);
                self.figures.dropped_blocks.fetch_add(dropped, Ordering::Relaxed);
                self.hand.clone_from(&file.path);
            }
        }
        self.complain(bytes, kept);
        Ok(bytes)
    }

    /// Says that more stays than the limit allows, and why.
    fn complain(&mut self, bytes: u64, kept: Kept) {
        let is_much = bytes > (self.limit_bytes + (64 << 20)) * COMPLAIN_BEYOND;
        if !is_much || self.complained.is_some_and(|last| last.elapsed() < COMPLAIN_INTERVAL) {
            return;
        }
        self.complained = Some(Instant::now());
        tracing::warn!(
            limit_mib = self.limit_bytes >> 20,
            cached_mib = bytes >> 20,
            blocks_of_open_transactions = kept.open_transaction,
            blocks_not_durable = kept.not_durable,
            blocks_not_logged = kept.not_logged,
            blocks_otherwise_needed = kept.other,
            "the page cache is beyond its limit, for these blocks must stay"
        );
    }

    /// Drops up to `wanted` blocks of a file, and says how many.
    fn evict(
        &self,
        file: &RelationFile,
        wanted: u64,
        used_too: bool,
        kept: &mut Kept,
    ) -> anyhow::Result<u64> {
        if file.bytes == 0 || !file.is_main_fork() {
            return Ok(0);
        }
        // Opened before storage is asked about it: what is opened is then the file the answer is about, or one
        // that has lost its name.
        let Some(open) = CacheFile::open(&file.path)? else { return Ok(0) };
        let mut in_storage = None;
        let mut dropped = 0;
        let mut block = 0;
        while let Some(data) = open.next_data(block)? {
            block = data.end;
            for start in data.clone().step_by(BLOCKS_PER_LOCK) {
                let end = data.end.min(start + BLOCKS_PER_LOCK as u32);
                let end = end.min(start.saturating_add(u32::try_from(wanted - dropped).unwrap_or(u32::MAX)));
                // Without a lock at first: mostly something stays, and nobody has to wait for that.
                let mut page = [0; PAGE_SIZE];
                let candidates: Vec<u32> = (start..end)
                    .filter(|&block| self.is_candidate(file, &open, block, used_too, &mut page, kept))
                    .collect();
                if candidates.is_empty() {
                    continue;
                }
                let blocks = match in_storage {
                    Some(blocks) => blocks,
                    None => *in_storage.insert(self.blocks_in_storage(file)?),
                };
                let _guard = self.client.lock_for_fill(&self.slot, file.hash);
                for &block in candidates.iter().filter(|block| **block < blocks) {
                    let cached = CachedBlock { file_hash: file.hash, block };
                    let written_at = self.client.cache().written_at(cached);
                    if open.read(block, &mut page)?
                        && rule::may_drop(&page, written_at, &self.known()).is_ok()
                    {
                        open.punch(block)?;
                        dropped += 1;
                    }
                }
                if dropped >= wanted {
                    return Ok(dropped);
                }
            }
        }
        Ok(dropped)
    }

    fn is_candidate(
        &self,
        file: &RelationFile,
        open: &CacheFile,
        block: u32,
        used_too: bool,
        page: &mut [u8; PAGE_SIZE],
        kept: &mut Kept,
    ) -> bool {
        let cached = CachedBlock { file_hash: file.hash, block };
        if self.client.cache().take_used(cached) && !used_too {
            return false;
        }
        // A block that cannot be read, or not wholly, is left alone.
        if !open.read(block, page).unwrap_or(false) {
            return false;
        }
        match rule::may_drop(page, Lsn::ZERO, &self.known()) {
            Ok(()) => true,
            Err(why) => {
                kept.count(why);
                false
            }
        }
    }

    fn known(&self) -> Known {
        // The order matters: see `CacheBook::oldest_open`.
        let durable = self.client.durable_lsn();
        let oldest_open = self.client.cache().oldest_open();
        // The first segment of any cluster's log is the second one there could be.
        Known { durable, oldest_open, log_begins: Lsn(self.client.wal_segment_size_bytes()) }
    }

    /// How many blocks of this segment file storage can give back: none of an unlogged relation, or of one whose
    /// creation is not durable (a database that is being copied).
    fn blocks_in_storage(&self, file: &RelationFile) -> anyhow::Result<u32> {
        let size = self.client.relation_size(&self.slot, file.fork).map_err(|error| {
            anyhow::anyhow!("storage was asked about {} and {error:?}", file.path.display())
        })?;
        let blocks = size.blocks.filter(|_| !size.has_init_fork).unwrap_or(0);
        let first = file.segment.saturating_mul(BLOCKS_PER_SEGMENT_FILE);
        Ok(blocks.saturating_sub(first).min(BLOCKS_PER_SEGMENT_FILE))
    }
}
