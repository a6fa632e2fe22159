//! What a store does after a write or sync failed, or damage was found.

use std::sync::{MutexGuard, PoisonError};

use crate::segment::state::State;
use crate::{Store, StoreError};

impl Store {
    /// The state, for looking.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the state was changed leaves it half changed; `lock_to_change` refuses then, and
        // looking shows what is there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for promising anything.
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

    /// Notes that a write or sync failed: nothing is promised from here on, because what a failed sync left on
    /// the disk is unknown and a second one would not tell.
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

    /// Notes damage to what is on disk, for [`Store::failure`].
    pub(crate) fn note_damage(&self, error: &StoreError) {
        if matches!(error, StoreError::Corrupt { .. } | StoreError::Io { .. }) {
            self.damage.get_or_init(|| {
                tracing::error!(node = self.identity.node.0, %error, "the store is damaged");
                error.to_string()
            });
        }
    }

    /// Why the store no longer keeps its promises, if it does not: a failed write, or redo that cannot be
    /// applied.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(reason) = self.poison.get().or_else(|| self.damage.get()) {
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
