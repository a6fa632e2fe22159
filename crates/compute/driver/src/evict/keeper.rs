//! The evictor's thread: when it counts the cache, and in which order it goes through the files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use borealis_shm::{ClientSide, ClientSlot};
use borealis_types::PAGE_SIZE;

use super::{CacheFigures, files, limit};
use borealis_compute::cache::rule::Keep;

/// How often the thread looks whether the cache can have grown beyond its limit.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long it leaves the cache alone after it found nothing more to drop, at first and at most.
const REST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);
/// It rests this many times as long as it worked in vain.
const REST_FOR_WORK: u32 = 4;
/// Longest time between two counts of a cache that grows.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);
/// A cache this much beyond its limit, or an eighth of it, is worth a line in the log, but not more often than that.
const COMPLAIN_BEYOND: u64 = 64 << 20;
const COMPLAIN_INTERVAL: Duration = Duration::from_secs(60);

/// How many pages stayed in the cache, by the reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// Somebody was writing to the file.
    pub busy: u64,
    not_logged: u64,
    not_durable: u64,
    open_transaction: u64,
    other: u64,
}

impl Kept {
    pub fn count(&mut self, why: Keep) {
        *match why {
            Keep::NotLogged => &mut self.not_logged,
            Keep::NotDurable => &mut self.not_durable,
            Keep::OpenTransaction => &mut self.open_transaction,
            Keep::Empty | Keep::VacuumCycle | Keep::Sequence => &mut self.other,
        } += 1;
    }
}

/// The result of a round.
struct Round {
    /// Bytes in the cache after it.
    bytes: u64,
    /// The limit as it was during the round.
    limit_bytes: u64,
}

/// Whether to count the cache now: it has grown by its room, or the memory file system is nearly full. Other programs
/// fill that file system too, which lowers the limit although the cache did not grow.
fn is_due(since_last: Duration, has_grown: bool, is_short: impl FnOnce() -> bool) -> bool {
    since_last >= ROUND_INTERVAL && (has_grown || is_short())
}

/// What the evicting thread knows between two rounds.
pub(super) struct Keeper {
    pub data_directory: PathBuf,
    pub client: ClientSide,
    pub slot: ClientSlot,
    /// The limit that was set.
    pub limit_bytes: u64,
    pub stop: Arc<AtomicBool>,
    pub figures: Arc<CacheFigures>,
    /// The clock's hand: the file that was looked through last. The next round begins after it.
    pub hand: PathBuf,
    /// When the log was last told that the cache stays beyond its limit.
    pub complained: Option<Instant>,
}

impl Keeper {
    pub fn run(&mut self) {
        // How far the cache can grow before it is beyond its limit, counted from where it had grown to.
        let mut counted_at = 0;
        let mut room_blocks = 0;
        // Set while the cache is beyond its limit. What keeps blocks in place passes with time, but there is no hurry.
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

    /// Counts the cache, and drops blocks if it is beyond its limit.
    fn round(&mut self) -> anyhow::Result<Round> {
        let files =
            files::list(&self.data_directory, self.client.wal_segment_size_bytes(), self.client.versions())?;
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let limit_bytes = limit::current_limit_bytes(&self.data_directory, self.limit_bytes, bytes);
        if bytes <= limit_bytes {
            return Ok(Round { bytes, limit_bytes });
        }
        // Headroom, or the next block would be beyond the limit again.
        let goal = limit_bytes - limit_bytes / 8;
        let mut kept = Kept::default();
        let first = files.partition_point(|file| file.path <= self.hand);
        // Twice around: the first time passes by what was used since the hand last came by.
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

    /// Tells the log that more stays than the limit allows, and why.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_stands_still_makes_way_when_others_need_room() {
        assert!(is_due(ROUND_INTERVAL, false, || true));
        assert!(is_due(ROUND_INTERVAL, true, || false));
        assert!(!is_due(ROUND_INTERVAL, false, || false));
        assert!(!is_due(ROUND_INTERVAL / 2, true, || true));
    }
}
