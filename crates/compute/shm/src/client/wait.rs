//! Waiting until the log is durable, or until it never will be.

use std::sync::atomic::Ordering;

use borealis_types::VolumeEpoch;

use super::{CHECK_INTERVAL_MS, ClientSide};
use crate::futex;
use crate::layout::{InstanceState, MAX_MESSAGE_BYTES};
use crate::liveness::{monotonic_ms, process_exists, process_is_zombie};
use crate::request::Message;

/// A heartbeat older than this makes waiters look whether the driver is a process that only waits to be
/// collected by its parent: such a one still has its number.
const STALE_HEARTBEAT_MS: u64 = 3000;

/// Why a wait for durability ended without it.
#[derive(Clone, Copy, Debug)]
pub enum WaitError {
    /// A newer writer took over, with this epoch.
    Fenced(VolumeEpoch),
    /// The driver stopped the instance, for this reason.
    Poisoned(Message),
    /// The driver process does not exist any more.
    DriverGone,
}

impl ClientSide {
    /// Waits until everything complete in the first `sequence` WAL writes is durable.
    ///
    /// Signals do not end the wait. A commit that is reported must be durable, and one that is durable must
    /// not be reported as cancelled.
    ///
    /// # Errors
    /// When it will never become durable here. Never `Ok` before the driver said so.
    pub fn wait_durable(&self, sequence: u64) -> Result<(), WaitError> {
        let durable = &self.mapping.header().durable;
        self.wait_until(|| durable.sequence.load(Ordering::Acquire) >= sequence)
    }

    /// Waits while more log is written and not durable than the configuration allows.
    ///
    /// A record longer than the limit must not stop its own completion: when the driver has seen every write
    /// and made durable what was complete in them, the next write goes ahead.
    ///
    /// # Errors
    /// As [`ClientSide::wait_durable`].
    pub fn wait_for_log_space(&self) -> Result<(), WaitError> {
        let limit = self.config().log_ahead_limit_bytes;
        let header = self.mapping.header();
        self.wait_until(|| {
            let written = header.wal.written_lsn.load(Ordering::Acquire);
            let durable = header.durable.lsn.load(Ordering::Acquire);
            limit == 0
                || durable == 0
                || written.saturating_sub(durable) <= limit
                || header.durable.sequence.load(Ordering::Acquire)
                    >= header.wal.sequence.load(Ordering::Acquire)
        })
    }

    fn wait_until(&self, done: impl Fn() -> bool) -> Result<(), WaitError> {
        // Fenced comes first: an old acknowledgement must not let a fenced writer go on with a new write.
        self.check_state()?;
        if done() {
            return Ok(());
        }
        for _ in 0..self.config().spin_count {
            std::hint::spin_loop();
            if done() {
                return Ok(());
            }
        }
        let durable = &self.mapping.header().durable;
        loop {
            durable.waiters.fetch_add(1, Ordering::SeqCst);
            let generation = durable.generation.load(Ordering::SeqCst);
            let finished = done();
            let state = self.check_state();
            if !finished && state.is_ok() {
                // See `wake_waiters` for why no wake is lost.
                futex::wait(&durable.generation, generation, CHECK_INTERVAL_MS);
            }
            durable.waiters.fetch_sub(1, Ordering::SeqCst);
            if finished {
                return Ok(());
            }
            state?;
            self.check_driver()?;
        }
    }

    pub(super) fn check_state(&self) -> Result<(), WaitError> {
        match self.state() {
            InstanceState::Starting | InstanceState::Running => Ok(()),
            InstanceState::Fenced(epoch) => Err(WaitError::Fenced(epoch)),
            InstanceState::Poisoned => {
                let words = &self.mapping.header().state;
                let mut text = [0; MAX_MESSAGE_BYTES];
                for (target, byte) in text.iter_mut().zip(&words.reason) {
                    *target = byte.load(Ordering::Relaxed);
                }
                let length = words.reason_bytes.load(Ordering::Relaxed) as usize;
                Err(WaitError::Poisoned(Message::new(text.get(..length).unwrap_or(&text))))
            }
        }
    }

    /// The driver process exists. It may be slow for as long as it likes: only its death ends a wait.
    pub(super) fn check_driver(&self) -> Result<(), WaitError> {
        let words = &self.mapping.header().state;
        let pid = words.driver_pid.load(Ordering::Relaxed);
        if !process_exists(pid) {
            return Err(WaitError::DriverGone);
        }
        let age_ms = monotonic_ms().saturating_sub(words.heartbeat_ms.load(Ordering::Relaxed));
        if age_ms > STALE_HEARTBEAT_MS && process_is_zombie(pid) {
            return Err(WaitError::DriverGone);
        }
        Ok(())
    }
}
