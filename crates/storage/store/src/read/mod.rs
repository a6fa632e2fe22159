//! Reading pages and small values as of an LSN.
//!
//! A read looks up under the lock what it needs (a stored version and the records after it), reads the files
//! without the lock, and then checks that the segment's version number has not changed. Slots are overwritten
//! and log files reused only after that number has changed, so an unchanged number proves that the right
//! bytes were read.

mod listing;
pub(crate) mod tail;

use std::sync::{Arc, PoisonError};

use borealis_types::{
    BlockKey, EpochHistory, GroupId, Lsn, META_GROUP, MetaKey, PAGE_SIZE, PageBytes, PageKey, ReadPoint,
    invariant,
};
use borealis_wal::Record;
use borealis_wire::Refusal;

use crate::log::position::RecordRef;
use crate::log::record_reader::RecordReader;
use crate::metrics::count;
use crate::pages::materialized_state::in_database;
use crate::pages::page_files::{PageFiles, SlotAddress};
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
    Slot { files: Arc<PageFiles>, key: PageKey, address: SlotAddress, not_after: Lsn },
    Cached(Arc<PageBytes>),
}

/// How to make a version of a page.
struct PageRecipe {
    source: Source,
    /// Records to apply, each as a change of this page: a copied page first gets those of its original.
    steps: Vec<(PageKey, RecordRef)>,
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
            let source = located.map_or(Source::Nothing, |address| Source::Slot {
                files: Arc::clone(&hosted.pages),
                key: *key,
                address,
                not_after: hosted.materialized.lsn,
            });
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

/// Why a version could not be made.
enum MakeError {
    Redo { lsn: Lsn, reason: String },
    Other(StoreError),
}

impl Store {
    pub(crate) fn hosted(state: &State, group: GroupId) -> Result<&HostedSegment, StoreError> {
        state.segments.get(&group).ok_or_else(|| Refusal::NoSegment(group).into())
    }

    /// Admits a read: the segment, if it can serve exactly the state as of `at`. The only place where reads are
    /// admitted; [`borealis_quorum::segment::Segment::check_read`] decides.
    pub(crate) fn readable(
        state: &State,
        group: GroupId,
        at: ReadPoint,
    ) -> Result<&HostedSegment, StoreError> {
        let hosted = Store::hosted(state, group)?;
        hosted.segment.permit_read(at)?;
        let lsn = at.lsn;
        hosted.check_admitted(lsn);
        if let Some(failure) = &hosted.failure
            && lsn >= failure.lsn
        {
            return Err(StoreError::Redo { group, lsn: failure.lsn, reason: failure.reason.clone() });
        }
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
            overtaken,
            || {
                let state = self.lock();
                Ok(self.page_recipe(look(&state)?, key, lsn))
            },
            |recipe| recipe.version,
            |recipe| {
                let page = self.make_page(recipe).map_err(|spoiled| (recipe.version, spoiled))?;
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
                return PageRecipe { source: Source::Cached(page), steps, lsn, history, version };
            }
        }
        let mut steps = Vec::new();
        let source = add_page(hosted, key, lsn, &mut steps);
        PageRecipe { source, steps, lsn, history, version }
    }

    fn make_page(&self, recipe: &PageRecipe) -> Result<Option<Box<PageBytes>>, MakeError> {
        let mut page = match &recipe.source {
            Source::Nothing => None,
            Source::Slot { files, key, address, not_after } => {
                Some(files.read(key, *address, *not_after).map_err(MakeError::Other)?)
            }
            Source::Cached(page) => Some(Box::new(**page)),
        };
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (key, reference)) in recipe.steps.iter().enumerate() {
            let lsn = reference.span.end;
            let bytes = reader.read(&recipe.steps[at..]).map_err(MakeError::Other)?;
            let record = self.parse(&recipe.history, reference, bytes).map_err(MakeError::Other)?;
            if page.is_none() && changes_only_existing_pages(&record) {
                continue;
            }
            let page = page.get_or_insert_with(|| Box::new([0; PAGE_SIZE]));
            let applied = self.environment.redo.apply_page(&record, key, page);
            applied.map_err(|error| MakeError::Redo { lsn, reason: error.to_string() })?;
        }
        Ok(page)
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
        overtaken: Overtaken,
        look: impl Fn() -> Result<L, StoreError>,
        version: impl Fn(&L) -> u64,
        make: impl Fn(&L) -> Result<T, (u64, MakeError)>,
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
            return match made {
                Ok(made) => Ok(made),
                Err((_, MakeError::Other(error))) => {
                    drop(state);
                    self.note_damage(&error);
                    Err(error)
                }
                Err((_, MakeError::Redo { lsn, reason })) => {
                    hosted.fail(lsn, reason.clone());
                    Err(StoreError::Redo { group, lsn, reason })
                }
            };
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
            overtaken,
            || {
                let state = self.lock();
                let hosted = look(&state)?;
                let mut steps = Vec::new();
                let value = add_meta(hosted, key, lsn, &mut steps);
                let history = hosted.segment.history().clone();
                Ok(MetaRecipe { value, steps, lsn, history, version: hosted.version })
            },
            |recipe| recipe.version,
            |recipe| {
                let made = match key {
                    MetaKey::Counters => self.make_counters(recipe),
                    _ => self.make_meta(recipe),
                };
                made.map_err(|spoiled| (recipe.version, spoiled))
            },
        )
    }

    fn make_counters(&self, recipe: &MetaRecipe) -> Result<Option<Vec<u8>>, MakeError> {
        let mut counters = self.environment.redo.counters(recipe.value.clone());
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (_, reference)) in recipe.steps.iter().enumerate() {
            let bytes = reader.read(&recipe.steps[at..]).map_err(MakeError::Other)?;
            let record = self.parse(&recipe.history, reference, bytes).map_err(MakeError::Other)?;
            counters
                .apply(&record)
                .map_err(|error| MakeError::Redo { lsn: reference.span.end, reason: error.to_string() })?;
        }
        Ok(counters.finish())
    }

    fn make_meta(&self, recipe: &MetaRecipe) -> Result<Option<Vec<u8>>, MakeError> {
        let mut value = recipe.value.clone();
        let mut reader = RecordReader::new(&self.files);
        check_steps(&recipe.steps, recipe.lsn);
        for (at, (key, reference)) in recipe.steps.iter().enumerate() {
            let lsn = reference.span.end;
            let bytes = reader.read(&recipe.steps[at..]).map_err(MakeError::Other)?;
            let record = self.parse(&recipe.history, reference, bytes).map_err(MakeError::Other)?;
            let applied = self.environment.redo.apply_meta(&record, key, value);
            value = applied.map_err(|error| MakeError::Redo { lsn, reason: error.to_string() })?;
        }
        Ok(value)
    }
}
