//! What concerns nodes rather than groups: remarks on them, new ones, and what the catalog should say of old ones.

use std::collections::BTreeMap;

use borealis_types::AvailabilityZone;

use super::view::View;
use super::{Plan, Step};
use crate::catalog::records::{MoveRecord, NodeState};
use crate::health::{Health, seconds};

/// What is said where nobody wants lost members to be replaced.
pub(super) const NOTHING_IS_REPLACED: &str = "nothing is replaced, for `--replace-after` is 0";

/// Says what is wrong with nodes and zones, whether or not anything is done about it.
pub(super) fn remark_on_nodes(view: &View<'_>, plan: &mut Plan) {
    for zone in &view.lost_zones {
        plan.remarks.push(format!(
            "zone {} is lost: nobody hears any of its nodes. Nothing is moved out of it; it goes on when they are back",
            zone.0
        ));
    }
    for record in view.nodes() {
        let (node, health) = (record.node, view.health(record.node));
        let zone = &record.zone.0;
        match health {
            Health::Well => {}
            Health::Silent { .. } => {
                let settings = &view.fleet.settings;
                let outlook = match settings.replaces() {
                    true => format!("it is replaced after {}", seconds(settings.replace_after_ms)),
                    false => NOTHING_IS_REPLACED.to_owned(),
                };
                plan.remarks.push(format!("node {node} in {zone} {health}; {outlook}"));
            }
            Health::OutOfSight | Health::Unknown => {
                plan.remarks.push(format!("node {node} in {zone} {health}; it is not replaced for that"));
            }
            Health::Gone { .. } | Health::Broken(_) => {
                plan.remarks.push(format!("node {node} in {zone} {health}"));
            }
        }
    }
}

/// Starts nodes where lost members have nowhere to go, or says that somebody has to.
pub(super) fn start_nodes(view: &View<'_>, plan: &mut Plan) {
    let mut missing: BTreeMap<&AvailabilityZone, (usize, String)> = BTreeMap::new();
    for (group, seen) in &view.observed.groups {
        let under_way = seen.membership.replacements();
        let mut lost: BTreeMap<&AvailabilityZone, Vec<String>> = BTreeMap::new();
        for node in seen.membership.base() {
            let is_replaced = under_way.iter().any(|replacement| replacement.old == *node);
            if let Some(record) = view.record(*node)
                && view.is_to_be_replaced(record)
                && !is_replaced
                && !view.lost_zones.contains(&record.zone)
            {
                lost.entry(&record.zone).or_default().push(format!("node {node} {}", view.health(*node)));
            }
        }
        for (zone, lost) in lost {
            let has_room =
                |node| view.answer_free_bytes(node).is_some_and(|bytes| bytes >= seen.segment_bytes);
            let could = view
                .nodes()
                .filter(|node| view.can_take(node, zone, &seen.membership) && has_room(node.node));
            let lacking = lost.len().saturating_sub(could.count());
            let most = missing.entry(zone).or_default();
            if lacking > most.0 {
                *most = (
                    lacking,
                    format!("{}, and no other node of {} can take the segment of {group}", lost[0], zone.0),
                );
            }
        }
    }
    for (zone, (count, because)) in missing {
        let starting = view.observed.starting.get(zone).copied().unwrap_or(0);
        if !view.fleet.settings.starts_nodes && count > 0 {
            plan.remarks.push(format!("{because}: add one with `borealis node add --az {}`", zone.0));
            continue;
        }
        for _ in starting..count {
            plan.decide(Step::StartNode(zone.clone()), because.clone());
        }
    }
}

/// What the catalog should say of nodes and moves that have come to their end.
pub(super) fn settle_catalog(view: &View<'_>, plan: &mut Plan) {
    for record in view.nodes() {
        let node = record.node;
        if view.may_hold_something(node) {
            continue;
        }
        let seen = view.observed.nodes.get(&node);
        let answer = seen.and_then(|seen| seen.answer.as_ref());
        let is_lost_for_good = seen.is_some_and(|seen| seen.lost.is_some());
        if record.state == NodeState::Draining {
            plan.decide(Step::Retire(node), "it holds nothing any more");
        } else if is_lost_for_good && view.fleet.settings.starts_nodes {
            plan.decide(Step::Retire(node), format!("it {} and holds nothing any more", view.health(node)));
        } else if let Some(answer) = answer
            && answer.broken.is_none()
            && !is_lost_for_good
            && answer.incarnation != record.incarnation
        {
            let step = Step::Adopt { node, incarnation: answer.incarnation.clone() };
            plan.decide(step, "it came back with another store and is a member of nothing");
        }
    }
    for record in &view.fleet.moves {
        if let Some(because) = move_has_ended(view, record) {
            plan.decide(Step::EndMove(record.clone()), because);
        }
    }
}

/// Why a move is over, if it is.
fn move_has_ended(view: &View<'_>, record: &MoveRecord) -> Option<String> {
    let seen = view.observed.groups.get(&record.group)?;
    let MoveRecord { from, to, .. } = *record;
    let under_way = seen.membership.replacements();
    let is_under_way = under_way.iter().any(|change| (change.old, change.new) == (from, to));
    if !seen.membership.contains(from) {
        return Some(format!("node {from} has no segment of it any more"));
    }
    if seen.membership.contains(to) && !is_under_way {
        return Some(format!("node {to} has a segment of it already"));
    }
    if view.is_useless(to) {
        return Some(format!("node {to} cannot take it"));
    }
    if view.health(from).is_lost() {
        return Some(format!("node {from} is replaced anyway"));
    }
    let zone = |node| view.record(node).map(|record| &record.zone);
    (zone(from) != zone(to)).then(|| format!("node {to} is in another zone than node {from}"))
}
