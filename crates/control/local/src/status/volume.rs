//! What the states of nodes and segments come to for the volume: can it be written, can it be read.

use std::collections::BTreeMap;

use borealis_quorum::membership::GroupMembership;
use borealis_types::{GroupId, NodeId, READ_QUORUM, SEGMENTS_PER_GROUP, WRITE_QUORUM};

use super::NodeAnswer;

/// The volume's condition, in a word and in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// `up`, `degraded`, `no write quorum`, `no read quorum`, `down` or `unknown`.
    pub state: &'static str,
    /// What is not as it should be.
    pub reason: Option<String>,
    /// As far as is known, commits need not wait.
    pub has_write_quorum: bool,
}

/// Judges by the group that is worst off. A segment counts if its node answers for it, and if it has everything: a node that
/// failed says nothing of its segments. While members change, the set of six counts that is worst off.
pub(super) fn condition(
    answers: &[NodeAnswer],
    memberships: &BTreeMap<GroupId, GroupMembership>,
) -> Condition {
    let serves = |node: NodeId, group: GroupId| {
        let Some((state, Some(answer))) = answers.iter().find(|(state, _)| state.id == node.0) else {
            return false;
        };
        let mut segments = answer.status.segments.iter();
        state.state == "up" && segments.any(|segment| segment.group == group && !segment.joining)
    };
    let serving = |(&group, membership): (&GroupId, &GroupMembership)| {
        let of_set =
            |set: &[NodeId; SEGMENTS_PER_GROUP]| set.iter().filter(|node| serves(**node, group)).count();
        (membership.sets().iter().map(of_set).min().unwrap_or(0), group)
    };
    let states: Vec<(u16, &'static str)> = answers.iter().map(|(node, _)| (node.id, node.state)).collect();
    let worst = memberships.iter().map(serving).min_by_key(|(segments, _)| *segments);
    judge(&states, worst)
}

fn judge(nodes: &[(u16, &'static str)], worst: Option<(usize, GroupId)>) -> Condition {
    let not_up: Vec<String> = nodes
        .iter()
        .filter(|(_, state)| !matches!(*state, "up" | "removed"))
        .map(|(node, state)| match *state {
            "failed" => format!("node {node} failed"),
            state => format!("node {node} is {state}"),
        })
        .collect();
    let listed = not_up.join(", ");
    let (segments, group) = worst.unwrap_or_default();
    let is_unknown = nodes.iter().any(|(_, state)| *state == "unknown");
    let (state, reason) = match segments {
        _ if nodes.iter().all(|(_, state)| matches!(*state, "down" | "removed")) => {
            ("down", Some("no node runs".to_owned()))
        }
        _ if segments < WRITE_QUORUM && is_unknown => ("unknown", Some(listed)),
        _ if segments < READ_QUORUM => {
            ("no read quorum", Some(format!("group {group} has {segments} of 6 segments; {listed}")))
        }
        _ if segments < WRITE_QUORUM => (
            "no write quorum",
            Some(format!(
                "commits wait: group {group} has {segments} of 6 segments, and they need {WRITE_QUORUM}; {listed}"
            )),
        ),
        SEGMENTS_PER_GROUP if not_up.is_empty() => ("up", None),
        _ if not_up.is_empty() => {
            ("degraded", Some(format!("group {group} has {segments} of 6 segments that are complete")))
        }
        _ => ("degraded", Some(listed)),
    };
    Condition { state, reason, has_write_quorum: segments >= WRITE_QUORUM || is_unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(states: [&'static str; 6]) -> (&'static str, String, bool) {
        let nodes: Vec<(u16, &'static str)> = (1..).zip(states).collect();
        let segments = states.iter().filter(|state| **state == "up").count();
        let condition = judge(&nodes, Some((segments, GroupId(0))));
        (condition.state, condition.reason.unwrap_or_default(), condition.has_write_quorum)
    }

    #[test]
    fn the_volume_is_as_good_as_its_worst_group() {
        let (up, down) = ("up", "down");
        assert_eq!(judged([up; 6]), ("up", String::new(), true));
        let joining = judge(&[(1, up), (2, "removed")], Some((5, GroupId(2))));
        assert_eq!(joining.state, "degraded");
        assert!(joining.reason.is_some_and(|reason| reason.starts_with("group 2 has 5 of 6")));
        assert_eq!(
            judged([up, up, down, up, up, "failed"]),
            ("degraded", "node 3 is down, node 6 failed".into(), true)
        );
        let (state, reason, has_write_quorum) = judged([up, up, up, down, "unresponsive", down]);
        assert_eq!((state, has_write_quorum), ("no write quorum", false));
        assert!(
            reason.contains("group 0 has 3 of 6 segments") && reason.contains("node 5 is unresponsive"),
            "{reason}"
        );
        assert_eq!(judged([up, up, down, down, down, down]).0, "no read quorum");
        assert_eq!(judged([down; 6]).0, "down");
        // Nothing is claimed of what this user may not see.
        assert_eq!(judged(["unknown"; 6]).0, "unknown");
    }

    #[test]
    fn a_node_that_answers_without_a_segment_is_not_counted_for_it() {
        let nodes: Vec<(u16, &'static str)> = (1..=6).map(|node| (node, "up")).collect();
        let condition = judge(&nodes, Some((3, GroupId(2))));
        assert_eq!(condition.state, "no write quorum");
        assert!(condition.reason.is_some_and(|reason| reason.contains("group 2")));
    }
}
