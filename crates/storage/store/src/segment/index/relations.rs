//! What happened to relations, databases and transaction-status stores, and what follows for sizes and pages.

use std::collections::BTreeMap;
use std::ops::Bound;

use borealis_types::{BlockKey, DatabaseKey, Lsn, PageKey, RelationFork, SlruKind};

use crate::pages::materialized_state::{MaterializedState, database_of, database_range, in_database};
use crate::segment::index::forget::Forget;
use crate::segment::index::key_map::KeyMap;
use crate::segment::index::recent::Recent;
use crate::segment::index::slru::slru_page_is_gone;

/// Most sizes remembered; computing one walks over events.
const NEWEST_SIZES_MAX: usize = 16_384;

/// What happened to a fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ForkEvent {
    Create,
    /// A record changed a page at or beyond the fork's end. The number of blocks after it.
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

/// Where a page's content comes from before its own records are applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PriorContent {
    /// The page's image, if it has one.
    Materialized,
    /// It did not exist, or was removed, at this LSN.
    Nothing { since: Lsn },
    /// It is a copy of a page of this database as of just before this LSN.
    Copy { from: DatabaseKey, at: Lsn },
}

/// What happened to relations, databases and transaction-status stores, each list in LSN order.
#[derive(Debug, Default)]
pub(crate) struct RelationEvents {
    forks: BTreeMap<RelationFork, Vec<(Lsn, ForkEvent)>>,
    /// The events of `forks` that remove blocks, with the first removed block. Kept apart because every page
    /// read asks for them.
    erasures: KeyMap<RelationFork, Vec<(Lsn, u32)>>,
    /// Sizes as of the newest record, for recently changed forks.
    newest_sizes: KeyMap<RelationFork, u32>,
    pub(super) databases: Vec<(Lsn, DatabaseKey, DatabaseEvent)>,
    slru: Vec<(Lsn, SlruKind, u32)>,
    /// Number of entries in `forks` and `erasures`.
    events: u64,
    /// The forks with events of the newest records.
    recent: Recent<RelationFork>,
}

impl RelationEvents {
    /// Notes what happened to a whole database.
    pub(super) fn push_database(&mut self, lsn: Lsn, database: DatabaseKey, event: DatabaseEvent) {
        self.databases.push((lsn, database, event));
        self.newest_sizes.clear();
    }

    /// Notes that a transaction-status store was truncated.
    pub(super) fn push_slru(&mut self, lsn: Lsn, kind: SlruKind, first_kept_page: u32) {
        self.slru.push((lsn, kind, first_kept_page));
    }

    /// Number of events of forks.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Number of forks with events.
    pub(super) fn forks(&self) -> usize {
        self.forks.len()
    }

    pub(super) fn settle(&mut self, certain: Lsn) {
        self.recent.settle(certain);
    }

    /// Number of events that a recovery may still truncate.
    pub(super) fn recent(&self) -> usize {
        self.recent.len()
    }

    /// Drops what ends above `lsn`, at the cost of what is dropped.
    pub(super) fn drop_above(&mut self, lsn: Lsn) {
        if !self.recent.reaches(lsn) {
            self.forget(Forget::Above(lsn));
            return;
        }
        let forget = Forget::Above(lsn);
        self.newest_sizes.clear();
        for fork in self.recent.cut(lsn) {
            if let Some(list) = self.forks.get_mut(&fork) {
                self.events -= forget.apply(list, |(at, _)| *at);
                if list.is_empty() {
                    self.forks.remove(&fork);
                }
            }
            if let Some(list) = self.erasures.get_mut(&fork) {
                self.events -= forget.apply(list, |(at, _)| *at);
                if list.is_empty() {
                    self.erasures.remove(&fork);
                }
            }
        }
        forget.apply(&mut self.databases, |(at, ..)| *at);
        forget.apply(&mut self.slru, |(at, ..)| *at);
    }

    /// Drops one end of every list.
    pub(super) fn forget(&mut self, forget: Forget) {
        if matches!(forget, Forget::Above(_)) {
            self.newest_sizes.clear();
            let _ = self.recent.cut(forget.lsn());
        }
        let mut dropped = 0;
        self.forks.retain(|_, list| {
            dropped += forget.apply(list, |(at, _)| *at);
            !list.is_empty()
        });
        self.erasures.retain(|_, list| {
            dropped += forget.apply(list, |(at, _)| *at);
            !list.is_empty()
        });
        self.events -= dropped;
        forget.apply(&mut self.databases, |(at, ..)| *at);
        forget.apply(&mut self.slru, |(at, ..)| *at);
    }

    pub(super) fn fork_event(&mut self, fork: RelationFork, lsn: Lsn, event: ForkEvent) {
        let erased_from = match event {
            ForkEvent::Truncate(blocks) => Some(blocks),
            ForkEvent::Drop => Some(0),
            ForkEvent::Create | ForkEvent::Extend(_) => None,
        };
        if let Some(block) = erased_from {
            self.erasures.entry(fork).or_default().push((lsn, block));
            self.newest_sizes.remove(&fork);
            self.events += 1;
        }
        self.forks.entry(fork).or_default().push((lsn, event));
        self.recent.push(lsn, fork);
        self.events += 1;
    }

    /// Notes that a changed block extends its fork, if it does.
    pub(super) fn extend(&mut self, materialized: &MaterializedState, lsn: Lsn, key: &BlockKey) {
        let blocks = key.block.saturating_add(1);
        let known = match self.newest_sizes.get(&key.relation_fork) {
            Some(&known) if known >= blocks => return,
            Some(&known) => Some(known),
            None => self.relation_blocks(materialized, key.relation_fork, lsn),
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
    pub(super) fn database_event(&self, database: DatabaseKey, lsn: Lsn) -> Option<(Lsn, DatabaseEvent)> {
        let until = self.databases.partition_point(|(at, ..)| *at <= lsn);
        let found = self.databases[..until].iter().rev().find(|(_, key, _)| *key == database);
        found.map(|&(at, _, event)| (at, event))
    }

    /// A fork's size in blocks as of `lsn`, as far as this group knows; `None` if it does not exist.
    pub(crate) fn relation_blocks(
        &self,
        materialized: &MaterializedState,
        fork: RelationFork,
        lsn: Lsn,
    ) -> Option<u32> {
        let database = self.database_event(database_of(fork.locator), lsn);
        let (since, mut blocks) = match database {
            None => (Lsn::ZERO, materialized.relations.get(&fork).copied()),
            Some((at, DatabaseEvent::Drop)) => (at, None),
            // The copy is of the state before its own record, so the LSN is lower in each step and the
            // recursion ends.
            Some((at, DatabaseEvent::CopyOf(from))) => {
                (at, self.relation_blocks(materialized, in_database(fork, from), Lsn(at.0 - 1)))
            }
        };
        let events = self.forks.get(&fork).map_or(&[][..], Vec::as_slice);
        let events = &events[..events.partition_point(|(at, _)| *at <= lsn)];
        // A bulk load has an event for each block. Only the events from the last absolute one on matter.
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
        materialized: &MaterializedState,
        database: DatabaseKey,
        lsn: Lsn,
    ) -> std::collections::BTreeSet<RelationFork> {
        let range = database_range(database);
        let mut forks: std::collections::BTreeSet<RelationFork> =
            self.forks.range(range.clone()).map(|(fork, _)| *fork).collect();
        match self.database_event(database, lsn) {
            None => forks.extend(materialized.relations.range(range).map(|(fork, _)| *fork)),
            Some((_, DatabaseEvent::Drop)) => {}
            Some((at, DatabaseEvent::CopyOf(from))) => {
                let source = self.fork_candidates(materialized, from, Lsn(at.0 - 1));
                forks.extend(source.into_iter().map(|fork| in_database(fork, database)));
            }
        }
        forks
    }

    /// Where a page's content comes from as of `lsn`, before the records that change it after that point.
    pub(crate) fn prior_page(&self, key: &PageKey, lsn: Lsn) -> PriorContent {
        let block = match key {
            PageKey::Block(block) => block,
            PageKey::Slru { kind, page } => {
                let gone = self.slru.iter().rev().find(|(at, truncated, first_kept)| {
                    *at <= lsn && truncated == kind && slru_page_is_gone(*kind, *page, *first_kept)
                });
                return gone
                    .map_or(PriorContent::Materialized, |&(since, ..)| PriorContent::Nothing { since });
            }
        };
        let fork = block.relation_fork;
        let database = self.database_event(database_of(fork.locator), lsn);
        let erasures = self.erasures.get(&fork).map_or(&[][..], Vec::as_slice);
        let erased = erasures.iter().rev().find(|(at, from)| *at <= lsn && *from <= block.block);
        match (database, erased) {
            (Some((at, _)), Some(&(since, _))) if since > at => PriorContent::Nothing { since },
            (Some((at, DatabaseEvent::CopyOf(from))), _) => PriorContent::Copy { from, at },
            (Some((since, DatabaseEvent::Drop)), _) => PriorContent::Nothing { since },
            (None, Some(&(since, _))) => PriorContent::Nothing { since },
            (None, None) => PriorContent::Materialized,
        }
    }

    /// Where the relation map of a database comes from as of `lsn`, before its own updates.
    pub(crate) fn prior_relation_map(&self, database: DatabaseKey, lsn: Lsn) -> PriorContent {
        match self.database_event(database, lsn) {
            None => PriorContent::Materialized,
            Some((since, DatabaseEvent::Drop)) => PriorContent::Nothing { since },
            Some((at, DatabaseEvent::CopyOf(from))) => PriorContent::Copy { from, at },
        }
    }

    /// The databases that were copied or dropped after `above` and not after `lsn`.
    pub(crate) fn database_events(
        &self,
        above: Lsn,
        lsn: Lsn,
    ) -> impl Iterator<Item = (Lsn, DatabaseKey, DatabaseEvent)> + '_ {
        self.databases.iter().copied().filter(move |(at, ..)| *at > above && *at <= lsn)
    }

    /// The first database after `after`, in key order, that may have relations.
    pub(crate) fn next_database(
        &self,
        materialized: &MaterializedState,
        after: Option<DatabaseKey>,
    ) -> Option<DatabaseKey> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(*database_range(after).end()));
        let stored = materialized.relations.range((from, Bound::Unbounded)).next();
        let changed = self.forks.range((from, Bound::Unbounded)).next();
        let forks = stored.map(|(fork, _)| *fork).into_iter().chain(changed.map(|(fork, _)| *fork));
        let copied = self.databases.iter().map(|(_, database, _)| *database);
        let copied = copied.filter(|database| after.is_none_or(|after| *database > after));
        forks.map(|fork| database_of(fork.locator)).chain(copied).min()
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

    /// The transaction-status stores truncated after `above` and not after `lsn`.
    pub(crate) fn truncated_slru(&self, above: Lsn, lsn: Lsn) -> impl Iterator<Item = SlruKind> + '_ {
        self.slru.iter().filter(move |(at, ..)| *at > above && *at <= lsn).map(|(_, kind, _)| *kind)
    }
}
