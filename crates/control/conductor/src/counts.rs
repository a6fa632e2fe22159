//! What a controller counts, and its text for Prometheus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use borealis_controller::catalog::records::{Fleet, NodeRecord, NodeState};
use borealis_controller::fleet::{GroupObservation, Observed};
use borealis_controller::reconcile::{Plan, Step};
use borealis_metrics::exposition::{Exposition, Value};
use borealis_metrics::list::{CONTROLLER, CONTROLLER_PREFIX};
use borealis_quorum::membership::Transition;

/// Every kind of step, as [`kind_of`] names them.
const STEP_KINDS: [&str; 8] =
    ["settle", "begin", "finish", "take_back", "start_node", "adopt_node", "retire_node", "end_move"];

/// The word for a step.
fn kind_of(step: &Step) -> &'static str {
    match step {
        Step::Settle(_) => "settle",
        Step::Change { transition: Transition::Begin(_), .. } => "begin",
        Step::Change { transition: Transition::Finish(_), .. } => "finish",
        Step::Change { transition: Transition::TakeBack(_), .. } => "take_back",
        Step::StartNode(_) => "start_node",
        Step::Adopt { .. } => "adopt_node",
        Step::Retire(_) => "retire_node",
        Step::EndMove(_) => "end_move",
    }
}

/// What was last seen of the fleet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Seen {
    nodes: u64,
    silent_nodes: u64,
    broken_nodes: u64,
    groups: u64,
    unseen_groups: u64,
    changing_groups: u64,
    remarks: u64,
}

impl Seen {
    fn of(fleet: &Fleet, observed: &Observed, plan: &Plan) -> Seen {
        let is_active = |record: &&NodeRecord| record.state != NodeState::Removed;
        let active: Vec<&NodeRecord> = fleet.nodes.values().filter(is_active).collect();
        let answers = active.iter().filter_map(|record| observed.nodes.get(&record.node)?.answer.as_ref());
        let broken: Vec<bool> = answers.map(|answer| answer.broken.is_some()).collect();
        let unseen = fleet.memberships.keys().filter(|group| !observed.groups.contains_key(group));
        let is_changing = |group: &&GroupObservation| !group.membership.replacements().is_empty();
        Seen {
            nodes: active.len() as u64,
            silent_nodes: (active.len() - broken.len()) as u64,
            broken_nodes: broken.iter().filter(|is_broken| **is_broken).count() as u64,
            groups: observed.groups.len() as u64,
            unseen_groups: unseen.count() as u64,
            changing_groups: observed.groups.values().filter(is_changing).count() as u64,
            remarks: plan.remarks.len() as u64,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    acts: bool,
    rounds: u64,
    rounds_failed: u64,
    steps: BTreeMap<&'static str, u64>,
    steps_failed: u64,
    /// What was seen, and when.
    seen: Option<(Seen, Instant)>,
}

/// Counters that whoever acts, and whoever asks, have in common.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Mutex<State>>);

impl Counts {
    fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A round ended; `acts` says whether this controller has looked and acted in it.
    pub(crate) fn round(&self, acts: bool, failed: bool) {
        self.with(|state| {
            state.acts = acts;
            state.rounds += 1;
            state.rounds_failed += u64::from(failed);
            if !acts {
                // It is another's business, or not known, and would grow old here.
                state.seen = None;
            }
        });
    }

    /// A round saw this.
    pub(crate) fn saw(&self, fleet: &Fleet, observed: &Observed, plan: &Plan) {
        let seen = Seen::of(fleet, observed, plan);
        self.with(|state| state.seen = Some((seen, Instant::now())));
    }

    /// A step was begun.
    pub(crate) fn began(&self, step: &Step) {
        self.with(|state| *state.steps.entry(kind_of(step)).or_default() += 1);
    }

    /// A step that was begun was not made. It is decided anew.
    pub(crate) fn failed(&self) {
        self.with(|state| state.steps_failed += 1);
    }

    /// All of it. `name` is what others see of who acts.
    #[must_use]
    pub fn exposition(&self, name: &str) -> Exposition {
        let mut exposition = Exposition::new(CONTROLLER);
        self.with(|state| {
            let mut add = |name: &str, labels: &[&str], value: Value| {
                exposition.add(&format!("{CONTROLLER_PREFIX}{name}"), labels, value);
            };
            add("info", &[name], 1.into());
            add("acts", &[], state.acts.into());
            add("rounds", &[], state.rounds.into());
            add("rounds_failed", &[], state.rounds_failed.into());
            for kind in STEP_KINDS {
                add("steps", &[kind], state.steps.get(kind).copied().unwrap_or(0).into());
            }
            add("steps_failed", &[], state.steps_failed.into());
            let Some((seen, at)) = &state.seen else { return };
            add("seen_seconds", &[], Value::Fraction(at.elapsed().as_secs_f64()));
            add("nodes", &[], seen.nodes.into());
            add("nodes_silent", &[], seen.silent_nodes.into());
            add("nodes_broken", &[], seen.broken_nodes.into());
            add("groups", &[], seen.groups.into());
            add("groups_unseen", &[], seen.unseen_groups.into());
            add("groups_changing", &[], seen.changing_groups.into());
            add("remarks", &[], seen.remarks.into());
        });
        exposition
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::AvailabilityZone;

    use super::*;

    #[test]
    fn a_controller_says_everything_that_is_listed_and_nothing_else() {
        let counts = Counts::default();
        counts.round(true, false);
        counts.began(&Step::StartNode(AvailabilityZone("az1".to_owned())));
        counts.failed();
        counts.with(|state| state.seen = Some((Seen { nodes: 6, ..Seen::default() }, Instant::now())));
        let exposition = counts.exposition("here");
        assert!(exposition.unlisted().is_empty(), "{:?}", exposition.unlisted());
        assert!(exposition.missing().is_empty(), "{:?}", exposition.missing());
        let text = exposition.text();
        for line in [
            "borealis_controller_acts 1",
            "borealis_controller_steps_total{kind=\"start_node\"} 1",
            "borealis_controller_steps_total{kind=\"begin\"} 0",
            "borealis_controller_steps_failed_total 1",
            "borealis_controller_nodes 6",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }

    #[test]
    fn who_lost_the_lease_says_nothing_of_the_fleet_any_more() {
        let counts = Counts::default();
        counts.with(|state| state.seen = Some((Seen::default(), Instant::now())));
        counts.round(false, false);
        let text = counts.exposition("here").text();
        assert!(text.contains("borealis_controller_acts 0") && !text.contains("controller_nodes"), "{text}");
    }
}
