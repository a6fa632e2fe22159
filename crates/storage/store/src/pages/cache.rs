//! A cache of page versions that took many records to make.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use borealis_types::{GroupId, Lsn, PAGE_SIZE, PageBytes, PageKey};

/// About what one cached page costs.
const ENTRY_BYTES: u64 = PAGE_SIZE as u64 + 160;

struct Cached {
    /// The version has every record of the page up to this LSN.
    lsn: Lsn,
    page: Arc<PageBytes>,
    used: u64,
}

/// The page cache. The least recently used version is evicted first.
pub(crate) struct PageCache {
    entries: HashMap<(GroupId, PageKey), Cached>,
    by_use: BTreeMap<u64, (GroupId, PageKey)>,
    clock: u64,
    entries_max: usize,
}

impl PageCache {
    pub(crate) fn new(limit_bytes: u64) -> PageCache {
        let entries_max = (limit_bytes / ENTRY_BYTES) as usize;
        PageCache { entries: HashMap::new(), by_use: BTreeMap::new(), clock: 0, entries_max }
    }

    /// The version cached for a page, with the LSN it is complete to.
    pub(crate) fn get(&mut self, group: GroupId, key: &PageKey) -> Option<(Lsn, Arc<PageBytes>)> {
        let cached = self.entries.get_mut(&(group, *key))?;
        self.clock += 1;
        self.by_use.remove(&cached.used);
        cached.used = self.clock;
        self.by_use.insert(self.clock, (group, *key));
        Some((cached.lsn, Arc::clone(&cached.page)))
    }

    /// Stores a version, unless a newer one is cached.
    pub(crate) fn put(&mut self, group: GroupId, key: PageKey, lsn: Lsn, page: Arc<PageBytes>) {
        if self.entries_max == 0 || self.entries.get(&(group, key)).is_some_and(|cached| cached.lsn >= lsn) {
            return;
        }
        self.clock += 1;
        let cached = Cached { lsn, page, used: self.clock };
        if let Some(old) = self.entries.insert((group, key), cached) {
            self.by_use.remove(&old.used);
        }
        self.by_use.insert(self.clock, (group, key));
        while self.entries.len() > self.entries_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.entries.remove(&oldest);
        }
    }

    /// Drops all versions of a group.
    pub(crate) fn forget_group(&mut self, group: GroupId) {
        self.forget_above(group, Lsn::ZERO);
    }

    /// Drops a group's versions above `lsn`: they contain records that a recovery truncated.
    pub(crate) fn forget_above(&mut self, group: GroupId, lsn: Lsn) {
        let by_use = &mut self.by_use;
        self.entries.retain(|(of, _), cached| {
            let keep = *of != group || cached.lsn <= lsn;
            if !keep {
                by_use.remove(&cached.used);
            }
            keep
        });
    }

    /// About how much memory it takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.entries.len() as u64 * ENTRY_BYTES
    }
}
