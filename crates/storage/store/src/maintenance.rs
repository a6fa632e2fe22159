//! The right to change materialized states, of one thread at a time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
