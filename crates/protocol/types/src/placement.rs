//! Which protection group owns what.
//!
//! Placement is a pure function of the key and the number of groups (see
//! `docs/decisions/0001-computed-placement.md`): nothing has to be looked up before a write, a read or a
//! recovery. The hash leaves out the tablespace and the database on purpose: a block and its copy made by
//! `CREATE DATABASE … STRATEGY FILE_COPY` have the same relation and block number, so they fall into one
//! group and the copy is group-local.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{GroupId, PageKey, invariant};

/// The group that also owns what is not a relation block.
pub const META_GROUP: GroupId = GroupId(0);

/// The most groups a volume can have, so that a [`GroupSet`] is one word.
pub const MAX_GROUPS: u16 = 64;

/// Contiguous blocks of a relation fork that are placed together (1 MiB).
pub const BLOCKS_PER_EXTENT: u32 = 128;

/// The rule that assigns pages to groups, fixed when the volume is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Placement {
    group_count: u16,
}

impl Placement {
    /// A placement over `group_count` groups; `None` unless it is between 1 and [`MAX_GROUPS`].
    #[must_use]
    pub fn new(group_count: u16) -> Option<Placement> {
        (1..=MAX_GROUPS).contains(&group_count).then_some(Placement { group_count })
    }

    /// How many groups there are.
    #[must_use]
    pub fn group_count(self) -> u16 {
        self.group_count
    }

    /// Every group of the volume, in number order.
    pub fn groups(self) -> impl Iterator<Item = GroupId> {
        (0..self.group_count).map(GroupId)
    }

    /// Every group, as a set.
    #[must_use]
    pub fn all(self) -> GroupSet {
        self.groups().fold(GroupSet::EMPTY, GroupSet::with)
    }

    /// The group that owns a page.
    #[must_use]
    pub fn group_of(self, key: &PageKey) -> GroupId {
        let PageKey::Block(block) = key else { return META_GROUP };
        let fork = block.relation_fork;
        let extent = block.block / BLOCKS_PER_EXTENT;
        // The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit,
        // so neighbouring extents and neighbouring relations spread evenly.
        let mut hash = u64::from(fork.locator.relation) << 32 | u64::from(extent);
        hash ^= (fork.fork as u64) << 62;
        hash = hash.wrapping_add(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        hash ^= hash >> 31;
        // Lemire's range reduction; the value is below `group_count`, so it fits.
        let group = ((u128::from(hash) * u128::from(self.group_count)) >> 64) as u16;
        invariant!("page-has-a-group", group < self.group_count, "group {group} of {}", self.group_count);
        GroupId(group)
    }
}

impl TryFrom<u16> for Placement {
    type Error = String;

    fn try_from(group_count: u16) -> Result<Self, String> {
        Placement::new(group_count)
            .ok_or_else(|| format!("{group_count} protection groups; a volume has 1 to {MAX_GROUPS}"))
    }
}

impl From<Placement> for u16 {
    fn from(placement: Placement) -> u16 {
        placement.group_count
    }
}

/// A set of groups in one word, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct GroupSet(u64);

impl GroupSet {
    /// The set without a group.
    pub const EMPTY: GroupSet = GroupSet(0);

    /// The set with `group` added.
    ///
    /// # Panics
    /// If the group's number is not below [`MAX_GROUPS`].
    #[must_use]
    pub fn with(self, group: GroupId) -> GroupSet {
        assert!(group.0 < MAX_GROUPS, "group {group} is beyond the {MAX_GROUPS} a volume can have");
        GroupSet(self.0 | 1 << group.0)
    }

    /// The set without `group`.
    #[must_use]
    pub fn without(self, group: GroupId) -> GroupSet {
        if self.contains(group) { GroupSet(self.0 & !(1 << group.0)) } else { self }
    }

    /// Every group that is in either set.
    #[must_use]
    pub fn union(self, other: GroupSet) -> GroupSet {
        GroupSet(self.0 | other.0)
    }

    /// Whether the group is in the set.
    #[must_use]
    pub fn contains(self, group: GroupId) -> bool {
        group.0 < MAX_GROUPS && self.0 & 1 << group.0 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many groups are in it.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The groups, in number order.
    pub fn iter(self) -> impl Iterator<Item = GroupId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let group = rest.trailing_zeros();
                rest &= rest - 1;
                GroupId(group as u16)
            })
        })
    }
}

impl fmt::Debug for GroupSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|g| g.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockKey, Fork, RelationFork, RelationLocator, SlruKind};

    fn block(database: u32, relation: u32, block: u32) -> PageKey {
        let locator = RelationLocator { tablespace: 1663, database, relation };
        PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block })
    }

    #[test]
    #[should_panic(expected = "invariant page-has-a-group is broken")]
    fn a_page_of_no_group_is_noticed() {
        let _ = Placement { group_count: 0 }.group_of(&block(5, 16384, 0));
    }

    #[test]
    fn extents_spread_over_all_groups() {
        let placement = Placement::new(4).expect("4 is a valid group count");
        let mut extents = [0u32; 4];
        for extent in 0..4000 {
            extents[usize::from(placement.group_of(&block(5, 16384, extent * BLOCKS_PER_EXTENT)).0)] += 1;
        }
        assert!(extents.iter().all(|&n| (850..1150).contains(&n)), "uneven: {extents:?}");
    }

    #[test]
    fn an_extent_stays_together_and_a_database_copy_falls_into_the_same_group() {
        let placement = Placement::new(7).expect("7 is a valid group count");
        for number in 0..BLOCKS_PER_EXTENT {
            let group = placement.group_of(&block(5, 16384, number));
            assert_eq!(group, placement.group_of(&block(5, 16384, 0)));
            assert_eq!(group, placement.group_of(&block(99, 16384, number)));
        }
    }

    #[test]
    fn transaction_status_belongs_to_the_meta_group() {
        let placement = Placement::new(5).expect("5 is a valid group count");
        for kind in SlruKind::ALL {
            assert_eq!(placement.group_of(&PageKey::Slru { kind, page: 77 }), META_GROUP);
        }
    }

    #[test]
    fn a_group_set_iterates_what_was_put_in() {
        let set = GroupSet::EMPTY.with(GroupId(63)).with(GroupId(0)).with(GroupId(5));
        assert_eq!(set.iter().map(|g| g.0).collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(set.len(), 3);
        assert!(set.contains(GroupId(5)) && !set.contains(GroupId(6)));
        assert_eq!(
            set.without(GroupId(5)).without(GroupId(6)),
            GroupSet::EMPTY.with(GroupId(63)).with(GroupId(0))
        );
    }
}
