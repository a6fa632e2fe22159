//! The scrubber: reads everything once in a while, behind everybody else.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use borealis_store::{ScrubCursor, Store};

use crate::line_throttle::LineThrottle;
use crate::materializer::lower_priority;

/// Between two pieces.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most bytes read in a piece, whatever period was asked for: the disk is there for commits and readers.
const PIECE_BYTES_MAX: u64 = 32 << 20;
/// Fewest, so that a nearly empty node has its passes, too.
const PIECE_BYTES_MIN: u64 = 64 << 10;
/// The longest period: ten years.
const PERIOD_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How much less of a busy processor it gets: nobody waits for it.
const NICENESS: libc::c_int = 19;

/// Reads everything within a period, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Scrubber {
    store: Arc<Store>,
    period: Duration,
    stopping: Mutex<bool>,
    wake: Condvar,
    failed_lines: LineThrottle,
}

impl Scrubber {
    pub(crate) fn new(store: &Arc<Store>, period: Duration) -> Scrubber {
        Scrubber {
            store: Arc::clone(store),
            // Longer than any node lives, so that times can be added up.
            period: period.min(PERIOD_MAX),
            stopping: Mutex::default(),
            wake: Condvar::new(),
            failed_lines: LineThrottle::default(),
        }
    }

    /// Makes [`Scrubber::run_until_stopped`] return after the piece it is at.
    pub(crate) fn stop(&self) {
        *self.stopping.lock().expect("nothing panics while it holds this lock") = true;
        self.wake.notify_all();
    }

    /// The body of the scrubber's thread.
    pub(crate) fn run_until_stopped(&self) {
        lower_priority(NICENESS);
        let mut cursor = ScrubCursor::default();
        let (mut pass_bytes, mut next_pass) = (0, Instant::now());
        while self.wait() {
            // What was read sooner than it had to be is not read again before the next period.
            if pass_bytes == 0 && Instant::now() < next_pass {
                continue;
            }
            let budget = piece_bytes(self.store.scrub_bytes(), self.period);
            match self.store.scrub(&mut cursor, budget) {
                Ok(done) => {
                    pass_bytes += done.bytes;
                    if done.pass_ended {
                        let damage = self.store.damage();
                        tracing::info!(bytes = pass_bytes, damage, "the scrubber has read everything");
                        pass_bytes = 0;
                        next_pass = (next_pass + self.period).max(Instant::now());
                    }
                }
                Err(error) => {
                    if let Some(suppressed) = self.failed_lines.admit() {
                        tracing::error!(%error, suppressed, "the scrubber cannot read");
                    }
                }
            }
        }
    }

    /// Waits for the time of the next piece; false when stopping.
    fn wait(&self) -> bool {
        let stopping = self.stopping.lock().expect("nothing panics while it holds this lock");
        let (stopping, _) = self
            .wake
            .wait_timeout_while(stopping, INTERVAL, |stopping| !*stopping)
            .expect("nothing panics while it holds this lock");
        !*stopping
    }
}

/// How much to read in a piece, so that all bytes are read in a period.
fn piece_bytes(all: u64, period: Duration) -> u64 {
    let pieces = (period.as_millis() / INTERVAL.as_millis()).max(1);
    let share = u128::from(all).div_ceil(pieces);
    u64::try_from(share).unwrap_or(PIECE_BYTES_MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_kept_as_far_as_the_disk_may_be_used() {
        let week = Duration::from_secs(7 * 24 * 3600);
        assert_eq!(piece_bytes(0, week), PIECE_BYTES_MIN);
        let tebibyte = 1 << 40;
        let piece = piece_bytes(tebibyte, week);
        assert!((1 << 20..2 << 20).contains(&piece), "{piece} bytes a second");
        assert!(piece * week.as_secs() >= tebibyte);
        assert_eq!(piece_bytes(tebibyte, Duration::from_secs(3)), PIECE_BYTES_MAX);
        assert_eq!(piece_bytes(tebibyte, Duration::ZERO), PIECE_BYTES_MAX);
    }
}
