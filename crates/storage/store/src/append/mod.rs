//! Taking redo.

mod batch;
pub(crate) mod offer;
mod write;

use borealis_types::{GroupId, MAX_GROUPS};
use borealis_wire::{BatchHeader, SegmentProgress};

use crate::append::batch::misuse;
use crate::append::offer::check_release;
use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::log::payload::PositionsEntry;
use crate::metrics::count;
use crate::store::Sequence;
use crate::{Origin, Policy, Store, StoreError};

/// What an append did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// [`Store::sync`] to here before anything of this is told to anyone.
    pub sequence: Sequence,
    /// The SCL of every segment the batch concerned, moved or not; true once `sequence` is durable.
    pub progress: Vec<SegmentProgress>,
    /// How many records some segment took.
    pub taken: usize,
    /// Segments that could not take all: too many records wait for a predecessor. Fill the gap first.
    pub too_far_ahead: Vec<GroupId>,
}

impl Store {
    /// Takes the records of a batch that are new here into the log, not yet durable. An empty batch only
    /// brings positions. Blocks while the memory for records that are not applied is used up and applying
    /// them is possible.
    ///
    /// # Errors
    /// [`Refusal::Misuse`] when the batch is malformed or contradicts what is held (nothing of it was taken, or
    /// only what came before); [`Refusal::Fenced`] when its epoch is over; [`StoreError::NeedsHistory`] when
    /// its epoch is not known yet; [`StoreError::Poisoned`].
    pub fn append(&self, batch: &[u8], origin: Origin) -> Result<Appended, StoreError> {
        self.check_poison()?;
        let (mut batch, mut state) = loop {
            let batch = self.parse_batch(batch)?;
            self.wait_for_room()?;
            let state = self.lock_to_change()?;
            // The history that says who writes in this epoch may have come in between.
            if batch.server_version.is_some() || state.release_in(batch.header.volume_epoch).is_none() {
                break (batch, state);
            }
        };
        check_release(&state, &batch)?;
        self.check_origin(&state, &batch, origin)?;
        let positions_count = matches!(origin, Origin::Writer(_));
        let news = positions_count && state.observe(&batch.header);
        let outcome = self.offer(&mut state, &mut batch, origin);
        let taken = batch.records.iter().filter(|record| !record.taken.is_empty()).count();
        count(&self.counters.records_taken, taken as u64);
        if taken > 0 {
            self.write(&mut state, batch, positions_count)?;
        } else if news {
            let positions = PositionsEntry::from(&batch.header);
            self.append_entry(&mut state, EntryKind::Positions, &[&encode(&positions)])?;
        }
        if let Some(error) = outcome.refused {
            return Err(error);
        }
        let progress = |group: GroupId| {
            let segment_complete_lsn = state.segments.get(&group)?.segment.segment_complete_lsn();
            Some(SegmentProgress { group, segment_complete_lsn })
        };
        Ok(Appended {
            sequence: Sequence(state.log.end()),
            progress: outcome.concerned.iter().filter_map(progress).collect(),
            taken,
            too_far_ahead: outcome.too_far_ahead.iter().collect(),
        })
    }

    /// Applies redo in the caller's place while too much of it waits, and that can make it less. No longer: others
    /// go on appending, and there would always be more to apply.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        let is_too_much = || self.backlog().share(&self.options) > 1.0;
        if is_too_much() {
            count(&self.counters.appends_held_back, 1);
            self.materialize_while(Policy::Now, is_too_much)?;
        }
        Ok(())
    }

    /// Notes positions that came without a batch, as a writer of `epoch` says; not durable by itself.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn note_positions(&self, header: &BatchHeader) -> Result<(), StoreError> {
        let mut state = self.lock_to_change()?;
        if header.tails.iter().any(|tail| tail.group.0 >= MAX_GROUPS) {
            return Err(misuse("a group number in the header"));
        }
        if state.observe(header) {
            let positions = PositionsEntry::from(header);
            self.append_entry(&mut state, EntryKind::Positions, &[&encode(&positions)])?;
        }
        Ok(())
    }
}
