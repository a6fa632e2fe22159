//! Which points can be restored, as a listing says it.
//!
//! A group can be restored to a point if some snapshot of it at or before the point is there (or redo from the group's first
//! record on), redo without a gap from there, and evidence that this is all of it. The evidence is one of these: a redo object goes on
//! beyond the point; one says that the group was complete to the point; a mark says where the group's redo ended as of the point or a later
//! one. A volume can be restored to a point if all of its groups can.
//!
//! Of redo, only what the history kept counts: of an object of epoch *e* that is what ends at or before the opening of the epoch
//! after *e*. An object of an epoch that the history does not have counts for nothing.

use std::collections::BTreeMap;

use borealis_types::{EpochHistory, GroupId, Lsn};

use crate::inventory::Inventory;
use crate::known::{Known, admits_durable, kept_of};
use crate::name::{ManifestName, RedoName};
use crate::ranges::{LsnRange, LsnRanges};

/// What a redo object contributes under some history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    /// It has every record of the group that ends after this …
    pub after: Lsn,
    /// … to this; records behind it are left out.
    pub through: Lsn,
    /// If `through` is reached, the group is complete to here.
    pub complete_through: Lsn,
    pub name: RedoName,
}

/// What is left of an object; `None` if it is nothing.
pub(crate) fn stretch_of(name: &RedoName, history: &EpochHistory) -> Option<Stretch> {
    let kept = kept_of(history, name.epoch)?;
    let through = name.last_end.min(kept.through);
    let complete_through = name.complete_through.min(kept.through);
    let usable = through > name.previous_end && through > kept.after;
    usable.then_some(Stretch { after: name.previous_end, through, complete_through, name: *name })
}

/// Redo without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Island {
    after: Lsn,
    through: Lsn,
    complete_through: Lsn,
}

/// Where a restore of a group can begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Base {
    /// As of which it is.
    pub lsn: Lsn,
    /// Where the chain goes on.
    pub tail_end: Lsn,
    /// `None` is the beginning of the group, before its first record.
    pub manifest: Option<ManifestName>,
}

impl Base {
    const BEGINNING: Base = Base { lsn: Lsn::ZERO, tail_end: Lsn::ZERO, manifest: None };
}

/// What is there of one group.
#[derive(Debug)]
pub(crate) struct GroupState {
    pub group: GroupId,
    /// By where they begin.
    pub stretches: Vec<Stretch>,
    islands: Vec<Island>,
    /// Where the group's redo ends, rising, with the highest position of a mark that says so of that end or a lower one.
    tails: Vec<(Lsn, Lsn)>,
    /// By their points; the beginning of the group is the first.
    pub bases: Vec<Base>,
}

impl GroupState {
    pub(crate) fn of(inventory: &Inventory, known: &Known, group: GroupId) -> GroupState {
        let stretches = inventory.redo(group).filter_map(|name| stretch_of(&name, &known.history));
        let mut stretches: Vec<Stretch> = stretches.collect();
        stretches.sort_by_key(|stretch| (stretch.after, stretch.through));
        let mut highest = BTreeMap::<Lsn, Lsn>::new();
        for (tail, durable) in known.tails_of(group) {
            let known = highest.entry(tail).or_default();
            *known = durable.max(*known);
        }
        let mut so_far = Lsn::ZERO;
        let tails = highest.into_iter().map(|(tail, durable)| {
            so_far = so_far.max(durable);
            (tail, so_far)
        });
        let admitted = |manifest: &ManifestName| admits_durable(&known.history, manifest.epoch, manifest.lsn);
        let manifests = inventory.manifests(group).filter(admitted).map(|manifest| Base {
            lsn: manifest.lsn,
            tail_end: manifest.tail_end,
            manifest: Some(manifest),
        });
        let mut state = GroupState {
            group,
            tails: tails.collect(),
            bases: [Base::BEGINNING].into_iter().chain(manifests).collect(),
            islands: Vec::new(),
            stretches,
        };
        state.islands = state.islands();
        state
    }

    fn islands(&self) -> Vec<Island> {
        let mut islands: Vec<Island> = Vec::new();
        for &Stretch { after, through, complete_through, .. } in &self.stretches {
            match islands.last_mut() {
                Some(last) if after <= last.through => {
                    last.through = last.through.max(through);
                    last.complete_through = last.complete_through.max(complete_through);
                }
                _ => islands.push(Island { after, through, complete_through }),
            }
        }
        for island in &mut islands {
            island.complete_through = island.complete_through.max(self.marked_complete(island.through));
        }
        islands
    }

    /// How far marks say that a group is complete that has everything to `end`.
    fn marked_complete(&self, end: Lsn) -> Lsn {
        let known = self.tails.partition_point(|(tail, _)| *tail <= end);
        known.checked_sub(1).map_or(Lsn::ZERO, |at| self.tails[at].1).max(end)
    }

    /// How far the group is complete for a restore that begins at `base`.
    pub(crate) fn reach(&self, base: &Base) -> Lsn {
        let before = self.islands.partition_point(|island| island.after <= base.tail_end);
        let island = before.checked_sub(1).map(|at| self.islands[at]);
        let on = island.filter(|island| base.tail_end <= island.through);
        let complete =
            on.map_or_else(|| self.marked_complete(base.tail_end), |island| island.complete_through);
        complete.max(base.lsn)
    }

    /// How far redo has everything of the group that ends after `from`, whatever that is the end of; `from` if that is nothing.
    pub(crate) fn complete_from(&self, from: Lsn) -> Lsn {
        let before = self.islands.partition_point(|island| island.after <= from);
        let island = before.checked_sub(1).map(|at| self.islands[at]);
        let on = island.filter(|island| from <= island.through.max(island.complete_through));
        on.map_or_else(|| self.marked_complete(from), |island| island.complete_through)
    }

    /// To which points the group can be restored.
    pub(crate) fn restorable(&self) -> LsnRanges {
        let range = |base: &Base| LsnRange { from: base.lsn, through: self.reach(base) };
        self.bases.iter().map(range).collect()
    }
}

/// How far redo goes on without a gap from `from`, which is the end of a record or a position that a snapshot is as of, with these objects of one
/// group and as far as the history kept them.
#[must_use]
pub fn follow(names: impl IntoIterator<Item = RedoName>, history: &EpochHistory, from: Lsn) -> Lsn {
    let stretches = names.into_iter().filter_map(|name| stretch_of(&name, history));
    let mut stretches: Vec<Stretch> = stretches.collect();
    stretches.sort_by_key(|stretch| stretch.after);
    let mut end = from;
    for stretch in &stretches {
        if stretch.after > end {
            break;
        }
        end = end.max(stretch.through);
    }
    end
}

/// The newest snapshot of a group that the history admits.
#[must_use]
pub fn newest_snapshot(
    manifests: impl IntoIterator<Item = ManifestName>,
    history: &EpochHistory,
) -> Option<ManifestName> {
    let admitted = |manifest: &ManifestName| admits_durable(history, manifest.epoch, manifest.lsn);
    manifests.into_iter().filter(admitted).max_by_key(|manifest| manifest.lsn)
}

/// To which points one group can be restored.
#[must_use]
pub fn restorable_of_group(inventory: &Inventory, known: &Known, group: GroupId) -> LsnRanges {
    GroupState::of(inventory, known, group).restorable()
}

/// To which points the volume can be restored. A position between the ends of two records is as good as the end of the first.
#[must_use]
pub fn restorable(inventory: &Inventory, known: &Known) -> LsnRanges {
    let groups = known.placement.groups();
    groups.fold(LsnRanges::all(), |points, group| {
        points.intersection(&restorable_of_group(inventory, known, group))
    })
}
