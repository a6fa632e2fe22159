//! When a newer membership may be believed.

use std::collections::BTreeMap;

use borealis_types::{NodeId, READ_QUORUM};

use super::GroupMembership;
use super::MembershipState;
use crate::quorum_set::QuorumSets;

/// How many members must have a membership installed before it is believed of them alone.
const INSTALLED_BY: usize = READ_QUORUM;

/// How many must have it installed when a write quorum supports it: one of them tells the truth, so it was chosen.
const INSTALLED_BY_AT_LEAST: usize = 2;

/// The newest membership above `known` that so many members of it, or of the known one, name that it was chosen. A node that
/// knows none goes by the members that the newest claims to have.
///
/// Three of them have it installed; or two have, and a write quorum of the known membership at least accepted it. The second
/// way is for a controller that died while it told them: with a member lost, two that have the newer one are enough to
/// take the write quorum from the older, and the others must be able to follow without a controller.
///
/// `claims` are what members said last of what they store; a segment puts its own state among them.
#[must_use]
pub fn credible_membership(
    known: Option<&GroupMembership>,
    claims: &BTreeMap<NodeId, MembershipState>,
) -> Option<GroupMembership> {
    let mut candidates: Vec<&GroupMembership> = claims.values().map(MembershipState::installed).collect();
    candidates.retain(|candidate| known.is_none_or(|known| candidate.epoch() > known.epoch()));
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.epoch()));
    candidates.into_iter().find(|candidate| is_credible(known, candidate, claims)).cloned()
}

fn is_credible(
    known: Option<&GroupMembership>,
    candidate: &GroupMembership,
    claims: &BTreeMap<NodeId, MembershipState>,
) -> bool {
    let may_say =
        |node: &NodeId| candidate.contains(*node) || known.is_some_and(|known| known.contains(*node));
    let installed =
        claims.iter().filter(|(node, claim)| may_say(node) && claim.installed() == candidate).count();
    let has_voted = |node: NodeId| claims.get(&node).is_some_and(|claim| claim.supports(candidate));
    let is_next = |known: &GroupMembership| {
        known.transition_to(candidate).is_some() && QuorumSets::of(known).is_write_quorum(has_voted)
    };
    installed >= INSTALLED_BY || (installed >= INSTALLED_BY_AT_LEAST && known.is_some_and(is_next))
}
