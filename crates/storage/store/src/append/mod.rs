//! Taking redo.

mod batch;
mod learn;
pub(crate) mod offer;
mod write;

use borealis_types::{GroupId, MAX_GROUPS, MembershipEpoch};
use borealis_wire::{BatchHeader, SegmentProgress};

use crate::append::batch::misuse;
use crate::append::offer::check_release;
use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::log::payload::{BATCH_PREFIX_BYTES, PositionsEntry};
use crate::metrics::count;
use crate::space::Purpose;
use crate::store::Sequence;
use crate::{Origin, Policy, Store, StoreError};

/// The result of an append.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Call [`Store::sync`] with it before anybody is told anything of this.
    pub sequence: Sequence,
    /// The SCL of every segment that the batch has records for, whether it moved or not. True once `sequence`
    /// is durable.
    pub progress: Vec<SegmentProgress>,
    /// How many records some segment took.
    pub taken: usize,
    /// Groups whose segment refused records because too many already wait for a predecessor. Their gap must
    /// be filled first.
    pub too_far_ahead: Vec<GroupId>,
}

impl Store {
    /// Appends the records of a batch that are new here to the log, without syncing it. A batch without
    /// records only brings positions. Blocks and materializes while too much redo is unapplied (back
    /// pressure), unless nothing can be applied.
    ///
    /// `made_for` is the membership of each group that a writer or a recovery knows; a group that is not listed is not looked at,
    /// and peers list none.
    ///
    /// # Errors
    /// [`StoreError::OtherMembership`] (then none of it was taken);
    /// [`borealis_wire::Refusal::Misuse`] when the batch is malformed or contradicts what a segment holds (then none of it
    /// was taken, or only the records before the contradiction); [`borealis_wire::Refusal::Fenced`] when its epoch is over;
    /// [`StoreError::NeedsHistory`] when a segment has not been told about its epoch; [`borealis_wire::Refusal::NotNow`]
    /// when the disk is nearly full or the system refuses what is needed (then none of it was taken);
    /// [`StoreError::Poisoned`].
    pub fn append(
        &self,
        batch: &[u8],
        origin: Origin,
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<Appended, StoreError> {
        self.check_poison()?;
        let (mut batch, learned, mut state) = loop {
            let batch = self.parse_batch(batch)?;
            self.wait_for_room()?;
            self.check_stuck_backlog(origin)?;
            let learned = self.learn(&batch, origin);
            let state = self.lock_to_change()?;
            // The epoch may have been installed after the batch was parsed without knowing its release.
            if batch.server_version.is_some() || state.release_in(batch.header.volume_epoch).is_none() {
                break (batch, learned, state);
            }
        };
        let recovery = match origin {
            Origin::Recovery(promise, _) => Some(promise.epoch),
            Origin::Writer(_) | Origin::Peer(_) => None,
        };
        state.check_made_for(made_for, recovery)?;
        self.index_put_off(&mut state, &batch, origin)?;
        check_release(&state, &batch)?;
        self.check_origin(&state, &batch, origin)?;
        let positions_count = matches!(origin, Origin::Writer(_));
        let purpose = match origin {
            Origin::Recovery(..) => Purpose::Repair,
            _ => Purpose::Redo,
        };
        // Before segments take anything. Positions alone are shorter than the batch that brings them.
        self.reserve(&mut state, BATCH_PREFIX_BYTES + batch.bytes.len(), purpose)?;
        let news = positions_count && state.observe(&batch.header);
        let outcome = self.offer(&mut state, &mut batch, origin);
        let taken = batch.records.iter().filter(|record| !record.taken.is_empty()).count();
        count(&self.counters.records_taken, taken as u64);
        if taken > 0 {
            self.write(&mut state, batch, &learned, positions_count)?;
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

    /// Back pressure: materializes on the caller's thread until the backlog is below its limit or nothing
    /// more can be applied. It stops there, because others go on appending and the backlog never empties.
    fn wait_for_room(&self) -> Result<(), StoreError> {
        let is_too_much = || self.backlog().share(&self.options) > 1.0;
        if is_too_much() {
            self.refuse_while_rounds_fail()?;
            count(&self.counters.appends_held_back, 1);
            self.materialize_while(Policy::Now, is_too_much)?;
        }
        Ok(())
    }

    /// Notes positions that the writer sent without records. They are logged, but not synced.
    ///
    /// # Errors
    /// [`StoreError::OtherMembership`], or when the store is poisoned.
    pub fn note_positions(
        &self,
        header: &BatchHeader,
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<(), StoreError> {
        let mut state = self.lock_to_change()?;
        state.check_made_for(made_for, None)?;
        let positions = encode(&PositionsEntry::from(header));
        if header.tails.iter().any(|tail| tail.group.0 >= MAX_GROUPS) {
            return Err(misuse("a group number in the header"));
        }
        self.reserve(&mut state, positions.len(), Purpose::Promise)?;
        if state.observe(header) {
            self.append_entry(&mut state, EntryKind::Positions, &[&positions])?;
        }
        Ok(())
    }
}
