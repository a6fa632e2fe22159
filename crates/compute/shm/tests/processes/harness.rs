//! A driver's side in a folder of its own, and child processes.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::Path;

use borealis_shm::{BUILD_FINGERPRINT, ClientSide, Config, DriverSide, RelationSize, Reply, Request};
use borealis_types::{BlockKey, Fork, PAGE_SIZE, RelationFork, RelationLocator};

pub fn config(slot_count: u32) -> Config {
    Config {
        data_directory: "/dev/shm/nowhere".into(),
        wal_segment_size_bytes: 16 << 20,
        log_ahead_limit_bytes: 1000,
        major_version: 15,
        catalog_version: 202_209_061,
        spin_count: 0,
        slot_count,
        owner: None,
    }
}

pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::Builder::new().prefix("borealis-shm-test-").tempdir_in("/dev/shm").unwrap())
    }

    pub fn driver(&self, slot_count: u32) -> DriverSide {
        DriverSide::create(&self.0.path().join("shm"), &config(slot_count)).unwrap()
    }
}

pub fn attach(driver: &DriverSide) -> ClientSide {
    client_at(driver.path(), driver.event_fd()).unwrap()
}

pub fn client_at(path: &Path, event_fd: RawFd) -> Option<ClientSide> {
    ClientSide::attach(&CString::new(path.to_str().unwrap()).unwrap(), event_fd, BUILD_FINGERPRINT).ok()
}

pub fn key(block: u32) -> BlockKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16384 };
    BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block }
}

/// A child process that runs `body`, which must not allocate, and ends with status 0 if it is true.
pub fn fork(body: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child calls only `body`, which touches neither the allocator nor any lock of this process,
    // and `_exit`.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork");
        if child == 0 {
            libc::_exit(i32::from(!body()));
        }
        child
    }
}

pub fn wait_for_child(child: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the child is this process's own; the status is writable.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    status
}

pub fn sleep_until_woken(driver: &DriverSide, seen_sequence: u64, timeout_ms: i32) -> bool {
    let mut woken = true;
    if driver.prepare_to_sleep(seen_sequence) {
        let mut poll = libc::pollfd { fd: driver.event_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, writable, that outlives the call.
        woken = unsafe { libc::poll(&mut poll, 1, timeout_ms) } > 0;
    }
    driver.woke(true);
    woken
}

/// Answers what is pending: block numbers come back in the page, odd relations do not exist.
pub fn answer(driver: &DriverSide) -> u64 {
    let mut count = 0;
    driver.take_pending(|slot, request| {
        count += 1;
        match request {
            Request::ReadBlock(key) => {
                let mut page = [0u8; PAGE_SIZE];
                for chunk in page.chunks_exact_mut(4) {
                    chunk.copy_from_slice(&key.block.to_le_bytes());
                }
                driver.complete(slot, Reply::Page(&page));
            }
            Request::RelationSize(fork) => {
                let exists = fork.locator.relation % 2 == 0;
                let size = RelationSize { blocks: exists.then_some(7), has_init_fork: !exists };
                driver.complete(slot, Reply::RelationSize(size));
            }
            _ => driver.complete(slot, Reply::Error("not in this test")),
        }
    });
    count
}
