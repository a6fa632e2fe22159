//! Writing new page versions, each to the slot that the checkpoint does not name.

use std::collections::BTreeSet;
use std::sync::Arc;

use borealis_types::{Lsn, PageBytes, PageKey, invariant};

use crate::StoreError;
use crate::pages::held::HeldPage;
use crate::pages::materialized_state::{
    Extent, Generation, MaterializedState, SlotAddress, extent_of, next_generation, page_in_extent,
};
use crate::pages::page_files::{PageFiles, SlotRun};
use crate::pages::region::{PAGES_PER_EXTENT, Region, RegionClass};
use crate::segment::hosted::HostedSegment;

/// A segment's next materialized state: being written, and not visible to readers yet.
///
/// It can be dropped at any time before a checkpoint names it: nothing refers to what was written for it, and the
/// next attempt takes the same slots and regions and writes all of them again.
pub(crate) struct NextState {
    pub materialized: Arc<MaterializedState>,
    pub files: Arc<PageFiles>,
    pub freed_regions: Vec<Region>,
    pub run: SlotRun,
    pub pages_written: u64,
    /// Pages that were in trouble before and are as of the target now.
    pub mended: Vec<PageKey>,
    /// Pages that were copied to a larger region.
    pub pages_moved: u64,
    /// Everything that was written is durable.
    pub synced: bool,
}

/// Writes the page versions of one segment's round.
pub(crate) struct PageWriter {
    pub next: NextState,
    /// What the newest durable checkpoint names.
    pub checkpointed: Arc<MaterializedState>,
    pub target: Lsn,
    /// Pages of this round that could not be made when it began.
    pub in_trouble: BTreeSet<PageKey>,
    /// The page whose slot could not be read when its extent moved.
    pub unread: Option<PageKey>,
    /// What the held pages of the next state take.
    pub held_bytes: u64,
    /// Pages written since the last sync.
    pub unsynced_pages: u64,
    /// It writes what peers bring, perhaps several times between two checkpoints, beside the state that is named.
    pub is_refill: bool,
}

/// Pages written between two syncs. A single sync at the end of a round would delay the log's syncs for as
/// long as it takes.
const SYNC_EVERY_PAGES: u64 = 1024;

impl PageWriter {
    /// Begins the next state of a segment.
    pub(crate) fn new(
        checkpointed: &Arc<MaterializedState>,
        files: &Arc<PageFiles>,
        target: Lsn,
        in_trouble: BTreeSet<PageKey>,
    ) -> PageWriter {
        PageWriter {
            next: NextState {
                materialized: Arc::new((**checkpointed).clone()),
                files: Arc::clone(files),
                freed_regions: Vec::new(),
                run: SlotRun::default(),
                pages_written: 0,
                mended: Vec::new(),
                pages_moved: 0,
                synced: false,
            },
            checkpointed: Arc::clone(checkpointed),
            target,
            in_trouble,
            unread: None,
            held_bytes: checkpointed.held_bytes(),
            unsynced_pages: 0,
            is_refill: false,
        }
    }

    /// Goes on with a state that is not the checkpointed one and is not named by it.
    pub(crate) fn going_on(
        next: NextState,
        checkpointed: &Arc<MaterializedState>,
        target: Lsn,
    ) -> PageWriter {
        PageWriter {
            held_bytes: next.materialized.held_bytes(),
            next,
            checkpointed: Arc::clone(checkpointed),
            target,
            in_trouble: BTreeSet::new(),
            unread: None,
            unsynced_pages: 0,
            is_refill: true,
        }
    }

    /// Writes a version of a page. `last` is the last page of the same extent that is still to be written in this
    /// round, so that the extent moves once at most.
    pub(crate) fn write(
        &mut self,
        key: &PageKey,
        last: &PageKey,
        page: &PageBytes,
    ) -> Result<(), StoreError> {
        let (first, place) = extent_of(key);
        let (_, last_place) = extent_of(last);
        let class = RegionClass::holding(place.max(last_place) + 1);
        let region = self.room(first, class)?;
        let materialized = Arc::make_mut(&mut self.next.materialized);
        let extent = materialized.extents.get_mut(&first).expect("room was just made for it");
        let extent = Arc::make_mut(extent);
        let named = self.checkpointed.locate(key);
        let is_other = |generation: Generation| {
            named.is_none_or(|named| {
                (named.region, named.place) != (region, place) || named.generation % 2 != generation % 2
            })
        };
        let mut generation = next_generation(extent.generations[place]);
        if self.is_refill && !is_other(generation) {
            // A refill writes a page again, or one that it had removed, beside the state that is still the current one.
            generation = next_generation(generation);
        }
        extent.generations[place] = generation;
        let address = SlotAddress { region, place, generation };
        let is_other_slot = is_other(generation);
        invariant!("checkpointed-slot-untouched", is_other_slot, "page {key}, generation {generation}");
        self.next.files.write(&mut self.next.run, key, address, self.target, page)?;
        self.next.pages_written += 1;
        self.unsynced_pages += 1;
        if self.unsynced_pages >= SYNC_EVERY_PAGES {
            self.unsynced_pages = 0;
            self.next.files.sync(&mut self.next.run)?;
        }
        Ok(())
    }

    /// Writes or erases a page that is as of the target. `last` is as in [`PageWriter::write`].
    pub(crate) fn put(
        &mut self,
        key: &PageKey,
        last: &PageKey,
        page: Option<&PageBytes>,
    ) -> Result<(), StoreError> {
        if let Some(held) = Arc::make_mut(&mut self.next.materialized).held.remove(key) {
            self.held_bytes -= held.size_bytes();
        }
        match page {
            Some(page) => self.write(key, last, page)?,
            None => self.erase(key),
        }
        if self.in_trouble.contains(key) {
            self.next.mended.push(*key);
        }
        Ok(())
    }

    /// Keeps a page that could not be made. It gets a slot in any case, so that whatever is done to the pages of a
    /// relation finds it. `last` is as in [`PageWriter::write`].
    pub(crate) fn hold(
        &mut self,
        key: &PageKey,
        last: &PageKey,
        held: HeldPage,
        image: &PageBytes,
    ) -> Result<(), StoreError> {
        self.write(key, last, image)?;
        self.held_bytes += held.size_bytes();
        if let Some(before) = Arc::make_mut(&mut self.next.materialized).held.insert(*key, held) {
            self.held_bytes -= before.size_bytes();
        }
        Ok(())
    }

    /// The region of an extent, which has room for at least as many pages as those of `class`. An extent that
    /// outgrows its region moves to a larger one with all its pages.
    fn room(&mut self, first: PageKey, class: RegionClass) -> Result<Region, StoreError> {
        let materialized = Arc::make_mut(&mut self.next.materialized);
        let before = materialized.extents.get(&first).map(Arc::clone);
        if let Some(extent) = &before
            && extent.region.class >= class
        {
            return Ok(extent.region);
        }
        // Only regions that were free at the last checkpoint; a region freed since is still named by it.
        let region = materialized.regions.take(class);
        invariant!(
            "taken-region-is-free",
            self.checkpointed.regions.is_free(region),
            "{region:?} for the extent of {first}"
        );
        let generations = before.as_ref().map_or([0; PAGES_PER_EXTENT as usize], |extent| extent.generations);
        materialized.extents.insert(first, Arc::new(Extent { region, generations }));
        let Some(before) = before else { return Ok(region) };
        self.next.files.flush(&mut self.next.run)?;
        for (place, &generation) in
            before.generations.iter().enumerate().filter(|(_, generation)| **generation != 0)
        {
            let key = page_in_extent(&first, place);
            // The round writes it anew, perhaps because its slot cannot be read.
            if self.in_trouble.contains(&key) {
                continue;
            }
            let from = SlotAddress { region: before.region, place, generation };
            let copied = self.next.files.copy(&mut self.next.run, from, SlotAddress { region, ..from });
            if copied.is_err() {
                self.unread = Some(key);
            }
            copied?;
            self.next.pages_moved += 1;
            self.unsynced_pages += 1;
        }
        self.next.freed_regions.push(before.region);
        Ok(region)
    }

    pub(crate) fn erase(&mut self, key: &PageKey) {
        let (first, place) = extent_of(key);
        let materialized = Arc::make_mut(&mut self.next.materialized);
        let Some(extent) = materialized.extents.get_mut(&first) else { return };
        let extent = Arc::make_mut(extent);
        extent.generations[place] = 0;
        if extent.generations.iter().all(|&generation| generation == 0) {
            self.next.freed_regions.push(extent.region);
            materialized.extents.remove(&first);
        }
    }
}

impl NextState {
    /// Whether it is of this segment: not if that left since, and came again.
    pub(crate) fn is_of(&self, hosted: &HostedSegment) -> bool {
        Arc::ptr_eq(&self.files, &hosted.pages)
    }

    /// Makes everything durable that was written.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.files.sync(&mut self.run)?;
        self.synced = true;
        Ok(())
    }
}
