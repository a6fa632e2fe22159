//! What the fleet should do next: what is wanted and what is seen in, steps out.
//!
//! [`reconcile`] is a function of its arguments. It is called again and again; each time it says at most one step for each
//! group, and whoever carries steps out may do all of them, some, or none, and may die in the middle. Each step is one that a
//! proposer of the group's membership carries out or finds impossible, so two controllers at once, or one that sees old
//! answers, cost time and nothing else.
//!
//! The rules, in the order in which they win:
//!
//! 1. What was begun by somebody is carried through first ([`Step::Settle`]).
//! 2. A change ends as soon as it can: with the newcomer when that is complete; with the old member when it is back and complete
//!    before, and was not to go; with the old member, too, when the newcomer is lost.
//! 3. A lost member is replaced by a node of its own zone, the groups with the fewest members left first. A zone of which nobody
//!    hears anything is waited for: nothing is moved out of it, and nothing is begun in it.
//! 4. A segment is moved from a healthy node, to drain it or to rebalance, only while all members of its group are well.
//! 5. Never more changes at once than the settings allow, in the fleet and on a node.

mod budget;
mod group;
mod nodes;
mod view;

use std::fmt;

use borealis_quorum::membership::Transition;
use borealis_types::{AvailabilityZone, MembershipEpoch, NodeId};

use crate::catalog::records::{Fleet, FleetGroup, MoveRecord};
use crate::fleet::Observed;
use budget::Budget;
use group::Begin;
use view::View;

/// Something to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Carry the membership that was chosen last to a write quorum of the group: whoever chose it did not.
    Settle(FleetGroup),
    /// Propose the next membership of a group.
    Change {
        /// The group.
        group: FleetGroup,
        /// The epoch of the membership that this was decided on. Whoever carries it out gives up when it finds that the
        /// group has a newer one: somebody else was faster, and the next round decides anew.
        after: MembershipEpoch,
        /// What changes.
        transition: Transition,
    },
    /// Start a new node process in a zone and enter it in the catalog as active. Whoever does it counts the process in
    /// [`Observed::starting`] until it answers, also while one that ends before is tried again with growing pauses.
    StartNode(AvailabilityZone),
    /// Enter in the catalog that the node has another store now. It holds nothing that anybody counts on.
    Adopt {
        /// The node.
        node: NodeId,
        /// The identity of its store.
        incarnation: String,
    },
    /// Enter in the catalog that the node is removed, and stop it if it runs. It holds nothing.
    Retire(NodeId),
    /// Strike a move from the catalog: it is done, or no longer makes sense.
    EndMove(MoveRecord),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Settle(group) => write!(f, "{group}: carry its last change through"),
            Step::Change { group, transition, .. } => match transition {
                Transition::Begin(change) => {
                    write!(f, "{group}: replace node {} by node {}", change.old, change.new)
                }
                Transition::Finish(change) => {
                    write!(f, "{group}: node {} has replaced node {}", change.new, change.old)
                }
                Transition::TakeBack(change) => {
                    write!(f, "{group}: keep node {}, let node {} go", change.old, change.new)
                }
            },
            Step::StartNode(zone) => write!(f, "start a node in {}", zone.0),
            Step::Adopt { node, .. } => write!(f, "use node {node} with its new store"),
            Step::Retire(node) => write!(f, "remove node {node}"),
            Step::EndMove(record) => {
                write!(f, "{}: end the move from node {} to node {}", record.group, record.from, record.to)
            }
        }
    }
}

/// A step and the reason for it, in words: for the log, and for `borealis status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What to do.
    pub step: Step,
    /// Why.
    pub because: String,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, because {}", self.step, self.because)
    }
}

/// What a round comes to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// What to do, the most urgent first.
    pub decisions: Vec<Decision>,
    /// What is under way, is waited for, or needs a person; a sentence each.
    pub remarks: Vec<String>,
}

impl Plan {
    fn decide(&mut self, step: Step, because: impl Into<String>) {
        self.decisions.push(Decision { step, because: because.into() });
    }
}

/// Decides what to do next.
#[must_use]
pub fn reconcile(fleet: &Fleet, observed: &Observed) -> Plan {
    let view = View::new(fleet, observed);
    let mut plan = Plan::default();
    nodes::remark_on_nodes(&view, &mut plan);
    let mut begins = Vec::new();
    for (&group, seen) in &observed.groups {
        begins.extend(group::decide(&view, group, seen, &mut plan));
    }
    // The most endangered groups first; a sort that keeps the order of equals gives the same plan for the same arguments.
    begins.sort_by_key(|begin| (!begin.is_repair(), begin.members_well, begin.group));
    let mut budget = Budget::new(&view);
    let mut begun = std::collections::BTreeSet::new();
    for begin in &begins {
        if !begun.contains(&begin.group) && try_to_begin(&view, &mut budget, begin, &mut plan) {
            begun.insert(begin.group);
        }
    }
    nodes::start_nodes(&view, &mut plan);
    nodes::settle_catalog(&view, &mut plan);
    plan
}

/// Begins a change if a node can take the segment and the limits allow it, or remarks why not.
fn try_to_begin(view: &View<'_>, budget: &mut Budget, begin: &Begin<'_>, plan: &mut Plan) -> bool {
    match budget.begin(view, begin) {
        Ok(replacement) => {
            let (group, after) = (begin.group, begin.membership.epoch());
            let step = Step::Change { group, after, transition: Transition::Begin(replacement) };
            plan.decide(step, format!("{}, and node {} has room", begin.because, replacement.new));
            true
        }
        Err(why) => {
            plan.remarks.push(format!("{}: {}; it waits, for {why}", begin.group, begin.because));
            false
        }
    }
}
