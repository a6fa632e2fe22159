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
mod limit;

use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use borealis_shm::{BUILD_FINGERPRINT, CachedBlock, ClientSide, ClientSlot};
use borealis_types::{BLOCKS_PER_SEGMENT_FILE, Lsn, PAGE_SIZE};

pub use limit::default_limit_bytes;

use borealis_compute::cache::rule::{self, Keep, Known};
use files::{CacheFile, RelationFile};

/// How often the thread looks whether the cache can have grown beyond its limit.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long it leaves the cache alone after it found nothing more to drop, at first and at most.
const REST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);
/// It rests this many times as long as it worked in vain.
const REST_FOR_WORK: u32 = 4;
/// How long the cache is not counted at most while it grows.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);
/// A cache this much beyond its limit, or an eighth of it, is worth a line in the log, but not more often than that.
const COMPLAIN_BEYOND: u64 = 64 << 20;
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
        let client = ClientSide::attach(&path, event_fd, BUILD_FINGERPRINT)
            .map_err(|error| anyhow::anyhow!("cannot attach to {}: {error:?}", shared_memory.display()))?;
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
    /// Somebody was writing to the file.
    busy: u64,
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

/// What a round came to.
struct Round {
    /// Of the cache, afterwards.
    bytes: u64,
    /// As of now.
    limit_bytes: u64,
}

/// Whether the cache is looked at before it has grown by as much as there was room for. Others fill the memory file
/// system, too, so its limit may have come down, although it has not grown at all.
fn is_due(since_last: Duration, has_grown: bool, is_short: impl FnOnce() -> bool) -> bool {
    since_last >= ROUND_INTERVAL && (has_grown || is_short())
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
        let mut last_look = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(rest.map_or(LOOK_INTERVAL, |rest: Duration| rest.max(LOOK_INTERVAL)));
            let grown = self.client.cache().growth_blocks();
            let is_short = || limit::is_short_of_room(&self.data_directory);
            let due = rest.is_some() || is_due(last_look.elapsed(), grown != counted_at, is_short);
            if !due && grown - counted_at <= room_blocks {
                // The file system is asked once in an interval, not at every turn after it.
                if last_look.elapsed() >= ROUND_INTERVAL {
                    last_look = Instant::now();
                }
                continue;
            }
            let has_grown = grown != counted_at;
            counted_at = grown;
            let begun = Instant::now();
            match self.round() {
                Ok(Round { bytes, limit_bytes }) => {
                    self.figures.bytes.store(bytes, Ordering::Relaxed);
                    let full = bytes >= limit_bytes;
                    self.client.cache().set_full(full);
                    room_blocks = limit_bytes.saturating_sub(bytes) / PAGE_SIZE as u64;
                    let longer = rest.filter(|_| !has_grown).map_or(REST, |rest| (rest * 2).min(REST_MAX));
                    // Where everything must stay, looking through it again and again helps nobody.
                    rest = full.then_some(longer.max(begun.elapsed() * REST_FOR_WORK));
                }
                Err(error) if !self.stop.load(Ordering::Relaxed) => {
                    tracing::warn!("the page cache could not be looked through: {error:#}");
                    rest = Some(REST_MAX);
                }
                Err(_) => {}
            }
            last_look = Instant::now();
        }
        self.client.release_slot(&self.slot);
    }

    /// Counts the cache and makes room in it if need be.
    fn round(&mut self) -> anyhow::Result<Round> {
        let files =
            files::list(&self.data_directory, self.client.wal_segment_size_bytes(), self.client.versions())?;
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let limit_bytes = limit::current_limit_bytes(&self.data_directory, self.limit_bytes, bytes);
        if bytes <= limit_bytes {
            return Ok(Round { bytes, limit_bytes });
        }
        // Some room at once, or the next block would be beyond the limit again.
        let goal = limit_bytes - limit_bytes / 8;
        let mut kept = Kept::default();
        let first = files.partition_point(|file| file.path <= self.hand);
        // Twice around: what was used since the last time is passed by once.
        for circle in 0..2 {
            kept = Kept::default();
            for file in files[first..].iter().chain(&files[..first]) {
                if bytes <= goal || self.stop.load(Ordering::Relaxed) {
                    return Ok(Round { bytes, limit_bytes });
                }
                let excess_blocks = (bytes - goal).div_ceil(PAGE_SIZE as u64);
                let dropped = self.evict(file, excess_blocks, circle == 1, &mut kept)?;
                bytes = bytes.saturating_sub(dropped * PAGE_SIZE as u64);
                self.figures.dropped_blocks.fetch_add(dropped, Ordering::Relaxed);
                self.hand.clone_from(&file.path);
            }
        }
        self.complain(bytes, limit_bytes, kept);
        Ok(Round { bytes, limit_bytes })
    }

    /// Says that more stays than the limit allows, and why.
    fn complain(&mut self, bytes: u64, limit_bytes: u64, kept: Kept) {
        let is_much = bytes > limit_bytes.saturating_add((limit_bytes / 8).max(COMPLAIN_BEYOND));
        if !is_much || self.complained.is_some_and(|last| last.elapsed() < COMPLAIN_INTERVAL) {
            return;
        }
        self.complained = Some(Instant::now());
        tracing::warn!(
            limit_mib = limit_bytes >> 20,
            cached_mib = bytes >> 20,
            blocks_of_open_transactions = kept.open_transaction,
            blocks_not_durable = kept.not_durable,
            blocks_not_logged = kept.not_logged,
            blocks_otherwise_needed = kept.other,
            blocks_being_written = kept.busy,
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
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(dropped);
                }
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
                // Not waited for: a process that was killed in the middle of a write keeps its lock.
                let Some(_guard) = self.client.try_lock_for_fill(&self.slot, file.hash) else {
                    kept.busy += candidates.len() as u64;
                    continue;
                };
                for &block in candidates.iter().filter(|block| **block < blocks) {
                    let cached = CachedBlock { file_hash: file.hash, block };
                    let written_at = self.client.cache().written_at(cached);
                    if !open.read(block, &mut page)? {
                        continue;
                    }
                    match rule::may_drop(&page, written_at, &self.known()) {
                        Ok(()) => dropped += u64::from(open.drop_block(block, &page)?),
                        Err(why) => kept.count(why),
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

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_shm::path::PathClass;
    use borealis_shm::{Config, DriverSide, RelationSize, Reply, Request};
    use borealis_types::{Fork, RelationFork, RelationLocator};
    use std::os::unix::fs::{FileExt, MetadataExt};

    const BLOCKS: u32 = 64;

    /// An instance's memory directory with one relation file full of logged pages, and its shared memory.
    struct Fixture {
        folder: tempfile::TempDir,
        driver: DriverSide,
        file: PathBuf,
        fork: RelationFork,
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
            let data = folder.path().join("data");
            std::fs::create_dir_all(data.join("base/5")).expect("made");
            let config = Config {
                data_directory: data.clone(),
                wal_segment_size_bytes: 16 << 20,
                log_ahead_limit_bytes: 0,
                major_version: 15,
                catalog_version: 202_209_061,
                spin_count: 0,
                slot_count: 4,
                owner: None,
            };
            let driver = DriverSide::create(&folder.path().join("shm"), &config).expect("created");
            driver.publish_oldest_open(Lsn::MAX);
            driver.publish_durable(0, Lsn(32 << 20));
            let file = data.join("base/5/16384");
            let mut page = [7u8; PAGE_SIZE];
            page[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
            std::fs::write(&file, page.repeat(BLOCKS as usize)).expect("written");
            let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16384 };
            Fixture { folder, driver, file, fork: RelationFork { locator, fork: Fork::Main } }
        }

        fn start(&self, limit_bytes: u64) -> Evictor {
            let data = self.folder.path().join("data");
            Evictor::start(&data, self.driver.path(), self.driver.event_fd(), limit_bytes).expect("started")
        }

        fn client(&self) -> ClientSide {
            let path = CString::new(self.driver.path().as_os_str().as_bytes()).expect("a path");
            ClientSide::attach(&path, self.driver.event_fd(), BUILD_FINGERPRINT).expect("attached")
        }

        fn bytes(&self) -> u64 {
            std::fs::metadata(&self.file).expect("a file").blocks() * 512
        }

        /// Says that the relation has so many blocks, for as long as `until` does not hold.
        fn answer(&self, size: RelationSize, until: impl Fn() -> bool) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !until() {
                assert!(Instant::now() < deadline, "{} bytes are cached", self.bytes());
                self.driver.take_pending(|slot, request| {
                    assert_eq!(request, Request::RelationSize(self.fork));
                    self.driver.complete(slot, Reply::RelationSize(size));
                });
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn a_cache_that_stands_still_makes_way_when_others_need_room() {
        assert!(is_due(ROUND_INTERVAL, false, || true));
        assert!(is_due(ROUND_INTERVAL, true, || false));
        assert!(!is_due(ROUND_INTERVAL, false, || false));
        assert!(!is_due(ROUND_INTERVAL / 2, true, || true));
    }

    #[test]
    fn a_cache_beyond_its_limit_is_made_smaller() {
        let fixture = Fixture::new();
        let evictor = fixture.start(20 * PAGE_SIZE as u64);
        fixture.client().cache().grown();
        let size = RelationSize { blocks: Some(BLOCKS), has_init_fork: false };
        // More than the limit's room must have grown before anybody looks.
        (0..BLOCKS).for_each(|_| fixture.client().cache().grown());
        fixture.answer(size, || fixture.bytes() <= 20 * PAGE_SIZE as u64);
        assert!(fixture.bytes() > 0, "a limit is no reason to drop everything");
        fixture.driver.set_state(borealis_shm::InstanceState::Poisoned, "over");
        drop(evictor);
    }

    #[test]
    fn what_storage_cannot_give_back_stays() {
        let fixture = Fixture::new();
        let evictor = fixture.start(0);
        fixture.client().cache().grown();
        // Half of the blocks are not in storage yet.
        let size = RelationSize { blocks: Some(BLOCKS / 2), has_init_fork: false };
        let half = u64::from(BLOCKS / 2) * PAGE_SIZE as u64;
        fixture.answer(size, || fixture.bytes() <= half);
        fixture.answer(size, {
            let begun = Instant::now();
            move || begun.elapsed() > Duration::from_millis(400)
        });
        assert_eq!(fixture.bytes(), half);
        let mut page = [0; PAGE_SIZE];
        let file = std::fs::File::open(&fixture.file).expect("open");
        file.read_exact_at(&mut page, half).expect("read");
        assert_eq!(page[100], 7);
        fixture.driver.set_state(borealis_shm::InstanceState::Poisoned, "over");
        drop(evictor);
    }

    #[test]
    fn an_unlogged_relation_stays() {
        let fixture = Fixture::new();
        let evictor = fixture.start(0);
        fixture.client().cache().grown();
        let begun = Instant::now();
        let size = RelationSize { blocks: Some(BLOCKS), has_init_fork: true };
        fixture.answer(size, || begun.elapsed() > Duration::from_millis(400));
        assert_eq!(fixture.bytes(), u64::from(BLOCKS) * PAGE_SIZE as u64);
        fixture.driver.set_state(borealis_shm::InstanceState::Poisoned, "over");
        drop(evictor);
    }

    /// A process that is killed in the middle of a write keeps its lock, and the evictor must end all the same.
    #[test]
    fn a_lock_of_a_dead_process_holds_nobody_up() {
        let fixture = Fixture::new();
        let (client, slot) = (fixture.client(), ClientSlot::new());
        let class = PathClass::Relation { fork: fixture.fork, segment: 0 };
        let guard = client.lock_for_write(&slot, class.hash());
        let evictor = fixture.start(0);
        client.cache().grown();
        let begun = Instant::now();
        let size = RelationSize { blocks: Some(BLOCKS), has_init_fork: false };
        fixture.answer(size, || begun.elapsed() > Duration::from_millis(300));
        assert_eq!(fixture.bytes(), u64::from(BLOCKS) * PAGE_SIZE as u64);
        fixture.driver.set_state(borealis_shm::InstanceState::Poisoned, "over");
        let begun = Instant::now();
        drop(evictor);
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(guard);
    }
}
