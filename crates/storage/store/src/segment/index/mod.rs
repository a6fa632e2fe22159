//! An index of one segment's unapplied records, by what they change.
//!
//! Records are added in LSN order, once the group's chain is complete up to them. So every list here is
//! sorted, and what is known about a relation at an LSN does not depend on the order in which records
//! arrived.

mod forget;
mod key_map;
mod page_set;
mod recent;
mod record_list;
pub(crate) mod relations;
pub(crate) mod slru;

use std::collections::BTreeMap;
use std::ops::Bound;

use borealis_types::{Fork, GroupId, Lsn, META_GROUP, MetaKey, PageKey, Placement, RelationFork, invariant};
use borealis_wal::Effect;

use crate::log::position::{LogPosition, RecordRef};
use crate::pages::materialized_state::MaterializedState;
use crate::segment::index::forget::Forget;
use crate::segment::index::key_map::KeyMap;
use crate::segment::index::page_set::PageSet;
use crate::segment::index::recent::Recent;
use crate::segment::index::record_list::RecordList;
use crate::segment::index::relations::{DatabaseEvent, ForkEvent, RelationEvents};

/// Memory of a record in the list of all records, with the list's spare capacity, in bytes.
const RECORD_BYTES: u64 = size_of::<RecordRef>() as u64 * 3 / 2;
/// Approximate memory of each reference to a record, in bytes.
const REFERENCE_BYTES: u64 = 8;
/// Work of reading and writing a page in a round, in units of applying one record.
const PAGE_WORK: u64 = 10;
/// Whenever a page has this many more unapplied records, it is prepared for its next reader.
const LONG_CHAIN: usize = 512;
/// Most pages remembered for that.
const LONG_CHAINS_MAX: usize = 256;
/// Approximate memory of a key in its map, in bytes.
const KEY_BYTES: u64 = 120;
/// Approximate memory of an extent with changed pages, and of a change that may be truncated, in bytes.
const EXTENT_BYTES: u64 = 64;
const RECENT_BYTES: u64 = 48;

/// A list that a record is in.
#[derive(Debug)]
enum Listed {
    Page(PageKey),
    Meta(MetaKey),
}

/// The index of one segment's unapplied records.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Every record, in order. All other lists refer to a record by its place here, which takes an eighth of
    /// the memory of a copy.
    records: Vec<RecordRef>,
    pages: KeyMap<PageKey, RecordList>,
    /// The keys of `pages`, in order.
    page_set: PageSet,
    meta: KeyMap<MetaKey, RecordList>,
    /// The lists that the newest records are in.
    recent: Recent<Listed>,
    /// What happened to relations, databases and transaction-status stores.
    pub relations: RelationEvents,
    /// Pages with many unapplied records, to be prepared for their next reader.
    pub long_chains: Vec<PageKey>,
    /// Total length of the indexed records, in bytes.
    pub record_bytes: u64,
    /// Number of references to records.
    references: u64,
}

impl Index {
    /// Adds a record whose effects are known.
    pub(crate) fn insert(
        &mut self,
        materialized: &MaterializedState,
        group: GroupId,
        placement: Placement,
        reference: RecordRef,
        effects: &[Effect],
        changes_only_existing_pages: bool,
    ) {
        let lsn = reference.span.end;
        let last = self.records.last().map(|last| last.span.end);
        invariant!(
            "records-indexed-in-order",
            last.is_none_or(|last| last < lsn),
            "a record that ends at {lsn}, after one that ends at {last:?}"
        );
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
                    self.insert_page(key, number, lsn);
                    if let PageKey::Block(block) = key
                        && !changes_only_existing_pages
                    {
                        self.relations.extend(materialized, lsn, block);
                    }
                }
                Effect::CreateRelation(fork) => self.relations.fork_event(*fork, lsn, ForkEvent::Create),
                Effect::TruncateRelation { relation_fork, blocks } => {
                    self.relations.fork_event(*relation_fork, lsn, ForkEvent::Truncate(*blocks));
                }
                Effect::DropRelation(locator) => {
                    for fork in Fork::ALL {
                        self.relations.fork_event(
                            RelationFork { locator: *locator, fork },
                            lsn,
                            ForkEvent::Drop,
                        );
                    }
                }
                Effect::CopyDatabase { from, to } => {
                    self.relations.push_database(lsn, *to, DatabaseEvent::CopyOf(*from));
                }
                Effect::DropDatabase(database) => {
                    self.relations.push_database(lsn, *database, DatabaseEvent::Drop);
                }
                Effect::TruncateSlru { kind, first_kept_page } => {
                    if group == META_GROUP {
                        self.relations.push_slru(lsn, *kind, *first_kept_page);
                    }
                }
                Effect::Meta(MetaKey::Counters) => {}
                // The copy itself brings the map: see `PriorContent::Copy` of a relation map.
                Effect::Meta(MetaKey::RelationMap(database)) if copied_to == Some(*database) => {}
                Effect::Meta(key) if group == META_GROUP => {
                    let records = self.meta.entry(key.clone()).or_default();
                    // A record may name a value twice.
                    if records.as_slice().last() != Some(&number) {
                        records.push(number);
                        self.references += 1;
                        self.recent.push(lsn, Listed::Meta(key.clone()));
                    }
                }
                Effect::Meta(_) => {}
            }
        }
    }

    /// Notes that a record changes a page.
    fn insert_page(&mut self, key: &PageKey, number: u32, lsn: Lsn) {
        let records = self.pages.entry(*key).or_default();
        if records.is_empty() {
            self.page_set.insert(key);
        }
        records.push(number);
        self.recent.push(lsn, Listed::Page(*key));
        if records.len().is_multiple_of(LONG_CHAIN) && self.long_chains.len() < LONG_CHAINS_MAX {
            self.long_chains.push(*key);
        }
        self.references += 1;
    }

    /// Notes that no recovery truncates a record that ends at or below `certain`.
    pub(crate) fn settle(&mut self, certain: Lsn) {
        self.recent.settle(certain);
        self.relations.settle(certain);
    }

    /// Drops what ends at or below `lsn`: it is in the materialized state now.
    pub(crate) fn drop_through(&mut self, lsn: Lsn) {
        self.settle(lsn);
        self.forget(Forget::Through(lsn));
    }

    /// Drops what ends above `lsn`: a recovery truncated it. That costs no more than what is dropped.
    pub(crate) fn drop_above(&mut self, lsn: Lsn) {
        if !self.recent.reaches(lsn) {
            // A recovery truncated what was known to be durable. Whoever let it do so is wrong; the index is not.
            let _ = self.recent.cut(lsn);
            self.forget(Forget::Above(lsn));
            return;
        }
        let kept = self.records.partition_point(|reference| reference.span.end <= lsn);
        self.record_bytes -=
            self.records.drain(kept..).map(|reference| u64::from(reference.length)).sum::<u64>();
        let kept = kept as u32;
        for listed in self.recent.cut(lsn) {
            match listed {
                Listed::Page(key) => {
                    let Some(list) = self.pages.get_mut(&key) else { continue };
                    self.references -= list.drop_from(kept);
                    if list.is_empty() {
                        self.pages.remove(&key);
                        self.page_set.remove(&key);
                    }
                }
                Listed::Meta(key) => {
                    let Some(list) = self.meta.get_mut(&key) else { continue };
                    self.references -= list.drop_from(kept);
                    if list.is_empty() {
                        self.meta.remove(&key);
                    }
                }
            }
        }
        self.relations.drop_above(lsn);
    }

    /// Checks that no record is left that is materialized.
    pub(crate) fn check_above(&self, materialized: Lsn) {
        let first = self.records.first().map(|first| first.span.end);
        invariant!(
            "index-above-materialized",
            first.is_none_or(|first| first > materialized),
            "materialized through {materialized}, and the first record ends at {first:?}"
        );
    }

    fn forget(&mut self, forget: Forget) {
        let records_before = self.records.len();
        let mut dropped = 0;
        let bytes =
            |records: &[RecordRef]| records.iter().map(|reference| u64::from(reference.length)).sum::<u64>();
        let cut = self.records.partition_point(|reference| reference.span.end <= forget.lsn());
        self.record_bytes = match forget {
            Forget::Through(_) => self.record_bytes - bytes(&self.records[..cut]),
            Forget::Above(_) => self.record_bytes - bytes(&self.records[cut..]),
        };
        forget.apply(&mut self.records, |reference| reference.span.end);
        let gone = (records_before - self.records.len()) as u32;
        let kept = self.records.len() as u32;
        let mut forget_in = |list: &mut RecordList| {
            dropped += match forget {
                Forget::Through(_) => list.drop_first(gone),
                Forget::Above(_) => list.drop_from(kept),
            };
            !list.is_empty()
        };
        let pages_before = self.pages.len();
        let mut emptied = Vec::new();
        self.pages.retain(|key, list| {
            let is_kept = forget_in(list);
            if !is_kept {
                emptied.push(*key);
            }
            is_kept
        });
        self.meta.retain(|_, list| forget_in(list));
        self.references -= dropped;
        self.relations.forget(forget);
        if emptied.len() > pages_before / 2 {
            self.page_set = PageSet::default();
            self.pages.keys().for_each(|key| self.page_set.insert(key));
        } else {
            emptied.iter().for_each(|key| self.page_set.remove(key));
        }
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
        // Lists and records are truncated together, so every number refers to a record that is there.
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

    /// Notes that the bytes of some records are elsewhere in the log now.
    pub(crate) fn repoint(&mut self, moved: &BTreeMap<LogPosition, LogPosition>) {
        for reference in &mut self.records {
            reference.repoint(moved);
        }
    }

    /// All records that end after `above` and not after `lsn`: in the meta group, those that change counters.
    pub(crate) fn all_records(&self, above: Lsn, lsn: Lsn) -> &[RecordRef] {
        let first = self.records.partition_point(|reference| reference.span.end <= above);
        let last = self.records.partition_point(|reference| reference.span.end <= lsn);
        self.records.get(first..last).unwrap_or_default()
    }

    /// The pages that have records, from `from` on, in order.
    pub(crate) fn page_keys(&self, from: Bound<&PageKey>) -> impl Iterator<Item = PageKey> {
        self.page_set.range(from)
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

    /// Approximate work of materializing all of it, in units of applying one record.
    pub(crate) fn work(&self) -> u64 {
        self.pages.len() as u64 * PAGE_WORK + self.references + self.relations.events()
    }

    /// About how much memory it takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let keys = self.pages.len() + self.meta.len() + self.relations.forks();
        let references = self.references + self.relations.events();
        let extents = self.page_set.extents() as u64 * EXTENT_BYTES;
        let recent = (self.recent.len() + self.relations.recent()) as u64 * RECENT_BYTES;
        let records = self.records.len() as u64 * RECORD_BYTES;
        records + references * REFERENCE_BYTES + keys as u64 * KEY_BYTES + extents + recent
    }
}

#[cfg(test)]
mod tests;
