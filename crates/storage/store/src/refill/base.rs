//! How a joining segment becomes full: it takes its base.

use std::collections::BTreeMap;

use borealis_quorum::DurablePoint;
use borealis_types::{GroupId, Lsn, VolumeEpoch};
use borealis_wire::Refusal;

use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::log::files::LogFiles;
use crate::log::payload::BaseEntry;
use crate::redo_engine::RedoContext;
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::space::Purpose;
use crate::store::Sequence;
use crate::{Store, StoreError};

impl Store {
    /// Lets a joining segment whose chain has every record of the group take what it knows to be durable for its base, for
    /// nothing has to be brought. Returns whether it did. For whoever has the right to change materialized states.
    pub(super) fn take_base_of_own(&self, group: GroupId) -> Result<bool, StoreError> {
        let point = {
            let state = self.lock_to_change()?;
            let hosted = Store::hosted(&state, group)?;
            hosted.segment.base_point().filter(|point| hosted.segment.has_chain_to(*point))
        };
        let Some(point) = point else { return Ok(false) };
        self.take_base(group, point)?;
        Ok(true)
    }

    /// Makes a joining segment full, durably, with everything as of `point`. For whoever has the right to change materialized
    /// states: until the entry is durable no round may write to a slot of what was brought.
    pub(super) fn take_base(&self, group: GroupId, point: DurablePoint) -> Result<(), StoreError> {
        let sequence = {
            let mut state = self.lock_to_change()?;
            let hosted = Store::hosted(&state, group)?;
            let epoch = hosted.segment.history().newest_epoch();
            hosted.check_base(point)?;
            // Tried on a copy, for the log must not have an entry that is refused.
            let refused =
                |refused: borealis_quorum::segment::BaseRefused| Refusal::NotNow(refused.to_string());
            hosted.segment.clone().take_base(epoch, point).map_err(refused)?;
            let entry = encode(&BaseEntry { group, epoch, point });
            self.reserve(&mut state, entry.len(), Purpose::Promise)?;
            self.append_entry(&mut state, EntryKind::Base, &[&entry])?;
            let taken = state.take_base(self.context(), &self.files, group, epoch, point);
            taken.map_err(|error| self.poisoned(&error))?;
            Sequence(state.log.end())
        };
        self.sync_promise(sequence)?;
        tracing::info!(node = self.identity.node.0, group = group.0, lsn = %point.volume.end, "a segment joined its group");
        self.write_checkpoint_after_refill();
        Ok(())
    }
}

impl HostedSegment {
    /// Refuses a base that not everything is as of, and that the chain does not reach.
    fn check_base(&self, point: DurablePoint) -> Result<(), StoreError> {
        if self.segment.has_chain_to(point) { Ok(()) } else { self.check_whole(point) }
    }

    /// Goes on from its base: with what peers brought, or with its own chain from the group's first record on.
    fn take_base(&mut self, epoch: VolumeEpoch, point: DurablePoint) -> Result<(), StoreError> {
        self.check_base(point)?;
        let has_chain = self.segment.has_chain_to(point);
        let (group, lsn) = (self.group(), point.volume.end);
        let durable = self.segment.known_durable().volume.end;
        // The log may have records that the segment has not: see `Holding` in `read/tail.rs`.
        let known: BTreeMap<Lsn, Lsn> = self
            .segment
            .uncertain()
            .map(|record| (record.link.span.start, record.link.previous_end))
            .collect();
        self.segment.take_base(epoch, point).map_err(|error| {
            StoreError::corrupt(format!("the base of group {group} at {lsn}"), error.to_string())
        })?;
        if has_chain {
            self.pending
                .retain(|start, reference| reference.span.end <= durable || known.contains_key(start));
            // What peers brought is of no use.
            self.refilled = None;
            self.is_refilling = false;
            self.version += 1;
            return Ok(());
        }
        let waits =
            |start: Lsn| known.get(&start).is_some_and(|previous_end| *previous_end >= point.group_tail);
        self.go_on_from_refilled(lsn, waits);
        Ok(())
    }
}

impl State {
    /// Lets a joining segment take its base, and indexes what connects then.
    pub(crate) fn take_base(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        group: GroupId,
        epoch: VolumeEpoch,
        point: DurablePoint,
    ) -> Result<(), StoreError> {
        let hosted = self.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
        hosted.take_base(epoch, point)?;
        self.index_pending(context, files, group)
    }
}
