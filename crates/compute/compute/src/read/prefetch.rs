//! Pages fetched ahead of their use, for a short time.
//!
//! A page is here between PostgreSQL's hint and its read. Correctness first: whatever changes a page, or
//! might, drops it, and a page is given out once.

use std::collections::{BTreeMap, VecDeque};

use borealis_types::{BlockKey, Lsn, PAGE_SIZE, PageKey, invariant};
use borealis_wal::Effect;

/// Places that blocks are spread over, see [`place`].
const PLACES: usize = 4096;

/// A bounded set of pages, oldest out first.
#[derive(Debug)]
pub struct PrefetchCache {
    pages: BTreeMap<BlockKey, (u64, Vec<u8>)>,
    /// How many pages have each place: nearly every block that a record changes is not here, and this says so without
    /// a search.
    places: Box<[u32; PLACES]>,
    /// Keys in the order they came, with the number they came under: a key that was taken and came again
    /// stands here twice, and only its newest number counts.
    order: VecDeque<(u64, BlockKey)>,
    next_number: u64,
    pages_max: usize,
}

impl PrefetchCache {
    /// An empty cache of at most `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> PrefetchCache {
        PrefetchCache {
            pages: BTreeMap::new(),
            places: Box::new([0; PLACES]),
            order: VecDeque::new(),
            next_number: 0,
            pages_max: limit_bytes / PAGE_SIZE,
        }
    }

    /// Whether the page is here.
    #[must_use]
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.places[place(key)] > 0 && self.pages.contains_key(key)
    }

    /// How many pages are kept now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether no page is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Adds a page; the oldest makes room.
    pub fn insert(&mut self, key: BlockKey, page: Vec<u8>) {
        if self.pages_max == 0 {
            return;
        }
        invariant!("page-is-whole", page.len() == PAGE_SIZE, "{} bytes of {key}", page.len());
        let number = self.next_number;
        self.next_number += 1;
        if self.pages.insert(key, (number, page)).is_none() {
            self.places[place(&key)] += 1;
        }
        self.order.push_back((number, key));
        while self.pages.len() > self.pages_max || self.order.len() > 2 * self.pages_max {
            let Some((number, key)) = self.order.pop_front() else { break };
            if self.pages.get(&key).is_some_and(|(current, _)| *current == number) {
                self.take(&key);
            }
        }
        let pages = self.pages.len();
        invariant!("prefetch-within-limit", pages <= self.pages_max, "{pages} pages of {}", self.pages_max);
    }

    /// Gives a page out, once: whoever gets it may change it.
    pub fn take(&mut self, key: &BlockKey) -> Option<Vec<u8>> {
        let here = &mut self.places[place(key)];
        if *here == 0 {
            return None;
        }
        let (_, page) = self.pages.remove(key)?;
        *here -= 1;
        Some(page)
    }

    /// Drops what these effects change.
    pub fn invalidate(&mut self, effects: &[Effect]) {
        if self.pages.is_empty() {
            return;
        }
        for effect in effects {
            match effect {
                Effect::Page(PageKey::Block(key)) => {
                    self.take(key);
                }
                Effect::Page(PageKey::Slru { .. }) | Effect::TruncateSlru { .. } | Effect::Meta(_) => {}
                Effect::CreateRelation(_)
                | Effect::TruncateRelation { .. }
                | Effect::DropRelation(_)
                | Effect::CopyDatabase { .. }
                | Effect::DropDatabase(_) => {
                    self.pages.clear();
                    self.places.fill(0);
                    self.order.clear();
                }
            }
        }
    }
}

/// Up to where each block was changed by redo, at least. Blocks share places, the later change counts.
///
/// A block that changed after the point a read is made at must not be fetched ahead: PostgreSQL may write the block
/// and have it dropped before it asks for it, and would get a page from before the change.
#[derive(Debug)]
pub struct RecentChanges {
    blocks: Box<[Lsn; PLACES]>,
    /// The last change of whole relations.
    everything: Lsn,
}

impl RecentChanges {
    /// A book in which no block has changed yet.
    #[must_use]
    pub fn new() -> RecentChanges {
        RecentChanges { blocks: Box::new([Lsn::ZERO; PLACES]), everything: Lsn::ZERO }
    }

    /// Notes what the record that ends at `lsn` changes.
    pub fn note(&mut self, effects: &[Effect], lsn: Lsn) {
        for effect in effects {
            match effect {
                Effect::Page(PageKey::Block(key)) => self.blocks[place(key)] = lsn,
                Effect::Page(PageKey::Slru { .. }) | Effect::TruncateSlru { .. } | Effect::Meta(_) => {}
                _ => self.everything = lsn,
            }
        }
    }

    /// The last change of the block, or a later one.
    #[must_use]
    pub fn last_change(&self, key: &BlockKey) -> Lsn {
        self.blocks[place(key)].max(self.everything)
    }
}

impl Default for RecentChanges {
    fn default() -> RecentChanges {
        RecentChanges::new()
    }
}

fn place(key: &BlockKey) -> usize {
    // The 64-bit golden ratio spreads neighbours.
    let number = u64::from(key.relation_fork.locator.relation) << 32 | u64::from(key.block);
    (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{Fork, RelationFork, RelationLocator};

    fn key(block: u32) -> BlockKey {
        let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16384 };
        BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block }
    }

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE_SIZE]
    }

    #[test]
    #[should_panic(expected = "invariant page-is-whole is broken: 3 bytes of")]
    fn a_piece_of_a_page_is_noticed() {
        PrefetchCache::new(4 * PAGE_SIZE).insert(key(1), vec![1; 3]);
    }

    #[test]
    #[should_panic(expected = "invariant prefetch-within-limit is broken: 2 pages of 1")]
    fn pages_that_the_order_forgot_are_noticed() {
        let mut cache = PrefetchCache::new(PAGE_SIZE);
        cache.insert(key(1), page(1));
        cache.order.clear();
        cache.pages.insert(key(2), (99, page(2)));
        cache.places[place(&key(2))] += 1;
        cache.insert(key(3), page(3));
    }

    #[test]
    fn a_page_is_given_out_once() {
        let mut cache = PrefetchCache::new(4 * PAGE_SIZE);
        cache.insert(key(1), page(1));
        assert_eq!(cache.take(&key(1)), Some(page(1)));
        assert_eq!(cache.take(&key(1)), None);
    }

    #[test]
    fn the_oldest_page_makes_room_even_among_pages_that_came_twice() {
        let mut cache = PrefetchCache::new(2 * PAGE_SIZE);
        for round in 0..50 {
            cache.insert(key(1), page(round));
            cache.insert(key(2), page(round));
            cache.insert(key(3), page(round));
            assert!(cache.len() <= 2 && cache.order.len() <= 4);
            assert_eq!(cache.take(&key(3)), Some(page(round)));
        }
    }

    #[test]
    fn what_changes_a_page_drops_it() {
        let mut cache = PrefetchCache::new(8 * PAGE_SIZE);
        cache.insert(key(1), page(1));
        cache.insert(key(2), page(2));
        cache.invalidate(&[Effect::Page(PageKey::Block(key(1)))]);
        assert!(!cache.contains(&key(1)) && cache.contains(&key(2)));
        cache.invalidate(&[Effect::TruncateRelation { relation_fork: key(9).relation_fork, blocks: 0 }]);
        assert!(cache.is_empty());
    }

    #[test]
    fn the_last_change_of_a_block_is_never_understated() {
        let mut changes = RecentChanges::new();
        assert_eq!(changes.last_change(&key(1)), Lsn::ZERO);
        for block in 0..20_000 {
            changes.note(&[Effect::Page(PageKey::Block(key(block)))], Lsn(u64::from(block) + 1));
        }
        for block in 0..20_000 {
            assert!(changes.last_change(&key(block)) >= Lsn(u64::from(block) + 1));
        }
        changes.note(
            &[Effect::TruncateRelation { relation_fork: key(9).relation_fork, blocks: 0 }],
            Lsn(30_000),
        );
        assert_eq!(changes.last_change(&key(77_777)), Lsn(30_000));
    }
}
