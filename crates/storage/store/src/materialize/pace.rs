//! When redo is materialized, and how fast: no faster than new redo makes necessary.
//!
//! A round at full speed takes processors and disk from appends for as long as it lasts. So it pauses between
//! pieces, but finishes well before back pressure would begin. It does not pause once somebody waits for it, and pauses
//! less once pages that peers brought wait to be written: until then the disk has them damaged.
//! When the store is closed, a running round is abandoned: nothing refers yet to what it wrote.

use std::time::Duration;

use borealis_types::PAGE_SIZE;

use crate::Options;

/// Pages made between two checks of the pace.
pub(crate) const PIECE_PAGES: usize = 64;
/// Length of one pause while a round is ahead of its pace.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// Most pauses after one piece, so that a round ends even when no new redo comes.
pub(crate) const PAUSES_MAX: u32 = 30;
/// The same while pages from peers are in memory alone: a round writes some 2,000 pages a second then.
pub(crate) const MENDING_PAUSES_MAX: u32 = 3;

/// Back pressure begins when this many rounds' worth of records is unapplied.
const LAG_ROUNDS_MAX: u64 = 8;
/// From this share of the backlog limit on, rounds do not pause.
const URGENT_SHARE: f64 = 0.85;
/// Share of the headroom at the start of a round that new redo may consume before the round stops pausing.
const ROOM_PER_ROUND: f64 = 0.6;

/// Redo that could be applied now and is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Backlog {
    pub record_bytes: u64,
    /// Memory that the index takes, in bytes.
    pub memory_bytes: u64,
}

impl Backlog {
    /// Whether there is enough for a round.
    pub(crate) fn is_due(self, options: &Options) -> bool {
        let memory = self.memory_bytes > options.memory_limit_bytes / 4;
        self.record_bytes > 0 && (memory || self.record_bytes >= options.materialize_after_bytes)
    }

    /// The backlog as a share of its limit. Above 1, back pressure begins: the index takes more memory than
    /// intended, or so much log is unapplied that the materializer must have been kept from its work.
    pub(crate) fn share(self, options: &Options) -> f64 {
        let memory = (options.memory_limit_bytes / 2).max(PAGE_SIZE as u64);
        let log = options.materialize_after_bytes.saturating_mul(LAG_ROUNDS_MAX).max(1);
        (self.memory_bytes as f64 / memory as f64).max(self.record_bytes as f64 / log as f64)
    }
}

/// Whether a round that has done `share_done` of its work is ahead of its pace, when the backlog's share was
/// `at_start` and is `now`.
pub(crate) fn is_ahead(share_done: f64, at_start: f64, now: f64) -> bool {
    let is_urgent = at_start.max(now) >= URGENT_SHARE;
    !is_urgent && share_done > (now - at_start) / ((1.0 - at_start) * ROOM_PER_ROUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_keeps_step_with_new_redo() {
        assert!(is_ahead(0.1, 0.5, 0.5), "nothing came");
        assert!(is_ahead(0.5, 0.5, 0.6));
        assert!(!is_ahead(0.5, 0.5, 0.66), "more than half of what may come, and half the work");
        assert!(!is_ahead(0.0, 0.5, 0.5), "it begins at once");
    }

    #[test]
    fn a_round_does_not_pause_when_appends_could_come_to_wait() {
        assert!(!is_ahead(0.99, 0.5, 0.85));
        assert!(!is_ahead(0.99, 1.2, 1.2), "it began late");
    }

    #[test]
    fn memory_or_log_makes_a_round_due_and_holds_appends_back() {
        let options =
            Options { memory_limit_bytes: 64 << 20, materialize_after_bytes: 10 << 20, ..Options::default() };
        let backlog = |record_mib: u64, memory_mib: u64| Backlog {
            record_bytes: record_mib << 20,
            memory_bytes: memory_mib << 20,
        };
        assert!(!backlog(9, 16).is_due(&options));
        assert!(backlog(10, 0).is_due(&options) && backlog(1, 17).is_due(&options));
        assert!(!backlog(0, 17).is_due(&options), "there is nothing to apply");
        assert!(backlog(80, 32).share(&options) <= 1.0);
        assert!(backlog(81, 0).share(&options) > 1.0 && backlog(1, 33).share(&options) > 1.0);
    }
}
