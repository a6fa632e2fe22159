//! A group's sets of members, and the steps from one membership to the next: arithmetic only.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{MembershipEpoch, NodeId, SEGMENTS_PER_GROUP};

/// Members of one set.
type Set = [NodeId; SEGMENTS_PER_GROUP];

/// Replacements under way at once, at most: each doubles the sets.
pub const REPLACEMENTS_MAX: usize = 2;

/// As many sets as there are while so many replacements are under way.
const SETS_MAX: usize = 1 << REPLACEMENTS_MAX;

/// The members of one group: every combination of old and new members of the replacements under way.
///
/// In each of the six places stands one node, or two: the old one and the one that replaces it. The sets are all ways to
/// choose, the one with every old member first ([`GroupMembership::base`]).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct GroupMembership {
    epoch: MembershipEpoch,
    sets: Vec<Set>,
}

/// As it is stored and sent: nothing about it is known to be true.
#[derive(Serialize, Deserialize)]
struct Unchecked {
    epoch: MembershipEpoch,
    #[serde(deserialize_with = "crate::bounded::list::<_, _, SETS_MAX>")]
    sets: Vec<Set>,
}

/// One member takes the place of another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Replacement {
    /// Leaves the group.
    pub old: NodeId,
    /// Takes its place.
    pub new: NodeId,
}

/// One step from a membership to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Transition {
    /// Twice as many sets: those with the old member stay, those with the new one come.
    Begin(Replacement),
    /// The sets with the old member go.
    Finish(Replacement),
    /// The sets with the new member go.
    TakeBack(Replacement),
}

impl Transition {
    /// The replacement that it begins or ends.
    #[must_use]
    pub fn replacement(self) -> Replacement {
        let (Transition::Begin(replacement)
        | Transition::Finish(replacement)
        | Transition::TakeBack(replacement)) = self;
        replacement
    }
}

/// Sets that are no membership.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidMembership {
    /// A node is in one set twice.
    #[error("node {0} is in one set of members twice")]
    Repeated(NodeId),
    /// Epochs count from 1.
    #[error("membership epochs begin with 1")]
    Epoch,
    /// Not one, two or four.
    #[error("{0} sets of members; there are 1, 2 or 4")]
    Count(usize),
    /// Not every combination of old and new members, in order.
    #[error("the sets are not all combinations of old and new members")]
    Combinations,
}

/// A step that a membership does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidTransition {
    /// As many replacements as there may be are under way.
    #[error("{REPLACEMENTS_MAX} members are being replaced already")]
    TooMany,
    /// Only a member of every set can be replaced.
    #[error("node {0} is not a member of every set")]
    NotMember(NodeId),
    /// A member cannot come a second time.
    #[error("node {0} is a member already")]
    MemberAlready(NodeId),
    /// This replacement is not under way.
    #[error("node {} is not being replaced by node {}", .0.old, .0.new)]
    NotUnderWay(Replacement),
}

impl GroupMembership {
    /// A membership that came from outside.
    ///
    /// # Errors
    /// If it cannot be one.
    pub fn new(epoch: MembershipEpoch, sets: Vec<Set>) -> Result<GroupMembership, InvalidMembership> {
        if epoch == MembershipEpoch(0) {
            return Err(InvalidMembership::Epoch);
        }
        if !matches!(sets.len(), 1 | 2 | 4) {
            return Err(InvalidMembership::Count(sets.len()));
        }
        let membership = GroupMembership { epoch, sets };
        if let Some(node) = membership.sets.iter().find_map(repeated) {
            return Err(InvalidMembership::Repeated(node));
        }
        let replacements = membership.replacements();
        let base = GroupMembership { epoch, sets: vec![membership.sets[0]] };
        let rebuilt = replacements.iter().try_fold(base, |sets, replacement| sets.doubled(*replacement));
        match rebuilt {
            Ok(rebuilt) if rebuilt == membership => Ok(membership),
            _ => Err(InvalidMembership::Combinations),
        }
    }

    /// That of a new group: epoch 1, one set.
    ///
    /// # Errors
    /// If a node is in it twice.
    pub fn created(set: [NodeId; SEGMENTS_PER_GROUP]) -> Result<GroupMembership, InvalidMembership> {
        GroupMembership::new(MembershipEpoch(1), vec![set])
    }

    /// Which membership of the group it is.
    #[must_use]
    pub fn epoch(&self) -> MembershipEpoch {
        self.epoch
    }

    /// The sets, the one with every old member first.
    #[must_use]
    pub fn sets(&self) -> &[[NodeId; SEGMENTS_PER_GROUP]] {
        &self.sets
    }

    /// The set with every old member. **Whatever was acknowledged, promised or installed under this membership or an
    /// earlier one was so at a write quorum of this set**: it is in each membership since, for a step only adds sets,
    /// takes away others, or makes sure first that every set that stays has everything.
    #[must_use]
    pub fn base(&self) -> &[NodeId; SEGMENTS_PER_GROUP] {
        &self.sets[0]
    }

    /// Every node in any set, in number order.
    #[must_use]
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.sets.iter().flatten().copied().collect()
    }

    /// Whether a node is in any set.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.sets.iter().any(|set| set.contains(&node))
    }

    /// The replacements under way, in the order they began.
    #[must_use]
    pub fn replacements(&self) -> Vec<Replacement> {
        // Each replacement doubled the sets: the first with its new member stands after all those there were before.
        let mut replacements = Vec::new();
        let mut with_new = 1;
        while with_new < self.sets.len() {
            let pairs = self.sets[0].iter().zip(&self.sets[with_new]);
            if let Some((&old, &new)) = pairs.into_iter().find(|(old, new)| old != new) {
                replacements.push(Replacement { old, new });
            }
            with_new *= 2;
        }
        replacements
    }

    /// Whether a replacement is under way.
    #[must_use]
    pub fn is_under_way(&self, replacement: Replacement) -> bool {
        self.replacements().contains(&replacement)
    }

    /// The next membership.
    ///
    /// # Errors
    /// If this one does not allow the step.
    pub fn after(&self, transition: Transition) -> Result<GroupMembership, InvalidTransition> {
        let next = match transition {
            Transition::Begin(replacement) => self.doubled(replacement)?,
            Transition::Finish(replacement) => self.halved(replacement, replacement.new)?,
            Transition::TakeBack(replacement) => self.halved(replacement, replacement.old)?,
        };
        Ok(GroupMembership { epoch: MembershipEpoch(self.epoch.0 + 1), ..next })
    }

    /// The step by which `next` follows this membership, if it does.
    #[must_use]
    pub fn transition_to(&self, next: &GroupMembership) -> Option<Transition> {
        let begun = next.replacements().into_iter().map(Transition::Begin);
        let ended = self
            .replacements()
            .into_iter()
            .flat_map(|replacement| [Transition::Finish(replacement), Transition::TakeBack(replacement)]);
        begun.chain(ended).find(|&transition| self.after(transition).as_ref() == Ok(next))
    }

    fn doubled(&self, replacement: Replacement) -> Result<GroupMembership, InvalidTransition> {
        let Replacement { old, new } = replacement;
        if self.sets.len() >= SETS_MAX {
            return Err(InvalidTransition::TooMany);
        }
        if self.contains(new) {
            return Err(InvalidTransition::MemberAlready(new));
        }
        if !self.sets.iter().all(|set| set.contains(&old)) {
            return Err(InvalidTransition::NotMember(old));
        }
        let replaced = |set: &Set| set.map(|node| if node == old { new } else { node });
        let sets = self.sets.iter().copied().chain(self.sets.iter().map(replaced)).collect();
        Ok(GroupMembership { epoch: self.epoch, sets })
    }

    fn halved(&self, replacement: Replacement, stays: NodeId) -> Result<GroupMembership, InvalidTransition> {
        if !self.is_under_way(replacement) {
            return Err(InvalidTransition::NotUnderWay(replacement));
        }
        let sets = self.sets.iter().filter(|set| set.contains(&stays)).copied().collect();
        Ok(GroupMembership { epoch: self.epoch, sets })
    }
}

impl TryFrom<Unchecked> for GroupMembership {
    type Error = InvalidMembership;

    fn try_from(unchecked: Unchecked) -> Result<GroupMembership, InvalidMembership> {
        GroupMembership::new(unchecked.epoch, unchecked.sets)
    }
}

impl From<GroupMembership> for Unchecked {
    fn from(membership: GroupMembership) -> Unchecked {
        Unchecked { epoch: membership.epoch, sets: membership.sets }
    }
}

/// A node that is in the set twice.
fn repeated(set: &Set) -> Option<NodeId> {
    set.iter().enumerate().find(|(place, node)| set[..*place].contains(node)).map(|(_, node)| *node)
}
