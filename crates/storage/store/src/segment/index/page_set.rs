//! Which pages have unapplied records, in order: for listing them a piece at a time.

use std::collections::BTreeMap;
use std::ops::Bound;

use borealis_types::PageKey;

use crate::pages::materialized_state::{extent_of, page_in_extent};

/// A set of pages, one bit each.
#[derive(Debug, Default)]
pub(super) struct PageSet {
    /// By the first page of an extent, a bit for each of its pages. None is zero.
    extents: BTreeMap<PageKey, u128>,
}

impl PageSet {
    pub(super) fn insert(&mut self, key: &PageKey) {
        let (first, place) = extent_of(key);
        *self.extents.entry(first).or_default() |= 1 << place;
    }

    pub(super) fn remove(&mut self, key: &PageKey) {
        let (first, place) = extent_of(key);
        if let Some(bits) = self.extents.get_mut(&first) {
            *bits &= !(1 << place);
            if *bits == 0 {
                self.extents.remove(&first);
            }
        }
    }

    /// The pages from `from` on, in order.
    pub(super) fn range(&self, from: Bound<&PageKey>) -> impl Iterator<Item = PageKey> {
        let is_in = move |key: &PageKey| match from {
            Bound::Included(from) => key >= from,
            Bound::Excluded(from) => key > from,
            Bound::Unbounded => true,
        };
        let first = match from {
            Bound::Included(key) | Bound::Excluded(key) => Bound::Included(extent_of(key).0),
            Bound::Unbounded => Bound::Unbounded,
        };
        self.extents
            .range((first, Bound::Unbounded))
            .flat_map(|(first, bits)| {
                (0..u128::BITS as usize)
                    .filter(move |place| bits >> place & 1 == 1)
                    .map(move |place| page_in_extent(first, place))
            })
            .filter(is_in)
    }

    pub(super) fn extents(&self) -> usize {
        self.extents.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use borealis_types::{BlockKey, Fork, RelationFork, RelationLocator, SlruKind};
    use proptest::prelude::*;

    use super::*;

    fn page() -> impl Strategy<Value = PageKey> {
        let block = (0u32..3, 0u32..400).prop_map(|(relation, block)| {
            let locator = RelationLocator { tablespace: 1663, database: 5, relation };
            PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block })
        });
        let status = (0u32..300).prop_map(|page| PageKey::Slru { kind: SlruKind::Transactions, page });
        prop_oneof![block, status]
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_set_does(
            steps in prop::collection::vec((any::<bool>(), page()), 0..200),
            from in page(),
        ) {
            let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
            for (is_added, key) in steps {
                if is_added {
                    set.insert(&key);
                    model.insert(key);
                } else {
                    set.remove(&key);
                    model.remove(&key);
                }
            }
            prop_assert!(set.range(Bound::Unbounded).eq(model.iter().copied()));
            for from in [Bound::Included(&from), Bound::Excluded(&from)] {
                prop_assert!(set.range(from).eq(model.range((from, Bound::Unbounded)).copied()));
            }
        }
    }
}
