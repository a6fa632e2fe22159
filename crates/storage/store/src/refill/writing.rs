//! What peers bring, and how it gets to disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use borealis_types::{Lsn, MetaKey, PageBytes, PageKey, invariant};
use borealis_wire::{Refusal, RelationSize};

use super::Refill;
use crate::StoreError;
use crate::pages::materialized_state::{MaterializedState, extent_of};
use crate::pages::page_files::SLOT_BYTES;
use crate::pages::refilled::Refilled;

/// What is brought between two saves, in bytes: this much is brought again after a crash.
const SAVE_AFTER_BYTES: u64 = 256 << 20;

impl Refill<'_> {
    /// Whether the page here has this checksum (CRC-32C of its 8 KiB). False if it cannot be read.
    #[must_use]
    pub fn has(&self, key: &PageKey, checksum: u32) -> bool {
        let state = &self.writer.next.materialized;
        if state.held.contains_key(key) {
            return false;
        }
        let Some(address) = state.locate(key) else { return false };
        // Of whatever state it is: its bytes decide.
        let read = self.writer.next.files.read(key, address, Lsn::MAX);
        read.is_ok_and(|page| crc32c::crc32c(&page[..]) == checksum)
    }

    /// Takes the next range of pages, from after [`Refill::through`] to `through`, or to the last if that is `None`:
    /// every page that exists there as of the point, in key order, with its bytes unless [`Refill::has`] said that it is
    /// here. Others that are here are removed.
    ///
    /// # Errors
    /// When they cannot be written. The refill goes on from what was last saved then, when it is taken up again.
    pub fn take_range(
        &mut self,
        through: Option<PageKey>,
        pages: &[(PageKey, Option<Box<PageBytes>>)],
    ) -> Result<(), StoreError> {
        let is_next = |key: &PageKey| {
            self.through.is_none_or(|before| *key > before) && through.is_none_or(|last| *key <= last)
        };
        let ascend = pages.windows(2).all(|pair| pair[0].0 < pair[1].0);
        invariant!(
            "refilled-in-order",
            ascend && pages.iter().all(|(key, _)| is_next(key)),
            "{} pages after {:?} and through {through:?}",
            pages.len(),
            self.through
        );
        self.check_sound()?;
        let written = self.write_range(through, pages);
        self.has_failed |= written.is_err();
        self.unsaved_bytes += written? * SLOT_BYTES as u64;
        self.writer.next.synced = false;
        // Without an end the last page says how far it is, and there is nothing behind it to be compared again.
        self.through = through.or(pages.last().map(|(key, _)| *key)).or(self.through);
        if self.unsaved_bytes >= SAVE_AFTER_BYTES { self.save() } else { Ok(()) }
    }

    /// Writes the pages of a range that were brought, and removes those that are not in it. Returns how many were brought.
    fn write_range(
        &mut self,
        through: Option<PageKey>,
        pages: &[(PageKey, Option<Box<PageBytes>>)],
    ) -> Result<u64, StoreError> {
        let is_listed = |key: &PageKey| pages.binary_search_by(|(listed, _)| listed.cmp(key)).is_ok();
        let gone: Vec<PageKey> = self.own_pages(through).into_iter().filter(|key| !is_listed(key)).collect();
        for key in gone {
            self.writer.put(&key, &key, None)?;
        }
        let brought: Vec<_> = pages.iter().filter_map(|(key, page)| Some((key, page.as_deref()?))).collect();
        for (at, (key, page)) in brought.iter().enumerate() {
            let (first, _) = extent_of(key);
            let same = brought[at..].iter().take_while(|(next, _)| extent_of(next).0 == first);
            let last = same.last().map_or(*key, |(last, _)| *last);
            self.writer.put(key, last, Some(page))?;
        }
        Ok(brought.len() as u64)
    }

    /// Fails once anything could not be written: a new attempt goes on from what was saved before.
    fn check_sound(&self) -> Result<(), Refusal> {
        let what = "what peers brought could not be written; the next attempt goes on from what was saved";
        if self.has_failed { Err(Refusal::NotNow(what.to_owned())) } else { Ok(()) }
    }

    /// The pages here after [`Refill::through`], and not after `through`.
    fn own_pages(&self, through: Option<PageKey>) -> Vec<PageKey> {
        let state = &self.writer.next.materialized;
        let from = self.through.map_or(Bound::Unbounded, |key| Bound::Included(extent_of(&key).0));
        let extents = state.extents.range((from, Bound::Unbounded));
        let pages = extents.flat_map(|(first, extent)| MaterializedState::pages_of(first, extent));
        let after = self.through;
        pages
            .take_while(|key| through.is_none_or(|last| *key <= last))
            .filter(|key| after.is_none_or(|after| *key > after))
            .collect()
    }

    /// Makes what was brought durable, so that a crash does not cost it.
    ///
    /// # Errors
    /// When it cannot be written or synced, or the checkpoint cannot be.
    pub fn save(&mut self) -> Result<(), StoreError> {
        self.check_sound()?;
        let synced = self.writer.next.sync();
        self.has_failed |= synced.is_err();
        synced?;
        let _working = self.store.maintenance.enter();
        let refilled = Refilled {
            point: self.point,
            through: self.through,
            is_whole: self.is_whole,
            state: Arc::clone(&self.writer.next.materialized),
            freed: self.writer.next.freed_regions.clone(),
        };
        {
            let mut state = self.store.lock_to_change()?;
            self.hosted(&state)?;
            let hosted = state.segments.get_mut(&self.group).ok_or(Refusal::NoSegment(self.group))?;
            hosted.refilled = Some(refilled);
        }
        self.store.write_checkpoint(&BTreeMap::new())?;
        self.unsaved_bytes = 0;
        Ok(())
    }

    /// Takes the sizes of all relations and, in the meta group, all small values as of the point, after all pages; and lets
    /// the segment go on from there. Durable on return.
    ///
    /// # Errors
    /// As [`Refill::save`] and [`Refill::finish_whole`].
    pub fn finish(
        mut self,
        relations: &[RelationSize],
        values: Vec<(MetaKey, Vec<u8>)>,
    ) -> Result<(), StoreError> {
        let state = Arc::make_mut(&mut self.writer.next.materialized);
        state.relations = relations.iter().map(|size| (size.relation_fork, size.blocks)).collect();
        state.meta = values.into_iter().collect();
        state.lsn = self.point.volume.end;
        self.is_whole = true;
        self.save()?;
        self.finish_whole()
    }
}
