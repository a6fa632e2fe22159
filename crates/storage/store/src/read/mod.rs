//! Reading pages and small values as of an LSN.
//!
//! A read looks up under the lock what it needs (a stored version and the records after it), reads the files
//! without the lock, and then checks that the segment's version number has not changed. Slots are overwritten
//! and log files reused only after that number has changed, so an unchanged number proves that the right
//! bytes were read.

pub(crate) mod hold;
mod listing;
pub(crate) mod long_value;
pub(crate) mod tail;

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use borealis_types::{
    BlockKey, EpochHistory, GroupId, Lsn, META_GROUP, MetaKey, PAGE_SIZE, PageBytes, PageKey, ReadPoint,
    invariant,
};
use borealis_wal::Record;
use borealis_wire::Refusal;

use crate::log::position::RecordRef;
use crate::log::record_reader::{Piece, RecordReader, assemble};
use crate::metrics::count;
use crate::pages::held::HeldPage;
use crate::pages::materialized_state::{SlotAddress, in_database};
use crate::pages::page_files::PageFiles;
use crate::read::hold::note_failure;
use crate::redo_guard::guarded;
use crate::segment::cut_records::Pieces;
use crate::segment::hosted::{HostedSegment, release_of};
use crate::segment::index::relations::PriorContent;
use crate::segment::record_effects::changes_only_existing_pages;
use crate::segment::state::State;
use crate::{Store, StoreError};

/// After this many attempts, a read that rounds keep overtaking waits for the materializer.
const ATTEMPTS: usize = 8;

/// What a read does after [`ATTEMPTS`] attempts that were overtaken by rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Overtaken {
    /// It takes the materializer's lock, so that no round can overtake it.
    Wait,
    /// It fails. For the materializer itself, which holds that lock.
    Fail,
}

/// A version that took at least this many records is cached.
const CACHE_FROM_RECORDS: usize = 16;

/// The stored version that a page is made from.
enum Source {
    Nothing,
    Slot {
        files: Arc<PageFiles>,
        key: PageKey,
        address: SlotAddress,
        not_after: Lsn,
    },
    Cached(Arc<PageBytes>),
    /// Peers brought it; `None` if it did not exist.
    Healed(Option<Arc<PageBytes>>),
    /// It is behind the materialized state; the slot has what is known of it.
    Held {
        held: HeldPage,
        slot: Box<Source>,
    },
}

/// How to make a version of a page.
struct PageRecipe {
    source: Source,
    /// Records to apply, each as a change of this page: a copied page first gets those of its original.
    steps: Vec<(PageKey, RecordRef)>,
    /// Of those that came in pieces.
    pieces: Pieces,
    /// As of which LSN the version is.
    lsn: Lsn,
    /// Says which release wrote each of them.
    history: EpochHistory,
    version: u64,
}

/// How to make a version of a small value.
struct MetaRecipe {
    value: Option<Vec<u8>>,
    steps: Vec<(MetaKey, RecordRef)>,
    /// Of those that came in pieces.
    pieces: Pieces,
    /// As of which LSN the value is.
    lsn: Lsn,
    /// Says which release wrote each of them.
    history: EpochHistory,
    version: u64,
}

fn add_page(
    hosted: &HostedSegment,
    key: &PageKey,
    lsn: Lsn,
    steps: &mut Vec<(PageKey, RecordRef)>,
) -> Source {
    let (source, above) = match hosted.index.relations.prior_page(key, lsn) {
        PriorContent::Materialized => {
            let located = hosted.materialized.locate(key);
            let slot = located.map_or(Source::Nothing, |address| Source::Slot {
                files: Arc::clone(&hosted.pages),
                key: *key,
                address,
                not_after: hosted.materialized.lsn,
            });
            let source = match hosted.materialized.held.get(key) {
                Some(held) => Source::Held { held: held.clone(), slot: Box::new(slot) },
                None => slot,
            };
            (source, Lsn::ZERO)
        }
        PriorContent::Nothing { since } => (Source::Nothing, since),
        PriorContent::Copy { from, at } => {
            let PageKey::Block(block) = key else { return Source::Nothing };
            let original = BlockKey { relation_fork: in_database(block.relation_fork, from), ..*block };
            // As of just before the copy's record. The LSN is lower in each step, so the recursion ends.
            (add_page(hosted, &PageKey::Block(original), Lsn(at.0 - 1), steps), at)
        }
    };
    steps.extend(hosted.index.page_records(key, above, lsn).map(|reference| (*key, reference)));
    source
}

fn add_meta(
    hosted: &HostedSegment,
    key: &MetaKey,
    lsn: Lsn,
    steps: &mut Vec<(MetaKey, RecordRef)>,
) -> Option<Vec<u8>> {
    if *key == MetaKey::Counters {
        let (counters, above) = hosted.counters_before(lsn);
        let records = hosted.index.all_records(above, lsn);
        steps.extend(records.iter().map(|reference| (MetaKey::Counters, *reference)));
        return counters.cloned();
    }
    let origin = match key {
        MetaKey::RelationMap(database) => hosted.index.relations.prior_relation_map(*database, lsn),
        _ => PriorContent::Materialized,
    };
    let (value, above) = match origin {
        PriorContent::Materialized => (hosted.materialized.meta.get(key).cloned(), Lsn::ZERO),
        PriorContent::Nothing { since } => (None, since),
        PriorContent::Copy { from, at } => {
            (add_meta(hosted, &MetaKey::RelationMap(from), Lsn(at.0 - 1), steps), at)
        }
    };
    let records = hosted.index.meta_records(key, above, lsn);
    steps.extend(records.map(|reference| (key.clone(), reference)));
    value
}

/// Checks the records that are about to make a version: each once, in order, and none that the version is before.
pub(crate) fn check_steps<K>(steps: &[(K, RecordRef)], lsn: Lsn) {
    let mut before = Lsn::ZERO;
    for (_, reference) in steps {
        let end = reference.span.end;
        invariant!(
            "redo-in-order",
            end > before,
            "a record that ends at {end} after one that ends at {before}"
        );
        before = end;
    }
    invariant!(
        "redo-within-version",
        before <= lsn,
        "a record that ends at {before}, for a version as of {lsn}"
    );
}

/// The bytes of a record that is about to be applied.
enum StepBytes<'b> {
    Read(&'b [u8]),
    /// Put together from pieces, by whoever's turn it is.
    Assembled(Vec<u8>, #[expect(dead_code, reason = "held for as long as the bytes are")] MutexGuard<'b, ()>),
}

impl AsRef<[u8]> for StepBytes<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            StepBytes::Read(bytes) => bytes,
            StepBytes::Assembled(bytes, _) => bytes,
        }
    }
}

/// Why a version could not be made.
enum MakeError {
    Redo {
        lsn: Lsn,
        reason: String,
    },
    /// Bytes that it is made from are damaged: the image if there is no `record`, else that record's in the log.
    Damaged {
        record: Option<RecordRef>,
        error: StoreError,
    },
}

impl MakeError {
    fn in_image(error: StoreError) -> MakeError {
        MakeError::Damaged { record: None, error }
    }

    fn in_record(reference: &RecordRef) -> impl FnOnce(StoreError) -> MakeError + '_ {
        move |error| MakeError::Damaged { record: Some(*reference), error }
    }
}

/// What is being made, for what is noted when it cannot be.
#[derive(Clone, Copy)]
enum Subject<'a> {
    Page(&'a PageKey),
    Meta,
}

impl Store {
    pub(crate) fn hosted(state: &State, group: GroupId) -> Result<&HostedSegment, StoreError> {
        state.segments.get(&group).ok_or_else(|| Refusal::NoSegment(group).into())
    }

    /// Admits a read: the segment, if it can serve exactly the state as of `at`. The only place where reads are
    /// admitted; [`borealis_quorum::segment::Segment::check_read`] decides, and [`crate::pins`] what is kept beyond that.
    pub(crate) fn readable(
        state: &State,
        group: GroupId,
        at: ReadPoint,
    ) -> Result<&HostedSegment, StoreError> {
        let hosted = Store::hosted(state, group)?;
        match hosted.pins.floor(Instant::now()) {
            Some(pinned) => hosted.segment.permit_pinned_read(at, pinned)?,
            None => hosted.segment.permit_read(at)?,
        }
        let lsn = at.lsn;
        hosted.check_admitted(lsn);
        if let Some(failure) = &hosted.failure
            && lsn >= failure.lsn
        {
            return Err(StoreError::Redo { group, lsn: failure.lsn, reason: failure.reason.clone() });
        }
        hosted.check_read_through(lsn)?;
        Ok(hosted)
    }

    /// A page as of an LSN; `None` if it does not exist then.
    ///
    /// # Errors
    /// [`Refusal::NotReadable`] below the minimum read point or above what is complete;
    /// [`StoreError::Corrupt`] when what the page is made from is damaged, naming it; [`StoreError::Redo`]
    /// when it cannot be made.
    pub fn read_page(
        &self,
        group: GroupId,
        key: &PageKey,
        at: impl Into<ReadPoint>,
    ) -> Result<Option<Box<PageBytes>>, StoreError> {
        let at = at.into();
        if self.identity.placement.group_of(key) != group {
            return Err(Refusal::Misuse(format!("page {key} is not of group {group}")).into());
        }
        count(&self.counters.pages_read, 1);
        self.page_version(group, key, at.lsn, Overtaken::Wait, &|state| Store::readable(state, group, at))
    }

    /// A page as of an LSN that `look` admits.
    pub(crate) fn page_version(
        &self,
        group: GroupId,
        key: &PageKey,
        lsn: Lsn,
        overtaken: Overtaken,
        look: &dyn for<'s> Fn(&'s State) -> Result<&'s HostedSegment, StoreError>,
    ) -> Result<Option<Box<PageBytes>>, StoreError> {
        self.consistent(
            group,
            Subject::Page(key),
            overtaken,
            || {
                let state = self.lock();
                let hosted = look(&state)?;
                if let Some(failure) = hosted.known_failure(key, lsn) {
                    let (lsn, reason) = (failure.since, failure.reason.clone());
                    return Err(StoreError::RedoOfPage { group, key: *key, lsn, reason });
                }
                Ok(self.page_recipe(hosted, key, lsn))
            },
            |recipe| recipe.version,
            |recipe| {
                let page = self.make_page(recipe)?;
                count(&self.counters.records_applied_for_reads, recipe.steps.len() as u64);
                Ok((page, recipe.steps.len()))
            },
        )
        .map(|(page, steps)| {
            if steps >= CACHE_FROM_RECORDS
                && let Some(page) = &page
            {
                self.keep(group, key, lsn, page);
            }
            page
        })
    }

    /// Caches a version, unless a recovery can still truncate, or just truncated, the records it was made
    /// from.
    fn keep(&self, group: GroupId, key: &PageKey, lsn: Lsn, page: &PageBytes) {
        let state = self.lock();
        let Some(hosted) = state.segments.get(&group) else { return };
        if lsn <= hosted.segment.readable_through() && lsn <= hosted.segment.known_durable().volume.end {
            hosted.check_certain("a cached page", lsn);
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.put(group, *key, lsn, Arc::new(*page));
        }
    }

    fn page_recipe(&self, hosted: &HostedSegment, key: &PageKey, lsn: Lsn) -> PageRecipe {
        let (history, version) = (hosted.segment.history().clone(), hosted.version);
        let cached = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(hosted.group(), key);
        if let Some((since, page)) = cached
            && since <= lsn
            && since >= hosted.materialized.lsn
        {
            hosted.check_certain("a cached page", since);
            let replaced = match hosted.index.relations.prior_page(key, lsn) {
                PriorContent::Materialized => false,
                PriorContent::Nothing { since: at } | PriorContent::Copy { at, .. } => at > since,
            };
            if !replaced {
                count(&self.counters.page_cache_hits, 1);
                let records = hosted.index.page_records(key, since, lsn);
                let steps = records.map(|reference| (*key, reference)).collect();
                let pieces = hosted.cut.pieces().clone();
                return PageRecipe { source: Source::Cached(page), steps, pieces, lsn, history, version };
            }
        }
        if let Some(healed) = hosted.healed_page(key, lsn) {
            let since = healed.lsn;
            hosted.check_certain("a healed page", since);
            let replaced = match hosted.index.relations.prior_page(key, lsn) {
                PriorContent::Materialized => false,
                PriorContent::Nothing { since: at } | PriorContent::Copy { at, .. } => at > since,
            };
            if !replaced {
                let records = hosted.index.page_records(key, since, lsn);
                let steps = records.map(|reference| (*key, reference)).collect();
                return PageRecipe {
                    source: Source::Healed(healed.page.clone()),
                    steps,
                    pieces: hosted.cut.pieces().clone(),
                    lsn,
                    history,
                    version,
                };
            }
        }
        let mut steps = Vec::new();
        let source = add_page(hosted, key, lsn, &mut steps);
        PageRecipe { source, steps, pieces: hosted.cut.pieces().clone(), lsn, history, version }
    }

    /// The page that a recipe begins with, after what a held page kept.
    fn first_version(
        &self,
        source: &Source,
        history: &EpochHistory,
    ) -> Result<Option<Box<PageBytes>>, MakeError> {
        match source {
            Source::Nothing => Ok(None),
            Source::Slot { files, key, address, not_after } => {
                files.read(key, *address, *not_after).map(Some).map_err(MakeError::in_image)
            }
            Source::Cached(page) => Ok(Some(Box::new(**page))),
            Source::Healed(page) => Ok(page.as_ref().map(|page| Box::new(**page))),
            Source::Held { held: HeldPage::Damaged { reason }, .. } => {
                let error = StoreError::corrupt("what a page was made from", reason.clone());
                Err(MakeError::in_image(error))
            }
            Source::Held { held: HeldPage::Failed { existed, steps, .. }, slot } => {
                let mut page = self.first_version(slot, history)?.filter(|_| *existed);
                for step in steps {
                    let record = self.parse_kept(history, step).map_err(MakeError::in_image)?;
                    self.apply(&record, &step.key, &mut page)?;
                }
                Ok(page)
            }
        }
    }

    /// Applies a record to a page. A panic of redo is a failure like any other.
    fn apply(
        &self,
        record: &Record<'_>,
        key: &PageKey,
        page: &mut Option<Box<PageBytes>>,
    ) -> Result<(), MakeError> {
        if page.is_none() && changes_only_existing_pages(record) {
            return Ok(());
        }
        let page = page.get_or_insert_with(|| Box::new([0; PAGE_SIZE]));
        let applied = guarded(|| self.environment.redo.apply_page(record, key, page));
        let applied = applied.and_then(|applied| applied.map_err(|error| error.to_string()));
        applied.map_err(|reason| MakeError::Redo { lsn: record.span.end, reason })
    }

    fn make_page(&self, recipe: &PageRecipe) -> Result<Option<Box<PageBytes>>, MakeError> {
        let mut page = self.first_version(&recipe.source, &recipe.history)?;
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (key, reference)) in recipe.steps.iter().enumerate() {
            let bytes = self.step_bytes(&mut reader, &recipe.pieces, &recipe.steps[at..]);
            let bytes = bytes.map_err(MakeError::in_record(reference))?;
            let record = self.parse(&recipe.history, reference, bytes.as_ref());
            self.apply(&record.map_err(MakeError::in_record(reference))?, key, &mut page)?;
        }
        Ok(page)
    }

    /// The bytes of the record that the first of `steps` is.
    fn step_bytes<'b, K>(
        &'b self,
        reader: &'b mut RecordReader<'_>,
        pieces: &Pieces,
        steps: &[(K, RecordRef)],
    ) -> Result<StepBytes<'b>, StoreError> {
        let reference = &steps[0].1;
        if !reference.part.is_piece() {
            return Ok(StepBytes::Read(reader.read(steps)?));
        }
        let Some(pieces) = pieces.get(&reference.span.end) else {
            let what =
                StoreError::corrupt(format!("record at {}", reference.span.start), "its pieces are gone");
            return Err(what);
        };
        // One at a time: each may be as long as PostgreSQL lets a record be.
        let turn = self.assembling.lock().unwrap_or_else(PoisonError::into_inner);
        let pieces: Vec<Piece<'_>> = pieces.iter().map(|piece| Piece::InLog(*piece)).collect();
        let bytes = assemble(&self.files, &pieces)?;
        Ok(StepBytes::Assembled(bytes, turn))
    }

    /// Verifies and parses a record read back from the log.
    fn parse<'a>(
        &self,
        history: &EpochHistory,
        reference: &RecordRef,
        bytes: &'a [u8],
    ) -> Result<Record<'a>, StoreError> {
        let position = reference.position;
        let place = || format!("log file {} at offset {}", position.file(), position.offset());
        let damaged = |error: borealis_wal::RecordError| StoreError::corrupt(place(), error.to_string());
        self.environment.redo.verify(bytes, reference.span.start).map_err(damaged)?;
        Record::parse(release_of(history, reference.span), reference.span, bytes).map_err(damaged)
    }

    /// Runs `look` and `make`, and starts again if the segment's version number changed meanwhile.
    fn consistent<L, T>(
        &self,
        group: GroupId,
        subject: Subject<'_>,
        overtaken: Overtaken,
        look: impl Fn() -> Result<L, StoreError>,
        version: impl Fn(&L) -> u64,
        make: impl Fn(&L) -> Result<T, MakeError>,
    ) -> Result<T, StoreError> {
        let mut waited = None;
        for attempt in 0..2 * ATTEMPTS {
            if attempt == ATTEMPTS && overtaken == Overtaken::Wait {
                waited = Some(self.maintenance.enter());
            }
            let looked = look()?;
            let made = make(&looked);
            let mut state = self.lock();
            let Some(hosted) = state.segments.get_mut(&group) else { continue };
            if hosted.version != version(&looked) {
                continue;
            }
            return made.map_err(|error| note_failure(&mut state, group, subject, error));
        }
        drop(waited);
        // Every attempt was overtaken by a change of the segment: recoveries in quick succession, or redo that keeps
        // failing. Give up rather than loop.
        let what = format!("group {group} changed during each of {} attempts to read", 2 * ATTEMPTS);
        Err(Refusal::Failed(what).into())
    }

    /// A small value as of an LSN; `None` if it does not exist then.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn read_meta(&self, key: &MetaKey, at: impl Into<ReadPoint>) -> Result<Option<Vec<u8>>, StoreError> {
        let at = at.into();
        self.meta_version(key, at.lsn, Overtaken::Wait, &|state| Store::readable(state, META_GROUP, at))
    }

    pub(crate) fn meta_version(
        &self,
        key: &MetaKey,
        lsn: Lsn,
        overtaken: Overtaken,
        look: &dyn for<'s> Fn(&'s State) -> Result<&'s HostedSegment, StoreError>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.consistent(
            META_GROUP,
            Subject::Meta,
            overtaken,
            || {
                let state = self.lock();
                let hosted = look(&state)?;
                let mut steps = Vec::new();
                let value = add_meta(hosted, key, lsn, &mut steps);
                let history = hosted.segment.history().clone();
                let pieces = hosted.cut.pieces().clone();
                Ok(MetaRecipe { value, steps, pieces, lsn, history, version: hosted.version })
            },
            |recipe| recipe.version,
            |recipe| match key {
                MetaKey::Counters => self.make_counters(recipe),
                _ => self.make_meta(recipe),
            },
        )
    }

    fn make_counters(&self, recipe: &MetaRecipe) -> Result<Option<Vec<u8>>, MakeError> {
        let mut counters = self.environment.redo.counters(recipe.value.clone());
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (_, reference)) in recipe.steps.iter().enumerate() {
            let bytes = self.step_bytes(&mut reader, &recipe.pieces, &recipe.steps[at..]);
            let bytes = bytes.map_err(MakeError::in_record(reference))?;
            let record = self.parse(&recipe.history, reference, bytes.as_ref());
            let record = record.map_err(MakeError::in_record(reference))?;
            let applied = guarded(|| counters.apply(&record).map_err(|error| error.to_string()));
            applied
                .and_then(|applied| applied)
                .map_err(|reason| MakeError::Redo { lsn: reference.span.end, reason })?;
        }
        Ok(counters.finish())
    }

    fn make_meta(&self, recipe: &MetaRecipe) -> Result<Option<Vec<u8>>, MakeError> {
        let mut value = recipe.value.clone();
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (key, reference)) in recipe.steps.iter().enumerate() {
            let lsn = reference.span.end;
            let bytes = self.step_bytes(&mut reader, &recipe.pieces, &recipe.steps[at..]);
            let bytes = bytes.map_err(MakeError::in_record(reference))?;
            let record = self.parse(&recipe.history, reference, bytes.as_ref());
            let record = record.map_err(MakeError::in_record(reference))?;
            let applied = guarded(|| self.environment.redo.apply_meta(&record, key, value));
            let applied = applied.and_then(|applied| applied.map_err(|error| error.to_string()));
            value = applied.map_err(|reason| MakeError::Redo { lsn, reason })?;
        }
        Ok(value)
    }
}
