//! What happens when a write or `fdatasync` fails, or damage is found.
//!
//! A failed write or sync of the log poisons the store ([`Store::poisoned`]): every append, fence and summary is refused from then
//! on, so nothing more is acknowledged, until the node is started again. Damage found by a read is reported and makes
//! that read fail, nothing else. Page files that cannot be written hold materialization up, see
//! `materialize/abandoned.rs`.

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

    pub(crate) fn check_poison(&self) -> Result<(), StoreError> {
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

    /// Records damage found on disk, for [`Store::failure`]. The store goes on: other pages are well.
    pub(crate) fn note_damage(&self, error: &StoreError) {
        if matches!(error, StoreError::Corrupt { .. } | StoreError::Io { .. }) {
            self.damage.get_or_init(|| {
                tracing::error!(node = self.identity.node.0, %error, "the store is damaged");
                error.to_string()
            });
        }
    }

    /// What is wrong with the store, if anything: a failed write or sync, damage on disk, pages that cannot be written
    /// for now, or redo that cannot be applied.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(reason) = self.poison.get().or_else(|| self.damage.get()) {
            return Some(reason.clone());
        }
        if let Some(reason) = self.held_up() {
            return Some(reason);
        }
        let state = self.lock();
        state.segments.values().find_map(|hosted| {
            let failure = hosted.failure.as_ref()?;
            let group = hosted.group();
            Some(StoreError::Redo { group, lsn: failure.lsn, reason: failure.reason.clone() }.to_string())
        })
    }
}
