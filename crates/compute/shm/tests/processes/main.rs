//! The protocols between one driver and many processes, with real processes where it matters.
#![allow(unsafe_code)] // fork, kill and poll.
#![allow(clippy::result_large_err)] // The errors are as large as the library needs them.
#![allow(clippy::unwrap_used)] // The helpers are test code too; only their callers are test functions.

mod attach;
mod harness;
mod locks;

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use borealis_shm::{
    BUILD_FINGERPRINT, ClientSide, ClientSlot, DriverSide, InstanceState, RelationEntry, RelationSize, Reply,
    Request, RequestError, SlruEntry, WaitError,
};
use borealis_types::{DatabaseKey, Fork, Lsn, PAGE_SIZE, SlruKind, VolumeEpoch};

use harness::{Folder, answer, attach, config, fork, key, sleep_until_woken, wait_for_child};

/// Longer than any test: whoever is not woken before has lost a wake.
const LONG_MS: i32 = 60_000;

#[test]
fn every_process_gets_its_own_answers_and_no_wake_is_lost() {
    const PROCESSES: u32 = 8;
    const REQUESTS: u32 = 400;
    let folder = Folder::new();
    let driver = folder.driver(PROCESSES);
    driver.set_state(InstanceState::Running, "");
    let client = attach(&driver);
    let slot = ClientSlot::new();
    // The parent claims a slot too, so that a child which kept using it would be noticed.
    let own = std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.relation_size(&slot, key(0).relation_fork).unwrap());
        while answer(&driver) == 0 {
            assert!(sleep_until_woken(&driver, 0, LONG_MS));
        }
        asked.join().unwrap()
    });
    assert_eq!(own, RelationSize { blocks: Some(7), has_init_fork: false });
    client.release_slot(&slot);

    let children: Vec<i32> = (0..PROCESSES)
        .map(|process| {
            fork(|| {
                let mut page = [0u8; PAGE_SIZE];
                (0..REQUESTS).all(|request| {
                    let number = process * 1_000_000 + request;
                    let found = client.read_block(&slot, key(number), &mut page);
                    let right = page.chunks_exact(4).all(|chunk| chunk == number.to_le_bytes());
                    matches!(found, Ok(true)) && right
                })
            })
        })
        .collect();
    let mut answered = 0;
    while answered < u64::from(PROCESSES * REQUESTS) {
        answered += answer(&driver);
        if answered < u64::from(PROCESSES * REQUESTS) {
            assert!(sleep_until_woken(&driver, 0, LONG_MS), "a request did not wake the driver");
        }
    }
    for child in children {
        assert_eq!(wait_for_child(child), 0, "a process read something wrong");
    }
}

#[test]
fn a_sync_returns_only_after_its_writes_are_durable() {
    const PROCESSES: usize = 4;
    const WRITES: u64 = 500;
    let folder = Folder::new();
    let driver = folder.driver(PROCESSES as u32);
    let client = attach(&driver);
    // Acknowledged so far, told to the children beside the protocol under test, before each publication.
    let witness = Witness::new();
    let children: Vec<i32> = (0..PROCESSES)
        .map(|_| {
            fork(|| {
                (0..WRITES).all(|write| {
                    client.wal_wrote(write);
                    let sequence = client.wal_sequence();
                    client.wait_durable(sequence).is_ok() && witness.get() >= sequence
                })
            })
        })
        .collect();
    let all = PROCESSES as u64 * WRITES;
    let mut seen = 0;
    let mut late = VecDeque::new();
    let mut acknowledged = 0;
    while acknowledged < all {
        let position = driver.wal_written();
        if position.sequence != seen {
            seen = position.sequence;
            late.push_back(position);
        }
        // Acknowledge one look later, so that writes pile up behind one another.
        if late.len() > 1 || seen == all {
            while let Some(position) = late.pop_front() {
                witness.set(position.sequence);
                driver.publish_durable(position.sequence, position.lsn);
                acknowledged = position.sequence;
            }
        }
        let timeout_ms = if late.is_empty() && acknowledged < all { LONG_MS } else { 0 };
        if timeout_ms > 0 {
            assert!(sleep_until_woken(&driver, seen, timeout_ms), "a write did not wake the driver");
        } else if driver.wal_written().sequence == seen
            && let Some(position) = late.pop_front()
        {
            witness.set(position.sequence);
            driver.publish_durable(position.sequence, position.lsn);
            acknowledged = position.sequence;
        }
    }
    for child in children {
        assert_eq!(wait_for_child(child), 0, "a sync returned too early or failed");
    }
}

/// A number in anonymous shared memory.
struct Witness(*const AtomicU64);

impl Witness {
    fn new() -> Witness {
        // SAFETY: a fresh mapping of one page touches no existing object.
        let memory = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0)
        };
        assert_ne!(memory, libc::MAP_FAILED);
        Witness(memory.cast())
    }

    fn set(&self, value: u64) {
        // SAFETY: the mapping is never unmapped.
        unsafe { (*self.0).store(value, Ordering::SeqCst) };
    }

    fn get(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.0).load(Ordering::SeqCst) }
    }
}

#[test]
fn a_sync_waits_as_long_as_it_takes() {
    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    client.wal_wrote(100);
    let returned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.wait_durable(1).unwrap();
            returned.store(true, Ordering::SeqCst);
        });
        // Longer than the interval at which a waiter checks on the driver.
        std::thread::sleep(Duration::from_millis(1300));
        assert!(!returned.load(Ordering::SeqCst));
        driver.publish_durable(0, Lsn(0));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!returned.load(Ordering::SeqCst), "another publication released it");
        driver.publish_durable(1, Lsn(100));
    });
    assert!(returned.load(Ordering::SeqCst));
    client.wait_durable(1).unwrap();
}

#[test]
fn a_change_of_state_ends_every_wait_with_its_reason() {
    let folder = Folder::new();
    let driver = folder.driver(2);
    driver.set_state(InstanceState::Running, "");
    let client = attach(&driver);
    client.wal_wrote(100);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| client.wait_durable(1));
        let slot = ClientSlot::new();
        let client = &client;
        let read = scope.spawn(move || client.relation_size(&slot, key(1).relation_fork));
        std::thread::sleep(Duration::from_millis(100));
        driver.set_state(InstanceState::Fenced(VolumeEpoch(7)), "");
        assert!(matches!(sync.join().unwrap(), Err(WaitError::Fenced(VolumeEpoch(7)))));
        let read = read.join().unwrap();
        assert!(matches!(read, Err(RequestError::Instance(WaitError::Fenced(_)))), "{read:?}");
    });
    assert!(started.elapsed() < Duration::from_millis(900), "they were not woken but looked by themselves");
    assert!(client.wait_durable(0).is_err(), "a fenced writer may not even go on with what is durable");
    driver.set_state(InstanceState::Fenced(VolumeEpoch(7)), "saying it again is no change");

    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    driver.set_state(InstanceState::Poisoned, "the log is damaged");
    let Err(WaitError::Poisoned(reason)) = client.wait_durable(0) else { panic!("not poisoned") };
    assert_eq!(reason.to_string(), "the log is damaged");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the driver that dies here must not clean up")]
fn a_dead_driver_ends_a_wait_with_an_error() {
    let folder = Folder::new();
    let path = folder.0.path().join("shm");
    let prepared = CString::new(path.to_str().unwrap()).unwrap();
    // The driver is a process that creates the memory and dies; its parent (this test) does not collect it
    // at first, so the number still exists.
    // SAFETY: the child uses the allocator, which glibc keeps usable across fork, and ends with `_exit`.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            let created = DriverSide::create(&path, &config(1));
            libc::_exit(i32::from(created.map(std::mem::forget).is_err()));
        }
        child
    };
    let client = loop {
        if let Ok(client) = ClientSide::attach(&prepared, -1, BUILD_FINGERPRINT) {
            break client;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    client.wal_wrote(8192);
    let started = Instant::now();
    assert!(matches!(client.wait_durable(1), Err(WaitError::DriverGone)));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(wait_for_child(child), 0);
    assert!(matches!(client.wait_durable(1), Err(WaitError::DriverGone)));
    let slot = ClientSlot::new();
    let asked = client.relation_size(&slot, key(1).relation_fork);
    assert!(matches!(asked, Err(RequestError::Instance(WaitError::DriverGone))), "{asked:?}");
}

#[test]
fn the_slot_of_a_killed_process_is_used_again_but_not_while_the_driver_works_for_it() {
    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    let slot = ClientSlot::new();
    for taken_before_death in [false, true] {
        let child = fork(|| client.relation_size(&slot, key(0).relation_fork).is_ok());
        assert!(sleep_until_woken(&driver, 0, LONG_MS));
        let mut taken = Vec::new();
        if taken_before_death {
            driver.take_pending(|slot, _| taken.push(slot));
            assert_eq!(taken.len(), 1);
        }
        // SAFETY: the child has not been waited for, so the number is its own.
        unsafe { libc::kill(child, libc::SIGKILL) };
        wait_for_child(child);

        let successor = fork(|| {
            let size = client.relation_size(&slot, key(0).relation_fork);
            matches!(size, Ok(RelationSize { blocks: Some(7), .. }))
        });
        std::thread::sleep(Duration::from_millis(50));
        for slot in taken {
            // For the dead process; the successor must not take it for its own.
            driver.complete(slot, Reply::RelationSize(RelationSize { blocks: None, has_init_fork: true }));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while answer(&driver) == 0 {
            assert!(Instant::now() < deadline, "the successor found no slot");
            sleep_until_woken(&driver, 0, 10);
        }
        assert_eq!(wait_for_child(successor), 0);
    }
}

#[test]
fn log_ahead_is_limited_and_a_long_record_still_completes() {
    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    let mut now = 10_000;
    client.wal_wrote(now);
    driver.publish_durable(1, Lsn(now));
    client.wait_for_log_space().unwrap();
    now += 1001;
    client.wal_wrote(now);
    let passed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.wait_for_log_space().unwrap();
            passed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!passed.load(Ordering::SeqCst), "the limit was passed");
        // The record is not complete: nothing new is durable, but everything written has been looked at.
        driver.publish_durable(2, Lsn(10_000));
    });
    assert!(passed.load(Ordering::SeqCst));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one request after the other, and what must arrive of each")]
fn every_kind_of_request_arrives_as_it_was_asked() {
    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    let database = DatabaseKey { tablespace: 1663, database: 5 };
    let relations: Vec<RelationEntry> = (0..borealis_shm::MAX_RELATION_ENTRIES as u32)
        .map(|n| RelationEntry {
            relation: n + 1,
            fork: Fork::ALL[n as usize % 4],
            blocks: u32::MAX - n,
            has_init_fork: n % 3 == 0,
        })
        .collect();
    let segments = [SlruEntry { segment: 0, pages: 32 }, SlruEntry { segment: 0x14078, pages: 1 }];
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let slot = ClientSlot::new();
            let mut page = [0; PAGE_SIZE];
            let kind = SlruKind::MultiXactMembers;
            assert!(!client.read_slru_page(&slot, kind, 77, &mut page).unwrap());
            assert_eq!(client.slru_segment(&slot, kind, 3).unwrap(), None);
            assert_eq!(client.slru_segment(&slot, kind, 4).unwrap(), Some(9));
            let cursor = 0xDEAD_BEEF_0123_4567;
            let (entries, next) = client.list_relations(&slot, database, cursor, &mut page).unwrap();
            assert_eq!(entries.collect::<Vec<_>>(), relations);
            assert_eq!(next, cursor + 1);
            let (entries, next) = client.list_slru_segments(&slot, kind, cursor, &mut page).unwrap();
            assert_eq!(entries.collect::<Vec<_>>(), segments);
            assert_eq!(next, 0);
            let refused = client.read_block(&slot, key(1), &mut page);
            let Err(RequestError::Refused(reason)) = refused else { panic!("{refused:?}") };
            assert_eq!(reason.to_string(), "x".repeat(200));
            for block in 0..1000 {
                client.prefetch(&slot, key(block));
            }
        });
        let mut asked = Vec::new();
        while !asking.is_finished() {
            driver.take_pending(|slot, request| {
                asked.push(request);
                let reply = match request {
                    Request::ReadSlruPage { .. } => Reply::Nonexistent,
                    Request::SlruSegment { segment, .. } => Reply::SlruSegment((segment == 4).then_some(9)),
                    Request::ListRelations { cursor, .. } => {
                        Reply::Relations { entries: &relations, next_cursor: cursor + 1 }
                    }
                    Request::ListSlruSegments { .. } => {
                        Reply::SlruSegments { entries: &segments, next_cursor: 0 }
                    }
                    _ => Reply::Error(&"x".repeat(500)),
                };
                driver.complete(slot, reply);
            });
            sleep_until_woken(&driver, 0, 1);
        }
        asking.join().unwrap();
        let kind = SlruKind::MultiXactMembers;
        let cursor = 0xDEAD_BEEF_0123_4567;
        assert_eq!(
            asked,
            [
                Request::ReadSlruPage { kind, page: 77 },
                Request::SlruSegment { kind, segment: 3 },
                Request::SlruSegment { kind, segment: 4 },
                Request::ListRelations { database, cursor },
                Request::ListSlruSegments { kind, cursor },
                Request::ReadBlock(key(1)),
            ]
        );
    });
    let mut hints = Vec::new();
    driver.take_prefetch(|key| hints.push(key.block));
    assert!(hints.len() >= 128 && hints.windows(2).all(|pair| pair[0] < pair[1]), "{hints:?}");
    assert_eq!(hints[0], 0);
}

/// A signal handler may end a process out of the middle of a request, and ask again on its way out.
#[test]
fn a_request_out_of_the_middle_of_another_has_an_answer_of_its_own() {
    let folder = Folder::new();
    let driver = folder.driver(4);
    let client = attach(&driver);
    let slot = ClientSlot::new();
    std::thread::scope(|scope| {
        let abandoned = scope.spawn(|| {
            let mut page = [0u8; PAGE_SIZE];
            client.read_block(&slot, key(1), &mut page).map(|_| page[0])
        });
        let mut first = None;
        while first.is_none() {
            driver.take_pending(|slot, _| first = Some(slot));
        }
        let second = scope.spawn(|| {
            let mut page = [0u8; PAGE_SIZE];
            client.read_block(&slot, key(2), &mut page).map(|_| page[0])
        });
        while answer(&driver) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(second.join().unwrap().unwrap(), 2);
        driver.complete(first.unwrap(), Reply::Page(&[1; PAGE_SIZE]));
        assert_eq!(abandoned.join().unwrap().unwrap(), 1);
    });
}
