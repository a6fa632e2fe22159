//! Replays records into pages and asks the oracle about every one.
//!
//! This is the storage node's work with everything but redo left out, for tests and for checking a WAL archive.

mod coverage;
mod pages;
#[cfg(test)]
mod rare_tests;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use borealis_types::{
    BlockKey, DatabaseKey, Fork, MetaKey, PAGE_SIZE, PageBytes, PageKey, RelationFork, RelationLocator,
    SlruKind,
};
use borealis_wal::layout::{multixact, slru};
use borealis_wal::{Effect, Record, ResourceManager, effects};

use super::consistency::{Comparison, Mismatch, check_consistency};
use crate::apply::{apply_meta, apply_page};
use crate::error::RedoError;
use crate::names::operation_name;
use crate::page;

pub use coverage::{RareOperation, rare_operation, rare_operations, unseen_operations};
pub use pages::{MemoryPages, PageNote, PageStore};
pub use report::{Tallies, Tally, table};

/// How many problems are kept in full; the rest is only counted.
const PROBLEMS_KEPT: usize = 100;

/// One thing that went wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Effects or redo not known, or failed.
    Redo(String),
    /// Redo went through and the result is wrong.
    Different {
        /// Position of the record and its operation.
        record: String,
        /// Where the page is wrong.
        mismatch: Mismatch,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Redo(message) => f.write_str(message),
            Problem::Different { record, mismatch } => write!(f, "{record}: {mismatch}"),
        }
    }
}

/// What is taken for the version before the first record of a page that nobody made known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unmentioned {
    /// Zeros: everything that existed was seeded.
    Zeros,
    /// Anything: the replay begins in the middle of a cluster's life.
    Unknown,
}

/// Replays records and keeps count. See the module's documentation.
pub struct Checker<S: PageStore = MemoryPages> {
    pages: S,
    values: BTreeMap<MetaKey, Vec<u8>>,
    unmentioned: Unmentioned,
    /// From which block on the blocks of a fork that are not kept are zeros, because the replay has seen the fork
    /// made, cut or dropped.
    zeros_from: BTreeMap<RelationFork, u32>,
    tallies: Tallies,
    problems: Vec<Problem>,
    effects: Vec<Effect>,
    scratch: Box<PageBytes>,
}

impl Checker<MemoryPages> {
    /// A checker that knows no page, and takes what it was not told for unknown: it follows a page from the first
    /// image of it on.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two kinds of beginning, and neither is the default")]
    pub fn new() -> Self {
        Checker::with_pages(MemoryPages::default())
    }

    /// A checker to be told about every page there is, by [`Checker::seed_page`]; all others are zeros.
    #[must_use]
    pub fn of_whole_cluster() -> Self {
        Checker { unmentioned: Unmentioned::Zeros, ..Checker::new() }
    }

    /// Makes known a page as of before the first record.
    pub fn seed_page(&mut self, key: PageKey, bytes: &PageBytes) {
        let Ok(()) = self.pages.write(key, bytes, PageNote::default());
    }

    /// Applies all of the record's effects in order and compares each page it lists.
    pub fn feed(&mut self, record: &Record<'_>) {
        let Ok(()) = self.try_feed(record);
    }

    /// The page as redo has left it.
    #[must_use]
    pub fn page(&self, key: &PageKey) -> Option<&PageBytes> {
        self.pages.get(key)
    }

    /// Every page that redo changed, and which resource manager did so last other than by restoring an image.
    pub fn changed_pages(&self) -> impl Iterator<Item = (&PageKey, &PageBytes, Option<ResourceManager>)> {
        self.pages
            .iter()
            .filter(|(_, _, note)| note.changed)
            .map(|(key, bytes, note)| (key, bytes, note.changed_by))
    }
}

impl<S: PageStore> Checker<S> {
    /// A checker that knows no page, as [`Checker::new`], and keeps pages in this (empty) store.
    #[must_use]
    pub fn with_pages(pages: S) -> Self {
        Checker {
            pages,
            values: BTreeMap::new(),
            unmentioned: Unmentioned::Unknown,
            zeros_from: BTreeMap::new(),
            tallies: Tallies::new(),
            problems: Vec::new(),
            effects: Vec::new(),
            scratch: Box::new([0; PAGE_SIZE]),
        }
    }

    /// Makes known a small value as of before the first record.
    pub fn seed_value(&mut self, key: MetaKey, value: Vec<u8>) {
        self.values.insert(key, value);
    }

    /// Applies all of the record's effects in order and compares each page it lists.
    ///
    /// # Errors
    /// The store's. What is wrong with the record or redo of it is counted and kept as a [`Problem`].
    pub fn try_feed(&mut self, record: &Record<'_>) -> Result<(), S::Error> {
        let operation = operation_name(record.resource_manager, record.info).unwrap_or("?");
        let mut tally = Tally { records: 1, ..Tally::default() };
        let mut effects_of_record = std::mem::take(&mut self.effects);
        effects_of_record.clear();
        let mut result = Ok(());
        match effects(record, &mut effects_of_record) {
            Ok(()) => {
                for effect in &effects_of_record {
                    result = self.apply(record, effect, &mut tally);
                    if result.is_err() {
                        break;
                    }
                }
                if !effects_of_record.contains(&Effect::Meta(MetaKey::Counters)) {
                    self.apply_value(record, &MetaKey::Counters, &mut tally);
                }
            }
            Err(error) => {
                tally.skipped += 1;
                self.report(Problem::Redo(error.to_string()));
            }
        }
        self.effects = effects_of_record;
        self.tallies.entry((record.resource_manager, operation)).or_default().add(tally);
        result
    }

    fn apply(&mut self, record: &Record<'_>, effect: &Effect, tally: &mut Tally) -> Result<(), S::Error> {
        match effect {
            Effect::Page(key) => return self.apply_page(record, *key, tally),
            Effect::Meta(key) => self.apply_value(record, key, tally),
            Effect::CreateRelation(fork) => {
                if self.pages.keys(block(*fork, 0)..=block(*fork, 0)).is_empty() {
                    self.zeros_from.insert(*fork, 0);
                    if fork.fork == Fork::Main {
                        // The maps of a relation come into being without a record.
                        for map in [Fork::FreeSpaceMap, Fork::VisibilityMap] {
                            self.zeros_from.insert(RelationFork { fork: map, ..*fork }, 0);
                        }
                    }
                }
            }
            Effect::TruncateRelation { relation_fork, blocks } => {
                self.remove(block(*relation_fork, *blocks), block(*relation_fork, u32::MAX));
                let zeros_from = self.zeros_from.entry(*relation_fork).or_insert(*blocks);
                *zeros_from = (*zeros_from).min(*blocks);
            }
            Effect::DropRelation(locator) => {
                let fork = |fork| RelationFork { locator: *locator, fork };
                self.remove(block(fork(Fork::Main), 0), block(fork(Fork::Init), u32::MAX));
                // What comes back under this name starts as zeros, and says so by being created.
                for kind in Fork::ALL {
                    self.zeros_from.remove(&fork(kind));
                }
            }
            Effect::CopyDatabase { from, to } => return self.copy_database(*from, *to),
            Effect::DropDatabase(database) => {
                let (first, last) = database_range(*database);
                self.remove(first, last);
                self.zeros_from.retain(|fork, _| database_of(fork.locator) != *database);
            }
            Effect::TruncateSlru { kind, first_kept_page } => {
                let page = |page| PageKey::Slru { kind: *kind, page };
                for key in self.pages.keys(page(0)..=page(u32::MAX)) {
                    // Half the circle behind the first page that stays; a replay never spans more.
                    if let PageKey::Slru { page, .. } = key
                        && page < *first_kept_page
                        && first_kept_page - page <= u32::MAX / 2
                    {
                        self.pages.remove(&key);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a page that is not kept is all zeros.
    fn starts_as_zeros(&self, key: &PageKey) -> bool {
        self.unmentioned == Unmentioned::Zeros
            || match key {
                PageKey::Block(block) => {
                    self.zeros_from.get(&block.relation_fork).is_some_and(|from| *from <= block.block)
                }
                PageKey::Slru { .. } => false,
            }
    }

    fn apply_page(&mut self, record: &Record<'_>, key: PageKey, tally: &mut Tally) -> Result<(), S::Error> {
        let mut bytes = std::mem::replace(&mut self.scratch, Box::new([0; PAGE_SIZE]));
        let result = self.apply_page_in(record, key, tally, &mut bytes);
        self.scratch = bytes;
        result
    }

    fn apply_page_in(
        &mut self,
        record: &Record<'_>,
        key: PageKey,
        tally: &mut Tally,
        bytes: &mut PageBytes,
    ) -> Result<(), S::Error> {
        let known = self.pages.read(&key, bytes)?;
        if known.is_none() {
            bytes.fill(0);
            if !self.starts_as_zeros(&key) && !makes_page(record, &key) {
                if restore_expected(record, &key, bytes) {
                    tally.first_seen += 1;
                    return self.pages.write(key, bytes, PageNote { changed_by: None, changed: true });
                }
                tally.not_followed += 1;
                return Ok(());
            }
        }
        tally.pages += 1;
        let mut followed = true;
        if let Err(error) = apply_page(record, &key, bytes) {
            tally.failed += 1;
            self.report_error(record, &error);
            followed = false;
        } else {
            match check_consistency(record, &key, bytes) {
                Ok(Comparison::Restored) => tally.restored += 1,
                Ok(Comparison::NoImage) => tally.no_image += 1,
                Ok(Comparison::NotListed) => {}
                Ok(Comparison::Equal) => tally.compared += 1,
                Ok(Comparison::Different(mismatch)) => {
                    tally.compared += 1;
                    tally.different += 1;
                    self.report(Problem::Different { record: describe(record), mismatch });
                    followed = false;
                }
                Err(error) => {
                    tally.failed += 1;
                    self.report_error(record, &error);
                    followed = false;
                }
            }
        }
        let changed_by = match record.resource_manager {
            ResourceManager::Xlog => known.and_then(|note| note.changed_by),
            other => Some(other),
        };
        // After a mistake the page goes on as PostgreSQL has it, so that one mistake is reported once. Without its
        // image the version before the record is as good as any.
        if followed || restore_expected(record, &key, bytes) {
            self.pages.write(key, bytes, PageNote { changed_by, changed: true })?;
        }
        Ok(())
    }

    fn apply_value(&mut self, record: &Record<'_>, key: &MetaKey, tally: &mut Tally) {
        match apply_meta(record, key, self.values.get(key).cloned()) {
            Ok(value) => {
                tally.values += u64::from(self.values.get(key) != value.as_ref());
                match value {
                    Some(value) => self.values.insert(key.clone(), value),
                    None => self.values.remove(key),
                };
            }
            Err(error) => {
                tally.failed += 1;
                self.report_error(record, &error);
            }
        }
    }

    fn remove(&mut self, first: PageKey, last: PageKey) {
        for key in self.pages.keys(first..=last) {
            self.pages.remove(&key);
        }
    }

    fn copy_database(&mut self, from: DatabaseKey, to: DatabaseKey) -> Result<(), S::Error> {
        let (first, last) = database_range(from);
        let renamed = |mut fork: RelationFork| {
            fork.locator.tablespace = to.tablespace;
            fork.locator.database = to.database;
            fork
        };
        for key in self.pages.keys(first..=last) {
            let PageKey::Block(mut block) = key else { continue };
            if let Some(note) = self.pages.read(&key, &mut self.scratch)? {
                block.relation_fork = renamed(block.relation_fork);
                self.pages.write(PageKey::Block(block), &self.scratch, note)?;
            }
        }
        let zeros: Vec<(RelationFork, u32)> = self
            .zeros_from
            .iter()
            .filter(|(fork, _)| database_of(fork.locator) == from)
            .map(|(fork, blocks)| (renamed(*fork), *blocks))
            .collect();
        self.zeros_from.extend(zeros);
        if let Some(map) = self.values.get(&MetaKey::RelationMap(from)).cloned() {
            self.values.insert(MetaKey::RelationMap(to), map);
        }
        Ok(())
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_KEPT {
            self.problems.push(problem);
        }
    }

    fn report_error(&mut self, record: &Record<'_>, error: &RedoError) {
        self.report(Problem::Redo(format!("{}: {error}", describe(record))));
    }

    /// Every small value as redo has left it.
    pub fn values(&self) -> impl Iterator<Item = (&MetaKey, &[u8])> {
        self.values.iter().map(|(key, value)| (key, value.as_slice()))
    }

    /// The small value as redo has left it.
    #[must_use]
    pub fn value(&self, key: &MetaKey) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// What happened, by resource manager and operation.
    #[must_use]
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// The first problems, in stream order.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Where the pages are kept.
    #[must_use]
    pub fn pages(&self) -> &S {
        &self.pages
    }
}

/// The table of operations, one line each.
impl<S: PageStore> fmt::Display for Checker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&table(&self.tallies))
    }
}

/// Whether redo of the record does not depend on what the page was before.
fn makes_page(record: &Record<'_>, key: &PageKey) -> bool {
    match key {
        PageKey::Block(block) => record
            .blocks
            .iter()
            .find(|listed| listed.key == *block)
            .is_some_and(|listed| listed.will_init || listed.image.is_some_and(|image| image.apply)),
        PageKey::Slru { kind, .. } => matches!(
            (kind, record.resource_manager, record.operation()),
            // Each store's record that a page begins as zeros.
            (SlruKind::Transactions, ResourceManager::Clog, slru::ZERO_PAGE)
                | (SlruKind::CommitTimestamps, ResourceManager::CommitTs, slru::ZERO_PAGE)
                | (SlruKind::MultiXactOffsets, ResourceManager::MultiXact, multixact::ZERO_OFFSETS_PAGE)
                | (SlruKind::MultiXactMembers, ResourceManager::MultiXact, multixact::ZERO_MEMBERS_PAGE)
        ),
    }
}

/// Makes the page what PostgreSQL says it is after the record; `false` if it does not say.
fn restore_expected(record: &Record<'_>, key: &PageKey, bytes: &mut PageBytes) -> bool {
    let PageKey::Block(block) = key else { return false };
    let listed = record.blocks.iter().find(|listed| listed.key == *block);
    let Some(image) = listed.and_then(|listed| listed.image) else { return false };
    if image.restore(bytes).is_err() {
        return false;
    }
    if !page::is_new(bytes) {
        page::set_lsn(bytes, record.span.end);
    }
    true
}

fn describe(record: &Record<'_>) -> String {
    let operation = operation_name(record.resource_manager, record.info).unwrap_or("?");
    format!("{} {}/{operation}", record.span.start, record.resource_manager)
}

fn block(relation_fork: RelationFork, block: u32) -> PageKey {
    PageKey::Block(BlockKey { relation_fork, block })
}

fn database_of(locator: RelationLocator) -> DatabaseKey {
    DatabaseKey { tablespace: locator.tablespace, database: locator.database }
}

/// The first and last page key of a database.
fn database_range(database: DatabaseKey) -> (PageKey, PageKey) {
    let DatabaseKey { tablespace, database } = database;
    let locator = |relation| RelationLocator { tablespace, database, relation };
    let first = RelationFork { locator: locator(0), fork: Fork::Main };
    let last = RelationFork { locator: locator(u32::MAX), fork: Fork::Init };
    (block(first, 0), block(last, u32::MAX))
}
