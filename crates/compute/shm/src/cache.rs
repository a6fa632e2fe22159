//! What the processes remember together about blocks in the local page cache.
//!
//! The cache itself is the data directory. To take a block out of it one must know more than the file says:
//!
//! * up to where PostgreSQL had written log when it last wrote the block: only when storage has all of that does
//!   it have every change in the block, those that leave the block's LSN as it is included;
//! * where the oldest transaction that is not over began to log: what it changed has parts that no redo restores;
//! * whether the block was used lately.
//!
//! Blocks share places in the tables here by a hash. For the log positions the later one counts and for use any
//! use counts, so sharing only keeps a block longer.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use borealis_types::Lsn;

use crate::path::mix;

/// Places for log positions (512 KiB): enough that few of the blocks written within one round trip to storage
/// share one.
const WRITTEN_PLACES: usize = 1 << 16;
/// Places for use (256 KiB).
const USED_PLACES: usize = 1 << 18;

/// The tables behind [`CacheBook`], as they lie in the shared memory.
#[repr(C, align(64))]
pub(crate) struct CacheWords {
    /// Not zero: fetched blocks are not put into the files.
    pub full: AtomicU32,
    /// Where the oldest open transaction began to log; `u64::MAX` without one, zero before anything was said.
    pub oldest_open_lsn: AtomicU64,
    /// Blocks that were written or filled so far: how much the cache can have grown.
    pub growth_blocks: Separate,
    written_at: [AtomicU64; WRITTEN_PLACES],
    used: [AtomicU8; USED_PLACES],
}

/// A word in a cache line of its own.
#[repr(C, align(64))]
pub(crate) struct Separate(pub AtomicU64);

/// One block of one cached file: the file's [`PathClass::hash`](crate::path::PathClass::hash) and the number of
/// the block in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedBlock {
    /// [`PathClass::hash`](crate::path::PathClass::hash) of the segment file.
    pub file_hash: u64,
    /// The block, counted from the start of the file.
    pub block: u32,
}

impl CachedBlock {
    fn place(self, places: usize) -> usize {
        (mix(self.file_hash, self.block) >> 8) as usize % places
    }
}

/// The bookkeeping of the local page cache.
#[derive(Clone, Copy)]
pub struct CacheBook<'a>(pub(crate) &'a CacheWords);

impl CacheBook<'_> {
    /// Says that the block is being written while PostgreSQL's log ends at `insert_lsn`. Call it before the write,
    /// under the file's write lock.
    #[inline]
    pub fn writing(&self, block: CachedBlock, insert_lsn: u64) {
        if let Some(place) = self.0.written_at.get(block.place(WRITTEN_PLACES)) {
            place.fetch_max(insert_lsn, Ordering::Relaxed);
        }
        self.grown();
        self.using(block);
    }

    /// Says that a fetched block was put into its file.
    #[inline]
    pub fn grown(&self) {
        self.0.growth_blocks.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that the block was used.
    #[inline]
    pub fn using(&self, block: CachedBlock) {
        if let Some(place) = self.0.used.get(block.place(USED_PLACES))
            && place.load(Ordering::Relaxed) == 0
        {
            place.store(1, Ordering::Relaxed);
        }
    }

    /// Whether the block was used since this was asked last.
    #[must_use]
    pub fn take_used(&self, block: CachedBlock) -> bool {
        self.0.used.get(block.place(USED_PLACES)).is_some_and(|place| place.swap(0, Ordering::Relaxed) != 0)
    }

    /// Up to where the log reached when the block was last written. Under the file's fill lock this counts every write
    /// that came before; without it, a later look tells whether one came between.
    #[must_use]
    pub fn written_at(&self, block: CachedBlock) -> Lsn {
        let place = self.0.written_at.get(block.place(WRITTEN_PLACES));
        Lsn(place.map_or(u64::MAX, |place| place.load(Ordering::Relaxed)))
    }

    /// How many blocks were written or filled since the start.
    #[must_use]
    pub fn growth_blocks(&self) -> u64 {
        self.0.growth_blocks.0.load(Ordering::Relaxed)
    }

    /// Whether fetched blocks should stay out of the files.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.full.load(Ordering::Relaxed) != 0
    }

    /// Says whether fetched blocks should stay out of the files.
    pub fn set_full(&self, full: bool) {
        self.0.full.store(u32::from(full), Ordering::Relaxed);
    }

    /// Where the oldest transaction that is not over began to log ([`Lsn::MAX`] without one). Read it after the
    /// durable point: then it counts every transaction that logged anything up to there.
    #[must_use]
    pub fn oldest_open(&self) -> Lsn {
        Lsn(self.0.oldest_open_lsn.load(Ordering::Acquire))
    }
}
