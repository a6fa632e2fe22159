//! Pages of a segment that cannot be made here, and those that peers brought instead.
//!
//! One such page never keeps others from being read, materialized or served. What is known about it lives in memory
//! and is found again after a restart; that its image is behind is in the materialized state
//! ([`crate::pages::held`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_types::{Lsn, PageBytes, PageKey};

/// What keeps a page from being made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// Bytes on disk are not what was written.
    Damage,
    /// A record's redo failed.
    Redo,
}

/// A page that cannot be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Trouble {
    pub cause: Cause,
    /// It cannot be made as of this LSN and later.
    pub since: Lsn,
    pub reason: String,
}

/// A page that peers brought: complete to an LSN that no recovery can truncate.
#[derive(Clone, Debug)]
pub(crate) struct HealedPage {
    pub lsn: Lsn,
    /// `None` if the page does not exist then.
    pub page: Option<Arc<PageBytes>>,
}

/// What is wrong with pages of one segment.
#[derive(Default, Debug)]
pub(crate) struct Troubles {
    pub pages: BTreeMap<PageKey, Trouble>,
    pub healed: BTreeMap<PageKey, HealedPage>,
}

impl Troubles {
    /// Notes that a page cannot be made; returns whether that is news.
    pub(crate) fn note(&mut self, key: &PageKey, trouble: Trouble) -> bool {
        match self.pages.get_mut(key) {
            Some(known) => {
                known.since = known.since.min(trouble.since);
                false
            }
            None => {
                self.pages.insert(*key, trouble);
                true
            }
        }
    }

    /// The failure that a page has had before at or below `lsn`, if it is of a kind that trying again does not mend.
    pub(crate) fn known_failure(&self, key: &PageKey, lsn: Lsn) -> Option<&Trouble> {
        self.pages.get(key).filter(|trouble| trouble.cause == Cause::Redo && trouble.since <= lsn)
    }

    /// Drops what was found in records that a recovery truncated.
    pub(crate) fn drop_above(&mut self, lsn: Lsn) {
        self.pages.retain(|_, trouble| trouble.since <= lsn);
        self.healed.retain(|_, healed| healed.lsn <= lsn);
    }

    /// Forgets the pages that a round through `target` wrote; returns how many were in trouble.
    pub(crate) fn end_mended(&mut self, mended: &[PageKey], target: Lsn) -> u64 {
        let before = self.pages.len();
        for key in mended {
            // What was found meanwhile in a later record is not mended by this.
            if self.pages.get(key).is_some_and(|trouble| trouble.since <= target) {
                self.pages.remove(key);
            }
            if self.healed.get(key).is_some_and(|healed| healed.lsn <= target) {
                self.healed.remove(key);
            }
        }
        // What came from peers while the round was under way, and is behind it now, lacks the records in between.
        self.healed.retain(|_, healed| healed.lsn >= target);
        (before - self.pages.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::{BlockKey, Fork, RelationFork, RelationLocator};

    use super::*;

    fn page(block: u32) -> PageKey {
        let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
        PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block })
    }

    #[test]
    fn a_round_ends_only_the_troubles_that_it_reached() {
        let mut troubles = Troubles::default();
        for (block, since, healed) in
            [(0, 100, Some(150)), (1, 300, Some(300)), (2, 200, None), (3, 100, None)]
        {
            let trouble = Trouble { cause: Cause::Damage, since: Lsn(since), reason: String::new() };
            assert!(troubles.note(&page(block), trouble));
            if let Some(lsn) = healed {
                troubles.healed.insert(page(block), HealedPage { lsn: Lsn(lsn), page: None });
            }
        }
        // Page 1 got into trouble in a later record, and peers brought it, while the round was under way.
        assert_eq!(troubles.end_mended(&[page(0), page(1), page(2)], Lsn(200)), 2);
        assert_eq!(troubles.pages.keys().copied().collect::<Vec<_>>(), [page(1), page(3)]);
        assert_eq!(troubles.healed.keys().copied().collect::<Vec<_>>(), [page(1)]);
    }
}
