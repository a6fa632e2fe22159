//! Folding redo into pages, checkpoints, and letting go of the log.
//!
//! One round takes each segment from its base to a later one: every page with records in between is made as of
//! the target and written to its other slot, all of it is synced, a checkpoint names the new state, and only
//! then do readers see it and does the log before it become free. Relation and database events are folded at
//! the same time. A database copy is taken in a step of its own, from the state just before it, so that no
//! later change of the template is in it.

mod changes;
pub(crate) mod checkpoint;
mod log_release;
pub(crate) mod pace;
pub(crate) mod page_writer;
mod prepare;
mod round;

use crate::materialize::pace::{Backlog, PAUSE, PAUSES_MAX};
use crate::{Store, StoreError};

/// When to work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// If enough redo or memory has piled up; slowly, unless somebody waits for it.
    IfDue,
    /// In any case.
    Now,
}

/// What a call of [`Store::materialize`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Some segment's materialized LSN moved.
    pub advanced: bool,
    /// Page versions written.
    pub pages_written: u64,
    /// Log files let go.
    pub log_files_freed: u64,
}

impl Store {
    /// Folds redo that nobody reads below into pages, writes a checkpoint, and frees log. One caller works at
    /// a time; others wait for it.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] when a write or sync failed; [`StoreError::Corrupt`] when what pages are made
    /// from is damaged. Redo that cannot be applied stops its segment below that record and shows in
    /// [`Store::failure`].
    pub fn materialize(&self, policy: Policy) -> Result<Progress, StoreError> {
        self.materialize_while(policy, || policy == Policy::Now || self.is_due())
    }

    /// Rounds for as long as `is_wanted` says, and there is something to apply.
    pub(crate) fn materialize_while(
        &self,
        policy: Policy,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Progress, StoreError> {
        let _working = self.maintenance.enter();
        let mut progress = Progress::default();
        self.prepare_for_readers();
        loop {
            self.check_poison()?;
            if !is_wanted() {
                return Ok(progress);
            }
            let targets = self.targets();
            if targets.is_empty() || self.maintenance.has_ended() {
                return Ok(progress);
            }
            let round = self.round(&targets, policy).map_err(|error| match error {
                StoreError::Io { .. } => self.poisoned(&error),
                error => {
                    self.note_damage(&error);
                    error
                }
            })?;
            progress.pages_written += round.pages_written;
            progress.log_files_freed += round.log_files_freed;
            if !round.advanced {
                return Ok(progress);
            }
            progress.advanced = true;
        }
    }

    fn is_due(&self) -> bool {
        self.backlog().is_due(&self.options)
    }

    pub(crate) fn backlog(&self) -> Backlog {
        let state = self.lock();
        Backlog {
            record_bytes: state.applicable_record_bytes(),
            memory_bytes: state.applicable_memory_bytes(),
        }
    }

    /// Pauses while the round is ahead of its pace, after a look at what has grown meanwhile.
    fn keep_pace(&self, share_done: f64, at_start: f64) {
        self.prepare_for_readers();
        for _ in 0..PAUSES_MAX {
            let urgent = self.maintenance.is_urgent();
            if urgent || !pace::is_ahead(share_done, at_start, self.backlog().share(&self.options)) {
                return;
            }
            self.environment.clock.sleep(PAUSE);
        }
    }

    /// Before the store is closed: gives up a round under way, and begins none any more. What is not folded into
    /// pages then is indexed again by the next opening.
    pub fn end_materialization(&self) {
        self.maintenance.end();
    }
}
