//! The records of one segment that are not materialized, by what they change.
//!
//! Records enter in LSN order, once the group's chain is complete to them. So every list here is sorted, and
//! what is known about a relation at an LSN does not depend on when records arrived.

use std::collections::BTreeMap;

use borealis_types::{
    BlockKey, DatabaseKey, Fork, GroupId, Lsn, META_GROUP, MetaKey, PageKey, Placement, RecordSpan,
    RelationFork, SlruKind,
};
use borealis_wal::layout::slru::PAGES_PER_SEGMENT as SLRU_PAGES_PER_SEGMENT;
use borealis_wal::{Effect, Record, ResourceManager};

use crate::base::{Base, database_of, database_range, in_database};
use crate::key_map::KeyMap;
use crate::log::LogPosition;
use crate::record_list::RecordList;

/// A record in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordRef {
    pub span: RecordSpan,
    /// Where its bytes begin.
    pub position: LogPosition,
    pub length: u32,
}

/// What happened to a fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ForkEvent {
    Create,
    /// A record changed the page before this one, and the fork was smaller: so many blocks it has then.
    Extend(u32),
    Truncate(u32),
    Drop,
}

/// What happened to a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DatabaseEvent {
    Drop,
    CopyOf(DatabaseKey),
}

/// Where the content of a page before its own records comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The base.
    Base,
    /// It began as nothing at this LSN.
    Nothing { since: Lsn },
    /// It is a copy of a page of this database as of just before this LSN.
    Copy { from: DatabaseKey, at: Lsn },
}

/// What a record costs in the list of all records, with that list's room to grow.
const RECORD_BYTES: u64 = size_of::<RecordRef>() as u64 * 3 / 2;
/// About what each mention of a record costs beyond its key.
const REFERENCE_BYTES: u64 = 8;
/// What a page costs a round beyond its records.
const PAGE_WORK: u64 = 10;
/// Each time this many records more wait for a page, it is worth preparing for its next reader.
const LONG_CHAIN: usize = 512;
/// Pages remembered for that.
const LONG_CHAINS_MAX: usize = 256;
/// Sizes remembered to spare the computation.
const NEWEST_SIZES_MAX: usize = 16_384;
/// About what a key costs in its map.
const KEY_BYTES: u64 = 120;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Every record, in order: whatever concerns a record names it by its place here, which takes an eighth of
    /// the memory of a copy of the reference and is written to one place, not all over the heap.
    records: Vec<RecordRef>,
    pages: KeyMap<PageKey, RecordList>,
    meta: KeyMap<MetaKey, RecordList>,
    forks: BTreeMap<RelationFork, Vec<(Lsn, ForkEvent)>>,
    /// Of `forks`, only what removes blocks: from which block on. Every page read asks for it.
    erasures: KeyMap<RelationFork, Vec<(Lsn, u32)>>,
    /// Sizes as of the newest record, for forks whose pages changed lately.
    newest_sizes: KeyMap<RelationFork, u32>,
    /// Pages that many records wait for: the next reader would have to apply them all.
    pub long_chains: Vec<PageKey>,
    databases: Vec<(Lsn, DatabaseKey, DatabaseEvent)>,
    slru: Vec<(Lsn, SlruKind, u32)>,
    /// Bytes of the records in it.
    pub record_bytes: u64,
    /// Mentions of records, and events.
    references: u64,
}

/// Which end of every list goes.
#[derive(Clone, Copy)]
enum Cut {
    /// What ends at or below.
    Through(Lsn),
    /// What ends above.
    Above(Lsn),
}

impl Cut {
    /// Drops that end of a sorted list and returns how many entries that were.
    fn apply<T>(self, list: &mut Vec<T>, end: impl Fn(&T) -> Lsn) -> u64 {
        let before = list.len();
        match self {
            Cut::Through(lsn) => drop(list.drain(..list.partition_point(|item| end(item) <= lsn))),
            Cut::Above(lsn) => list.truncate(list.partition_point(|item| end(item) <= lsn)),
        }
        if list.capacity() > 2 * list.len() + 16 {
            list.shrink_to_fit();
        }
        (before - list.len()) as u64
    }
}

impl Index {
    /// Enters a record whose effects are known.
    pub(crate) fn insert(
        &mut self,
        base: &Base,
        group: GroupId,
        placement: Placement,
        reference: RecordRef,
        effects: &[Effect],
        changes_only_existing_pages: bool,
    ) {
        let lsn = reference.span.end;
        self.record_bytes += u64::from(reference.length);
        let number = u32::try_from(self.records.len());
        let number = number.expect("what memory is allowed ends far below four thousand million records");
        self.records.push(reference);
        let copied_to = effects.iter().find_map(|effect| match effect {
            Effect::CopyDatabase { to, .. } => Some(*to),
            _ => None,
        });
        for effect in effects {
            match effect {
                Effect::Page(key) => {
                    if placement.group_of(key) != group {
                        continue;
                    }
                    let records = self.pages.entry(*key).or_default();
                    records.push(number);
                    if records.len().is_multiple_of(LONG_CHAIN) && self.long_chains.len() < LONG_CHAINS_MAX {
                        self.long_chains.push(*key);
                    }
                    self.references += 1;
                    if let PageKey::Block(block) = key
                        && !changes_only_existing_pages
                    {
                        self.extend(base, lsn, block);
                    }
                }
                Effect::CreateRelation(fork) => self.fork_event(*fork, lsn, ForkEvent::Create),
                Effect::TruncateRelation { relation_fork, blocks } => {
                    self.fork_event(*relation_fork, lsn, ForkEvent::Truncate(*blocks));
                }
                Effect::DropRelation(locator) => {
                    for fork in Fork::ALL {
                        self.fork_event(RelationFork { locator: *locator, fork }, lsn, ForkEvent::Drop);
                    }
                }
                Effect::CopyDatabase { from, to } => {
                    self.databases.push((lsn, *to, DatabaseEvent::CopyOf(*from)));
                    self.newest_sizes.clear();
                }
                Effect::DropDatabase(database) => {
                    self.databases.push((lsn, *database, DatabaseEvent::Drop));
                    self.newest_sizes.clear();
                }
                Effect::TruncateSlru { kind, first_kept_page } => {
                    if group == META_GROUP {
                        self.slru.push((lsn, *kind, *first_kept_page));
                    }
                }
                Effect::Meta(MetaKey::Counters) => {}
                // The copy itself brings the map: see `Origin::Copy` of a relation map.
                Effect::Meta(MetaKey::RelationMap(database)) if copied_to == Some(*database) => {}
                Effect::Meta(key) if group == META_GROUP => {
                    let records = self.meta.entry(key.clone()).or_default();
                    // A record may name a value twice.
                    if records.as_slice().last() != Some(&number) {
                        records.push(number);
                        self.references += 1;
                    }
                }
                Effect::Meta(_) => {}
            }
        }
    }

    fn fork_event(&mut self, fork: RelationFork, lsn: Lsn, event: ForkEvent) {
        let erased_from = match event {
            ForkEvent::Truncate(blocks) => Some(blocks),
            ForkEvent::Drop => Some(0),
            ForkEvent::Create | ForkEvent::Extend(_) => None,
        };
        if let Some(block) = erased_from {
            self.erasures.entry(fork).or_default().push((lsn, block));
            self.newest_sizes.remove(&fork);
            self.references += 1;
        }
        self.forks.entry(fork).or_default().push((lsn, event));
        self.references += 1;
    }

    /// Notes that a block was changed, if that makes its fork larger.
    fn extend(&mut self, base: &Base, lsn: Lsn, key: &BlockKey) {
        let blocks = key.block.saturating_add(1);
        let known = match self.newest_sizes.get(&key.relation_fork) {
            Some(&known) if known >= blocks => return,
            Some(&known) => Some(known),
            None => self.relation_blocks(base, key.relation_fork, lsn),
        };
        if known.is_none_or(|known| known < blocks) {
            self.fork_event(key.relation_fork, lsn, ForkEvent::Extend(blocks));
        }
        if self.newest_sizes.len() >= NEWEST_SIZES_MAX {
            self.newest_sizes.clear();
        }
        self.newest_sizes.insert(key.relation_fork, known.unwrap_or(0).max(blocks));
    }

    /// The newest event of a fork's database at or before `lsn` that replaced all its relations.
    fn database_event(&self, database: DatabaseKey, lsn: Lsn) -> Option<(Lsn, DatabaseEvent)> {
        let until = self.databases.partition_point(|(at, ..)| *at <= lsn);
        let found = self.databases[..until].iter().rev().find(|(_, key, _)| *key == database);
        found.map(|&(at, _, event)| (at, event))
    }

    /// A fork's size in blocks as of `lsn`, as far as this group knows; `None` if it does not exist.
    pub(crate) fn relation_blocks(&self, base: &Base, fork: RelationFork, lsn: Lsn) -> Option<u32> {
        let database = self.database_event(database_of(fork.locator), lsn);
        let (since, mut blocks) = match database {
            None => (Lsn::ZERO, base.relations.get(&fork).copied()),
            Some((at, DatabaseEvent::Drop)) => (at, None),
            // The copy is of the state before its own record, so this ends: the position falls each time.
            Some((at, DatabaseEvent::CopyOf(from))) => {
                (at, self.relation_blocks(base, in_database(fork, from), Lsn(at.0 - 1)))
            }
        };
        let events = self.forks.get(&fork).map_or(&[][..], Vec::as_slice);
        let events = &events[..events.partition_point(|(at, _)| *at <= lsn)];
        // A bulk load has an event for each block: only those from the last one on that says the size by itself.
        let absolute = |event: &ForkEvent| matches!(event, ForkEvent::Extend(_) | ForkEvent::Drop);
        let first = events.iter().rposition(|(_, event)| absolute(event)).unwrap_or(0);
        for &(at, event) in &events[first..] {
            if at <= since {
                continue;
            }
            blocks = match event {
                ForkEvent::Create => Some(blocks.unwrap_or(0)),
                ForkEvent::Extend(blocks) => Some(blocks),
                // Truncating what does not exist creates nothing (redo creates the main fork; it has a
                // `Create` of its own).
                ForkEvent::Truncate(most) => blocks.map(|blocks| blocks.min(most)),
                ForkEvent::Drop => None,
            };
        }
        blocks
    }

    /// Every fork of a database that may exist as of `lsn`, in key order.
    pub(crate) fn fork_candidates(
        &self,
        base: &Base,
        database: DatabaseKey,
        lsn: Lsn,
    ) -> std::collections::BTreeSet<RelationFork> {
        let range = database_range(database);
        let mut forks: std::collections::BTreeSet<RelationFork> =
            self.forks.range(range.clone()).map(|(fork, _)| *fork).collect();
        match self.database_event(database, lsn) {
            None => forks.extend(base.relations.range(range).map(|(fork, _)| *fork)),
            Some((_, DatabaseEvent::Drop)) => {}
            Some((at, DatabaseEvent::CopyOf(from))) => {
                let source = self.fork_candidates(base, from, Lsn(at.0 - 1));
                forks.extend(source.into_iter().map(|fork| in_database(fork, database)));
            }
        }
        forks
    }

    /// Where a page's content comes from as of `lsn`, before the records that change it after that point.
    pub(crate) fn page_origin(&self, key: &PageKey, lsn: Lsn) -> Origin {
        let block = match key {
            PageKey::Block(block) => block,
            PageKey::Slru { kind, page } => {
                let gone = self.slru.iter().rev().find(|(at, truncated, first_kept)| {
                    *at <= lsn && truncated == kind && slru_page_is_gone(*kind, *page, *first_kept)
                });
                return gone.map_or(Origin::Base, |&(since, ..)| Origin::Nothing { since });
            }
        };
        let fork = block.relation_fork;
        let database = self.database_event(database_of(fork.locator), lsn);
        let erasures = self.erasures.get(&fork).map_or(&[][..], Vec::as_slice);
        let erased = erasures.iter().rev().find(|(at, from)| *at <= lsn && *from <= block.block);
        match (database, erased) {
            (Some((at, _)), Some(&(since, _))) if since > at => Origin::Nothing { since },
            (Some((at, DatabaseEvent::CopyOf(from))), _) => Origin::Copy { from, at },
            (Some((since, DatabaseEvent::Drop)), _) => Origin::Nothing { since },
            (None, Some(&(since, _))) => Origin::Nothing { since },
            (None, None) => Origin::Base,
        }
    }

    /// Where the relation map of a database comes from as of `lsn`, before its own updates.
    pub(crate) fn relation_map_origin(&self, database: DatabaseKey, lsn: Lsn) -> Origin {
        match self.database_event(database, lsn) {
            None => Origin::Base,
            Some((since, DatabaseEvent::Drop)) => Origin::Nothing { since },
            Some((at, DatabaseEvent::CopyOf(from))) => Origin::Copy { from, at },
        }
    }

    /// The databases that appeared by copying, or vanished, after `above` and not after `lsn`.
    pub(crate) fn database_events(
        &self,
        above: Lsn,
        lsn: Lsn,
    ) -> impl Iterator<Item = (Lsn, DatabaseKey, DatabaseEvent)> + '_ {
        self.databases.iter().copied().filter(move |(at, ..)| *at > above && *at <= lsn)
    }

    /// The forks with events after `above` and not after `lsn`.
    pub(crate) fn changed_forks(
        &self,
        above: Lsn,
        lsn: Lsn,
    ) -> impl Iterator<Item = (RelationFork, &[(Lsn, ForkEvent)])> + '_ {
        self.forks.iter().filter_map(move |(fork, events)| {
            let first = events.partition_point(|(at, _)| *at <= above);
            let last = events.partition_point(|(at, _)| *at <= lsn);
            (first < last).then(|| (*fork, &events[first..last]))
        })
    }

    /// The stores truncated after `above` and not after `lsn`.
    pub(crate) fn truncated_slru(&self, above: Lsn, lsn: Lsn) -> impl Iterator<Item = SlruKind> + '_ {
        self.slru.iter().filter(move |(at, ..)| *at > above && *at <= lsn).map(|(_, kind, _)| *kind)
    }

    /// Forgets what ends at or below `lsn`: it is in the base now.
    pub(crate) fn drop_through(&mut self, lsn: Lsn) {
        self.cut(Cut::Through(lsn));
    }

    /// Forgets what ends above `lsn`: a recovery cut it.
    pub(crate) fn drop_above(&mut self, lsn: Lsn) {
        self.newest_sizes.clear();
        self.cut(Cut::Above(lsn));
    }

    fn cut(&mut self, cut: Cut) {
        let records_before = self.records.len();
        let mut dropped = 0;
        cut.apply(&mut self.records, |reference| reference.span.end);
        let gone = (records_before - self.records.len()) as u32;
        let kept = self.records.len() as u32;
        let mut cut_list = |list: &mut RecordList| {
            dropped += match cut {
                Cut::Through(_) => list.drop_first(gone),
                Cut::Above(_) => list.drop_from(kept),
            };
            !list.is_empty()
        };
        self.pages.retain(|_, list| cut_list(list));
        self.meta.retain(|_, list| cut_list(list));
        self.forks.retain(|_, list| {
            dropped += cut.apply(list, |(at, _)| *at);
            !list.is_empty()
        });
        self.erasures.retain(|_, list| {
            dropped += cut.apply(list, |(at, _)| *at);
            !list.is_empty()
        });
        self.references -= dropped;
        cut.apply(&mut self.databases, |(at, ..)| *at);
        cut.apply(&mut self.slru, |(at, ..)| *at);
        self.record_bytes = self.records.iter().map(|reference| u64::from(reference.length)).sum();
        if self.pages.capacity() > 4 * self.pages.len() + 64 {
            self.pages.shrink_to_fit();
        }
    }

    /// The records of a list that end after `above` and not after `lsn`.
    fn between(
        &self,
        list: Option<&RecordList>,
        above: Lsn,
        lsn: Lsn,
    ) -> impl ExactSizeIterator<Item = RecordRef> {
        let numbers = list.map_or(&[][..], RecordList::as_slice);
        let first = numbers.partition_point(|&number| self.record(number).span.end <= above);
        let last = numbers.partition_point(|&number| self.record(number).span.end <= lsn);
        numbers.get(first..last).unwrap_or_default().iter().map(|&number| *self.record(number))
    }

    fn record(&self, number: u32) -> &RecordRef {
        // Lists and records are cut together, so every number is of a record that is there.
        &self.records[number as usize]
    }

    /// The records that change a page, end after `above` and not after `lsn`.
    pub(crate) fn page_records(
        &self,
        key: &PageKey,
        above: Lsn,
        lsn: Lsn,
    ) -> impl ExactSizeIterator<Item = RecordRef> {
        self.between(self.pages.get(key), above, lsn)
    }

    /// The records that change a small value, end after `above` and not after `lsn`.
    pub(crate) fn meta_records(
        &self,
        key: &MetaKey,
        above: Lsn,
        lsn: Lsn,
    ) -> impl ExactSizeIterator<Item = RecordRef> {
        self.between(self.meta.get(key), above, lsn)
    }

    /// All records that end after `above` and not after `lsn`: in the meta group, those that change counters.
    pub(crate) fn all_records(&self, above: Lsn, lsn: Lsn) -> &[RecordRef] {
        let first = self.records.partition_point(|reference| reference.span.end <= above);
        let last = self.records.partition_point(|reference| reference.span.end <= lsn);
        self.records.get(first..last).unwrap_or_default()
    }

    /// The pages that have records, in no order.
    pub(crate) fn page_keys(&self) -> impl Iterator<Item = &PageKey> {
        self.pages.keys()
    }

    /// The small values that have records, except counters, in no order.
    pub(crate) fn meta_keys(&self) -> impl Iterator<Item = &MetaKey> {
        self.meta.keys()
    }

    /// The pages with records that do not end after `lsn`, in no order.
    pub(crate) fn changed_pages(&self, lsn: Lsn) -> impl Iterator<Item = &PageKey> {
        self.pages.iter().filter(move |(_, list)| self.begins_by(list, lsn)).map(|(key, _)| key)
    }

    /// The small values, except counters, with records that do not end after `lsn`, in no order.
    pub(crate) fn changed_meta(&self, lsn: Lsn) -> impl Iterator<Item = &MetaKey> {
        self.meta.iter().filter(move |(_, list)| self.begins_by(list, lsn)).map(|(key, _)| key)
    }

    fn begins_by(&self, list: &RecordList, lsn: Lsn) -> bool {
        list.as_slice().first().is_some_and(|&number| self.record(number).span.end <= lsn)
    }

    /// About how much work it is to fold all of it into pages, in units of one record's: reading and writing a page
    /// takes that much longer than applying a record to it.
    pub(crate) fn work(&self) -> u64 {
        self.pages.len() as u64 * PAGE_WORK + self.references
    }

    /// About how much memory it takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let keys = self.pages.len() + self.meta.len() + self.forks.len();
        self.records.len() as u64 * RECORD_BYTES + self.references * REFERENCE_BYTES + keys as u64 * KEY_BYTES
    }
}

/// Redo of a truncation zeroes the tails of maps only where the map and the page exist, so its changes of map
/// pages never make a page (`smgr_redo` in `src/backend/catalog/storage.c`).
pub(crate) fn changes_only_existing_pages(record: &Record<'_>) -> bool {
    record.resource_manager == ResourceManager::Storage
}

/// Whether truncating the store so that `first_kept` stays removes `page`.
///
/// As `SlruMayDeleteSegment` in `src/backend/access/transam/slru.c`: a segment file goes when its first and
/// its last page both precede the cutoff, in the circular order of what the pages are about.
pub(crate) fn slru_page_is_gone(kind: SlruKind, page: u32, first_kept: u32) -> bool {
    // `CLOG_XACTS_PER_PAGE`, `MULTIXACT_OFFSETS_PER_PAGE`, `MULTIXACT_MEMBERS_PER_PAGE`, and
    // `COMMIT_TS_XACTS_PER_PAGE` with blocks of 8 KiB.
    let per_page: u32 = match kind {
        SlruKind::Transactions => 32_768,
        SlruKind::MultiXactOffsets => 2048,
        SlruKind::MultiXactMembers => 1636,
        SlruKind::CommitTimestamps => 819,
    };
    let precedes = |page: u32, other: u32| {
        let (first, other_first) = (page.wrapping_mul(per_page), other.wrapping_mul(per_page));
        let before = |a: u32, b: u32| (a.wrapping_sub(b) as i32) < 0;
        before(first, other_first) && before(first, other_first.wrapping_add(per_page - 1))
    };
    let segment_first = page - page % SLRU_PAGES_PER_SEGMENT;
    precedes(segment_first, first_kept)
        && precedes(segment_first.wrapping_add(SLRU_PAGES_PER_SEGMENT - 1), first_kept)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use borealis_types::RelationLocator;
    use proptest::prelude::*;

    use super::*;

    /// The main fork of one relation, in two databases: 5 and 6.
    fn fork(database: u32) -> RelationFork {
        let locator = RelationLocator { tablespace: 1663, database, relation: 16_384 };
        RelationFork { locator, fork: Fork::Main }
    }

    const DATABASES: [u32; 2] = [5, 6];

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// In one of the databases.
        Change(usize, Change),
        /// The second database becomes a copy of the first.
        Copy,
        /// The base takes in what happened, but for so many of the newest records.
        Fold(usize),
        /// A recovery cuts so many of the newest records.
        Rewind(usize),
    }

    #[derive(Clone, Copy, Debug)]
    enum Change {
        Create,
        Block(u32),
        /// By the record before this one, if that can: one about a whole database does nothing else.
        BlockToo(u32),
        Truncate(u32),
        Drop,
        DropDatabase,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let change = prop_oneof![
            2 => Just(Change::Create),
            8 => (0u32..40).prop_map(Change::Block),
            3 => (0u32..40).prop_map(Change::BlockToo),
            2 => (0u32..40).prop_map(Change::Truncate),
            1 => Just(Change::Drop),
            1 => Just(Change::DropDatabase),
        ];
        let step = prop_oneof![
            20 => (0..DATABASES.len(), change).prop_map(|(at, change)| Step::Change(at, change)),
            1 => Just(Step::Copy),
            1 => (0usize..10).prop_map(Step::Fold),
            1 => (0usize..10).prop_map(Step::Rewind),
        ];
        prop::collection::vec(step, 0..80)
    }

    /// An index, and by its side what both forks' sizes must be after each record since the base.
    struct Model {
        base: Base,
        index: Index,
        history: Vec<(Lsn, [Option<u32>; 2])>,
        /// Of the newest record there ever was.
        lsn: Lsn,
    }

    impl Model {
        fn new(at_first: [Option<u32>; 2]) -> Model {
            let mut model = Model {
                base: Base::default(),
                index: Index::default(),
                history: vec![(Lsn(0), at_first)],
                lsn: Lsn(0),
            };
            model.set_base(at_first);
            model
        }

        fn set_base(&mut self, sizes: [Option<u32>; 2]) {
            for (database, blocks) in DATABASES.into_iter().zip(sizes) {
                match blocks {
                    Some(blocks) => self.base.relations.insert(fork(database), blocks),
                    None => self.base.relations.remove(&fork(database)),
                };
            }
        }

        fn newest(&self) -> (Lsn, [Option<u32>; 2]) {
            *self.history.last().expect("it is never empty")
        }

        /// A new record, which changes nothing so far.
        fn record(&mut self) -> Lsn {
            self.lsn.0 += 10;
            self.history.push((self.lsn, self.newest().1));
            self.lsn
        }

        fn change(&mut self, at: usize, change: Change) {
            let fork = fork(DATABASES[at]);
            let whole = self.index.databases.last().is_some_and(|(at, ..)| *at == self.newest().0);
            let together = matches!(change, Change::BlockToo(_)) && self.history.len() > 1 && !whole;
            let lsn = if together { self.newest().0 } else { self.record() };
            let before = self.newest().1[at];
            let after = match change {
                Change::Create => {
                    self.index.fork_event(fork, lsn, ForkEvent::Create);
                    Some(before.unwrap_or(0))
                }
                Change::Block(block) | Change::BlockToo(block) => {
                    self.index.extend(&self.base, lsn, &BlockKey { relation_fork: fork, block });
                    Some(before.unwrap_or(0).max(block + 1))
                }
                Change::Truncate(blocks) => {
                    self.index.fork_event(fork, lsn, ForkEvent::Truncate(blocks));
                    before.map(|before| before.min(blocks))
                }
                Change::Drop => {
                    self.index.fork_event(fork, lsn, ForkEvent::Drop);
                    None
                }
                Change::DropDatabase => {
                    self.database_event(lsn, at, DatabaseEvent::Drop);
                    None
                }
            };
            self.set_newest(at, after);
        }

        fn set_newest(&mut self, at: usize, size: Option<u32>) {
            self.history.last_mut().expect("it is never empty").1[at] = size;
        }

        fn database_event(&mut self, lsn: Lsn, at: usize, event: DatabaseEvent) {
            self.index.databases.push((lsn, database_of(fork(DATABASES[at]).locator), event));
            self.index.newest_sizes.clear();
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Change(at, change) => self.change(at, change),
                Step::Copy => {
                    let lsn = self.record();
                    self.set_newest(1, self.newest().1[0]);
                    let from = database_of(fork(DATABASES[0]).locator);
                    self.database_event(lsn, 1, DatabaseEvent::CopyOf(from));
                }
                Step::Fold(but) => {
                    self.history.drain(..self.history.len().saturating_sub(but + 1));
                    let (lsn, sizes) = self.history[0];
                    self.set_base(sizes);
                    self.index.drop_through(lsn);
                }
                Step::Rewind(count) => {
                    self.history.truncate(self.history.len().saturating_sub(count).max(1));
                    let (lsn, _) = self.newest();
                    self.index.drop_above(lsn);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_size_is_what_all_changes_before_it_make_it(
            steps in steps(),
            at_first in any::<[Option<u8>; 2]>(),
        ) {
            let mut model = Model::new(at_first.map(|blocks| blocks.map(|blocks| u32::from(blocks % 40))));
            for (at, step) in steps.iter().enumerate() {
                model.step(*step);
                for (lsn, sizes) in &model.history {
                    for (database, size) in DATABASES.into_iter().zip(sizes) {
                        for lsn in [*lsn, Lsn(lsn.0 + 5)] {
                            let found = model.index.relation_blocks(&model.base, fork(database), lsn);
                            prop_assert_eq!(found, *size, "at {} after {:?}", lsn, &steps[..=at]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_bulk_load_costs_the_same_for_each_block() {
        let (base, mut index) = (Base::default(), Index::default());
        let began = Instant::now();
        let blocks = 200_000;
        for block in 0..blocks {
            index.extend(&base, Lsn(u64::from(block) + 1), &BlockKey { relation_fork: fork(5), block });
            assert_eq!(index.relation_blocks(&base, fork(5), Lsn::MAX), Some(block + 1));
        }
        // Twenty thousand million steps if each walked over all blocks before it.
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    }

    #[test]
    fn truncating_a_store_removes_whole_segments_in_circular_order() {
        let gone = |page, kept| slru_page_is_gone(SlruKind::Transactions, page, kept);
        assert!(gone(0, 32) && gone(31, 32) && gone(31, 40));
        assert!(!gone(32, 40) && !gone(0, 31) && !gone(64, 40));
        // Pages 0 to 131071 are all there are; the cutoff has wrapped around.
        assert!(gone(131_008, 40) && !gone(40, 131_008));
    }
}
