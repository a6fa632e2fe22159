//! A round that cannot write its pages is abandoned, and tried again.
//!
//! Page files hold nothing that was promised: the log does, and it is released only after a checkpoint that needs it no
//! more. Until such a checkpoint is durable nothing refers to what a round wrote, so the round can be forgotten as a
//! whole. The next one makes every page from the log again and writes it again, to the same slots; what an earlier
//! attempt left there, and whether the disk has it, does not matter (after a failed `fdatasync` nobody knows). So a
//! full disk holds materialization up for as long as it is full, and no longer.

use std::sync::PoisonError;

use borealis_wire::Refusal;

use crate::metrics::count;
use crate::{Store, StoreError};

impl Store {
    /// Notes why a round failed. The log's failures and that of a checkpoint which may be the newest one have poisoned
    /// the store already.
    pub(super) fn after_failed_round(&self, error: StoreError) -> StoreError {
        match &error {
            StoreError::Io { .. } => {
                count(&self.counters.rounds_abandoned, 1);
                let reason = format!("applying redo to pages is held up, and tried again: {error}");
                tracing::error!(node = self.identity.node.0, reason);
                *self.held_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
            }
            _ => self.note_damage(&error),
        }
        error
    }

    /// Notes that a round succeeded, or that there is nothing to do.
    pub(super) fn note_not_held_up(&self) {
        *self.held_up.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why the last round was abandoned, if no later one succeeded.
    pub(crate) fn held_up(&self) -> Option<String> {
        self.held_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses an append that would need a round, when the last one was abandoned: whoever materializes tries again in
    /// its own time, and a whole round for each append would keep the disk from recovering.
    pub(crate) fn refuse_while_held_up(&self) -> Result<(), StoreError> {
        self.held_up().map_or(Ok(()), |reason| Err(Refusal::Failed(reason).into()))
    }
}
