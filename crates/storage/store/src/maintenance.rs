//! Only one thread at a time changes materialized states.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock for changing materialized states. It also tells whether somebody waits for it, and whether the
/// store is closing.
#[derive(Debug, Default)]
pub(crate) struct Maintenance {
    right: Mutex<()>,
    waiting: AtomicUsize,
    ended: AtomicBool,
}

impl Maintenance {
    /// Waits for the lock. Meanwhile the round that holds it does not pause.
    pub(crate) fn enter(&self) -> MutexGuard<'_, ()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        right
    }

    /// From now on no round begins, and a running one is abandoned.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether a round should not pause, because somebody waits for it.
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
