//! Refilling a segment: pages as of a durable point, where no peer's log continues its chain.
//!
//! A segment whose node was away for longer than peers keep log, or that was made anew and empty, gets from its peers what
//! all records up to one durable point made: pages, sizes of relations, small values. What is not different from what it
//! has is kept. Then it *jumps* (`Segment::jump`): SCL is the group's last record at that point, and the chain goes on
//! from there, first with the records that waited.
//!
//! Until then nothing of it can be seen, and nothing is lost: the segment keeps its promise, its history, its pages and its
//! log, and its chain may go on. What is brought goes into slots and regions that the materialized state does not name, as
//! a round's pages do. From time to time it is made durable and named by the checkpoint beside that state ([`Refilled`]),
//! with how far it is of the point; a restart goes on from there. Pages are compared and brought in key order, so one key
//! says how far.
//!
//! The jump is one entry of the log, after a checkpoint that names everything. Whoever replays the log comes to the
//! entry with that state beside the other one, and jumps again.
//!
//! A segment that is *joining* its group is filled in the same way, and then takes its *base* (`Segment::take_base`), which
//! makes it full: also one entry. If its chain has had every record since the group's first, it needs nothing from peers.
//!
//! When the point cannot be had any more, because peers collected what is as of it, the refill begins again at a
//! newer one. What was brought stays where it is, and most of it is found to be the same.

mod base;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use borealis_quorum::DurablePoint;
use borealis_quorum::segment::Standing;
use borealis_types::{GroupId, Lsn, PageKey, ReadPoint, invariant};
use borealis_wire::Refusal;

use crate::directory::encode;
use crate::log::entry::EntryKind;
use crate::log::files::LogFiles;
use crate::log::payload::JumpEntry;
use crate::materialize::page_writer::{NextState, PageWriter};
use crate::pages::page_files::SlotRun;
use crate::pages::refilled::Refilled;
use crate::redo_engine::RedoContext;
use crate::segment::cut_records::CutRecords;
use crate::segment::hosted::HostedSegment;
use crate::segment::index::Index;
use crate::segment::state::State;
use crate::segment::trouble::Troubles;
use crate::space::Purpose;
use crate::store::Sequence;
use crate::{Store, StoreError};

/// A refill under way. Dropped at any time, it goes on from what was last saved when it is taken up again.
pub struct Refill<'s> {
    store: &'s Store,
    group: GroupId,
    point: DurablePoint,
    through: Option<PageKey>,
    is_whole: bool,
    writer: PageWriter,
    unsaved_bytes: u64,
    /// A write or sync failed: it is unknown what of the rest is on disk, and a later sync does not tell (hazard 28).
    has_failed: bool,
}

impl std::fmt::Debug for Refill<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Refill { group, point, through, .. } = self;
        f.debug_struct("Refill")
            .field("group", group)
            .field("point", point)
            .field("through", through)
            .finish()
    }
}

impl Store {
    /// Whether a segment lacks records up to what it knows to be durable, so that it could be refilled to there; or is joining,
    /// and knows a point to take for its base.
    #[must_use]
    pub fn lacks_durable_records(&self, group: GroupId) -> bool {
        let state = self.lock();
        state.segments.get(&group).is_some_and(|hosted| hosted.point_to_reach().is_some())
    }

    /// Whether a refill of a segment was begun and has not ended.
    #[must_use]
    pub fn is_refilling(&self, group: GroupId) -> bool {
        self.lock().segments.get(&group).is_some_and(|hosted| hosted.is_refilling)
    }

    /// Begins to refill a segment as of what it knows to be durable, or takes up the refill that was begun. One at a time.
    /// `None` if it lacks nothing, or may not jump now: the records came in another way, or a recovery is under way.
    ///
    /// A joining segment takes what it knows to be durable for its base. That may be older than what its peers know: the
    /// caller lets it hear of that first. If its chain has all of it, it is full on return, and there is nothing to bring.
    ///
    /// # Errors
    /// [`Refusal::NoSegment`], or when the checkpoint cannot be written.
    pub fn refill(&self, group: GroupId) -> Result<Option<Refill<'_>>, StoreError> {
        let working = self.maintenance.enter();
        if self.take_base_of_own(group)? {
            return Ok(None);
        }
        let refill = {
            let mut state = self.lock_to_change()?;
            let hosted = state.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
            let Some(point) = hosted.point_to_reach() else { return Ok(None) };
            // What an earlier attempt left unsynced is nobody's, and its fate no reason to give this one up.
            hosted.pages.begin_round();
            hosted.is_refilling = true;
            let known = hosted.refilled.clone();
            let is_ahead = |point: DurablePoint| {
                hosted.is_joining() || point.group_tail > hosted.segment.segment_complete_lsn()
            };
            let known = known.filter(|known| is_ahead(known.point));
            let refilled = known.unwrap_or_else(|| Refilled {
                point,
                through: None,
                is_whole: false,
                state: Arc::clone(&hosted.materialized),
                freed: Vec::new(),
            });
            Refill::new(self, hosted, refilled)
        };
        drop(working);
        Ok(Some(refill))
    }

    /// Gives up a refill that was begun, if the segment needs it no more: its records came in another way. Rounds go on.
    ///
    /// # Errors
    /// When the checkpoint cannot be written; the refill is as it was then.
    pub fn end_refill_if_needless(&self, group: GroupId) -> Result<(), StoreError> {
        let _working = self.maintenance.enter();
        let before = {
            let mut state = self.lock_to_change()?;
            let hosted = state.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
            let complete = hosted.segment.segment_complete_lsn();
            let lacks = complete < hosted.segment.known_durable().group_tail;
            if !hosted.is_refilling || lacks || hosted.is_joining() {
                return Ok(());
            }
            hosted.refilled.take()
        };
        // Before a round may take the same slots.
        if before.is_some()
            && let Err(error) = self.write_checkpoint(&BTreeMap::new())
        {
            self.lock()
                .segments
                .get_mut(&group)
                .into_iter()
                .for_each(|hosted| hosted.refilled = before.clone());
            return Err(error);
        }
        self.lock().segments.get_mut(&group).into_iter().for_each(|hosted| hosted.is_refilling = false);
        Ok(())
    }

    /// Lets a segment go on from a point as of which all is brought, durably.
    fn jump(&self, group: GroupId, point: DurablePoint) -> Result<(), StoreError> {
        // Until the entry is durable no round may write to a slot of the state before it.
        let _working = self.maintenance.enter();
        let sequence = {
            let mut state = self.lock_to_change()?;
            if Store::hosted(&state, group)?.is_joining() {
                drop(state);
                return self.take_base(group, point);
            }
            let entry = encode(&JumpEntry { group, point });
            self.reserve(&mut state, entry.len(), Purpose::Promise)?;
            let hosted = Store::hosted(&state, group)?;
            hosted.check_whole(point)?;
            // Tried on a copy, for the log must not have an entry that is refused.
            hosted.segment.clone().jump(point).map_err(|refused| Refusal::NotNow(refused.to_string()))?;
            self.append_entry(&mut state, EntryKind::Jump, &[&entry])?;
            let jumped = state.jump(self.context(), &self.files, group, point);
            jumped.map_err(|error| self.poisoned(&error))?;
            Sequence(state.log.end())
        };
        self.sync_promise(sequence)?;
        self.write_checkpoint_after_refill();
        Ok(())
    }

    /// Lets go of the log and of the pages before. The next round does, if this cannot.
    fn write_checkpoint_after_refill(&self) {
        if let Err(error @ StoreError::Io { .. }) = self.write_checkpoint(&BTreeMap::new()) {
            tracing::warn!(%error, "the checkpoint after a refill is left to the next round");
        }
    }
}

impl<'s> Refill<'s> {
    fn new(store: &'s Store, hosted: &HostedSegment, refilled: Refilled) -> Refill<'s> {
        let Refilled { point, through, is_whole, state, freed } = refilled;
        let next = NextState {
            materialized: state,
            files: Arc::clone(&hosted.pages),
            freed_regions: freed,
            run: SlotRun::default(),
            pages_written: 0,
            mended: Vec::new(),
            pages_moved: 0,
            synced: true,
        };
        let writer = PageWriter::going_on(next, &hosted.materialized, point.volume.end);
        Refill {
            store,
            group: hosted.group(),
            point,
            through,
            is_whole,
            writer,
            unsaved_bytes: 0,
            has_failed: false,
        }
    }

    /// As of where peers are to be asked: the durable point, in the stream of the newest epoch that is known.
    ///
    /// # Errors
    /// [`Refusal::NoSegment`].
    pub fn at(&self) -> Result<ReadPoint, StoreError> {
        let epoch = self.store.with_segment(self.group, |segment| segment.history().newest_epoch())?;
        Ok(ReadPoint { epoch, lsn: self.point.volume.end })
    }

    /// The last page that is as of the point, in key order; `None` before the first one.
    #[must_use]
    pub fn through(&self) -> Option<PageKey> {
        self.through
    }

    /// Whether all is brought, so that only [`Refill::finish_whole`] is left: the process ended just before it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether the segment still lacks records up to the point.
    ///
    /// # Errors
    /// [`Refusal::NoSegment`].
    pub fn is_needed(&self) -> Result<bool, StoreError> {
        let tail = self.point.group_tail;
        let state = self.store.lock();
        let hosted = self.hosted(&state)?;
        Ok(hosted.is_joining() || hosted.segment.segment_complete_lsn() < tail)
    }

    /// Begins again as of the newest point that is known to be durable. What was brought is compared again.
    ///
    /// # Errors
    /// When it cannot be made durable that nothing is as of the new point. [`Refusal::NotNow`] if there is no point to
    /// jump to at present.
    pub fn begin_again(&mut self) -> Result<(), StoreError> {
        let point = self.hosted(&self.store.lock())?.point_to_reach();
        let what = "the segment may not go on from a durable point now";
        self.point = point.ok_or_else(|| Refusal::NotNow(what.to_owned()))?;
        self.writer.target = self.point.volume.end;
        self.through = None;
        self.is_whole = false;
        // What the checkpoint says is as of the point before may be overwritten from here on.
        self.save()
    }

    /// Lets the segment go on from the point; everything was brought before.
    ///
    /// # Errors
    /// [`Refusal::NotNow`] when it cannot now, as during a recovery; [`StoreError::Poisoned`].
    pub fn finish_whole(self) -> Result<(), StoreError> {
        self.hosted(&self.store.lock())?;
        self.store.jump(self.group, self.point)
    }

    /// The segment that is being refilled, if it has not left since. One that came again has other page files.
    fn hosted<'a>(&self, state: &'a State) -> Result<&'a HostedSegment, StoreError> {
        let hosted = Store::hosted(state, self.group)?;
        if !Arc::ptr_eq(&hosted.pages, &self.writer.next.files) {
            return Err(Refusal::NoSegment(self.group).into());
        }
        Ok(hosted)
    }
}

impl HostedSegment {
    pub(crate) fn is_joining(&self) -> bool {
        self.segment.standing() == Standing::Joining
    }

    /// As of what peers are to be asked for everything, if the segment lacks anything and may go on from there now.
    fn point_to_reach(&self) -> Option<DurablePoint> {
        if self.is_joining() { self.segment.base_point() } else { self.segment.refill_point() }
    }

    /// Refuses to jump to a point that not everything is as of.
    fn check_whole(&self, point: DurablePoint) -> Result<(), StoreError> {
        if self.refilled.as_ref().is_some_and(|refilled| refilled.is_whole && refilled.point == point) {
            return Ok(());
        }
        let what = format!("group {} has not everything as of {}", self.group(), point.volume.end);
        Err(StoreError::corrupt("the state that peers brought", what))
    }

    /// Takes the state that peers brought for the materialized one, and goes on from its point.
    fn jump(&mut self, point: DurablePoint) -> Result<(), StoreError> {
        self.check_whole(point)?;
        let (group, lsn) = (self.group(), point.volume.end);
        // What the chain forgets of those that wait, the index must not take, either.
        let waits = self.segment.uncertain().filter(|record| record.link.previous_end >= point.group_tail);
        let waits: BTreeSet<Lsn> = waits.map(|record| record.link.span.start).collect();
        let refused = |what: String| StoreError::corrupt(format!("the jump of group {group} to {lsn}"), what);
        self.segment.jump(point).map_err(|error| refused(error.to_string()))?;
        self.go_on_from_refilled(lsn, |start| waits.contains(&start));
        Ok(())
    }

    /// Takes the state that peers brought, which is as of `lsn`, for the materialized one. Of the records that wait those stay
    /// whose start `waits` accepts.
    fn go_on_from_refilled(&mut self, lsn: Lsn, waits: impl Fn(Lsn) -> bool) {
        let Some(Refilled { state, freed, .. }) = self.refilled.take() else { return };
        let mut state = Arc::unwrap_or_clone(state);
        // The state that the checkpoint names beside this one is of no use any more, nor are the regions it has.
        state.regions.release(&freed);
        invariant!(
            "materialized-never-goes-back",
            state.lsn >= self.materialized.lsn,
            "from {} to {}",
            self.materialized.lsn,
            state.lsn
        );
        invariant!("refilled-as-of-its-point", state.lsn == lsn && state.held.is_empty(), "{}", state.lsn);
        self.materialized = Arc::new(state);
        self.indexed_through = lsn;
        self.index = Index::default();
        self.cut = CutRecords::default();
        self.unapplied.clear();
        self.pending.retain(|start, _| waits(*start));
        self.failure = None;
        self.unread = None;
        self.troubles = Troubles::default();
        self.stalled = None;
        self.prepared_counters = None;
        self.is_refilling = false;
        self.version += 1;
    }
}

impl State {
    /// Lets a segment jump, and indexes what connects then.
    pub(crate) fn jump(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        group: GroupId,
        point: DurablePoint,
    ) -> Result<(), StoreError> {
        let hosted = self.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
        hosted.jump(point)?;
        self.index_pending(context, files, group)
    }
}
