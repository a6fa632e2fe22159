//! Listing what exists as of an LSN: small values, relations, transaction-status pages, pages and their checksums.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, PoisonError};

use borealis_types::{
    BlockKey, DatabaseKey, GroupId, Lsn, META_GROUP, MetaKey, PageBytes, PageKey, ReadPoint, RelationFork,
    SlruKind,
};
use borealis_wire::message::LIST_BYTES_MAX;
use borealis_wire::{PageChecksum, RelationSize, ValuePart};

use crate::pages::materialized_state::{MaterializedState, database_of, extent_of, in_database};
use crate::read::long_value::LongValue;
use crate::segment::hosted::HostedSegment;
use crate::segment::index::relations::{DatabaseEvent, PriorContent};
use crate::{Store, StoreError};

impl Store {
    /// Every value as of an LSN after `after`, in key order, except counters and the control file; of a long one its first
    /// part. And whether a limit, of entries or of bytes, cut the list short.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn list_meta(
        &self,
        at: impl Into<ReadPoint>,
        after: Option<&MetaKey>,
        limit: usize,
    ) -> Result<(Vec<(MetaKey, ValuePart)>, bool), StoreError> {
        let at = at.into();
        let lsn = at.lsn;
        let keys: BTreeSet<MetaKey> = {
            let state = self.lock();
            let hosted = Store::readable(&state, META_GROUP, at)?;
            let copied = hosted.index.relations.database_events(Lsn::ZERO, lsn);
            let copied = copied.map(|(_, database, _)| MetaKey::RelationMap(database));
            let known = hosted.materialized.meta.keys().chain(hosted.index.meta_keys()).cloned();
            known
                .chain(copied)
                .filter(|key| !matches!(key, MetaKey::Counters | MetaKey::ControlFileTemplate))
                .filter(|key| after.is_none_or(|after| key > after))
                .collect()
        };
        let mut values = Vec::new();
        // Counted whole, for each long value takes time to make.
        let mut made_bytes = 0;
        for key in keys {
            if values.len() >= limit || made_bytes >= LIST_BYTES_MAX {
                return Ok((values, true));
            }
            if let Some(value) = self.read_meta(&key, at)? {
                made_bytes += value.len();
                values.push((key, ValuePart::of(&value, 0)));
            }
        }
        Ok((values, false))
    }

    /// A part of a value as of an LSN; `None` if the value does not exist then. A value that is longer than a part is kept
    /// in memory until its last part was read, or another long value is: one at a time.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn read_meta_part(
        &self,
        key: &MetaKey,
        at: impl Into<ReadPoint>,
        offset: u64,
    ) -> Result<Option<ValuePart>, StoreError> {
        let at = at.into();
        let mut kept = self.long_value.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(long) = kept.as_ref().filter(|long| long.is(key, at)) {
            // Admitted anew each time: the reader may be fenced by now.
            Store::readable(&self.lock(), META_GROUP, at)?;
            let part = long.part(offset);
            if offset.saturating_add(part.bytes.len() as u64) >= part.total_bytes {
                *kept = None;
            }
            return Ok(Some(part));
        }
        drop(kept);
        let Some(value) = self.read_meta(key, at)? else { return Ok(None) };
        let part = ValuePart::of(&value, offset);
        if offset.saturating_add(part.bytes.len() as u64) < part.total_bytes {
            let long = LongValue::new(key.clone(), at, part.checksum, value);
            *self.long_value.lock().unwrap_or_else(PoisonError::into_inner) = Some(long);
        }
        Ok(Some(part))
    }

    /// A fork's size in blocks in one group's part, as of an LSN; `None` if the group does not know it.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn relation_size(
        &self,
        group: GroupId,
        fork: RelationFork,
        at: impl Into<ReadPoint>,
    ) -> Result<Option<u32>, StoreError> {
        let at = at.into();
        let lsn = at.lsn;
        let state = self.lock();
        let hosted = Store::readable(&state, group, at)?;
        Ok(hosted.index.relations.relation_blocks(&hosted.materialized, fork, lsn))
    }

    /// The forks of a database that one group knows as of an LSN, after `after`, in key order.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn list_relations(
        &self,
        group: GroupId,
        database: DatabaseKey,
        at: impl Into<ReadPoint>,
        after: Option<RelationFork>,
        limit: usize,
    ) -> Result<Vec<RelationSize>, StoreError> {
        let at = at.into();
        let lsn = at.lsn;
        let state = self.lock();
        let hosted = Store::readable(&state, group, at)?;
        let candidates = hosted.index.relations.fork_candidates(&hosted.materialized, database, lsn);
        let sizes = candidates.into_iter().filter(|fork| after.is_none_or(|after| *fork > after));
        let sizes = sizes.filter_map(|relation_fork| {
            let blocks = hosted.index.relations.relation_blocks(&hosted.materialized, relation_fork, lsn)?;
            Some(RelationSize { relation_fork, blocks })
        });
        Ok(sizes.take(limit).collect())
    }

    /// The forks of all databases that one group knows as of an LSN, after `after`, in key order.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn list_forks(
        &self,
        group: GroupId,
        at: impl Into<ReadPoint>,
        after: Option<RelationFork>,
        limit: usize,
    ) -> Result<Vec<RelationSize>, StoreError> {
        let at = at.into();
        let state = self.lock();
        let hosted = Store::readable(&state, group, at)?;
        let (relations, materialized) = (&hosted.index.relations, &hosted.materialized);
        let mut sizes = Vec::new();
        let mut database = after
            .map(|after| database_of(after.locator))
            .or_else(|| relations.next_database(materialized, None));
        while let Some(key) = database.filter(|_| sizes.len() < limit) {
            let forks = relations.fork_candidates(materialized, key, at.lsn).into_iter();
            let forks = forks.filter(|fork| after.is_none_or(|after| *fork > after));
            sizes.extend(forks.filter_map(|relation_fork| {
                let blocks = relations.relation_blocks(materialized, relation_fork, at.lsn)?;
                Some(RelationSize { relation_fork, blocks })
            }));
            database = relations.next_database(materialized, Some(key));
        }
        sizes.truncate(limit);
        Ok(sizes)
    }

    /// The pages of a transaction-status store as of an LSN from page `from` on, ascending, at most `limit`.
    ///
    /// # Errors
    /// As [`Store::read_page`].
    pub fn slru_pages(
        &self,
        kind: SlruKind,
        at: impl Into<ReadPoint>,
        from: u32,
        limit: usize,
    ) -> Result<Vec<u32>, StoreError> {
        let at = at.into();
        let lsn = at.lsn;
        let state = self.lock();
        let hosted = Store::readable(&state, META_GROUP, at)?;
        let key = |page| PageKey::Slru { kind, page };
        let mut pages = BTreeSet::new();
        for (first, extent) in hosted.materialized.extents.range(key(0)..=key(u32::MAX)) {
            for page in MaterializedState::pages_of(first, extent) {
                if hosted.index.relations.prior_page(&page, lsn) == PriorContent::Materialized {
                    pages.insert(page);
                }
            }
        }
        let of_kind = |page: &PageKey| matches!(page, PageKey::Slru { kind: of, .. } if *of == kind);
        for page in hosted.index.page_keys(Bound::Included(&key(0))).take_while(of_kind) {
            let above = match hosted.index.relations.prior_page(&page, lsn) {
                PriorContent::Nothing { since } => since,
                _ => Lsn::ZERO,
            };
            if hosted.index.page_records(&page, above, lsn).len() > 0 {
                pages.insert(page);
            }
        }
        let numbers = pages.into_iter().filter_map(|key| match key {
            PageKey::Slru { page, .. } => Some(page),
            PageKey::Block(_) => None,
        });
        Ok(numbers.filter(|page| *page >= from).take(limit).collect())
    }

    /// About how many pages a group has, without those that only records make.
    ///
    /// # Errors
    /// [`borealis_wire::Refusal::NoSegment`].
    pub fn page_count(&self, group: GroupId) -> Result<u64, StoreError> {
        let materialized = Arc::clone(&Store::hosted(&self.lock(), group)?.materialized);
        Ok(materialized.page_count())
    }

    /// A group's pages as of an LSN, after `after`, in key order, at most `limit`. Fewer than that are the last.
    ///
    /// # Errors
    /// As [`Store::read_page`]: one page that cannot be made is an error, for its place would be taken for empty.
    pub fn read_pages(
        &self,
        group: GroupId,
        at: impl Into<ReadPoint>,
        after: Option<&PageKey>,
        limit: usize,
    ) -> Result<Vec<(PageKey, Box<PageBytes>)>, StoreError> {
        let at = at.into();
        let mut pages = Vec::new();
        let mut after = after.copied();
        while pages.len() < limit {
            let keys = {
                let state = self.lock();
                page_candidates(Store::readable(&state, group, at)?, at.lsn, after, limit - pages.len())
            };
            let Some(&last) = keys.last() else { break };
            after = Some(last);
            for key in keys {
                if let Some(page) = self.read_page(group, &key, at)? {
                    pages.push((key, page));
                }
            }
        }
        Ok(pages)
    }

    /// Checksums of a group's pages as of an LSN, after `after`, in key order, each made from what is on disk.
    /// A page that cannot be made has none.
    ///
    /// # Errors
    /// [`borealis_wire::Refusal::NotReadable`] and [`borealis_wire::Refusal::NoSegment`].
    pub fn page_checksums(
        &self,
        group: GroupId,
        at: impl Into<ReadPoint>,
        after: Option<&PageKey>,
        limit: usize,
    ) -> Result<Vec<PageChecksum>, StoreError> {
        let at = at.into();
        let lsn = at.lsn;
        let mut checksums = Vec::new();
        let mut after = after.copied();
        while checksums.len() < limit {
            let keys = {
                let state = self.lock();
                page_candidates(Store::readable(&state, group, at)?, lsn, after, limit)
            };
            let Some(&last) = keys.last() else { break };
            after = Some(last);
            for key in keys {
                let checksum = match self.read_page(group, &key, at) {
                    Ok(Some(page)) => Some(crc32c::crc32c(&page[..])),
                    Ok(None) => continue,
                    Err(error @ StoreError::Refused(_)) => return Err(error),
                    Err(error) => {
                        tracing::error!(%error, "a page cannot be checked");
                        None
                    }
                };
                checksums.push(PageChecksum { key, checksum });
                if checksums.len() >= limit {
                    break;
                }
            }
        }
        Ok(checksums)
    }
}

/// The next keys after `after` that may exist as of `lsn`, at most `limit`, in order. What it costs goes with `limit`
/// and with the forks of databases whose copy is not materialized yet, not with the number of pages.
fn page_candidates(hosted: &HostedSegment, lsn: Lsn, after: Option<PageKey>, limit: usize) -> Vec<PageKey> {
    let is_after = |key: &PageKey| after.is_none_or(|after| *key > after);
    let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut keys: BTreeSet<PageKey> = hosted.index.page_keys(from).take(limit).collect();
    let first = after.map_or(Bound::Unbounded, |key| Bound::Included(extent_of(&key).0));
    let materialized = hosted.materialized.extents.range((first, Bound::Unbounded));
    let materialized = materialized.flat_map(|(first, extent)| MaterializedState::pages_of(first, extent));
    keys.extend(materialized.filter(is_after).take(limit));
    for (_, database, event) in hosted.index.relations.database_events(Lsn::ZERO, lsn) {
        let DatabaseEvent::CopyOf(_) = event else { continue };
        let mut found = 0;
        let is_before = |fork: &RelationFork| match &after {
            Some(PageKey::Block(after)) => *fork < after.relation_fork,
            Some(PageKey::Slru { .. }) => true,
            None => false,
        };
        let forks = hosted.index.relations.fork_candidates(&hosted.materialized, database, lsn);
        for fork in forks.into_iter().filter(|fork| !is_before(fork)) {
            if found >= limit {
                break;
            }
            let copies = copied_pages(hosted, fork, lsn, after, limit);
            found += copies.len();
            keys.extend(copies);
        }
    }
    keys.into_iter().take(limit).collect()
}

/// The first pages after `after` that a fork may have because its database is a copy, at most `limit`.
fn copied_pages(
    hosted: &HostedSegment,
    fork: RelationFork,
    lsn: Lsn,
    after: Option<PageKey>,
    limit: usize,
) -> BTreeSet<PageKey> {
    let mut copies = BTreeSet::new();
    let copy = |page: PageKey| match page {
        PageKey::Block(block) => {
            let copy = PageKey::Block(BlockKey { relation_fork: fork, block: block.block });
            after.is_none_or(|after| copy > after).then_some(copy)
        }
        PageKey::Slru { .. } => None,
    };
    let mut original = fork;
    // A copy of a copy has the pages of the first original. Only their block numbers matter here.
    let mut at = lsn;
    while let PriorContent::Copy { from, at: copied } =
        hosted.index.relations.prior_page(&PageKey::Block(BlockKey { relation_fork: original, block: 0 }), at)
    {
        original = in_database(original, from);
        at = Lsn(copied.0 - 1);
        let is_of = |page: &PageKey| matches!(page, PageKey::Block(block) if block.relation_fork == original);
        let first = PageKey::Block(BlockKey { relation_fork: original, block: 0 });
        let pending = hosted.index.page_keys(Bound::Included(&first)).take_while(is_of);
        copies.extend(pending.filter_map(copy).take(limit));
    }
    let materialized = hosted
        .materialized
        .fork_extents(original, 0)
        .flat_map(|(first, extent)| MaterializedState::pages_of(first, extent));
    copies.extend(materialized.filter_map(copy).take(limit));
    copies.into_iter().take(limit).collect()
}
