//! The locks between those who write to a cached file and those who fill it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use borealis_shm::ClientSlot;

use crate::harness::{Folder, attach};

#[test]
fn a_fill_never_overwrites_a_write() {
    // A file of one block: present or not, and its version. Writers put higher versions in; fillers put the
    // version they fetched in, if the block is still absent.
    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    let stop = AtomicBool::new(false);
    let (present, version) = (AtomicBool::new(false), AtomicU64::new(0));
    let fills = AtomicU64::new(0);
    let (present, version, client, stop, fills) = (&present, &version, &client, &stop, &fills);
    let slot = ClientSlot::new();
    let mut overwritten = 0;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                let slot = ClientSlot::new();
                while !stop.load(Ordering::Relaxed) {
                    // A real filler fetches a block between two fills.
                    std::thread::yield_now();
                    let _guard = client.lock_for_fill(&slot, 5);
                    if !present.load(Ordering::Relaxed) {
                        // Where a real filler is inside a system call.
                        std::thread::yield_now();
                        version.store(1, Ordering::Relaxed);
                        fills.fetch_add(1, Ordering::Relaxed);
                        present.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
        // On a busy machine a thousand rounds can pass before a filler gets to run.
        let deadline = Instant::now() + Duration::from_secs(20);
        let more =
            |round: &u64| *round < 1_000 || (fills.load(Ordering::Relaxed) == 0 && Instant::now() < deadline);
        for round in (0u64..).take_while(more) {
            {
                let _guard = client.lock_for_write(&slot, 5);
                version.store(round + 2, Ordering::Relaxed);
                present.store(true, Ordering::Relaxed);
            }
            overwritten += u32::from(version.load(Ordering::Relaxed) != round + 2);
            {
                let _guard = client.lock_for_write(&slot, 5);
                present.store(false, Ordering::Relaxed);
            }
            // Let a filler find it absent, now and then just before the next write.
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(fills.load(Ordering::Relaxed) > 0, "no filler ran");
    assert_eq!(overwritten, 0, "an older version was filled in");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a lock that nobody gives back is what this is about")]
fn a_lock_is_given_back_by_a_process_that_left_in_the_middle() {
    let folder = Folder::new();
    let driver = folder.driver(1);
    let client = attach(&driver);
    let (left, other) = (ClientSlot::new(), ClientSlot::new());
    std::mem::forget(client.lock_for_fill(&left, 5));
    // On its way out it writes; nothing but its own abandoned lock could stop it.
    drop(client.lock_for_write(&left, 5));
    drop(client.lock_for_fill(&other, 5));
    std::mem::forget(client.lock_for_write(&left, 5));
    client.release_slot(&left);
    drop(client.lock_for_fill(&other, 5));
}
