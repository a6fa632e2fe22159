//! Pages out of a node's store: kept as of one position by a pin, as peers that are refilled have it kept.

use std::sync::Weak;
use std::time::Duration;

use borealis_archive::snapshot::SnapshotPoint;
use borealis_store::{Store, StoreError};
use borealis_types::{
    GroupId, Lsn, META_GROUP, MetaKey, NodeId, PAGE_SIZE, PageBytes, PageKey, RelationFork,
};

use super::source::{PageSource, SourceError};

/// How long the store keeps what is held when nobody renews it.
const LEASE: Duration = Duration::from_secs(30);
/// Entries of a list that are asked for at a time.
const LIST_ENTRIES: usize = 1024;

/// Whoever can lend a store for one question. A node that stops has none any more: nothing here keeps it open, however long the store
/// of the backup takes.
pub trait LendsStore {
    /// Asks the store; `None` if it is not there any more.
    fn ask<T>(&self, question: impl FnOnce(&Store) -> T) -> Option<T>;
}

impl LendsStore for &Store {
    fn ask<T>(&self, question: impl FnOnce(&Store) -> T) -> Option<T> {
        Some(question(self))
    }
}

impl LendsStore for Weak<Store> {
    fn ask<T>(&self, question: impl FnOnce(&Store) -> T) -> Option<T> {
        self.upgrade().map(|store| question(&store))
    }
}

/// A store, and the node that it is of: the pin is in the node's name, which no peer has.
#[derive(Debug)]
pub struct StorePages<S> {
    /// The store.
    pub store: S,
    /// The node.
    pub node: NodeId,
}

impl<S: LendsStore> StorePages<S> {
    fn ask<T>(
        &self,
        group: GroupId,
        question: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<T, SourceError> {
        let what = match self.store.ask(question) {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => error.to_string(),
            None => "the node stops".to_owned(),
        };
        Err(SourceError { group, what })
    }
}

impl<S: LendsStore> PageSource for StorePages<S> {
    fn size_bytes(&self, group: GroupId) -> u64 {
        self.ask(group, |store| store.page_count(group)).unwrap_or_default() * PAGE_SIZE as u64
    }

    fn hold(&self, group: GroupId) -> Result<SnapshotPoint, SourceError> {
        let point = self.ask(group, |store| {
            store.with_segment(group, |segment| {
                let durable = segment.known_durable();
                let epoch = segment.history().newest_epoch();
                SnapshotPoint { group, epoch, last: durable.volume, tail_end: durable.group_tail }
            })
        })?;
        self.renew(group, point.last.end)?;
        Ok(point)
    }

    fn renew(&self, group: GroupId, lsn: Lsn) -> Result<(), SourceError> {
        // Of no epoch: what is durable stays what it is, whoever writes.
        self.ask(group, |store| store.pin(group, lsn.into(), self.node, LEASE).map(drop))
    }

    fn release(&self, group: GroupId) {
        // A store that is gone holds nothing.
        self.store.ask(|store| store.unpin(group, self.node)).unwrap_or_default();
    }

    fn pages(
        &self,
        group: GroupId,
        lsn: Lsn,
        after: Option<PageKey>,
        limit: usize,
    ) -> Result<Vec<(PageKey, Box<PageBytes>)>, SourceError> {
        self.ask(group, |store| store.read_pages(group, lsn, after.as_ref(), limit))
    }

    fn relations(&self, group: GroupId, lsn: Lsn) -> Result<Vec<(RelationFork, u32)>, SourceError> {
        let mut all: Vec<(RelationFork, u32)> = Vec::new();
        loop {
            let after = all.last().map(|(fork, _)| *fork);
            let some = self.ask(group, |store| store.list_forks(group, lsn, after, LIST_ENTRIES))?;
            let is_last = some.len() < LIST_ENTRIES;
            all.extend(some.into_iter().map(|size| (size.relation_fork, size.blocks)));
            if is_last {
                return Ok(all);
            }
        }
    }

    fn values(&self, group: GroupId, lsn: Lsn) -> Result<Vec<(MetaKey, Vec<u8>)>, SourceError> {
        if group != META_GROUP {
            return Ok(Vec::new());
        }
        // A listing leaves these two out.
        let mut keys = vec![MetaKey::Counters, MetaKey::ControlFileTemplate];
        let mut after: Option<MetaKey> = None;
        loop {
            let listed = self.ask(group, |store| store.list_meta(lsn, after.as_ref(), LIST_ENTRIES))?;
            let (some, more) = listed;
            after = some.last().map(|(key, _)| key.clone());
            keys.extend(some.into_iter().map(|(key, _)| key));
            if !more || after.is_none() {
                break;
            }
        }
        keys.sort();
        let mut values = Vec::new();
        for key in keys {
            if let Some(value) = self.ask(group, |store| store.read_meta(&key, lsn))? {
                values.push((key, value));
            }
        }
        Ok(values)
    }
}
