//! Keeps the local page cache within its limit.
//!
//! The cache is the data directory on the memory file system. A thread of its own counts it now and then, and punches
//! holes where blocks are that storage can serve again ([`borealis_compute::cache::rule`]). It goes around like the hand of a clock, and first
//! passes by blocks that were used since it last came by. What must stay stays, even beyond the limit; the thread says
//! so in the log.
//!
//! It works on the files from outside, as one more client of the shared memory. While it looks at the blocks of a file
//! and drops them, nobody else writes to that file or fills blocks in it.
//!
//! Invariant: a block is dropped only when a read of the durable point, now or later, brings back a page that
//! PostgreSQL cannot tell from it, but for hints it can do without.

mod files;
mod keeper;
mod limit;
mod sweep;

use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use borealis_shm::{BUILD_FINGERPRINT, ClientSide, ClientSlot};

pub use limit::default_limit_bytes;

use keeper::Keeper;

/// The size of the cache, for the instance's status.
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

    /// The limit that was set; the thread goes lower when the memory file system runs full.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The size of the cache when it was last counted, and what was dropped.
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

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_shm::path::PathClass;
    use borealis_shm::{Config, DriverSide, RelationSize, Reply, Request};
    use borealis_types::{Fork, Lsn, PAGE_SIZE, RelationFork, RelationLocator};
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::time::{Duration, Instant};

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
