//! What segments promise: fences, histories, and the summaries that say so.

use std::sync::PoisonError;

use borealis_quorum::evidence::{Implausible, check_history};
use borealis_quorum::segment::Standing;
use borealis_quorum::{DurablePoint, Promise};
use borealis_types::{EpochHistory, GroupId, MembershipEpoch, WriterId, check_epoch, invariant};
use borealis_wire::{GroupTail, Refusal, SegmentSummary};

use crate::directory::encode;
use crate::log::entry::{EntryKind, PAYLOAD_BYTES_MAX};
use crate::log::payload::{AdoptEntry, InstallEntry};
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::space::Purpose;
use crate::store::Sequence;
use crate::{Origin, Store, StoreError};

impl Store {
    /// Promises every segment to a writer, so that no older writer is accepted. Durable on return. `made_for` is the
    /// membership of each group that the sender knows, as in everything that takes it: a group that is not listed is not
    /// looked at.
    ///
    /// # Errors
    /// [`StoreError::OtherMembership`].
    /// [`Refusal::Fenced`] when a segment is promised to a newer epoch, or to another writer of this one.
    /// [`Refusal::Misuse`] for an epoch out of bounds ([`check_epoch`]). Nothing changes then.
    pub fn fence(
        &self,
        promise: Promise,
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        let (summaries, sequence) = {
            let mut state = self.lock_to_change()?;
            state.check_made_for(made_for, Some(promise.epoch))?;
            let standing = state.segments.values().map(|hosted| hosted.segment.promise());
            let newest =
                standing.clone().find(|&standing| standing != promise && standing.epoch >= promise.epoch);
            if let Some(newest) = newest {
                return Err(Refusal::Fenced(newest.epoch).into());
            }
            let known = standing.clone().map(|standing| standing.epoch).max().unwrap_or_default();
            check_epoch(known, promise.epoch).map_err(|error| implausible(error.into()))?;
            if standing.clone().any(|standing| standing != promise) {
                let entry = encode(&promise);
                self.reserve(&mut state, entry.len(), Purpose::Promise)?;
                self.append_entry(&mut state, EntryKind::Fence, &[&entry])?;
                for hosted in state.segments.values_mut() {
                    hosted.segment.fence(promise).map_err(|error| Refusal::Fenced(error.current.epoch))?;
                }
            }
            check_fenced(&state, promise);
            (summaries(&state), Sequence(state.log.end()))
        };
        self.sync_promise(sequence)?;
        Ok(summaries)
    }

    /// Installs the outcome of a recovery in every segment: truncates the records that the history does not
    /// admit, and accepts its writer. `tails` says where each group ends at the newest opening; a group that
    /// is not listed becomes readable only when the writer says where it ends. Durable on return.
    ///
    /// The epoch must have been promised before ([`Store::fence`]).
    ///
    /// # Errors
    /// [`StoreError::OtherMembership`].
    /// [`Refusal::Fenced`] when a newer writer was promised; [`StoreError::Install`] when the history
    /// contradicts what a segment knows.
    pub fn install(
        &self,
        writer: WriterId,
        history: &EpochHistory,
        tails: &[GroupTail],
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        let Some(newest) = history.newest().copied() else {
            return Err(Refusal::Misuse("a history without any opening opens no epoch".to_owned()).into());
        };
        let item = |hosted: &HostedSegment| {
            let group = hosted.group();
            let tail = tails.iter().find(|tail| tail.group == group);
            // A group that is not listed has no record above the opening. If its chain ends there it is
            // complete; for any other chain that is not known.
            let group_tail = tail.map_or(newest.last.end, |tail| tail.last_end);
            let durable = match tail {
                // It would take for its base what nobody said of its group.
                None if hosted.is_joining() => DurablePoint::default(),
                _ => DurablePoint { volume: newest.last, group_tail },
            };
            InstallEntry { group, writer: Some(writer), history: history.clone(), durable }
        };
        // One that came since the fence has the history from its peers later: it must not keep the others from it.
        let came_since =
            |hosted: &&HostedSegment| hosted.is_joining() && hosted.segment.promise().epoch < newest.epoch;
        self.install_items(made_for, |state| {
            state.segments.values().filter(|hosted| !came_since(hosted)).map(item).collect()
        })
    }

    /// Installs a newer history that the members of one group have proven (`borealis_quorum::evidence`). Durable on
    /// return.
    ///
    /// # Errors
    /// As [`Store::install`].
    pub fn install_from_peers(
        &self,
        group: GroupId,
        history: &EpochHistory,
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        let durable = DurablePoint::default();
        self.install_items(&[], |_| {
            vec![InstallEntry { group, writer: None, history: history.clone(), durable }]
        })
    }

    /// Installs a history in one group's segment, and that `durable` is durable under it: for a segment that begins with a snapshot as of
    /// that point ([`Store::refill`]). Durable on return.
    ///
    /// # Errors
    /// As [`Store::install`].
    pub fn install_as_of(
        &self,
        group: GroupId,
        history: &EpochHistory,
        durable: DurablePoint,
    ) -> Result<(), StoreError> {
        let item = InstallEntry { group, writer: None, history: history.clone(), durable };
        self.install_items(&[], |_| vec![item]).map(drop)
    }

    /// Installs what `items` says for the segments that are here now.
    fn install_items(
        &self,
        made_for: &[(GroupId, MembershipEpoch)],
        items: impl FnOnce(&State) -> Vec<InstallEntry>,
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        let (summaries, sequence, failed) = {
            let mut state = self.lock_to_change()?;
            let items = items(&state);
            state.check_made_for(made_for, items.first().map(|item| item.history.newest_epoch()))?;
            // All of them become one entry of the log, or fewer; one that the log does not hold would end the process.
            let entry_bytes = encode(&items).len();
            if entry_bytes > PAYLOAD_BYTES_MAX {
                let what = format!("a history that takes {entry_bytes} bytes in all segments of the node");
                return Err(Refusal::Misuse(what).into());
            }
            for item in &items {
                let Some(hosted) = state.segments.get(&item.group) else { continue };
                let promised = hosted.segment.promise().epoch;
                check_history(promised, &item.history).map_err(implausible)?;
                // What a write quorum of peers has was promised by a write quorum before.
                if item.writer.is_some() && promised < item.history.newest_epoch() {
                    let what = "a history is installed only after its epoch was promised; fence first";
                    return Err(Refusal::Misuse(what.to_owned()).into());
                }
            }
            self.reserve(&mut state, entry_bytes, Purpose::Promise)?;
            let mut failed = None;
            let mut changed = Vec::new();
            for item in items {
                let group = item.group;
                let Some(hosted) = state.segments.get_mut(&group) else { continue };
                match hosted.segment.install(item.writer, &item.history, item.durable) {
                    Ok(installed) if installed.changed => changed.push((item, installed)),
                    Ok(_) => {}
                    Err(error) => failed = failed.or(Some(StoreError::Install { group, error })),
                }
            }
            if !changed.is_empty() {
                let entries: Vec<_> = changed.iter().map(|(item, _)| item).collect();
                self.append_entry(&mut state, EntryKind::Install, &[&encode(&entries)])?;
            }
            for (item, installed) in &changed {
                let entered = state.after_install(self.context(), &self.files, item.group, installed);
                entered.map_err(|error| self.poisoned(&error))?;
                self.forget_cached(&state, item.group);
            }
            (summaries(&state), Sequence(state.log.end()), failed)
        };
        self.sync_promise(sequence)?;
        failed.map_or(Ok(summaries), Err)
    }

    /// Brings one group's segment the records that a recovery decided to keep, after adopting the history
    /// that admits them. The recovery must hold the promise. Durable on return.
    ///
    /// # Errors
    /// [`StoreError::OtherMembership`]; [`Refusal::Fenced`] when the promise is another's; otherwise as [`Store::install`] and
    /// [`Store::append`].
    pub fn repair(
        &self,
        promise: Promise,
        group: GroupId,
        history: &EpochHistory,
        batches: &[Vec<u8>],
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        self.adopt_for_recovery(promise, group, history, made_for)?;
        for batch in batches {
            self.append(batch, Origin::Recovery(promise, group), made_for)?;
        }
        let summaries = self.summaries()?;
        self.note_synced()?;
        Ok(summaries)
    }

    fn adopt_for_recovery(
        &self,
        promise: Promise,
        group: GroupId,
        history: &EpochHistory,
        made_for: &[(GroupId, MembershipEpoch)],
    ) -> Result<(), StoreError> {
        let mut state = self.lock_to_change()?;
        state.check_made_for(made_for, Some(promise.epoch))?;
        let known = Store::hosted(&state, group)?.segment.promise().epoch;
        // Before room is made for it.
        check_history(known, history).map_err(implausible)?;
        let entry = encode(&AdoptEntry { group, promise, history: history.clone() });
        self.reserve(&mut state, entry.len(), Purpose::Promise)?;
        let hosted = state.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
        let installed = hosted.segment.adopt_for_recovery(promise, history);
        let installed = installed.map_err(|error| StoreError::Install { group, error })?;
        if installed.changed {
            self.append_entry(&mut state, EntryKind::Adopt, &[&entry])?;
            let entered = state.after_install(self.context(), &self.files, group, &installed);
            entered.map_err(|error| self.poisoned(&error))?;
            self.forget_cached(&state, group);
        }
        Ok(())
    }

    /// What every segment promises and holds. Everything in it is durable on return.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn summaries(&self) -> Result<Vec<SegmentSummary>, StoreError> {
        let (summaries, sequence) = {
            let state = self.lock_to_change()?;
            (summaries(&state), Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(summaries)
    }

    /// The summaries as `borealis-quorum` defines them, for gossip and recovery. Durable on return.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn chain_summaries(&self) -> Result<Vec<borealis_quorum::segment::SegmentSummary>, StoreError> {
        let (summaries, sequence) = {
            let state = self.lock_to_change()?;
            let summaries = state.segments.values().map(|hosted| hosted.segment.summary()).collect();
            (summaries, Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(summaries)
    }

    fn forget_cached(&self, state: &State, group: GroupId) {
        if let Some(hosted) = state.segments.get(&group) {
            let through = hosted.indexed_through;
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).forget_above(group, through);
        }
    }
}

/// What is beyond the bounds of any volume is refused before it reaches a segment or the log.
fn implausible(what: Implausible) -> StoreError {
    Refusal::Misuse(what.to_string()).into()
}

/// Checks that a fence which is about to be reported holds in every segment: a writer counts it for all of them.
pub(crate) fn check_fenced(state: &State, promise: Promise) {
    let mut promises = state.segments.values().map(|hosted| hosted.segment.promise());
    invariant!("fence-covers-every-segment", promises.all(|standing| standing == promise), "{promise:?}");
}

fn summaries(state: &State) -> Vec<SegmentSummary> {
    let summary = |hosted: &HostedSegment| {
        let segment = &hosted.segment;
        SegmentSummary {
            group: hosted.group(),
            promised_epoch: segment.promise().epoch,
            promised_writer: segment.promise().writer,
            history: segment.history().clone(),
            segment_complete_lsn: segment.segment_complete_lsn(),
            known_durable: segment.known_durable().volume,
            known_durable_tail: segment.known_durable().group_tail,
            readable_through: segment.readable_through(),
            minimum_read_point: segment.minimum_read_point(),
            materialized_lsn: hosted.materialized.lsn,
            joining: segment.standing() != Standing::Full,
            membership_epoch: segment.membership().map(|state| state.installed().epoch()).unwrap_or_default(),
        }
    };
    state.segments.values().map(summary).collect()
}
