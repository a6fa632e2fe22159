//! A segment's materialized state: what all records up to one LSN made of pages, relations and small values.
//!
//! A [`MaterializedState`] never changes. A round makes the next one, writes it to a checkpoint, and then
//! replaces the old one. A reader that holds the old one sees a consistent state until its page slots are
//! overwritten, which only the second round after it does.

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_types::{BlockKey, DatabaseKey, Lsn, MetaKey, PageKey, RelationFork, RelationLocator};
use serde::{Deserialize, Serialize};

use crate::pages::held::HeldPage;
use crate::pages::region::{PAGES_PER_EXTENT, Region, Regions};

/// The number of a page's version: zero if the page does not exist, else from 1 to [`GENERATION_MAX`] and
/// then from 1 again. Odd generations are in the second slot, even ones in the first.
pub(crate) type Generation = u8;

/// Where a page version is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotAddress {
    pub region: Region,
    pub place: usize,
    pub generation: Generation,
}

/// Even, so that the two slots keep alternating over the wrap.
pub(crate) const GENERATION_MAX: Generation = 254;

/// The generation a page gets when it is written again.
pub(crate) fn next_generation(generation: Generation) -> Generation {
    if generation >= GENERATION_MAX { 1 } else { generation + 1 }
}

/// 128 neighbouring pages: which region their slots are in, and which generation each page has. The region need
/// only have room up to the last page that exists.
///
/// The generation costs one byte of memory for each page (128 bytes for each MiB of data). With it a write
/// that the disk lost is detected: the slot then holds another generation than expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub region: Region,
    pub generations: [Generation; PAGES_PER_EXTENT as usize],
}

#[derive(Serialize, Deserialize)]
struct StoredExtent {
    region: Region,
    /// The generation of each page in the extent, without the zeros at the end; zero is a page without an image.
    generations: Vec<Generation>,
}

impl Serialize for Extent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let used =
            self.generations.iter().rposition(|&generation| generation != 0).map_or(0, |last| last + 1);
        StoredExtent { region: self.region, generations: self.generations[..used].to_vec() }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Extent, D::Error> {
        let stored = StoredExtent::deserialize(deserializer)?;
        let mut generations = [0; PAGES_PER_EXTENT as usize];
        if stored.generations.len() > stored.region.class.pages() as usize {
            return Err(serde::de::Error::custom("an extent has more pages than its region"));
        }
        generations[..stored.generations.len()].copy_from_slice(&stored.generations);
        Ok(Extent { region: stored.region, generations })
    }
}

/// What is in page images: the state of a segment as of its materialized LSN.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct MaterializedState {
    /// Every record of the group that ends here or before is in this state.
    pub lsn: Lsn,
    /// Keyed by the first page of the extent.
    #[serde(with = "extent_map")]
    pub extents: BTreeMap<PageKey, Arc<Extent>>,
    /// Which regions no extent is in.
    pub regions: Regions,
    /// Every fork that exists, with its size in blocks as this group knows it.
    pub relations: BTreeMap<RelationFork, u32>,
    pub meta: BTreeMap<MetaKey, Vec<u8>>,
    /// Pages whose image is of an earlier state than this one, and why.
    pub held: BTreeMap<PageKey, HeldPage>,
}

mod extent_map {
    use super::{Arc, BTreeMap, Deserialize, Extent, PageKey};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<PageKey, Arc<Extent>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(key, extent)| (key, &**extent)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<PageKey, Arc<Extent>>, D::Error> {
        let map = BTreeMap::<PageKey, Extent>::deserialize(deserializer)?;
        Ok(map.into_iter().map(|(key, extent)| (key, Arc::new(extent))).collect())
    }
}

/// The first page of the extent a page is in, and the page's place in it.
pub(crate) fn extent_of(key: &PageKey) -> (PageKey, usize) {
    let split = |number: u32| (number - number % PAGES_PER_EXTENT, (number % PAGES_PER_EXTENT) as usize);
    match *key {
        PageKey::Block(BlockKey { relation_fork, block }) => {
            let (first, place) = split(block);
            (PageKey::Block(BlockKey { relation_fork, block: first }), place)
        }
        PageKey::Slru { kind, page } => {
            let (first, place) = split(page);
            (PageKey::Slru { kind, page: first }, place)
        }
    }
}

/// The page at a place in the extent that begins with `first`.
pub(crate) fn page_in_extent(first: &PageKey, place: usize) -> PageKey {
    match *first {
        PageKey::Block(BlockKey { relation_fork, block }) => {
            PageKey::Block(BlockKey { relation_fork, block: block + place as u32 })
        }
        PageKey::Slru { kind, page } => PageKey::Slru { kind, page: page + place as u32 },
    }
}

/// The database a relation is in.
pub(crate) fn database_of(locator: RelationLocator) -> DatabaseKey {
    DatabaseKey { tablespace: locator.tablespace, database: locator.database }
}

/// The relation with the same number in another database.
pub(crate) fn in_database(fork: RelationFork, database: DatabaseKey) -> RelationFork {
    let locator = RelationLocator {
        tablespace: database.tablespace,
        database: database.database,
        relation: fork.locator.relation,
    };
    RelationFork { locator, fork: fork.fork }
}

/// The first and the last fork a database can have.
pub(crate) fn database_range(database: DatabaseKey) -> std::ops::RangeInclusive<RelationFork> {
    let fork = |relation, fork| RelationFork {
        locator: RelationLocator { tablespace: database.tablespace, database: database.database, relation },
        fork,
    };
    fork(0, borealis_types::Fork::Main)..=fork(u32::MAX, borealis_types::Fork::Init)
}

impl MaterializedState {
    /// Where the newest version of a page is.
    pub(crate) fn locate(&self, key: &PageKey) -> Option<SlotAddress> {
        let (first, place) = extent_of(key);
        let extent = self.extents.get(&first)?;
        let generation = extent.generations[place];
        (generation != 0).then_some(SlotAddress { region: extent.region, place, generation })
    }

    /// Every page that exists in an extent.
    pub(crate) fn pages_of<'a>(first: &'a PageKey, extent: &'a Extent) -> impl Iterator<Item = PageKey> + 'a {
        let present = extent.generations.iter().enumerate().filter(|(_, generation)| **generation != 0);
        present.map(|(place, _)| page_in_extent(first, place))
    }

    /// The extents of one fork from block `from` on.
    pub(crate) fn fork_extents(
        &self,
        relation_fork: RelationFork,
        from: u32,
    ) -> impl Iterator<Item = (&PageKey, &Arc<Extent>)> {
        let key = |block| PageKey::Block(BlockKey { relation_fork, block });
        self.extents.range(key(from - from % PAGES_PER_EXTENT)..=key(u32::MAX))
    }

    /// The extents of all relations of a database.
    pub(crate) fn database_extents(
        &self,
        database: DatabaseKey,
    ) -> impl Iterator<Item = (&PageKey, &Arc<Extent>)> {
        let range = database_range(database);
        let key = |relation_fork, block| PageKey::Block(BlockKey { relation_fork, block });
        self.extents.range(key(*range.start(), 0)..=key(*range.end(), u32::MAX))
    }

    /// How many pages exist.
    pub(crate) fn page_count(&self) -> u64 {
        let of = |extent: &Extent| extent.generations.iter().filter(|generation| **generation != 0).count();
        self.extents.values().map(|extent| of(extent) as u64).sum()
    }

    /// About how much memory it takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let meta: usize = self.meta.values().map(|value| value.len() + 96).sum();
        (self.extents.len() * 208 + self.relations.len() * 32 + meta) as u64 + self.held_bytes()
    }

    /// About how much of a checkpoint the pages take that are behind.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held.values().map(HeldPage::size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_alternate_between_the_slots_also_over_the_wrap() {
        let mut generation = 0;
        for _ in 0..600 {
            let next = next_generation(generation);
            assert!(next != 0 && (generation == 0 || next % 2 != generation % 2));
            generation = next;
        }
    }
}
