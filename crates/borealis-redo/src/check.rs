//! Replays records into pages held in memory and asks the oracle about every one.
//!
//! This is the storage node's work with everything but redo left out, for tests and for checking a WAL archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use borealis_types::{
    BlockKey, DatabaseKey, Fork, MetaKey, PAGE_SIZE, PageBytes, PageKey, RelationFork, RelationLocator,
};
use borealis_wal::{Effect, Record, ResourceManager, effects};

use crate::consistency::{Comparison, Mismatch, check_consistency};
use crate::names::operation_name;
use crate::{RedoError, apply_meta, apply_page};

/// How many problems are kept in full; the rest is only counted.
const PROBLEMS_KEPT: usize = 100;

/// What happened to the records of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Records seen.
    pub records: u64,
    /// Records whose effects nobody has taught Borealis.
    pub unknown: u64,
    /// Blocks and status pages changed.
    pub pages: u64,
    /// Small values changed.
    pub values: u64,
    /// Pages compared with the image PostgreSQL says they must equal.
    pub compared: u64,
    /// Pages that differed from it.
    pub different: u64,
    /// Redo that failed on a page or value whose version before the record was known.
    pub failed: u64,
    /// Redo that failed on a page that existed before the first record and was not given to
    /// [`Checker::seed_page`].
    pub without_base: u64,
}

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

/// A page and how it came to be.
#[derive(Clone)]
struct CheckedPage {
    bytes: Box<PageBytes>,
    /// Who changed it last by redo of its own (not by an image alone); `None` if only seeded or restored.
    changed_by: Option<ResourceManager>,
    /// Redo has changed it since it was seeded.
    changed: bool,
}

/// Replays records and keeps count. See the module's documentation.
#[derive(Default)]
pub struct Checker {
    pages: BTreeMap<PageKey, CheckedPage>,
    values: BTreeMap<MetaKey, Vec<u8>>,
    /// Forks that came into being during the replay: all their blocks start as zeros.
    created: BTreeSet<RelationFork>,
    tallies: BTreeMap<(ResourceManager, &'static str), Tally>,
    problems: Vec<Problem>,
    effects: Vec<Effect>,
}

impl Checker {
    /// A checker that knows no page.
    #[must_use]
    pub fn new() -> Self {
        Checker::default()
    }

    /// Makes known a page as of before the first record.
    pub fn seed_page(&mut self, key: PageKey, bytes: &PageBytes) {
        let page = CheckedPage { bytes: Box::new(*bytes), changed_by: None, changed: false };
        self.pages.insert(key, page);
    }

    /// Makes known a small value as of before the first record.
    pub fn seed_value(&mut self, key: MetaKey, value: Vec<u8>) {
        self.values.insert(key, value);
    }

    /// Applies all of the record's effects in order and compares each page it lists.
    pub fn feed(&mut self, record: &Record<'_>) {
        let operation = operation_name(record.resource_manager, record.info).unwrap_or("?");
        let mut tally = Tally { records: 1, ..Tally::default() };
        let mut effects_of_record = std::mem::take(&mut self.effects);
        effects_of_record.clear();
        match effects(record, &mut effects_of_record) {
            Ok(()) => {
                for effect in &effects_of_record {
                    self.apply(record, effect, &mut tally);
                }
                if !effects_of_record.contains(&Effect::Meta(MetaKey::Counters)) {
                    self.apply_value(record, &MetaKey::Counters, &mut tally);
                }
            }
            Err(error) => {
                tally.unknown += 1;
                self.report(Problem::Redo(error.to_string()));
            }
        }
        self.effects = effects_of_record;
        self.tallies.entry((record.resource_manager, operation)).or_default().add(tally);
    }

    fn apply(&mut self, record: &Record<'_>, effect: &Effect, tally: &mut Tally) {
        match effect {
            Effect::Page(key) => self.apply_page(record, *key, tally),
            Effect::Meta(key) => self.apply_value(record, key, tally),
            Effect::CreateRelation(fork) => {
                if !self.pages.contains_key(&block(*fork, 0)) {
                    self.created.insert(*fork);
                }
            }
            Effect::TruncateRelation { relation_fork, blocks } => {
                self.remove(block(*relation_fork, *blocks), block(*relation_fork, u32::MAX));
            }
            Effect::DropRelation(locator) => {
                let fork = |fork| RelationFork { locator: *locator, fork };
                self.remove(block(fork(Fork::Main), 0), block(fork(Fork::Init), u32::MAX));
            }
            Effect::CopyDatabase { from, to } => self.copy_database(*from, *to),
            Effect::DropDatabase(database) => {
                let (first, last) = database_range(*database);
                self.remove(first, last);
            }
            Effect::TruncateSlru { kind, first_kept_page } => {
                // Half the circle behind the first page that stays; a replay never spans more.
                self.pages.retain(|key, _| match key {
                    PageKey::Slru { kind: other, page } => {
                        other != kind || page >= first_kept_page || first_kept_page - page > u32::MAX / 2
                    }
                    PageKey::Block(_) => true,
                });
            }
        }
    }

    fn apply_page(&mut self, record: &Record<'_>, key: PageKey, tally: &mut Tally) {
        let known = self.pages.get(&key);
        let has_base = known.is_some()
            || match key {
                PageKey::Block(block) => self.created.contains(&block.relation_fork),
                PageKey::Slru { .. } => false,
            };
        let changed_by = known.and_then(|page| page.changed_by);
        let mut bytes = known.map_or_else(|| Box::new([0; PAGE_SIZE]), |page| page.bytes.clone());
        if let Err(error) = apply_page(record, &key, &mut bytes) {
            if has_base {
                tally.failed += 1;
            } else {
                tally.without_base += 1;
            }
            self.report_error(record, &error);
            return;
        }
        tally.pages += 1;
        match check_consistency(record, &key, &bytes) {
            Ok(Comparison::NotChecked) => {}
            Ok(Comparison::Equal) => tally.compared += 1,
            Ok(Comparison::Different(mismatch)) => {
                tally.compared += 1;
                tally.different += 1;
                self.report(Problem::Different { record: describe(record), mismatch });
            }
            Err(error) => {
                tally.failed += 1;
                self.report_error(record, &error);
            }
        }
        let changed_by = match record.resource_manager {
            ResourceManager::Xlog => changed_by,
            other => Some(other),
        };
        self.pages.insert(key, CheckedPage { bytes, changed_by, changed: true });
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
        let gone: Vec<PageKey> = self.pages.range(first..=last).map(|(key, _)| *key).collect();
        for key in gone {
            self.pages.remove(&key);
            // What comes back under this name starts as zeros.
            if let PageKey::Block(block) = key {
                self.created.insert(block.relation_fork);
            }
        }
    }

    fn copy_database(&mut self, from: DatabaseKey, to: DatabaseKey) {
        let (first, last) = database_range(from);
        let copies: Vec<(PageKey, CheckedPage)> = self
            .pages
            .range(first..=last)
            .filter_map(|(key, page)| {
                let PageKey::Block(mut block) = *key else { return None };
                block.relation_fork.locator.tablespace = to.tablespace;
                block.relation_fork.locator.database = to.database;
                Some((PageKey::Block(block), page.clone()))
            })
            .collect();
        self.pages.extend(copies);
        if let Some(map) = self.values.get(&MetaKey::RelationMap(from)).cloned() {
            self.values.insert(MetaKey::RelationMap(to), map);
        }
    }

    fn report(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_KEPT {
            self.problems.push(problem);
        }
    }

    fn report_error(&mut self, record: &Record<'_>, error: &RedoError) {
        self.report(Problem::Redo(format!("{}: {error}", describe(record))));
    }

    /// The page as redo has left it.
    #[must_use]
    pub fn page(&self, key: &PageKey) -> Option<&PageBytes> {
        self.pages.get(key).map(|page| &*page.bytes)
    }

    /// Every page that redo changed, and which resource manager did so last other than by restoring an image.
    pub fn changed_pages(&self) -> impl Iterator<Item = (&PageKey, &PageBytes, Option<ResourceManager>)> {
        self.pages
            .iter()
            .filter(|(_, page)| page.changed)
            .map(|(key, page)| (key, &*page.bytes, page.changed_by))
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
    pub fn tallies(&self) -> &BTreeMap<(ResourceManager, &'static str), Tally> {
        &self.tallies
    }

    /// The first problems, in stream order.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl Tally {
    fn add(&mut self, other: Tally) {
        let Tally { records, unknown, pages, values, compared, different, failed, without_base } = other;
        self.records += records;
        self.unknown += unknown;
        self.pages += pages;
        self.values += values;
        self.compared += compared;
        self.different += different;
        self.failed += failed;
        self.without_base += without_base;
    }
}

/// The table of operations.
impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<40} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
            "operation",
            "records",
            "unknown",
            "pages",
            "values",
            "compared",
            "different",
            "failed",
            "no base"
        )?;
        for ((resource_manager, operation), tally) in &self.tallies {
            writeln!(
                f,
                "{:<40} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
                format!("{}/{operation}", resource_manager.name()),
                tally.records,
                tally.unknown,
                tally.pages,
                tally.values,
                tally.compared,
                tally.different,
                tally.failed,
                tally.without_base
            )?;
        }
        Ok(())
    }
}

fn describe(record: &Record<'_>) -> String {
    let operation = operation_name(record.resource_manager, record.info).unwrap_or("?");
    format!("{} {}/{operation}", record.span.start, record.resource_manager.name())
}

fn block(relation_fork: RelationFork, block: u32) -> PageKey {
    PageKey::Block(BlockKey { relation_fork, block })
}

/// The first and last page key of a database.
fn database_range(database: DatabaseKey) -> (PageKey, PageKey) {
    let DatabaseKey { tablespace, database } = database;
    let locator = |relation| RelationLocator { tablespace, database, relation };
    let first = RelationFork { locator: locator(0), fork: Fork::Main };
    let last = RelationFork { locator: locator(u32::MAX), fork: Fork::Init };
    (block(first, 0), block(last, u32::MAX))
}
