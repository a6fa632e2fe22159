//! How fast a round of materialization goes: no faster than new redo makes it necessary.
//!
//! A round at full speed takes processors and the disk from appends for as long as it lasts, once per round. So it
//! pauses between pieces, and finishes about when the next one falls due. It does not pause once somebody waits for
//! it, or when it could come to hold appends back. When the store is about to be closed it is given up: nothing
//! refers yet to what it wrote.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pages between two looks at the pace.
pub(crate) const PIECE_PAGES: usize = 64;
/// Between two looks while a round is ahead of its pace.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// The longest pause of a piece, so that a round ends although no redo comes.
pub(crate) const PAUSES_MAX: u32 = 30;

/// Unapplied redo in units of what makes a round due, at which rounds stop pausing. Appends are held back at 2 at
/// the earliest (by memory).
const PRESSURE_URGENT: f64 = 1.75;
/// How much the pressure may grow while a round lasts.
const GROWTH_PER_ROUND: f64 = 0.7;

/// Whether a round that has done this share of its work, and began at this pressure, is ahead of its pace.
pub(crate) fn is_ahead(share_done: f64, pressure_at_start: f64, pressure: f64) -> bool {
    pressure < PRESSURE_URGENT && share_done > (pressure - pressure_at_start) / GROWTH_PER_ROUND
}

/// The right to change bases, of one at a time, and whether somebody waits for it.
#[derive(Debug, Default)]
pub(crate) struct Maintenance {
    right: Mutex<()>,
    waiting: AtomicUsize,
    ended: AtomicBool,
}

impl Maintenance {
    /// Waits for the right. Whoever has it stops pausing.
    pub(crate) fn enter(&self) -> MutexGuard<'_, ()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        right
    }

    /// Whether nobody has the right.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.right.try_lock().is_ok()
    }

    /// From now on no round begins, and one under way is given up.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether pausing would make somebody wait.
    pub(crate) fn is_urgent(&self) -> bool {
        self.has_ended() || self.waiting.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_keeps_step_with_new_redo() {
        assert!(is_ahead(0.1, 1.0, 1.0), "nothing came");
        assert!(is_ahead(0.5, 1.0, 1.3));
        assert!(!is_ahead(0.5, 1.0, 1.4), "half the growth, half the work");
        assert!(!is_ahead(0.0, 1.0, 1.0), "it begins at once");
    }

    #[test]
    fn a_round_does_not_pause_when_appends_could_come_to_wait() {
        assert!(!is_ahead(0.99, 1.0, 1.75));
        assert!(!is_ahead(0.99, 2.5, 2.5), "it began late");
    }

    #[test]
    fn who_waits_makes_it_urgent_until_he_has_the_right() {
        let maintenance = Maintenance::default();
        let right = maintenance.enter();
        assert!(!maintenance.is_urgent(), "having it is not waiting for it");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(maintenance.enter()));
            while !maintenance.is_urgent() {
                std::thread::yield_now();
            }
            drop(right);
            other.join().expect("it gets the right");
        });
        assert!(!maintenance.is_urgent());
        maintenance.end();
        assert!(maintenance.is_urgent());
    }
}
