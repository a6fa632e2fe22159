//! Materialization: applying redo to pages on disk, so that its log can be released.
//!
//! One round advances each segment to a target LSN. Every page with records up to the target is reconstructed
//! as of the target and written to its other slot. The pages are synced, a checkpoint names the new state,
//! and only then do readers see it and is the log before it released. Relation and database events are
//! applied in the same round. A database copy gets a round of its own, from the state just before it, so that
//! the copy has no later change of its template.

mod changes;
pub(crate) mod checkpoint;
mod log_release;
pub(crate) mod mend;
pub(crate) mod pace;
pub(crate) mod page_writer;
mod prepare;
mod round;

use crate::materialize::pace::{Backlog, MENDING_PAUSES_MAX, PAUSE, PAUSES_MAX};
use crate::{Store, StoreError};

/// What makes a round of materialization due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// When enough redo or memory has accumulated. The round pauses to leave the disk to appends, unless
    /// somebody waits for it.
    IfDue,
    /// At once and without pauses, however little there is to apply.
    Now,
}

/// What a call of [`Store::materialize`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Some segment's materialized LSN moved.
    pub advanced: bool,
    /// How many page images the round wrote.
    pub pages_written: u64,
    /// How many log files the round let go.
    pub log_files_freed: u64,
}

impl Store {
    /// Applies redo below every reader's LSN to pages on disk, writes a checkpoint, and releases log. One
    /// caller works at a time; others wait for it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the round was abandoned because page files or the checkpoint cannot be written: nothing
    /// is lost by it, and the next call tries again. [`StoreError::Poisoned`] when the log failed, or it is unknown which
    /// checkpoint is the newest; [`StoreError::Corrupt`] when what pages are made from is damaged. Redo that cannot be
    /// applied stops its segment below that record and shows in [`Store::failure`].
    pub fn materialize(&self, policy: Policy) -> Result<Progress, StoreError> {
        self.materialize_while(policy, || policy == Policy::Now || self.is_due())
    }

    /// Runs rounds while `is_wanted` returns true and there is redo to apply.
    pub(crate) fn materialize_while(
        &self,
        policy: Policy,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Progress, StoreError> {
        let _working = self.maintenance.enter();
        let mut progress = Progress::default();
        self.retry_put_off(mend::STALLED_FOR)?;
        self.prepare_for_readers();
        self.relieve_pins();
        self.free_left().inspect_err(|error| self.note_round(Some(error)))?;
        loop {
            self.check_poison()?;
            if !is_wanted() {
                return Ok(progress);
            }
            let targets = self.targets();
            if targets.is_empty() {
                self.note_round(None);
            }
            if targets.is_empty() || self.maintenance.has_ended() {
                return Ok(progress);
            }
            let round = self.round(&targets, policy);
            self.note_round(round.as_ref().err());
            let round = round.map_err(|error| match error {
                StoreError::Poisoned(_) => self.poisoned(&error),
                error => error,
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
        self.backlog().is_due(&self.options) || self.has_pages_to_mend()
    }

    pub(crate) fn backlog(&self) -> Backlog {
        let state = self.lock();
        Backlog {
            record_bytes: state.applicable_record_bytes(),
            memory_bytes: state.applicable_memory_bytes(),
        }
    }

    /// Pauses while the round is ahead of its pace, after preparing what has grown meanwhile.
    fn keep_pace(&self, share_done: f64, at_start: f64) {
        self.prepare_for_readers();
        for pause in 0..PAUSES_MAX {
            let is_mending = pause >= MENDING_PAUSES_MAX && self.has_pages_to_mend();
            let urgent = is_mending || self.maintenance.is_urgent();
            if urgent || !pace::is_ahead(share_done, at_start, self.backlog().share(&self.options)) {
                return;
            }
            self.environment.clock.sleep(PAUSE);
        }
    }

    /// Call it before closing the store: abandons a running round and begins no other, and ends
    /// [`Store::prepare_log_files`]. Redo that is not
    /// materialized then is indexed again when the store is next opened.
    pub fn end_materialization(&self) {
        self.maintenance.end();
        self.preparation.end();
    }
}
