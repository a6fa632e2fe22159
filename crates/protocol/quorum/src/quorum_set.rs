//! Quorum arithmetic: which sets of members suffice for what.
//!
//! A group's membership is a list of six-member sets. Normally there is one. While a member is being
//! replaced there is one set with the old and one with the new member: a write needs four of **each**, so
//! that it stays durable whichever set the change ends with, and a recovery read needs three of **any**
//! (Verbitski et al., "Amazon Aurora: On Avoiding Distributed Consensus for I/Os, Commits, and Membership
//! Changes", SIGMOD 2018, section 4).

use std::collections::BTreeSet;

use borealis_types::{Lsn, NodeId, READ_QUORUM, SEGMENTS_PER_GROUP, VolumeEpoch, WRITE_QUORUM};
use serde::{Deserialize, Serialize};

// Any write quorum meets any other, and any read quorum; two zones of three hold a write quorum.
const _: () = assert!(2 * WRITE_QUORUM > SEGMENTS_PER_GROUP);
const _: () = assert!(WRITE_QUORUM + READ_QUORUM > SEGMENTS_PER_GROUP);
const _: () = assert!(WRITE_QUORUM <= SEGMENTS_PER_GROUP / 3 * 2);

/// The nodes that hold one group: one or more sets of six.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<[NodeId; SEGMENTS_PER_GROUP]>", into = "Vec<[NodeId; SEGMENTS_PER_GROUP]>")]
pub struct QuorumSets {
    sets: Vec<[NodeId; SEGMENTS_PER_GROUP]>,
}

/// Members that do not make quorum sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuorumSetsError {
    /// There is no set at all.
    #[error("a protection group needs at least one set of members")]
    NoSet,
    /// A node is in one set twice.
    #[error("node {0} is in one set of members twice")]
    Repeated(NodeId),
}

impl QuorumSets {
    /// Sets of members.
    ///
    /// # Errors
    /// If there is none, or a node is in one set twice.
    pub fn new(sets: Vec<[NodeId; SEGMENTS_PER_GROUP]>) -> Result<QuorumSets, QuorumSetsError> {
        if sets.is_empty() {
            return Err(QuorumSetsError::NoSet);
        }
        for set in &sets {
            for (position, node) in set.iter().enumerate() {
                if set[..position].contains(node) {
                    return Err(QuorumSetsError::Repeated(*node));
                }
            }
        }
        Ok(QuorumSets { sets })
    }

    /// The sets: one, or two or more while members are being replaced.
    #[must_use]
    pub fn sets(&self) -> &[[NodeId; SEGMENTS_PER_GROUP]] {
        &self.sets
    }

    /// Every node in any set, in number order.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        self.sets.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter()
    }

    /// Whether a node is in any set.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.sets.iter().any(|set| set.contains(&node))
    }

    /// Whether the nodes for which `has` holds suffice for a write: four of every set.
    pub fn is_write_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        self.sets.iter().all(|set| set.iter().filter(|&&node| has(node)).count() >= WRITE_QUORUM)
    }

    /// Whether the nodes for which `has` holds suffice to see every write: three of any set.
    pub fn is_read_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        self.sets.iter().any(|set| set.iter().filter(|&&node| has(node)).count() >= READ_QUORUM)
    }

    /// The highest position that a write quorum has reached, given each node's own.
    pub fn write_quorum_reached(&self, position_of: impl Fn(NodeId) -> Lsn) -> Lsn {
        self.sets
            .iter()
            .map(|set| {
                let mut positions = set.map(&position_of);
                positions.sort_unstable();
                positions[SEGMENTS_PER_GROUP - WRITE_QUORUM]
            })
            .min()
            .expect("there is at least one set")
    }
}

/// The newest of the epochs that different members of one group are promised to instead of an older writer's, if they are
/// so many that no write quorum is left to that writer: it was replaced. Fewer may have promised a writer that never began.
#[must_use]
pub fn replaced_by(promised: impl IntoIterator<Item = VolumeEpoch>) -> Option<VolumeEpoch> {
    let (count, newest) =
        promised.into_iter().fold((0, None), |(count, newest), epoch| (count + 1, newest.max(Some(epoch))));
    newest.filter(|_| count > SEGMENTS_PER_GROUP - WRITE_QUORUM)
}

impl TryFrom<Vec<[NodeId; SEGMENTS_PER_GROUP]>> for QuorumSets {
    type Error = QuorumSetsError;

    fn try_from(sets: Vec<[NodeId; SEGMENTS_PER_GROUP]>) -> Result<Self, QuorumSetsError> {
        QuorumSets::new(sets)
    }
}

impl From<QuorumSets> for Vec<[NodeId; SEGMENTS_PER_GROUP]> {
    fn from(sets: QuorumSets) -> Self {
        sets.sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single() -> QuorumSets {
        QuorumSets::new(vec![[0, 1, 2, 3, 4, 5].map(NodeId)]).expect("six different nodes")
    }

    fn changing() -> QuorumSets {
        let sets = vec![[0, 1, 2, 3, 4, 5].map(NodeId), [0, 1, 2, 3, 4, 6].map(NodeId)];
        QuorumSets::new(sets).expect("six different nodes in each")
    }

    fn is_write(sets: &QuorumSets, mask: u32) -> bool {
        sets.is_write_quorum(|node| mask & 1 << node.0 != 0)
    }

    fn is_read(sets: &QuorumSets, mask: u32) -> bool {
        sets.is_read_quorum(|node| mask & 1 << node.0 != 0)
    }

    #[test]
    fn any_write_quorum_meets_any_read_quorum_and_any_other_write_quorum() {
        for sets in [single(), changing()] {
            for a in 0..1u32 << 7 {
                for b in 0..1u32 << 7 {
                    if is_write(&sets, a) && (is_write(&sets, b) || is_read(&sets, b)) {
                        assert_ne!(a & b, 0, "{a:07b} and {b:07b} do not meet");
                    }
                    if is_write(&sets, a) && is_write(&sets, b) {
                        assert!((a & b).count_ones() >= 2, "{a:07b} and {b:07b} meet in one member");
                    }
                }
            }
        }
    }

    #[test]
    fn a_write_during_a_change_is_a_write_of_the_old_and_of_the_new_membership() {
        let after = QuorumSets::new(vec![[0, 1, 2, 3, 4, 6].map(NodeId)]).expect("six different nodes");
        for mask in 0..1u32 << 7 {
            let both = is_write(&single(), mask) && is_write(&after, mask);
            assert_eq!(is_write(&changing(), mask), both);
        }
    }

    #[test]
    fn one_zone_lost_leaves_writes_and_one_zone_plus_one_leaves_reads() {
        // Two members per zone: nodes 0 and 1, 2 and 3, 4 and 5.
        for zone in 0..3 {
            let alive = 0b11_1111 & !(0b11 << (2 * zone));
            assert!(is_write(&single(), alive));
            for extra in 0..6 {
                let fewer = alive & !(1 << extra);
                assert!(is_read(&single(), fewer), "losing zone {zone} and node {extra}");
                assert_eq!(is_write(&single(), fewer), fewer == alive);
            }
        }
    }

    #[test]
    fn the_position_a_write_quorum_reached_is_the_highest_one_that_is_a_write_quorum() {
        for sets in [single(), changing()] {
            for code in 0..3u32.pow(7) {
                let position = |node: NodeId| Lsn(u64::from(code / 3u32.pow(node.0.into()) % 3));
                let highest = (0..3)
                    .rev()
                    .map(Lsn)
                    .find(|&lsn| sets.is_write_quorum(|node| position(node) >= lsn))
                    .expect("every node reached zero");
                assert_eq!(sets.write_quorum_reached(position), highest);
            }
        }
    }

    #[test]
    fn a_writer_is_replaced_once_no_write_quorum_is_left_to_it() {
        for lost in 0..=SEGMENTS_PER_GROUP {
            let promised = (0..lost).map(|member| VolumeEpoch(8 + member as u64 % 2));
            let left = is_write(&single(), (1 << (SEGMENTS_PER_GROUP - lost)) - 1);
            assert_eq!(replaced_by(promised), (!left).then_some(VolumeEpoch(9)), "{lost} members lost");
        }
    }

    #[test]
    fn members_must_be_distinct_within_a_set() {
        assert_eq!(QuorumSets::new(vec![]), Err(QuorumSetsError::NoSet));
        assert_eq!(
            QuorumSets::new(vec![[0, 1, 2, 3, 4, 0].map(NodeId)]),
            Err(QuorumSetsError::Repeated(NodeId(0)))
        );
    }
}
