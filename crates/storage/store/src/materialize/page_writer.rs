//! Writing new page versions, each to the slot that the checkpoint does not name.

use std::collections::BTreeSet;
use std::sync::Arc;

use borealis_types::{Lsn, PageBytes, PageKey, invariant};

use crate::StoreError;
use crate::pages::held::HeldPage;
use crate::pages::materialized_state::{
    Extent, MaterializedState, PAGES_PER_EXTENT, extent_of, next_generation,
};
use crate::pages::page_files::{PageFiles, SlotAddress, SlotRun};

/// A segment's next materialized state: being written, and not visible to readers yet.
pub(crate) struct NextState {
    pub materialized: Arc<MaterializedState>,
    pub files: Arc<PageFiles>,
    pub freed_regions: Vec<u32>,
    pub written_regions: BTreeSet<u32>,
    pub pages_written: u64,
    /// Pages that were in trouble before and are as of the target now.
    pub mended: Vec<PageKey>,
    /// Everything in `written_regions` is durable.
    pub synced: bool,
}

/// Writes the page versions of one segment's round.
pub(crate) struct PageWriter {
    pub next: NextState,
    /// What the newest durable checkpoint names.
    pub checkpointed: Arc<MaterializedState>,
    pub target: Lsn,
    pub run: SlotRun,
    /// Pages that could not be made when the round began.
    pub in_trouble: BTreeSet<PageKey>,
    /// What the held pages of the next state take.
    pub held_bytes: u64,
    /// Pages written since the last sync.
    pub unsynced_pages: u64,
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
                written_regions: BTreeSet::new(),
                pages_written: 0,
                mended: Vec::new(),
                synced: false,
            },
            checkpointed: Arc::clone(checkpointed),
            target,
            run: SlotRun::default(),
            in_trouble,
            held_bytes: checkpointed.held_bytes(),
            unsynced_pages: 0,
        }
    }

    pub(crate) fn write(&mut self, key: &PageKey, page: &PageBytes) -> Result<(), StoreError> {
        let (first, place) = extent_of(key);
        let materialized = Arc::make_mut(&mut self.next.materialized);
        let extent = materialized.extents.entry(first).or_insert_with(|| {
            // Only regions that were free at the last checkpoint; a region freed since is still named by it.
            let region = materialized.free_regions.pop().unwrap_or_else(|| {
                materialized.next_region += 1;
                materialized.next_region - 1
            });
            Arc::new(Extent { region, generations: [0; PAGES_PER_EXTENT as usize] })
        });
        let extent = Arc::make_mut(extent);
        let generation = next_generation(extent.generations[place]);
        extent.generations[place] = generation;
        let address = SlotAddress { region: extent.region, place, generation };
        let is_other_slot = self.checkpointed.locate(key).is_none_or(|(region, at, named)| {
            (region, at) != (address.region, place) || named % 2 != generation % 2
        });
        invariant!("checkpointed-slot-untouched", is_other_slot, "page {key}, generation {generation}");
        self.next.files.write(&mut self.run, key, address, self.target, page)?;
        self.next.written_regions.insert(address.region);
        self.next.pages_written += 1;
        self.unsynced_pages += 1;
        if self.unsynced_pages >= SYNC_EVERY_PAGES {
            self.unsynced_pages = 0;
            self.next.files.write_run(&mut self.run)?;
            self.next.files.sync(std::iter::once(address.region))?;
        }
        Ok(())
    }

    /// Writes or erases a page that is as of the target.
    pub(crate) fn put(&mut self, key: &PageKey, page: Option<&PageBytes>) -> Result<(), StoreError> {
        if let Some(held) = Arc::make_mut(&mut self.next.materialized).held.remove(key) {
            self.held_bytes -= held.size_bytes();
        }
        match page {
            Some(page) => self.write(key, page)?,
            None => self.erase(key),
        }
        if self.in_trouble.contains(key) {
            self.next.mended.push(*key);
        }
        Ok(())
    }

    /// Keeps a page that could not be made. It gets a slot in any case, so that whatever is done to the pages of a
    /// relation finds it.
    pub(crate) fn hold(
        &mut self,
        key: &PageKey,
        held: HeldPage,
        image: &PageBytes,
    ) -> Result<(), StoreError> {
        self.write(key, image)?;
        self.held_bytes += held.size_bytes();
        if let Some(before) = Arc::make_mut(&mut self.next.materialized).held.insert(*key, held) {
            self.held_bytes -= before.size_bytes();
        }
        Ok(())
    }

    /// Writes the rest of the run. Not durable yet.
    pub(crate) fn finish(mut self) -> Result<NextState, StoreError> {
        self.next.files.write_run(&mut self.run)?;
        Ok(self.next)
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
