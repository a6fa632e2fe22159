//! Group commit: everybody who waits while a sync runs is served by the next one.

use std::sync::{Condvar, Mutex, PoisonError};

use borealis_types::invariant;

use crate::StoreError;
use crate::log::position::LogPosition;

#[derive(Debug)]
struct Progress {
    /// The log is durable before this position.
    durable: LogPosition,
    /// A thread is inside a sync.
    running: bool,
    /// A sync failed. None may succeed from then on.
    failed: bool,
    /// How many threads wait for it. Counted because a wake-up costs a system call even if nobody waits.
    waiting: usize,
}

/// Shares syncs among the threads that wait for the log to be durable.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl GroupCommit {
    pub(crate) fn new(durable: LogPosition) -> GroupCommit {
        GroupCommit {
            progress: Mutex::new(Progress { durable, running: false, failed: false, waiting: 0 }),
            changed: Condvar::new(),
        }
    }

    /// The log is durable before this position.
    pub(crate) fn durable(&self) -> LogPosition {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).durable
    }

    /// Returns when the log is durable before `wanted`. `sync` makes durable what was appended so far and
    /// returns how far that is; one thread at a time calls it. When it fails, each waiter calls it again and
    /// must get an error too: after a failed `fdatasync`, the kernel may report success for pages it has
    /// dropped.
    pub(crate) fn wait(
        &self,
        wanted: LogPosition,
        sync: impl Fn() -> Result<LogPosition, StoreError>,
    ) -> Result<(), StoreError> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if progress.durable >= wanted {
                return Ok(());
            }
            if progress.running {
                progress.waiting += 1;
                progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
                progress.waiting -= 1;
                continue;
            }
            progress.running = true;
            drop(progress);
            let result = sync();
            progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.running = false;
            if progress.waiting > 0 {
                self.changed.notify_all();
            }
            progress.failed |= result.is_err();
            let durable = result?;
            invariant!("failed-sync-is-final", !progress.failed, "a sync succeeded after another had failed");
            progress.durable = progress.durable.max(durable);
            invariant!(
                "synced-before-reported",
                progress.durable >= wanted,
                "{wanted:?} was appended before the sync, which reached {durable:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant synced-before-reported is broken")]
    fn a_sync_that_did_not_reach_what_was_asked_is_not_reported() {
        let commit = GroupCommit::new(LogPosition(64));
        let _ = commit.wait(LogPosition(200), || Ok(LogPosition(100)));
    }

    #[test]
    #[should_panic(expected = "invariant failed-sync-is-final is broken")]
    fn a_sync_that_succeeds_after_one_that_failed_is_not_believed() {
        let commit = GroupCommit::new(LogPosition(64));
        let failed = || Err(StoreError::Poisoned("the disk failed".to_owned()));
        assert!(commit.wait(LogPosition(200), failed).is_err());
        let _ = commit.wait(LogPosition(200), || Ok(LogPosition(200)));
    }
}
