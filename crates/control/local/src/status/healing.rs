//! What changes of who has which group: the controller's picture, for a person.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use borealis_conductor::observation::{HostReport, Memory, observed};
use borealis_conductor::questions::{Answer, Answers};
use borealis_controller::catalog::records::{Fleet, FleetGroup, NodeState as Wish};
use borealis_controller::fleet::{MemberProgress, Observed};
use borealis_controller::reconcile::{Plan, reconcile};
use borealis_quorum::membership::GroupMembership;
use borealis_types::{GroupId, NodeId};
use serde::Serialize;

use super::{NodeAnswer, NodeState};
use crate::cluster::Cluster;
use crate::local_host::{ask_witnesses, lost, starting};

/// As if this had listened for so long: whoever does not answer now is judged by what the others say of it.
const LISTENED: Duration = Duration::from_secs(1 << 20);

/// What the catalog says, what was seen, and what the controller would make of it.
pub(super) struct Picture {
    fleet: Fleet,
    observed: Observed,
    plan: Plan,
    /// The catalog cannot be read.
    complaint: Option<String>,
}

/// What is under way, and what is to be done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Healing {
    /// Segments that take the place of others.
    pub changes: Vec<ChangeState>,
    /// What the controller does next, each with its reason.
    pub next: Vec<String>,
    /// What is not as it should be, what is waited for, and what a person has to do.
    pub remarks: Vec<String>,
}

/// A segment that takes the place of another.
#[derive(Debug, Clone, Serialize)]
pub struct ChangeState {
    /// Its group.
    pub group: u16,
    /// The node that had it.
    pub old: u16,
    /// The node that takes it.
    pub new: u16,
    /// Bytes that it has, once it is known how many there are; all of them when it is complete.
    pub done_bytes: u64,
    /// Bytes that it needs; zero while that is not known.
    pub total_bytes: u64,
    /// It has everything, and waits for the last step.
    pub is_complete: bool,
    /// How many bytes its node brings in a second, for all of its segments.
    pub bytes_per_second: u64,
}

/// Looks at the answers as the controller does.
pub(super) fn picture(cluster: &Cluster, answers: &[NodeAnswer]) -> Picture {
    let (fleet, complaint) = match cluster.fleet() {
        Ok(fleet) => (fleet.unwrap_or_default(), None),
        Err(error) => (Fleet::default(), Some(error.to_string())),
    };
    let volume = cluster.catalog.volume_id();
    let said = |(state, answer): &NodeAnswer| Some(((NodeId(state.id), volume), answer.clone()?));
    let answers: Answers = answers.iter().filter_map(said).collect();
    let answered: BTreeSet<NodeId> = answers.keys().map(|(node, _)| *node).collect();
    let mut memory = Memory::new();
    memory.take(&fleet, &Answers::new(), Vec::new(), Duration::ZERO);
    memory.take(&fleet, &answers, ask_witnesses(&fleet), LISTENED);
    let active = fleet.nodes.values().filter(|record| record.state != Wish::Removed);
    let report = HostReport {
        lost: active.filter_map(|record| Some((record.node, lost(cluster, record.node)?))).collect(),
        starting: starting(cluster, &fleet, &answered),
    };
    let observed = observed(&fleet, &answers, &memory, &report, LISTENED);
    let plan = reconcile(&fleet, &observed);
    Picture { fleet, observed, plan, complaint }
}

/// The newest membership of each group that is known.
pub(super) fn memberships(cluster: &Cluster, picture: &Picture) -> BTreeMap<GroupId, GroupMembership> {
    let mut memberships = cluster.memberships();
    let volume = cluster.catalog.volume_id();
    for (&group, known) in &mut memberships {
        if let Some(seen) = picture.observed.groups.get(&FleetGroup { volume, group }) {
            *known = seen.membership.clone();
        }
    }
    memberships
}

/// The nodes, with what the catalog and the groups say of each.
pub(super) fn described(
    answers: Vec<NodeAnswer>,
    picture: &Picture,
    memberships: &BTreeMap<GroupId, GroupMembership>,
) -> Vec<NodeState> {
    let describe = |(state, _): NodeAnswer| {
        let node = NodeId(state.id);
        let groups = memberships.values().filter(|membership| membership.contains(node)).count();
        let wish = picture.fleet.nodes.get(&node).map(|record| record.state);
        NodeState { groups, draining: wish == Some(Wish::Draining), ..state }
    };
    answers.into_iter().map(describe).collect()
}

impl Healing {
    pub(super) fn of(picture: &Picture, answers: &[NodeAnswer]) -> Healing {
        if answers.iter().all(|(_, answer)| answer.is_none()) {
            // Of a cluster that does not run there is nothing to say.
            return Healing::default();
        }
        let mut healing = Healing {
            changes: Vec::new(),
            next: picture.plan.decisions.iter().map(ToString::to_string).collect(),
            remarks: picture.plan.remarks.clone(),
        };
        healing.remarks.extend(picture.complaint.clone());
        for (group, seen) in &picture.observed.groups {
            for replacement in seen.membership.replacements() {
                let progress = seen.members.get(&replacement.new);
                let (done_bytes, total_bytes) = match progress {
                    Some(MemberProgress::CatchingUp { done_bytes, total_bytes }) => {
                        (*done_bytes, *total_bytes)
                    }
                    Some(MemberProgress::Complete) | None => (0, 0),
                };
                let newcomer = answers.iter().find(|(state, _)| state.id == replacement.new.0);
                let answer = newcomer.and_then(|(_, answer)| answer.as_ref());
                healing.changes.push(ChangeState {
                    group: group.group.0,
                    old: replacement.old.0,
                    new: replacement.new.0,
                    done_bytes,
                    total_bytes,
                    is_complete: progress == Some(&MemberProgress::Complete),
                    bytes_per_second: answer.map_or(0, rate),
                });
            }
        }
        healing
    }

    /// For a person; empty if there is nothing to say.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if !self.changes.is_empty() {
            text += "\nchange    from    to      progress\n";
        }
        for change in &self.changes {
            text += &format!(
                "group {:<3} node {:<2} node {:<2} {}\n",
                change.group,
                change.old,
                change.new,
                change.progress()
            );
        }
        if !self.remarks.is_empty() || !self.next.is_empty() {
            text.push('\n');
        }
        for remark in &self.remarks {
            text += &format!("{remark}\n");
        }
        for next in &self.next {
            text += &format!("next: {next}\n");
        }
        text
    }
}

impl ChangeState {
    /// How far it is, for a person.
    #[must_use]
    pub fn progress(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if self.is_complete {
            return "complete".to_owned();
        }
        match self.total_bytes {
            0 => "begins".to_owned(),
            total => format!(
                "{} % of {:.1} MiB, {:.0} MiB/s",
                u128::from(self.done_bytes) * 100 / u128::from(total),
                mib(total),
                mib(self.bytes_per_second)
            ),
        }
    }
}

fn rate(answer: &Answer) -> u64 {
    let metrics = answer.status.metrics.iter();
    metrics.clone().find(|(name, _)| name == "refill_bytes_per_second").map_or(0, |(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_how_far_it_is() {
        let mut change = ChangeState {
            group: 3,
            old: 5,
            new: 7,
            done_bytes: 41 << 20,
            total_bytes: 100 << 20,
            is_complete: false,
            bytes_per_second: 85 << 20,
        };
        assert_eq!(change.progress(), "41 % of 100.0 MiB, 85 MiB/s");
        let healing = Healing { changes: vec![change.clone()], ..Healing::default() };
        assert!(healing.text().contains("group 3   node 5  node 7  41 %"), "{}", healing.text());
        change.total_bytes = 0;
        assert_eq!(change.progress(), "begins");
        change.is_complete = true;
        assert_eq!(change.progress(), "complete");
        assert_eq!(Healing::default().text(), "");
    }
}
