//! One segment on this node: its chain, the index of its unapplied records, and its materialized state.

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_quorum::segment::{Installed, Segment};
use borealis_types::{EpochHistory, GroupId, Lsn, MetaKey, Placement, RecordSpan, ServerVersion, invariant};
use borealis_wal::Effect;

use crate::StoreError;
use crate::log::position::RecordRef;
use crate::pages::materialized_state::MaterializedState;
use crate::pages::page_files::PageFiles;
use crate::redo_engine::RedoContext;
use crate::segment::index::Index;
use crate::segment::record_effects::RecordEffects;

/// Why a segment stopped applying redo, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RedoFailure {
    /// Position of the end of the record that could not be applied.
    pub lsn: Lsn,
    pub reason: String,
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

/// Reads the bytes of a record.
pub(crate) type ReadRecord<'a> = dyn Fn(&RecordRef) -> Result<Vec<u8>, StoreError> + 'a;

/// A segment of this node.
pub(crate) struct HostedSegment {
    pub segment: Segment,
    /// Records that cannot be indexed yet because an earlier record of their chain is missing, by start.
    pub pending: BTreeMap<Lsn, RecordRef>,
    /// Every record of the group up to here is in the index or in the materialized state.
    pub indexed_through: Lsn,
    pub index: Index,
    pub materialized: Arc<MaterializedState>,
    /// Incremented whenever something that a reader may have looked up could be gone or different.
    pub version: u64,
    /// A record whose effects are unknown: nothing at or after it is served (invariant 9).
    pub failure: Option<RedoFailure>,
    pub pages: Arc<PageFiles>,
    /// The counters as of a durable LSN, so that reading them need not begin at the materialized state.
    pub prepared_counters: Option<(Lsn, Vec<u8>)>,
}

impl HostedSegment {
    pub(crate) fn new(
        segment: Segment,
        materialized: Arc<MaterializedState>,
        pages: PageFiles,
    ) -> HostedSegment {
        HostedSegment {
            segment,
            pending: BTreeMap::new(),
            indexed_through: materialized.lsn,
            index: Index::default(),
            materialized,
            version: 0,
            failure: None,
            pages: Arc::new(pages),
            prepared_counters: None,
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
        read: &ReadRecord<'_>,
    ) -> Result<(), StoreError> {
        let complete = self.segment.segment_complete_lsn();
        let mut effects = Vec::new();
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
            let bytes = read(&reference)?;
            first.remove();
            effects.clear();
            let server_version = self.release_of(reference.span);
            let record_effects =
                RecordEffects::of_bytes(context, server_version, reference.span, &bytes, &mut effects);
            self.index_record(context.placement, reference, &record_effects, &effects);
        }
        Ok(())
    }

    /// Checks what holds whenever this segment is about to be materialized through `target`.
    pub(crate) fn check_next(&self, target: Lsn) {
        let now = self.materialized.lsn;
        invariant!("materialized-never-goes-back", target > now, "from {now} to {target}");
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
    }

    /// Adds the next record of the chain to the index. `effects` is the list that `record_effects` refers to.
    pub(crate) fn index_record(
        &mut self,
        placement: Placement,
        reference: RecordRef,
        record_effects: &RecordEffects,
        effects: &[Effect],
    ) {
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
        self.indexed_through = end;
        self.index.settle(self.segment.known_durable().volume.end);
        match &record_effects.effects {
            Ok(range) => {
                let (group, existing) = (self.group(), record_effects.changes_only_existing_pages);
                let effects = &effects[range.clone()];
                self.index.insert(&self.materialized, group, placement, reference, effects, existing);
            }
            Err(reason) => self.fail(end, reason.clone()),
        }
    }

    /// Notes that the record that ends at `lsn` cannot be applied, unless an earlier one cannot either.
    pub(crate) fn fail(&mut self, lsn: Lsn, reason: String) {
        if self.failure.as_ref().is_none_or(|failure| lsn < failure.lsn) {
            tracing::error!(group = self.group().0, %lsn, reason, "the segment cannot apply redo");
            self.failure = Some(RedoFailure { lsn, reason });
            self.version += 1;
        }
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
            self.indexed_through = kept;
        }
        let complete = self.segment.segment_complete_lsn();
        invariant!(
            "only-complete-is-indexed",
            self.indexed_through <= complete.max(materialized),
            "indexed through {}, and the chain is complete through {complete}",
            self.indexed_through
        );
        if self.failure.as_ref().is_some_and(|failure| failure.lsn > kept) {
            self.failure = None;
        }
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

    /// The LSN up to which this segment may be materialized. Nobody reads below it, and no record below it is
    /// missing, can be truncated, or failed to apply.
    pub(crate) fn materialization_target(&self) -> Lsn {
        let durable = self.segment.known_durable().volume.end;
        let target = self.segment.minimum_read_point().min(self.segment.readable_through()).min(durable);
        match &self.failure {
            Some(failure) => target.min(Lsn(failure.lsn.0 - 1)),
            None => target,
        }
    }
}
