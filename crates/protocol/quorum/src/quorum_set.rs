//! Quorum arithmetic: which sets of members suffice for what.
//!
//! A group's membership is a list of six-member sets. Normally there is one. While a member is being
//! replaced there is one set with the old and one with the new member: a write needs four of **each**, so
//! that it stays durable whichever set the change ends with, and a recovery read needs three of **any**
//! (Verbitski et al., "Amazon Aurora: On Avoiding Distributed Consensus for I/Os, Commits, and Membership
//! Changes", SIGMOD 2018, section 4).
//!
//! When more members are lost for good than a write quorum can spare, the volume is opened through those that are left
//! ([`QuorumSets::survivors`]): all of them must answer, and as few as a read quorum suffice.

use std::collections::BTreeSet;

use borealis_types::membership::GroupMembership;
use borealis_types::{Lsn, NodeId, READ_QUORUM, SEGMENTS_PER_GROUP, VolumeEpoch, WRITE_QUORUM};

// Any write quorum meets any other, and any read quorum; two zones of three hold a write quorum.
const _: () = assert!(2 * WRITE_QUORUM > SEGMENTS_PER_GROUP);
const _: () = assert!(WRITE_QUORUM + READ_QUORUM > SEGMENTS_PER_GROUP);
const _: () = assert!(WRITE_QUORUM <= SEGMENTS_PER_GROUP / 3 * 2);

/// The nodes that hold one group: one or more sets of six.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuorumSets {
    sets: Vec<[NodeId; SEGMENTS_PER_GROUP]>,
    /// Members that are lost for good, while the others stand in for them; empty but in a rescue.
    lost: BTreeSet<NodeId>,
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
    /// So few members are left that an acknowledged write may be on none of them.
    #[error(
        "{left} of {SEGMENTS_PER_GROUP} members are left, and {READ_QUORUM} are needed to see every write"
    )]
    TooFewLeft {
        /// How many of one set are left.
        left: usize,
    },
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
        Ok(QuorumSets { sets, lost: BTreeSet::new() })
    }

    /// The sets of a membership.
    #[must_use]
    pub fn of(membership: &GroupMembership) -> QuorumSets {
        QuorumSets { sets: membership.sets().to_vec(), lost: BTreeSet::new() }
    }

    /// The same sets when the members in `lost` will never answer again. **All** others are needed then, for reading and
    /// for writing: they are the only ones that can show what was acknowledged, and once all of them refuse an older
    /// writer, it finds no write quorum even if the lost ones were only out of sight.
    ///
    /// # Errors
    /// If fewer than a read quorum of any set are left.
    pub fn survivors(&self, lost: &BTreeSet<NodeId>) -> Result<QuorumSets, QuorumSetsError> {
        for set in &self.sets {
            let left = set.iter().filter(|node| !lost.contains(node)).count();
            if left < READ_QUORUM {
                return Err(QuorumSetsError::TooFewLeft { left });
            }
        }
        Ok(QuorumSets { sets: self.sets.clone(), lost: lost.clone() })
    }

    /// The sets: one, or two or more while members are being replaced.
    #[must_use]
    pub fn sets(&self) -> &[[NodeId; SEGMENTS_PER_GROUP]] {
        &self.sets
    }

    /// Every node in any set that is not lost, in number order.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        let members: BTreeSet<NodeId> = self.sets.iter().flat_map(|set| self.present(set)).collect();
        members.into_iter()
    }

    fn present<'a>(&'a self, set: &'a [NodeId]) -> impl Iterator<Item = NodeId> + 'a {
        set.iter().copied().filter(|node| !self.lost.contains(node))
    }

    /// How many of the members that are present suffice: a number for six, or all that are left of them.
    fn count_needed(&self, set: &[NodeId], of_six: usize) -> usize {
        if self.lost.is_empty() { of_six } else { self.present(set).count() }
    }

    /// Whether a member that is joining need be no copy of what is kept: all that are left must answer, and a newcomer joins
    /// only after the recovery that would wait for it. The old members, of which three at least are left, have everything.
    #[must_use]
    pub fn excuses_newcomer(&self, node: NodeId) -> bool {
        !self.lost.is_empty() && !self.sets[0].contains(&node)
    }

    /// How many members must say something before it is believed of a write quorum: of any four that answer, two were
    /// among any four. Of five or four survivors of a loss two as well; of three perhaps one, and whoever opens a volume
    /// through them has to believe it.
    #[must_use]
    pub fn witnesses_needed(&self) -> usize {
        let lost = self.sets.iter().map(|set| set.len() - self.present(set).count()).max().unwrap_or(0);
        WRITE_QUORUM.saturating_sub(lost).clamp(1, WRITE_QUORUM * 2 - SEGMENTS_PER_GROUP)
    }

    /// How many of the set's members that are present must answer for a write.
    #[must_use]
    pub fn write_quorum_size(&self) -> usize {
        self.sets.iter().map(|set| self.count_needed(set, WRITE_QUORUM)).max().unwrap_or(WRITE_QUORUM)
    }

    /// Whether a node is in any set.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        !self.lost.contains(&node) && self.sets.iter().any(|set| set.contains(&node))
    }

    /// Whether the nodes for which `has` holds suffice for a write: four of every set.
    pub fn is_write_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let suffices = |set: &[NodeId]| {
            self.present(set).filter(|&node| has(node)).count() >= self.count_needed(set, WRITE_QUORUM)
        };
        self.sets.iter().all(|set| suffices(set))
    }

    /// Whether the nodes for which `has` holds suffice to see every write: three of any set.
    pub fn is_read_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let suffices = |set: &[NodeId]| {
            self.present(set).filter(|&node| has(node)).count() >= self.count_needed(set, READ_QUORUM)
        };
        self.sets.iter().any(|set| suffices(set))
    }

    /// Whether the nodes for which `has` holds leave no write quorum of any membership that follows to the others: three of
    /// **every** set, for the change may end with any of them.
    pub fn is_read_quorum_of_each(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let suffices = |set: &[NodeId]| {
            self.present(set).filter(|&node| has(node)).count() >= self.count_needed(set, READ_QUORUM)
        };
        self.sets.iter().all(|set| suffices(set))
    }

    /// The highest position that a write quorum has reached, given each node's own.
    pub fn write_quorum_reached(&self, position_of: impl Fn(NodeId) -> Lsn) -> Lsn {
        self.sets
            .iter()
            .map(|set| {
                let mut positions: Vec<Lsn> = self.present(set).map(&position_of).collect();
                positions.sort_unstable();
                positions[positions.len() - self.count_needed(set, WRITE_QUORUM)]
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
    fn survivors_are_all_needed_and_meet_every_write_quorum() {
        for lost in 0..1u32 << 6 {
            let absent: BTreeSet<NodeId> = (0..6).filter(|node| lost & 1 << node != 0).map(NodeId).collect();
            let left = 6 - absent.len();
            let Ok(sets) = single().survivors(&absent) else {
                assert!(left < READ_QUORUM, "{left} members are left");
                continue;
            };
            assert!(left >= READ_QUORUM);
            for mask in 0..1u32 << 6 {
                if lost == 0 {
                    assert_eq!(
                        (is_write(&sets, mask), is_read(&sets, mask)),
                        (is_write(&single(), mask), is_read(&single(), mask))
                    );
                } else {
                    let all = mask & !lost == !lost & 0b11_1111;
                    assert_eq!(
                        (is_write(&sets, mask), is_read(&sets, mask)),
                        (all, all),
                        "{mask:06b} of {lost:06b}"
                    );
                }
                // Whoever wrote with a write quorum of all six is seen by enough, and finds none once the survivors refuse it.
                if is_write(&single(), mask) {
                    let seen_by = (mask & !lost).count_ones() as usize;
                    assert!(seen_by >= sets.witnesses_needed(), "{mask:06b}, survivors of {lost:06b}");
                    assert!(!is_write(&single(), mask & lost));
                }
            }
            let position = |node: NodeId| Lsn(u64::from(node.0) + 1);
            let reached = sets.write_quorum_reached(position);
            assert!(is_write(
                &sets,
                (0..6)
                    .filter(|&node| position(NodeId(node)) >= reached)
                    .fold(0, |mask, node| mask | 1 << node)
            ));
            assert_eq!(sets.members().count(), left);
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

    /// A lease rests on this: whoever confirmed it while members change meets a successor in the only set that stays.
    #[test]
    fn three_of_each_set_meet_a_write_quorum_of_any_set_that_may_stay_and_three_of_one_may_not() {
        let after = QuorumSets::new(vec![[0, 1, 2, 3, 4, 6].map(NodeId)]).expect("six different nodes");
        let mut missed = false;
        for mask in 0..1u32 << 7 {
            for successor in (0..1u32 << 7).filter(|&other| is_write(&after, other)) {
                let meets = mask & successor != 0;
                assert!(meets || !changing().is_read_quorum_of_each(|node| mask & 1 << node.0 != 0));
                missed |= is_read(&changing(), mask) && !meets;
            }
        }
        assert!(missed, "three of any set would do");
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
