//! What happens when a write or `fdatasync` fails.
//!
//! A failed write or sync of what promises depend on poisons the store ([`Store::poisoned`]): every append, fence and
//! summary is refused from then on, so nothing more is acknowledged, until the node is started again; the opening then
//! writes again what the page cache may only claim to have stored (`log/rewrite.rs`). That is: the write of a log entry,
//! the sync of the log, the replacement of the checkpoint, and a record that a segment has just taken and that is read back
//! as something else.
//!
//! Everything else passes with its cause and is refused or tried again: a failed open or read; a lack of descriptors or
//! of space while room for an entry is made ([`Store::reserve`]), before anything was changed; and whatever fails in a
//! round of materialization before its checkpoint is in place, because the next round writes all of its pages again, also
//! those whose sync failed. Until that checkpoint is in place nothing refers to what the round wrote; what an abandoned one left
//! in a slot, and whether the disk has it, does not matter. A log file that cannot be prepared is made anew
//! (`log/preparation.rs`): until it is begun nothing is in it. Damage is another matter: it concerns the
//! page or the log entry that it is found in (`materialize/mend.rs`).

use std::sync::{MutexGuard, PoisonError};

use crate::segment::state::State;
use crate::{Store, StoreError};

impl Store {
    /// Locks the state for reading it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked may have left the state half changed. `lock_to_change` refuses then; reading
        // shows what is there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the state for changing it or for promising anything that it says. Refused once the store is
    /// poisoned.
    pub(crate) fn lock_to_change(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock().map_err(|_| {
            self.poisoned(&StoreError::Poisoned("a thread died while it changed the store".to_owned()))
        })?;
        self.check_poison()?;
        Ok(state)
    }

    /// Whether the store still keeps its promises: it has not failed, nor renounced ([`Store::renounce`]).
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] if it does not.
    pub fn check_poison(&self) -> Result<(), StoreError> {
        self.poison.get().map_or(Ok(()), |reason| Err(StoreError::Poisoned(reason.clone())))
    }

    /// Poisons the store after a failed write or sync: it promises nothing until it is opened again. A retry
    /// would prove nothing: after a failed `fdatasync` the kernel marks the pages clean, and the next call
    /// succeeds although they never reached the disk.
    pub(crate) fn poisoned(&self, error: &StoreError) -> StoreError {
        let reason = match error {
            StoreError::Poisoned(reason) => reason.clone(),
            other => other.to_string(),
        };
        let reason = self.poison.get_or_init(|| {
            tracing::error!(node = self.identity.node.0, reason, "the store stopped");
            reason
        });
        StoreError::Poisoned(reason.clone())
    }

    /// What keeps the store from its work, if anything: a failed write or sync, or a segment's redo that cannot be
    /// applied. Damage that concerns single pages or log entries is in [`Store::damage`].
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(reason) = self.poison.get() {
            return Some(reason.clone());
        }
        let state = self.lock();
        state.segments.values().find_map(|hosted| {
            let failure = hosted.failure.as_ref()?;
            let group = hosted.group();
            Some(StoreError::Redo { group, lsn: failure.lsn, reason: failure.reason.clone() }.to_string())
        })
    }
}
