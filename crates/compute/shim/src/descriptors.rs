//! Which descriptor is which file.
//!
//! A fixed table, so that nothing is allocated and a look-up is one load. It lies in zero-initialised memory
//! that the kernel supplies when a page is first touched. A child of `fork` has its own copy, as it has its own
//! copies of the descriptors. The entries are atomics only so that threads of an extension are harmless:
//! PostgreSQL's own processes have one thread.

use std::sync::atomic::{AtomicU32, Ordering};

use borealis_types::{Fork, RelationFork, RelationLocator, SlruKind};
use libc::c_int;

use borealis_shm::path::PathClass;

/// Descriptors from here on cannot be of ours: opening one fails.
pub(crate) const MAX_DESCRIPTORS: usize = 65_536;

const NONE: u32 = 0;
const RELATION: u32 = 1;
const SLRU: u32 = 2;
const WAL: u32 = 3;

/// The descriptor can be written to.
pub(crate) const WRITABLE: u32 = 1;
/// The file was opened with `O_DSYNC` or `O_SYNC`: every write waits.
pub(crate) const SYNCHRONOUS: u32 = 2;

struct Entry {
    /// Class in the lowest byte, fork or store in the next, flags in the next.
    class: AtomicU32,
    /// Tablespace, database, relation; or the low and high half of the WAL segment's number.
    numbers: [AtomicU32; 3],
    segment: AtomicU32,
    /// Block that would continue a sequential scan.
    next_block: AtomicU32,
    /// Blocks up to here were asked for ahead.
    prefetched_until: AtomicU32,
    /// How far the scan looks ahead, in blocks.
    window: AtomicU32,
}

impl Entry {
    const fn empty() -> Entry {
        Entry {
            class: AtomicU32::new(NONE),
            numbers: [const { AtomicU32::new(0) }; 3],
            segment: AtomicU32::new(0),
            next_block: AtomicU32::new(0),
            prefetched_until: AtomicU32::new(0),
            window: AtomicU32::new(0),
        }
    }
}

static TABLE: [Entry; MAX_DESCRIPTORS] = [const { Entry::empty() }; MAX_DESCRIPTORS];

/// What a descriptor of ours refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpenFile {
    pub class: PathClass,
    /// [`WRITABLE`], [`SYNCHRONOUS`].
    pub flags: u32,
}

fn entry(descriptor: c_int) -> Option<&'static Entry> {
    TABLE.get(usize::try_from(descriptor).ok()?)
}

/// The file behind a descriptor; `None` for everything that is not of ours.
#[inline]
pub(crate) fn get(descriptor: c_int) -> Option<OpenFile> {
    let entry = entry(descriptor)?;
    let class = entry.class.load(Ordering::Relaxed);
    if class == NONE {
        return None;
    }
    let [a, b, c] = std::array::from_fn(|i| entry.numbers[i].load(Ordering::Relaxed));
    let segment = entry.segment.load(Ordering::Relaxed);
    let kind = class >> 8 & 0xFF;
    let path_class = match class & 0xFF {
        RELATION => {
            let fork = Fork::ALL.into_iter().find(|&fork| fork as u32 == kind)?;
            let locator = RelationLocator { tablespace: a, database: b, relation: c };
            PathClass::Relation { fork: RelationFork { locator, fork }, segment }
        }
        SLRU => {
            let kind = SlruKind::ALL.into_iter().find(|&store| store as u32 == kind)?;
            PathClass::Slru { kind, segment }
        }
        WAL => PathClass::Wal { segment_number: u64::from(b) << 32 | u64::from(a) },
        _ => return None,
    };
    Some(OpenFile { class: path_class, flags: class >> 16 })
}

/// Remembers what a descriptor refers to. `false` when the table has no place for it.
pub(crate) fn set(descriptor: c_int, file: OpenFile) -> bool {
    let Some(entry) = entry(descriptor) else { return file.class == PathClass::Other };
    let (class, numbers, segment) = match file.class {
        PathClass::Relation { fork, segment } => {
            let locator = fork.locator;
            let numbers = [locator.tablespace, locator.database, locator.relation];
            (RELATION | (fork.fork as u32) << 8, numbers, segment)
        }
        PathClass::Slru { kind, segment } => (SLRU | (kind as u32) << 8, [0; 3], segment),
        PathClass::Wal { segment_number } => {
            let halves = [(segment_number & 0xFFFF_FFFF) as u32, (segment_number >> 32) as u32, 0];
            (WAL, halves, 0)
        }
        PathClass::Other => (NONE, [0; 3], 0),
    };
    for (word, number) in entry.numbers.iter().zip(numbers) {
        word.store(number, Ordering::Relaxed);
    }
    entry.segment.store(segment, Ordering::Relaxed);
    entry.next_block.store(u32::MAX, Ordering::Relaxed);
    entry.prefetched_until.store(0, Ordering::Relaxed);
    entry.window.store(0, Ordering::Relaxed);
    let flags = if class == NONE { 0 } else { file.flags << 16 };
    entry.class.store(class | flags, Ordering::Relaxed);
    true
}

/// Forgets a descriptor that is being closed.
#[inline]
pub(crate) fn clear(descriptor: c_int) {
    if let Some(entry) = entry(descriptor)
        && entry.class.load(Ordering::Relaxed) != NONE
    {
        entry.class.store(NONE, Ordering::Relaxed);
    }
}

/// Longest distance a sequential scan looks ahead, in blocks (512 KiB).
const MAX_WINDOW_BLOCKS: u32 = 64;

/// Notes that block `block` of a relation's segment was absent, and says which blocks to ask for ahead: none,
/// unless absent blocks are being read one after the other.
pub(crate) fn look_ahead(descriptor: c_int, block: u32) -> std::ops::Range<u32> {
    let Some(entry) = entry(descriptor) else { return 0..0 };
    let next = block.saturating_add(1);
    let sequential = entry.next_block.swap(next, Ordering::Relaxed) == block;
    if !sequential {
        entry.window.store(0, Ordering::Relaxed);
        entry.prefetched_until.store(0, Ordering::Relaxed);
        return 0..0;
    }
    let until = entry.prefetched_until.load(Ordering::Relaxed).max(next);
    let window = entry.window.load(Ordering::Relaxed);
    // Ask in strides of half a window, not block by block.
    if until - next > window / 2 {
        return 0..0;
    }
    let window = (window * 2).clamp(4, MAX_WINDOW_BLOCKS);
    let end = next.saturating_add(window);
    entry.window.store(window, Ordering::Relaxed);
    entry.prefetched_until.store(end, Ordering::Relaxed);
    until.min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_remembered_until_it_is_closed() {
        let locator = RelationLocator { tablespace: 1663, database: 5, relation: u32::MAX };
        let fork = RelationFork { locator, fork: Fork::Init };
        for (descriptor, class) in [
            (60_000, PathClass::Relation { fork, segment: 7 }),
            (60_001, PathClass::Slru { kind: SlruKind::CommitTimestamps, segment: 0xFFFF }),
            (60_002, PathClass::Wal { segment_number: 0x1_2345_6789 }),
        ] {
            let file = OpenFile { class, flags: WRITABLE | SYNCHRONOUS };
            assert!(set(descriptor, file));
            assert_eq!(get(descriptor), Some(file));
            clear(descriptor);
            assert_eq!(get(descriptor), None);
        }
    }

    #[test]
    fn a_descriptor_beyond_the_table_is_refused_and_never_of_ours() {
        let file = OpenFile { class: PathClass::Wal { segment_number: 1 }, flags: 0 };
        assert!(!set(MAX_DESCRIPTORS as c_int, file));
        assert_eq!(get(MAX_DESCRIPTORS as c_int), None);
        assert_eq!(get(-1), None);
        clear(-1);
    }

    #[test]
    fn only_a_sequential_scan_looks_ahead_and_never_twice() {
        let descriptor = 60_003;
        let class = PathClass::Slru { kind: SlruKind::Transactions, segment: 0 };
        assert!(set(descriptor, OpenFile { class, flags: 0 }));
        assert!(look_ahead(descriptor, 10).is_empty());
        assert!(look_ahead(descriptor, 500).is_empty());
        let mut asked = Vec::new();
        for block in 501..1000 {
            let range = look_ahead(descriptor, block);
            assert!(range.is_empty() || range.start > block);
            assert!(range.end <= block + 1 + MAX_WINDOW_BLOCKS);
            asked.extend(range);
        }
        let expected: Vec<u32> = (asked[0]..asked[0] + asked.len() as u32).collect();
        assert_eq!(asked, expected);
        assert!(asked.len() > 450);
        assert!(look_ahead(descriptor, u32::MAX).is_empty());
    }
}
