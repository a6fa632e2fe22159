//! What a restore reads.

use borealis_types::{EpochHistory, GroupId, Lsn, VolumeEpoch};

use crate::inventory::Inventory;
use crate::known::Known;
use crate::name::{ManifestName, Name, RedoName};
use crate::ranges::LsnRanges;
use crate::restorable::{Base, GroupState, restorable};

/// How to restore a volume to a point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The point: every record that ends at or before it, and that the history kept, and no other.
    pub point: Lsn,
    /// What the history says of records at or before the point.
    pub history: EpochHistory,
    /// The newest epoch of the volume that the backup is of. A restored volume begins above it.
    pub newest_epoch: VolumeEpoch,
    /// Each group, in number order.
    pub groups: Vec<GroupPlan>,
}

/// How to restore a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupPlan {
    /// The group.
    pub group: GroupId,
    /// The snapshot to begin with; `None` if the group's redo is there from its first record on.
    pub base: Option<ManifestName>,
    /// Redo to apply to it, in this order. Records that the base or an object before has are passed over
    /// ([`crate::chain::Chain`]).
    pub redo: Vec<PlannedRedo>,
}

/// A redo object in a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannedRedo {
    /// The object.
    pub name: RedoName,
    /// Records that end after this are left out: a recovery cut them, or the point is before them.
    pub through: Lsn,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{point} cannot be restored: group {group} has not all that it takes; {}",
    nearest(*.below, *.above)
)]
pub struct NotRestorable {
    /// The point that was asked for.
    pub point: Lsn,
    /// A group that cannot be restored to it.
    pub group: GroupId,
    /// The highest point below it to which all can.
    pub below: Option<Lsn>,
    /// The lowest point above it to which all can.
    pub above: Option<Lsn>,
}

fn nearest(below: Option<Lsn>, above: Option<Lsn>) -> String {
    match (below, above) {
        (None, None) => "no point can be restored".to_owned(),
        (Some(below), None) => format!("the newest point before it is {below}"),
        (None, Some(above)) => format!("the first point after it is {above}"),
        (Some(below), Some(above)) => format!("the nearest points are {below} and {above}"),
    }
}

/// Plans a restore to `point`.
///
/// # Errors
/// When what it takes is not there, as far as a listing can say.
pub fn plan(inventory: &Inventory, known: &Known, point: Lsn) -> Result<Plan, NotRestorable> {
    let mut groups = Vec::new();
    for group in known.placement.groups() {
        let state = GroupState::of(inventory, known, group);
        let Some(plan) = plan_group(&state, point) else {
            let points: LsnRanges = restorable(inventory, known);
            // The volume's beginning, which is nothing, is no point to offer.
            let below = points.at_or_below(point).filter(|below| *below > Lsn::ZERO);
            let above = points.at_or_above(point);
            return Err(NotRestorable { point, group, below, above });
        };
        groups.push(plan);
    }
    let mut history = EpochHistory::default();
    let before = known.history.openings().iter().filter(|opening| opening.last.end < point);
    before.for_each(|opening| history.push(*opening));
    Ok(Plan { point, history, newest_epoch: known.history.newest_epoch(), groups })
}

/// The base of a restore of a group to `point`: the newest that reaches it.
pub(crate) fn base_for(state: &GroupState, point: Lsn) -> Option<&Base> {
    state.bases.iter().rev().find(|base| base.lsn <= point && state.reach(base) >= point)
}

/// Not all redo is there of what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the backup has not all redo from {from} to {through}: of group {group} it goes on from there to {reach} only (what no kept point needs is \
     deleted, and what is new is not uploaded at once)"
)]
pub struct RedoMissing {
    /// Redo that ends after this was asked for, …
    pub from: Lsn,
    /// … to this.
    pub through: Lsn,
    /// A group of which not all is there.
    pub group: GroupId,
    /// How far it is complete from `from` on.
    pub reach: Lsn,
}

/// Plans to read the volume's log: every record that ends after `from`, at or before `through`, and that the history kept, from
/// redo alone. An object that a group begins with has older records, too.
///
/// # Errors
/// When not all of it is there, as far as a listing can say.
pub fn plan_log(
    inventory: &Inventory,
    known: &Known,
    from: Lsn,
    through: Lsn,
) -> Result<Vec<GroupPlan>, RedoMissing> {
    let plan_group = |group| {
        let state = GroupState::of(inventory, known, group);
        let reach = state.complete_from(from);
        if reach < through {
            return Err(RedoMissing { from, through, group, reach });
        }
        Ok(GroupPlan { group, base: None, redo: redo_between(&state, from, through) })
    };
    known.placement.groups().map(plan_group).collect()
}

fn plan_group(state: &GroupState, point: Lsn) -> Option<GroupPlan> {
    let base = base_for(state, point)?;
    let redo = redo_between(state, base.tail_end, point);
    Some(GroupPlan { group: state.group, base: base.manifest, redo })
}

/// Objects that go on from `from`, as far as there are any before `point`.
fn redo_between(state: &GroupState, from: Lsn, point: Lsn) -> Vec<PlannedRedo> {
    let mut redo = Vec::new();
    let mut at = from;
    let mut stretches = state.stretches.iter().peekable();
    while at < point {
        // Of those that go on from here, the one that goes furthest.
        let mut furthest = None;
        while let Some(stretch) = stretches.next_if(|stretch| stretch.after <= at) {
            if furthest.is_none_or(|best: &crate::restorable::Stretch| best.through < stretch.through) {
                furthest = Some(stretch);
            }
        }
        let Some(next) = furthest.filter(|next| next.through > at) else { break };
        // What begins at or after the point has no record that counts.
        if next.after < point {
            redo.push(PlannedRedo { name: next.name, through: next.through.min(point) });
        }
        at = next.through;
    }
    redo
}

impl Plan {
    /// Every object that a restore reads, but for those that manifests name.
    pub fn objects(&self) -> impl Iterator<Item = Name> {
        self.groups.iter().flat_map(|group| {
            let redo = group.redo.iter().map(|redo| Name::Redo(redo.name));
            group.base.map(Name::Manifest).into_iter().chain(redo)
        })
    }
}
