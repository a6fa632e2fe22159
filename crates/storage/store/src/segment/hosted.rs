//! One segment on this node: its chain, the index of its unapplied records, and its materialized state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use borealis_quorum::segment::{Installed, Segment};
use borealis_types::{
    EpochHistory, GroupId, Lsn, MetaKey, PageKey, Placement, RecordSpan, ServerVersion, invariant,
};
use borealis_wal::Effect;
use borealis_wire::Refusal;

use crate::StoreError;
use crate::log::files::LogFiles;
use crate::log::position::RecordRef;
use crate::log::record_reader::{Piece, assemble, read_record};
use crate::pages::held::HeldPage;
use crate::pages::materialized_state::MaterializedState;
use crate::pages::page_files::PageFiles;
use crate::pages::refilled::Refilled;
use crate::redo_engine::RedoContext;
use crate::segment::cut_records::{CutRecords, Next};
use crate::segment::index::Index;
use crate::segment::index::relations::PriorContent;
use crate::segment::learned::LearnedRecord;
use crate::segment::pins::Pins;
use crate::segment::record_effects::RecordEffects;
use crate::segment::stay::Stay;
use crate::segment::trouble::{Cause, HealedPage, Trouble, Troubles};

/// Why a segment stopped applying redo, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RedoFailure {
    /// Nothing at or after it can be served: the end of the record that could not be applied, or of its first piece.
    pub lsn: Lsn,
    /// The end of the record, so with all of its pieces.
    pub through: Lsn,
    pub reason: String,
}

/// Why a round left a segment where it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stalled {
    pub reason: String,
    /// When it did. After a while another round tries.
    pub since: Instant,
}

/// The release that wrote a record, by the history of a segment that has it.
///
/// # Panics
/// If the history does not say it. A segment takes only records that its history admits, and each of those
/// has a release.
pub(crate) fn release_of(history: &EpochHistory, span: RecordSpan) -> ServerVersion {
    let known = history.server_version_at(span.end);
    invariant!(
        "one-release-per-record",
        known.is_some(),
        "no opening lies before the record at {}",
        span.start
    );
    known.expect("it was just asserted")
}

/// A segment of this node.
pub(crate) struct HostedSegment {
    pub segment: Segment,
    /// Since when it is here.
    pub stay: Stay,
    /// Records that cannot be indexed yet because an earlier record of their chain is missing, by start.
    pub pending: BTreeMap<Lsn, RecordRef>,
    /// Every record of the group up to here is in the index or in the materialized state.
    pub indexed_through: Lsn,
    pub index: Index,
    /// Records that came in pieces.
    pub cut: CutRecords,
    /// Whole records and loose pieces that could not be indexed, in order: see `failure`. A later release may need them.
    pub unapplied: Vec<RecordRef>,
    pub materialized: Arc<MaterializedState>,
    /// Incremented whenever something that a reader may have looked up could be gone or different.
    pub version: u64,
    /// A record whose effects are unknown, or that a small value cannot be changed by: nothing at or after it is
    /// served (invariant 9).
    pub failure: Option<RedoFailure>,
    /// The log could not be read to learn what the first of `pending` changes, although the chain reaches it. Until it was
    /// read, nothing at or after its end is served or materialized.
    pub unread: Option<RedoFailure>,
    /// Single pages that cannot be made.
    pub troubles: Troubles,
    /// Why the last round left this segment where it was, if it did so because of damage.
    pub stalled: Option<Stalled>,
    pub pages: Arc<PageFiles>,
    /// The counters as of a durable LSN, so that reading them need not begin at the materialized state.
    pub prepared_counters: Option<(Lsn, Vec<u8>)>,
    /// Versions that are kept for peers.
    pub pins: Pins,
    /// The target of the round that is under way, or was last.
    pub materializing_to: Lsn,
    /// What peers brought of a later state, as far as it is durable. No round writes pages of the segment meanwhile.
    pub refilled: Option<Refilled>,
    /// A refill is under way, whether or not any of it is durable.
    pub is_refilling: bool,
}

impl HostedSegment {
    pub(crate) fn new(
        segment: Segment,
        stay: Stay,
        materialized: Arc<MaterializedState>,
        refilled: Option<Refilled>,
        pages: PageFiles,
    ) -> HostedSegment {
        // That a page is held as damaged is all that is left of it here: only peers can bring it.
        let mut troubles = Troubles::default();
        for (key, held) in &materialized.held {
            let HeldPage::Damaged { reason } = held else { continue };
            let (since, reason) = (materialized.lsn, reason.clone());
            troubles.note(key, Trouble { cause: Cause::Damage, since, reason });
        }
        HostedSegment {
            segment,
            stay,
            pending: BTreeMap::new(),
            indexed_through: materialized.lsn,
            index: Index::default(),
            cut: CutRecords::default(),
            unapplied: Vec::new(),
            materialized,
            version: stay.first_version(),
            failure: None,
            unread: None,
            troubles,
            stalled: None,
            pages: Arc::new(pages),
            prepared_counters: None,
            pins: Pins::default(),
            materializing_to: Lsn::ZERO,
            is_refilling: refilled.is_some(),
            refilled,
        }
    }

    pub(crate) fn group(&self) -> GroupId {
        self.segment.group()
    }

    /// The release that wrote a record this segment has.
    pub(crate) fn release_of(&self, span: RecordSpan) -> ServerVersion {
        release_of(self.segment.history(), span)
    }

    /// Moves records that the chain reaches from `pending` to the index.
    pub(crate) fn index_pending(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
    ) -> Result<(), StoreError> {
        self.unread = None;
        let complete = self.segment.segment_complete_lsn();
        while let Some(first) = self.pending.first_entry() {
            let reference = *first.get();
            if reference.span.end > complete {
                break;
            }
            if reference.span.end <= self.indexed_through {
                let place = format!("record of group {} at {}", self.group(), reference.span.start);
                let what = "the checkpoint or another record of the log covers it already";
                return Err(StoreError::corrupt(place, what));
            }
            match self.index_from_log(context, files, reference) {
                Ok(()) => self.pending.remove(&reference.span.start),
                Err(error) => return self.put_off(reference, error),
            };
        }
        Ok(())
    }

    /// Adds the next record of the chain to the index, which is known only by its bytes in the log.
    fn index_from_log(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        reference: RecordRef,
    ) -> Result<(), StoreError> {
        if reference.part.is_piece() {
            return self.index_record(context, files, reference, &RecordEffects::of_piece(), &[], &[]);
        }
        let bytes = read_record(files, context.redo, &reference)?;
        let (server_version, mut effects) = (self.release_of(reference.span), Vec::new());
        let record_effects =
            RecordEffects::of_bytes(context, server_version, reference.span, &bytes, &mut effects);
        self.index_record(context, files, reference, &record_effects, &effects, &[])
    }

    /// Lets a record that the chain reaches wait in `pending`, because the system could not read the log.
    ///
    /// # Errors
    /// The same, if it is any other error.
    pub(crate) fn put_off(&mut self, reference: RecordRef, error: StoreError) -> Result<(), StoreError> {
        let StoreError::Io { .. } = &error else { return Err(error) };
        let (group, lsn) = (self.group().0, reference.span.end);
        tracing::warn!(group, %lsn, %error, "the effects of a record cannot be learned for now");
        self.pending.insert(reference.span.start, reference);
        self.unread = Some(RedoFailure { lsn, through: lsn, reason: error.to_string() });
        Ok(())
    }

    /// Checks what holds whenever this segment is about to be materialized through `target`.
    pub(crate) fn check_next(&self, target: Lsn) {
        let now = self.materialized.lsn;
        // A round that only writes pages which peers brought stays where it is.
        invariant!("materialized-never-goes-back", target >= now, "from {now} to {target}");
        let read_point = self.segment.minimum_read_point();
        invariant!(
            "materialized-below-reads",
            target <= read_point,
            "through {target}, and somebody may read at {read_point}"
        );
        let durable = self.segment.known_durable().volume.end;
        invariant!(
            "materialized-is-durable",
            target <= durable,
            "through {target}, and the volume is durable through {durable}"
        );
        let pinned = self.pins.floor(Instant::now());
        invariant!(
            "pinned-is-kept",
            pinned.is_none_or(|pinned| target <= pinned),
            "through {target}, and a peer reads as of {pinned:?}"
        );
    }

    /// Adds the next record of the chain to the index. `effects` is the list that `record_effects` refers to. A record
    /// whose last piece this is, is put together from the log to learn its effects, unless it is among `learned`.
    ///
    /// # Errors
    /// When that cannot be read. Nothing has changed then.
    pub(crate) fn index_record(
        &mut self,
        context: RedoContext<'_>,
        files: &LogFiles,
        reference: RecordRef,
        record_effects: &RecordEffects,
        effects: &[Effect],
        learned: &[LearnedRecord],
    ) -> Result<(), StoreError> {
        let RecordSpan { end, .. } = reference.span;
        invariant!(
            "records-indexed-in-order",
            end > self.indexed_through,
            "a record that ends at {end}, after one that ends at {}",
            self.indexed_through
        );
        let complete = self.segment.segment_complete_lsn();
        invariant!(
            "only-complete-is-indexed",
            end <= complete,
            "a record that ends at {end}, and the chain is complete through {complete}"
        );
        let before = std::mem::replace(&mut self.indexed_through, end);
        self.index.settle(self.segment.known_durable().volume.end);
        match self.cut.next(reference) {
            Next::Whole => self.insert(context.placement, reference, record_effects, effects, end),
            Next::Piece => {}
            Next::Loose => {
                self.unapplied.push(reference);
                self.fail(end, end, format!("the piece at {} goes on with nothing", reference.span.start))
            }
            Next::Record(record, pieces) => {
                let learned = learned.iter().find(|learned| learned.is_of(&pieces));
                let put_together;
                let (record_effects, effects) = match learned {
                    Some(learned) => (&learned.record_effects, &learned.effects),
                    None => match self.effects_from_log(context, files, record, &pieces) {
                        Ok(effects) => {
                            put_together = effects;
                            (&put_together.0, &put_together.1)
                        }
                        Err(error) => {
                            self.cut.put_back(&pieces);
                            self.indexed_through = before;
                            return Err(error);
                        }
                    },
                };
                // All of its pieces are needed if it cannot be applied now, so not even the first is applied.
                let fails_at = pieces.first().map_or(end, |first| first.span.end);
                self.cut.indexed(record, pieces);
                self.insert(context.placement, record, record_effects, effects, fails_at);
            }
        }
        Ok(())
    }

    /// What a record changes that came in pieces, all of which are in the log.
    fn effects_from_log(
        &self,
        context: RedoContext<'_>,
        files: &LogFiles,
        record: RecordRef,
        pieces: &[RecordRef],
    ) -> Result<(RecordEffects, Vec<Effect>), StoreError> {
        let pieces: Vec<Piece<'_>> = pieces.iter().map(|piece| Piece::InLog(*piece)).collect();
        let bytes = assemble(files, &pieces)?;
        let mut effects = Vec::new();
        let server_version = self.release_of(record.span);
        let of_record = RecordEffects::of_pieces(context, server_version, record.span, &bytes, &mut effects);
        Ok((of_record, effects))
    }

    /// Adds a whole record to the index, or notes a failure at `fails_at` if its effects are unknown.
    fn insert(
        &mut self,
        placement: Placement,
        reference: RecordRef,
        record_effects: &RecordEffects,
        effects: &[Effect],
        fails_at: Lsn,
    ) {
        match &record_effects.effects {
            Ok(range) => {
                let (group, existing) = (self.group(), record_effects.changes_only_existing_pages);
                let effects = &effects[range.clone()];
                self.index.insert(&self.materialized, group, placement, reference, effects, existing);
            }
            Err(reason) => {
                // The pieces of a record are known as such.
                self.unapplied.extend((!reference.part.is_piece()).then_some(reference));
                self.fail(fails_at, reference.span.end, reason.clone());
            }
        }
    }

    /// Notes that the record that ends at `through` cannot be applied, so that nothing is served from `lsn` on, unless an
    /// earlier one cannot either.
    pub(crate) fn fail(&mut self, lsn: Lsn, through: Lsn, reason: String) {
        if self.failure.as_ref().is_none_or(|failure| lsn < failure.lsn) {
            tracing::error!(group = self.group().0, %lsn, reason, "the segment cannot apply redo");
            self.failure = Some(RedoFailure { lsn, through, reason });
            self.version += 1;
        }
    }

    /// Notes that a page cannot be made. Others go on.
    pub(crate) fn note_trouble(&mut self, key: &PageKey, trouble: Trouble) {
        let (group, since, reason) = (self.group().0, trouble.since, trouble.reason.clone());
        let cause = trouble.cause;
        if self.troubles.note(key, trouble) {
            tracing::error!(group, page = %key, %since, ?cause, reason, "a page cannot be made here");
        }
    }

    /// The page that peers brought, if it says what the page is as of `lsn`.
    pub(crate) fn healed_page(&self, key: &PageKey, lsn: Lsn) -> Option<&HealedPage> {
        let healed = self.troubles.healed.get(key)?;
        (self.materialized.lsn..=lsn).contains(&healed.lsn).then_some(healed)
    }

    /// The failure of redo that a page as of `lsn` still suffers from.
    pub(crate) fn known_failure(&self, key: &PageKey, lsn: Lsn) -> Option<&Trouble> {
        let failure = self.troubles.known_failure(key, lsn)?;
        // A page that peers brought is good although redo failed here.
        if self.healed_page(key, lsn).is_some() {
            return None;
        }
        match self.index.relations.prior_page(key, lsn) {
            PriorContent::Nothing { since } | PriorContent::Copy { at: since, .. } => {
                (since <= failure.since).then_some(failure)
            }
            PriorContent::Materialized => Some(failure),
        }
    }

    /// The pages that a round through `target` writes although no record may have changed them: those that peers
    /// brought, and those that a release held back which may have known less than this one.
    pub(crate) fn pages_to_mend(&self, target: Lsn) -> Vec<PageKey> {
        let healed = self.troubles.healed.iter().filter(|(_, healed)| healed.lsn <= target);
        let held = self.materialized.held.iter();
        let untried = held.filter(|(key, held)| {
            matches!(held, HeldPage::Failed { .. }) && !self.troubles.pages.contains_key(key)
        });
        healed.map(|(key, _)| *key).chain(untried.map(|(key, _)| *key)).collect()
    }

    /// Drops the records that a new history truncated.
    pub(crate) fn drop_truncated(&mut self, installed: &Installed) {
        let Some(kept) = installed.cut.iter().map(|record| record.link.previous_end).min() else { return };
        for record in &installed.cut {
            self.pending.remove(&record.link.span.start);
        }
        let materialized = self.materialized.lsn;
        invariant!(
            "materialized-is-durable",
            installed.cut.iter().all(|record| record.link.span.end > materialized),
            "a history truncates records that are materialized through {materialized}"
        );
        // The materialized LSN may be beyond the group's last record, when the volume went on without the
        // group.
        let kept = kept.max(materialized);
        self.prepared_counters.take_if(|(at, _)| *at > kept);
        if kept < self.indexed_through {
            self.index.drop_above(kept);
            self.cut.drop_above(kept);
            self.unapplied.retain(|record| record.span.end <= kept);
            self.indexed_through = kept;
        }
        let complete = self.segment.segment_complete_lsn();
        invariant!(
            "only-complete-is-indexed",
            self.indexed_through <= complete.max(materialized),
            "indexed through {}, and the chain is complete through {complete}",
            self.indexed_through
        );
        if self.failure.as_ref().is_some_and(|failure| failure.through > kept) {
            self.failure = None;
        }
        self.troubles.drop_above(kept);
        self.version += 1;
    }

    /// Checks what holds whenever a read at `lsn` is admitted.
    pub(crate) fn check_admitted(&self, lsn: Lsn) {
        let materialized = self.materialized.lsn;
        invariant!(
            "materialized-below-reads",
            lsn >= materialized,
            "a read at {lsn}, and pages are materialized through {materialized}"
        );
        let through = self.segment.readable_through();
        invariant!(
            "read-within-readable",
            lsn <= through,
            "a read at {lsn}, and all records are here through {through}"
        );
    }

    /// Refuses what needs a record whose effects could not be learned.
    ///
    /// # Errors
    /// [`Refusal::NotNow`].
    pub(crate) fn check_read_through(&self, lsn: Lsn) -> Result<(), Refusal> {
        let unread = self.unread.as_ref().filter(|unread| unread.lsn <= lsn);
        unread.map_or(Ok(()), |unread| Err(Refusal::NotNow(unread.reason.clone())))
    }

    /// Checks that a state which is kept for later readers can never be truncated.
    pub(crate) fn check_certain(&self, what: &str, lsn: Lsn) {
        let durable = self.segment.known_durable().volume.end;
        invariant!(
            "kept-state-is-durable",
            lsn <= durable,
            "{what} as of {lsn}, and the volume is durable through {durable}"
        );
    }

    /// Where to start when reading the counters as of `lsn`: their value there, and the LSN above which
    /// records are applied.
    pub(crate) fn counters_before(&self, lsn: Lsn) -> (Option<&Vec<u8>>, Lsn) {
        let materialized = self.materialized.lsn;
        match &self.prepared_counters {
            Some((at, counters)) if (materialized..=lsn).contains(at) => {
                self.check_certain("prepared counters", *at);
                (Some(counters), *at)
            }
            _ => (self.materialized.meta.get(&MetaKey::Counters), Lsn::ZERO),
        }
    }

    /// Why this segment is materialized no further, if it is not.
    pub(crate) fn why_stuck(&self) -> Option<&str> {
        let failed = self.failure.as_ref().or(self.unread.as_ref()).map(|failure| failure.reason.as_str());
        failed.or(self.stalled.as_ref().map(|stalled| stalled.reason.as_str()))
    }

    /// The LSN up to which this segment may be materialized. Nobody reads below it, and no record below it is
    /// missing, can be truncated, or failed to apply.
    pub(crate) fn materialization_target(&self) -> Lsn {
        let durable = self.segment.known_durable().volume.end;
        let target = self.segment.minimum_read_point().min(self.segment.readable_through()).min(durable);
        if self.stalled.is_some() || self.is_refilling {
            return self.materialized.lsn;
        }
        let target = self.pins.floor(Instant::now()).map_or(target, |pinned| target.min(pinned));
        let failures = self.failure.iter().chain(&self.unread);
        let target = failures.fold(target, |target, failure| target.min(Lsn(failure.lsn.0 - 1)));
        self.outside_records(target)
    }

    /// `target`, or the start of the record that it is inside of.
    pub(crate) fn outside_records(&self, target: Lsn) -> Lsn {
        self.cut.outside(target, |end| self.is_given_up(end))
    }

    /// Whether what stood after `end` can never come back: a recovery opened an epoch there, and something after it is
    /// durable.
    fn is_given_up(&self, end: Lsn) -> bool {
        let opened_there = self.segment.history().openings().iter().any(|opening| opening.last.end == end);
        opened_there && self.segment.known_durable().volume.end > end
    }
}
