//! Keeps a late fill from overwriting a newer block.
//!
//! The local page cache is the data directory itself. A block that was fetched is written into its file
//! ("filled"), and PostgreSQL writes blocks it evicts into the same file. PostgreSQL's buffer locks keep the
//! two apart for reads through shared buffers, but not for those that bypass them (`pg_prewarm` in mode
//! `read`, a base backup, `ALTER TABLE … SET TABLESPACE`): such a reader could fetch version 1, be overtaken by
//! a writer of version 2, and then fill version 1 over it. So a filler excludes writers of that file and looks
//! again whether the block is still absent. Writers do not exclude each other; for them the lock is one
//! uncontended atomic addition.
//!
//! Word: the highest bit is a filler, the rest counts writers. A process killed with a lock in hand leaves it
//! taken; PostgreSQL then stops every other process of the instance, and the next instance has a new mapping.
//!
//! A background worker without a handler of its own for SIGTERM leaves from inside the signal handler, perhaps
//! out of the middle of a locked write, and may touch files on its way out. So each process remembers the lock
//! it holds ([`Held`]), and gives it back when it asks for another or ends.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::futex;
use crate::layout::FILL_LOCKS;

const FILLER: u32 = 1 << 31;

/// The lock this process holds: its index in the table times two, plus one for a filler, plus two; zero for
/// none.
pub(crate) struct Held(AtomicU32);

impl Held {
    pub(crate) const fn none() -> Held {
        Held(AtomicU32::new(0))
    }

    /// Gives back what an abandoned call still holds.
    pub(crate) fn release(&self, locks: &[AtomicU32]) {
        let Some(held) = self.0.swap(0, Ordering::Relaxed).checked_sub(2) else { return };
        let Some(word) = locks.get((held / 2) as usize) else { return };
        if held % 2 == 1 {
            word.store(0, Ordering::Release);
        } else {
            word.fetch_sub(1, Ordering::Release);
        }
    }

    fn set(&self, index: usize, filler: bool) {
        self.0.store(index as u32 * 2 + u32::from(filler) + 2, Ordering::Relaxed);
    }
}

/// Held while PostgreSQL's own bytes go into a cached file or its length changes.
pub struct WriteGuard<'a>(&'a [AtomicU32], &'a Held);

/// Held while a fetched block goes into a cached file.
pub struct FillGuard<'a>(&'a [AtomicU32], &'a Held);

pub(crate) fn lock_for_write<'a>(
    locks: &'a [AtomicU32; FILL_LOCKS],
    index: usize,
    held: &'a Held,
) -> WriteGuard<'a> {
    held.release(locks);
    let word = &locks[index % FILL_LOCKS];
    let mut attempts = 0;
    loop {
        let value = word.load(Ordering::Relaxed);
        if value & FILLER != 0 {
            wait(word, value, &mut attempts);
            continue;
        }
        if word.compare_exchange_weak(value, value + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            held.set(index % FILL_LOCKS, false);
            return WriteGuard(locks, held);
        }
    }
}

pub(crate) fn lock_for_fill<'a>(
    locks: &'a [AtomicU32; FILL_LOCKS],
    index: usize,
    held: &'a Held,
) -> FillGuard<'a> {
    held.release(locks);
    let word = &locks[index % FILL_LOCKS];
    let mut attempts = 0;
    loop {
        match word.compare_exchange(0, FILLER, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                held.set(index % FILL_LOCKS, true);
                return FillGuard(locks, held);
            }
            Err(value) => wait(word, value, &mut attempts),
        }
    }
}

/// As [`lock_for_fill`], for who must not wait for a process that may be dead: `None` when the lock is taken.
pub(crate) fn try_lock_for_fill<'a>(
    locks: &'a [AtomicU32; FILL_LOCKS],
    index: usize,
    held: &'a Held,
) -> Option<FillGuard<'a>> {
    held.release(locks);
    locks[index % FILL_LOCKS].compare_exchange(0, FILLER, Ordering::Acquire, Ordering::Relaxed).ok()?;
    held.set(index % FILL_LOCKS, true);
    Some(FillGuard(locks, held))
}

/// Holders are inside one system call on a memory file system, so nobody bothers to wake: giving the
/// processor away is enough, with a short sleep for the rare case that the holder does not get to run.
fn wait(word: &AtomicU32, value: u32, attempts: &mut u32) {
    const YIELDS: u32 = 100;
    *attempts += 1;
    if *attempts <= YIELDS {
        // SAFETY: no arguments, no memory.
        unsafe { libc::sched_yield() };
    } else {
        *attempts = 0;
        futex::wait(word, value, 1);
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        self.1.release(self.0);
    }
}

impl Drop for FillGuard<'_> {
    fn drop(&mut self) {
        self.1.release(self.0);
    }
}
