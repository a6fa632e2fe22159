//! What one group needs: that what was begun is carried through, that a change ends, or that one begins.

use borealis_quorum::membership::{GroupMembership, REPLACEMENTS_MAX, Replacement, Transition};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{AvailabilityZone, NodeId, WRITE_QUORUM};

use super::nodes::NOTHING_IS_REPLACED;
use super::view::View;
use super::{Plan, Step};
use crate::catalog::records::{FleetGroup, NodeState};
use crate::fleet::{GroupObservation, MemberProgress};
use crate::health::Health;

/// A change that should begin.
pub(super) struct Begin<'a> {
    pub(super) group: FleetGroup,
    pub(super) membership: &'a GroupMembership,
    pub(super) segment_bytes: u64,
    /// The member that goes, and its zone.
    pub(super) old: NodeId,
    pub(super) zone: &'a AvailabilityZone,
    pub(super) kind: Kind,
    /// Members of the group that are complete.
    pub(super) members_well: usize,
    pub(super) because: String,
}

/// Why a member goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// It is lost.
    Repair,
    /// Its node is to be emptied.
    Drain,
    /// Its segment is wanted on this node.
    Move(NodeId),
}

impl Begin<'_> {
    pub(super) fn is_repair(&self) -> bool {
        self.kind == Kind::Repair
    }
}

/// Decides what ends, and returns what should begin, the most urgent first.
pub(super) fn decide<'a>(
    view: &View<'a>,
    group: FleetGroup,
    seen: &'a GroupObservation,
    plan: &mut Plan,
) -> Vec<Begin<'a>> {
    let quorum_sets = QuorumSets::of(&seen.membership);
    let can_change = quorum_sets.is_write_quorum(|node| seen.members.contains_key(&node));
    if !can_change {
        plan.remarks.push(format!(
            "{group}: only {} of its members answer; it takes {WRITE_QUORUM} of each six to write and to change them. \
             Start what is down, or see `borealis node replace`",
            seen.members.len()
        ));
        return Vec::new();
    }
    if !seen.is_established {
        let epoch = seen.membership.epoch();
        plan.decide(
            Step::Settle(group),
            format!("membership {epoch} is not yet with a write quorum of its members"),
        );
        return Vec::new();
    }
    for replacement in seen.membership.replacements() {
        match end(view, group, seen, replacement) {
            Ok((transition, because)) => {
                // One step at a time: each is a membership of its own.
                let after = seen.membership.epoch();
                plan.decide(Step::Change { group, after, transition }, because);
                return Vec::new();
            }
            Err(remark) => plan.remarks.push(remark),
        }
    }
    begin(view, group, seen, plan)
}

/// How a change that is under way ends, or how far it is.
fn end(
    view: &View<'_>,
    group: FleetGroup,
    seen: &GroupObservation,
    replacement: Replacement,
) -> Result<(Transition, String), String> {
    let Replacement { old, new } = replacement;
    if view.is_useless(new) {
        let why = match view.health(new) {
            health if health.is_lost() => health.to_string(),
            _ => "is removed".to_owned(),
        };
        return Ok((Transition::TakeBack(replacement), format!("node {new} {why}")));
    }
    if view.is_complete(seen, new) {
        return Ok((Transition::Finish(replacement), format!("node {new} has everything")));
    }
    if view.is_complete(seen, old) && !view.shall_go(group, replacement) {
        let because = format!("node {old} is there and has everything before node {new} does");
        return Ok((Transition::TakeBack(replacement), because));
    }
    Err(match seen.members.get(&new) {
        Some(MemberProgress::CatchingUp { done_bytes, total_bytes }) if *total_bytes > 0 => format!(
            "{group}: node {new} takes the place of node {old} and has {} % of {} MiB",
            u128::from(*done_bytes) * 100 / u128::from(*total_bytes),
            total_bytes >> 20
        ),
        Some(_) => format!("{group}: node {new} takes the place of node {old} and begins to catch up"),
        None => format!("{group}: node {new} takes the place of node {old} and does not answer"),
    })
}

/// The changes that the group needs, as far as it may have more of them at once.
fn begin<'a>(
    view: &View<'a>,
    group: FleetGroup,
    seen: &'a GroupObservation,
    plan: &mut Plan,
) -> Vec<Begin<'a>> {
    let under_way = seen.membership.replacements();
    let members_well = seen.membership.base().iter().filter(|node| view.is_complete(seen, **node)).count();
    let everyone_is_well = members_well == seen.membership.base().len() && under_way.is_empty();
    let mut begins = Vec::new();
    for &old in seen.membership.base() {
        if under_way.iter().any(|replacement| replacement.old == old) {
            continue;
        }
        let Some(record) = view.record(old) else {
            plan.remarks.push(format!(
                "{group}: its member node {old} is not in the catalog; `borealis node add` enters it"
            ));
            continue;
        };
        let health = view.health(old);
        let (kind, because) = if health.is_lost() {
            if !view.is_to_be_replaced(record) {
                plan.remarks.push(format!("{group}: node {old} {health}; {NOTHING_IS_REPLACED}"));
                continue;
            }
            if view.lost_zones.contains(&record.zone) {
                continue;
            }
            (Kind::Repair, format!("node {old} {health}"))
        } else if record.state != NodeState::Active {
            (Kind::Drain, format!("node {old} is being emptied"))
        } else if let Some(record) = view.move_of(group, old) {
            (Kind::Move(record.to), format!("its segment on node {old} is wanted on node {}", record.to))
        } else {
            continue;
        };
        let is_allowed = match kind {
            Kind::Repair => under_way.len() < REPLACEMENTS_MAX,
            Kind::Drain | Kind::Move(_) => everyone_is_well && *health == Health::Well,
        };
        if is_allowed {
            begins.push(Begin {
                group,
                membership: &seen.membership,
                segment_bytes: seen.segment_bytes,
                old,
                zone: &record.zone,
                kind,
                members_well,
                because,
            });
        } else {
            plan.remarks.push(match kind {
                Kind::Repair => format!(
                    "{group}: {because}; it waits, for {REPLACEMENTS_MAX} of the group's members are being replaced already"
                ),
                _ => format!("{group}: {because}; it waits until every member of the group is well"),
            });
        }
    }
    begins
}
