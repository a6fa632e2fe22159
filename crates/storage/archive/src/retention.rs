//! What nobody can need any more, and in which order it is deleted.
//!
//! What must stay reachable: every point that was reached within the retention's window, and every named snapshot, as far as it can
//! be restored now. From that follows what is kept; what is left over is deleted, if it is old enough that nobody can be about to
//! build on it: a page object may be of a snapshot whose manifest comes tomorrow.
//!
//! A deletion that is interrupted leaves a part of what was to go, and everything that was to stay. Manifests go first, so that none
//! is left whose pages are gone; the next deletion begins with a new listing and finds the rest.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{GroupId, Lsn, invariant};

use crate::inventory::{Inventory, Stored};
use crate::known::{Known, kept_of};
use crate::marks::superseded;
use crate::name::{ManifestName, MarksName, Name, PagesName, RedoName};
use crate::plan::base_for;
use crate::ranges::{LsnRange, LsnRanges};
use crate::restorable::{Base, GroupState};
use crate::settings::{NamedSnapshot, Retention};

/// What a deletion is decided from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// What is there.
    pub inventory: &'a Inventory,
    /// What was read of it.
    pub known: &'a Known,
    /// How long points are kept.
    pub retention: Retention,
    /// Points that are kept for longer.
    pub named: &'a [NamedSnapshot],
    /// Which page objects each manifest names. Of a group that has a manifest which stays and is not here, no page object is deleted.
    pub references: &'a BTreeMap<ManifestName, BTreeSet<PagesName>>,
    /// Objects that were found damaged: nothing that stays may rest on them alone.
    pub damaged: &'a BTreeSet<Name>,
    /// The clock of the store, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Objects to delete, in phases: each phase is done before the next one begins.
pub type Phases = Vec<Vec<Name>>;

/// What can be deleted now, in the order in which it must be.
#[must_use]
pub fn deletable(situation: &Situation<'_>) -> Phases {
    let sound = situation.inventory.without(situation.damaged);
    let mut keep = Keep::default();
    for group in situation.known.placement.groups() {
        keep_of_group(situation, &sound, group, &mut keep);
    }
    keep_marks(situation, &sound, &mut keep);
    let phases = phases(situation, &keep);
    assert_points_stay(situation, &phases);
    phases
}

/// What has to stay.
#[derive(Debug, Default)]
struct Keep {
    manifests: BTreeSet<ManifestName>,
    redo: BTreeSet<RedoName>,
    marks: BTreeSet<MarksName>,
}

/// Where the window begins: what was durable then. Zero, if nothing tells what was.
fn window_start(situation: &Situation<'_>) -> Lsn {
    let clock_ms = situation.now_ms.saturating_sub(situation.retention.window_ms);
    situation.known.point_at(clock_ms).unwrap_or(Lsn::ZERO)
}

/// Whether an object has been there for long enough that nobody is about to build on it, and everybody who lists sees it.
fn is_settled(situation: &Situation<'_>, stored: Stored) -> bool {
    stored.modified_ms.saturating_add(situation.retention.unfinished_ms) <= situation.now_ms
}

/// The points that must stay, as far as they can be restored: the window, and those with a name.
fn needed(situation: &Situation<'_>) -> LsnRanges {
    let window = LsnRange { from: window_start(situation), through: Lsn::MAX };
    let named = situation.named.iter().map(|named| LsnRange { from: named.lsn, through: named.lsn });
    [window].into_iter().chain(named).collect()
}

fn keep_of_group(situation: &Situation<'_>, sound: &Inventory, group: GroupId, keep: &mut Keep) {
    let state = GroupState::of(sound, situation.known, group);
    // A base counts only once it has been there for a while: until then its predecessor stays.
    let settled = |base: &Base| {
        let manifest = base.manifest.map(Name::Manifest);
        manifest.is_none_or(|name| sound.get(&name).is_some_and(|stored| is_settled(situation, stored)))
    };
    let start = window_start(situation);
    let points = state.restorable().intersection(&needed(situation));
    let settled_state = GroupState::of(sound, situation.known, group).only_bases(settled);
    for range in points.ranges() {
        // A point in the window needs its base, and everything after it; a base within the window stays anyhow.
        let base = base_for(&settled_state, range.from).or_else(|| base_for(&state, range.from));
        let Some(base) = base else { continue };
        keep.manifests.extend(base.manifest);
        // One that ends where the base does may be all that says how far the group is complete.
        let needed = |redo: &RedoName| redo.last_end >= base.tail_end && redo.previous_end < range.through;
        keep.redo.extend(sound.redo(group).filter(needed));
    }
    keep.manifests.extend(situation.inventory.manifests(group).filter(|manifest| manifest.lsn > start));
    // The newest one is what the next snapshot is built on.
    keep.manifests.extend(state.bases.iter().rev().find_map(|base| base.manifest));
    keep.manifests.extend(settled_state.bases.iter().rev().find_map(|base| base.manifest));
    for redo in situation.inventory.redo(group) {
        let name = Name::Redo(redo);
        let young = situation.inventory.get(&name).is_some_and(|stored| !is_settled(situation, stored));
        if young || redo.last_end > start || kept_of(&situation.known.history, redo.epoch).is_none() {
            keep.redo.insert(redo);
        }
    }
    let covered = covered(situation, sound, &keep.redo, group);
    keep.redo.retain(|redo| !covered.contains(redo));
}

/// Redo objects that others make superfluous: a settled one of the same epoch has all their records and says as much.
fn covered(
    situation: &Situation<'_>,
    sound: &Inventory,
    kept: &BTreeSet<RedoName>,
    group: GroupId,
) -> BTreeSet<RedoName> {
    let mut of_group: Vec<RedoName> = kept.iter().copied().filter(|name| name.group == group).collect();
    of_group.sort_by_key(|name| {
        let RedoName { epoch, previous_end, last_end, complete_through, .. } = *name;
        // Whoever may cover another comes before it.
        (epoch, previous_end, std::cmp::Reverse((last_end, complete_through)), *name)
    });
    let settled =
        |name: &RedoName| sound.get(&Name::Redo(*name)).is_some_and(|stored| is_settled(situation, stored));
    let mut covered = BTreeSet::new();
    let mut widest: Option<RedoName> = None;
    for name in of_group {
        let by = widest.filter(|wide| {
            wide.epoch == name.epoch
                && wide.last_end >= name.last_end
                && wide.complete_through >= name.complete_through
        });
        if by.is_some() && settled(&name) {
            covered.insert(name);
        } else if settled(&name)
            && widest.is_none_or(|wide| wide.epoch != name.epoch || wide.last_end < name.last_end)
        {
            widest = Some(name);
        }
    }
    covered
}

/// Marks of the window stay, and those that alone say that a group was complete to a named point.
fn keep_marks(situation: &Situation<'_>, sound: &Inventory, keep: &mut Keep) {
    let clock_ms = situation.now_ms.saturating_sub(situation.retention.window_ms);
    let start = window_start(situation);
    // A list counts as having another's marks only once it was read itself.
    let listed: Vec<MarksName> = situation.inventory.marks().collect();
    let was_read = |list: &&MarksName| situation.known.marks.contains_key(list);
    let longest: BTreeSet<MarksName> = {
        let superseded = superseded(listed.iter().filter(was_read));
        listed.iter().filter(was_read).filter(|list| !superseded.contains(list)).copied().collect()
    };
    let is_superseded = |list: &MarksName| {
        let has_all = |long: &MarksName| {
            (long.node, long.from_ms) == (list.node, list.from_ms) && long.to_ms > list.to_ms
        };
        longest.iter().any(has_all)
    };
    for marks in listed.iter().copied() {
        let name = Name::Marks(marks);
        let young = situation.inventory.get(&name).is_some_and(|stored| !is_settled(situation, stored));
        // The one that says where the window begins is older than the window.
        let tells_the_start =
            situation.known.marks.get(&marks).is_none_or(|list| {
                list.iter().any(|mark| mark.durable == start && mark.clock_ms <= clock_ms)
            });
        if young || (!is_superseded(&marks) && (marks.to_ms >= clock_ms || tells_the_start)) {
            keep.marks.insert(marks);
        }
    }
    for group in situation.known.placement.groups() {
        let state = GroupState::of(sound, situation.known, group);
        for named in situation.named {
            let Some(base) = base_for(&state, named.lsn) else { continue };
            let end = end_of_chain(&state, base, named.lsn);
            let evidence = situation.known.admitted_marks().find(|(_, mark)| {
                let tail = mark.tails.iter().find(|tail| tail.group == group);
                mark.durable >= named.lsn && tail.is_some_and(|tail| tail.last_end <= end)
            });
            keep.marks.extend(evidence.map(|(name, _)| *name));
        }
    }
}

/// How far redo goes from a base on, as far as it is needed to reach a point.
fn end_of_chain(state: &GroupState, base: &Base, point: Lsn) -> Lsn {
    let mut end = base.tail_end;
    for stretch in &state.stretches {
        if stretch.after <= end && stretch.after < point {
            end = end.max(stretch.through);
        }
    }
    end
}

fn phases(situation: &Situation<'_>, keep: &Keep) -> Phases {
    let mut phases: Phases = vec![Vec::new(); 4];
    let newest_history = situation.inventory.histories().map(|history| history.epoch).max();
    let newest_revision = situation.inventory.retention_revision();
    let page_objects_kept = page_objects_kept(situation, keep);
    let is_of = |group: GroupId| group.0 < situation.known.placement.group_count();
    for (name, stored) in situation.inventory.objects() {
        if !is_settled(situation, stored) {
            continue;
        }
        let phase = match name {
            Name::Manifest(manifest) if is_of(manifest.group) && !keep.manifests.contains(manifest) => 0,
            Name::Pages(pages)
                if page_objects_kept.get(&pages.group).is_some_and(|kept| !kept.contains(pages)) =>
            {
                1
            }
            Name::Redo(redo) if is_of(redo.group) && !keep.redo.contains(redo) => 2,
            Name::Marks(marks) if !keep.marks.contains(marks) => 3,
            Name::History(history) if Some(history.epoch) < newest_history => 3,
            Name::Retention { revision } if Some(*revision) < newest_revision => 3,
            _ => continue,
        };
        phases[phase].push(name.clone());
    }
    phases.retain(|phase| !phase.is_empty());
    phases
}

/// The page objects that manifests which stay name, for each group of which all such manifests were read.
fn page_objects_kept(situation: &Situation<'_>, keep: &Keep) -> BTreeMap<GroupId, BTreeSet<PagesName>> {
    let mut kept = BTreeMap::new();
    for group in situation.known.placement.groups() {
        let manifests = situation.inventory.manifests(group).filter(|manifest| {
            let young =
                situation.inventory.get(&Name::Manifest(*manifest)).is_none_or(|s| !is_settled(situation, s));
            keep.manifests.contains(manifest) || young
        });
        let named: Option<Vec<_>> = manifests.map(|manifest| situation.references.get(&manifest)).collect();
        if let Some(named) = named {
            kept.insert(group, named.into_iter().flatten().copied().collect());
        }
    }
    kept
}

/// What is left reaches every point that must stay.
fn assert_points_stay(situation: &Situation<'_>, phases: &Phases) {
    let going: BTreeSet<Name> = phases.iter().flatten().cloned().collect();
    let rest_known = Known {
        marks: situation
            .known
            .marks
            .iter()
            .filter(|(name, _)| !going.contains(&Name::Marks(**name)))
            .map(|(name, marks)| (*name, marks.clone()))
            .collect(),
        ..situation.known.clone()
    };
    let sound = situation.inventory.without(situation.damaged);
    let rest = sound.without(&going);
    let needed = needed(situation);
    for group in situation.known.placement.groups() {
        let before = GroupState::of(&sound, situation.known, group).restorable().intersection(&needed);
        let after = GroupState::of(&rest, &rest_known, group).restorable();
        let lost = before.without(&after);
        invariant!(
            "kept-points-stay-restorable",
            lost.ranges().is_empty(),
            "deletion would lose {:?} of group {group}",
            lost.ranges()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::Mark;
    use crate::object::Digest;
    use borealis_types::{
        EpochHistory, EpochOpening, NodeId, Placement, RecordSpan, ServerVersion, VolumeEpoch,
    };

    fn redo(previous_end: u64, last_end: u64, complete_through: u64) -> RedoName {
        RedoName {
            group: GroupId(0),
            last_end: Lsn(last_end),
            previous_end: Lsn(previous_end),
            epoch: VolumeEpoch(1),
            complete_through: Lsn(complete_through),
            node: NodeId(1),
            digest: Digest([1; 16]),
        }
    }

    fn history() -> EpochHistory {
        let mut history = EpochHistory::default();
        let server_version = ServerVersion::NEWEST_TESTED;
        history.push(EpochOpening { epoch: VolumeEpoch(1), last: RecordSpan::NONE, server_version });
        history
    }

    #[test]
    fn redo_that_ends_where_a_snapshot_does_stays_while_it_says_how_far_the_group_is_complete() {
        let says_it = redo(0, 160, 400);
        let (lsn, tail_end, epoch) = (Lsn(200), Lsn(160), VolumeEpoch(1));
        let digest = Digest([2; 16]);
        let snapshot = ManifestName { group: GroupId(0), lsn, tail_end, epoch, node: NodeId(1), digest };
        // The mark of a node that does not have the group, and so says nothing of where its redo ends.
        let durable = Lsn(300);
        let mark = Mark { clock_ms: 1_000, epoch, durable, tails: Vec::new() };
        let marks = MarksName {
            to_ms: 1_000,
            from_ms: 1_000,
            lsn: durable,
            node: NodeId(2),
            digest: Digest([3; 16]),
        };
        let mut inventory = Inventory::default();
        for name in [Name::Redo(says_it), Name::Manifest(snapshot), Name::Marks(marks)] {
            inventory.insert(name, Stored::default());
        }
        let placement = Placement::new(1).expect("one group");
        let situation = Situation {
            inventory: &inventory,
            known: &Known { placement, history: history(), marks: [(marks, vec![mark])].into() },
            retention: Retention { window_ms: 0, unfinished_ms: 0 },
            named: &[],
            references: &[(snapshot, BTreeSet::new())].into(),
            damaged: &BTreeSet::new(),
            now_ms: 1_000_000,
        };
        assert_eq!(deletable(&situation), Phases::new(), "position 300 is reached with all of them only");
    }

    #[test]
    #[should_panic(
        expected = "invariant kept-points-stay-restorable is broken: deletion would lose [LsnRange { from: 0/1,"
    )]
    fn a_deletion_that_would_lose_a_point_is_noticed() {
        let redo = Name::Redo(redo(0, 160, 160));
        let mut inventory = Inventory::default();
        inventory.insert(redo.clone(), Stored::default());
        let placement = Placement::new(1).expect("one group");
        let situation = Situation {
            inventory: &inventory,
            known: &Known { placement, history: history(), marks: BTreeMap::new() },
            retention: Retention::default(),
            named: &[],
            references: &BTreeMap::new(),
            damaged: &BTreeSet::new(),
            now_ms: u64::MAX,
        };
        assert_eq!(
            deletable(&situation),
            Phases::new(),
            "without a mark nothing says when the window begins"
        );
        assert_points_stay(&situation, &vec![vec![redo]]);
    }
}
