//! What is decided from a listing, on random lives of a volume: plans restore exactly what every recovery kept, and
//! damage is named.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use borealis_archive::inventory::{Inventory, Stored};
use borealis_archive::known::Known;
use borealis_archive::name::{Name, RedoName};
use borealis_archive::plan::plan;
use borealis_archive::redo::RedoBuilder;
use borealis_archive::restorable::{restorable, restorable_of_group};
use borealis_archive::sealing::Sealing;
use borealis_archive::verify::{Fault, Verification};
use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, NodeId, Placement, RecordForm, RecordSpan, ServerVersion,
    VolumeEpoch,
};
use borealis_wire::{BatchRecord, GroupLink};
use proptest::prelude::*;
use world::{FIRST_MS, Random, VOLUME, World};

/// Points worth trying: every end of a record that ever was, its neighbours, and the ends of everything.
fn points(world: &World) -> Vec<Lsn> {
    let ends = world.line.iter().map(|record| record.span.end.0);
    let near = ends.flat_map(|end| [end - 1, end, end + 1]);
    [0, 1, world.durable.0].into_iter().chain(near).map(Lsn).collect()
}

proptest! {
    #[test]
    fn everything_that_is_durable_can_be_restored_and_is_restored_exactly(seed: u64) {
        let world = World::new(&mut Random::new(seed));
        let inventory = world.inventory();
        let known = world.known(&inventory);
        let reachable = restorable(&inventory, &known);
        for point in points(&world) {
            let plan = plan(&inventory, &known, point);
            prop_assert_eq!(plan.is_ok(), reachable.contains(point), "{} of {:?}", point, reachable);
            prop_assert!(plan.is_ok() || point > world.durable, "{:?}", plan);
            if let Ok(plan) = plan {
                world.restore(&plan, &inventory);
                let last = plan.history.newest().map_or(RecordSpan::NONE, |opening| opening.last);
                prop_assert!(last.end < point || point == Lsn::ZERO);
            }
        }
    }

    #[test]
    fn whatever_is_missing_a_plan_restores_exactly_or_there_is_none(seed: u64, missing in 1u64..6) {
        let mut random = Random::new(seed);
        let world = World::new(&mut random);
        let whole = world.inventory();
        let gone: BTreeSet<Name> =
            world.objects.keys().filter(|_| random.one_in(missing * 2)).cloned().collect();
        let listed = whole.without(&gone);
        let inventory = listed.without_broken(&world.references(&listed));
        let (known, all_known) = (world.known(&inventory), world.known(&whole));
        let (left, all) = (restorable(&inventory, &known), restorable(&whole, &all_known));
        // With an older history, what the newest recovery cut would count: it stays listed, or nothing newer is.
        if known.history == all_known.history {
            let more = left.without(&all);
            prop_assert!(more.ranges().is_empty(), "less cannot restore more: {more:?}");
            for point in points(&world) {
                match plan(&inventory, &known, point) {
                    Ok(plan) => world.restore(&plan, &inventory),
                    Err(error) => {
                        prop_assert!(!restorable_of_group(&inventory, &known, error.group).contains(point));
                        prop_assert!(error.below.is_none_or(|below| below < point && left.contains(below)));
                        prop_assert!(error.above.is_none_or(|above| above > point && left.contains(above)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_fenced_tail_never_counts(seed: u64) {
        let world = World::new(&mut Random::new(seed));
        let inventory = world.inventory();
        let known = world.known(&inventory);
        let cut = |name: &Name| match name {
            Name::Redo(redo) => {
                let next = known.history.openings().iter().find(|opening| opening.epoch > redo.epoch);
                next.is_some_and(|next| next.last.end <= redo.previous_end)
            }
            _ => false,
        };
        for point in points(&world) {
            if let Ok(plan) = plan(&inventory, &known, point) {
                prop_assert!(!plan.objects().any(|name| cut(&name)), "{plan:?}");
            }
        }
    }
}

/// The generated lives have what the tests are about, often.
#[test]
fn the_lives_have_what_the_tests_are_about() {
    let (mut cuts, mut tails, mut manifests, mut overlaps) = (0, 0, 0, 0);
    for seed in 0..200 {
        let world = World::new(&mut Random::new(seed));
        let inventory = world.inventory();
        let known = world.known(&inventory);
        tails += world.fenced_tails.len();
        cuts += known.history.openings().len() - 1;
        for group in world.placement.groups() {
            manifests += inventory.manifests(group).count();
            let redo: Vec<_> = inventory.redo(group).collect();
            overlaps += redo.windows(2).filter(|pair| pair[1].previous_end < pair[0].last_end).count();
        }
    }
    let seen = [("cuts", cuts), ("tails", tails), ("manifests", manifests), ("overlaps", overlaps)];
    assert!(seen.iter().all(|(_, count)| *count > 100), "{seen:?}");
}

#[test]
fn what_is_damaged_is_named_with_what_is_lost_and_never_restored_as_whole() {
    let mut lost = 0;
    for seed in 0..15 {
        let mut random = Random::new(seed);
        let world = World::new(&mut random);
        let inventory = world.inventory();
        let known = world.known(&inventory);
        let verify = |spoilt: Option<(&Name, Option<&[u8]>)>| {
            let mut verification = Verification::new(VOLUME, &inventory, &known, &Sealing::Plain);
            for (name, (bytes, _)) in &world.objects {
                match spoilt {
                    Some((other, bytes)) if other == name => verification.check(name, bytes),
                    _ => verification.check(name, Some(bytes)),
                }
            }
            verification
        };
        let sound = verify(None);
        assert_eq!(sound.references(), world.references(&inventory));
        let sound = sound.finish();
        assert!(sound.faults.is_empty(), "{:?}", sound.faults);
        assert_eq!(sound.objects, world.objects.len() as u64);
        let other = World::new(&mut Random::new(seed + 1000));
        for (name, (bytes, _)) in &world.objects {
            let mut flipped = bytes.clone();
            let at = random.below(bytes.len() as u64) as usize;
            flipped[at] ^= 1 << random.below(8);
            let cut = &bytes[..random.below(bytes.len() as u64) as usize];
            let foreign = other.objects.values().next().map(|(bytes, _)| &bytes[..]);
            for spoilt in [None, Some(&flipped[..]), Some(cut), foreign.filter(|foreign| foreign != bytes)] {
                let report = verify(Some((name, spoilt))).finish();
                assert!(report.faults.contains_key(name), "{name} is damaged and not named");
                let damaged: BTreeSet<Name> = report.faults.keys().cloned().collect();
                let rest = inventory.without(&damaged);
                for range in &report.lost {
                    lost += 1;
                    assert!(range.clock_ms.0 <= range.clock_ms.1);
                    assert!(!report.restorable.contains(range.range.from));
                    assert!(sound.restorable.contains(range.range.from));
                }
                let points = report.restorable.ranges().iter().flat_map(|range| [range.from, range.through]);
                for point in points.filter(|point| *point <= world.durable) {
                    let known = world.known(&rest.without(&BTreeSet::new()));
                    if known.history == world.history {
                        world.restore(&plan(&rest, &known, point).expect("restorable"), &rest);
                    }
                }
            }
        }
    }
    assert!(lost > 100, "{lost}");
}

#[test]
fn what_is_missing_between_is_a_gap_with_its_times() {
    let mut gaps = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let world = World::new(&mut random);
        let whole = world.inventory();
        let gone: BTreeSet<Name> = world
            .objects
            .keys()
            .filter(|name| matches!(name, Name::Redo(_)) && random.one_in(4))
            .cloned()
            .collect();
        let inventory = whole.without(&gone);
        let known = world.known(&inventory);
        let mut verification = Verification::new(VOLUME, &inventory, &known, &Sealing::Plain);
        for (name, (bytes, _)) in world.objects.iter().filter(|(name, _)| !gone.contains(name)) {
            verification.check(name, Some(bytes));
        }
        for gap in verification.finish().gaps {
            gaps += 1;
            assert!(plan(&inventory, &known, gap.range.from).is_err());
            assert!(plan(&inventory, &known, gap.range.through).is_err());
            let before = Lsn(gap.range.from.0 - 1);
            assert!(plan(&inventory, &known, before).is_ok(), "the gap begins where restoring ends");
        }
    }
    assert!(gaps > 20, "{gaps}");
}

#[test]
fn a_second_is_a_point() {
    for seed in 0..40 {
        let world = World::new(&mut Random::new(seed));
        let known = world.known(&world.inventory());
        assert_eq!(known.point_at(FIRST_MS - 1), None);
        assert_eq!(known.point_at(u64::MAX), Some(world.durable));
        assert_eq!(known.newest_mark().map(|(lsn, _)| lsn), Some(world.durable));
        let mut before = None;
        for clock_ms in (FIRST_MS..=world.clock_ms).step_by(250) {
            let point = known.point_at(clock_ms);
            assert!(before <= point, "time goes on, and so do points");
            before = point;
        }
    }
}

/// Two objects that look like a chain in a listing, and are none: the second begins inside a record of the first.
#[test]
fn objects_that_do_not_meet_at_the_end_of_a_record_are_no_chain() {
    let (group, node, epoch) = (GroupId(0), NodeId(1), VolumeEpoch(1));
    let object = |previous: u64, ends: &[u64], epoch| {
        let mut builder = RedoBuilder::new(VOLUME, group, node, epoch, Lsn(previous));
        let mut before = previous;
        for &end in ends {
            let links = vec![GroupLink { group, previous_end: Lsn(before) }];
            let span = RecordSpan { start: Lsn(before), end: Lsn(end) };
            let record = BatchRecord { span, links, form: RecordForm::default(), bytes: &[1] };
            builder.push(epoch, &record).expect("the next one");
            before = end;
        }
        builder.finish(Lsn::ZERO, &Sealing::Plain).expect("records")
    };
    let verify = |history: EpochHistory, objects: Vec<(RedoName, Vec<u8>)>| {
        let placement = Placement::new(1).expect("one group");
        let known = Known { placement, history, marks: BTreeMap::new() };
        let mut inventory = Inventory::default();
        for (name, _) in &objects {
            inventory.insert(Name::Redo(*name), Stored::default());
        }
        let mut verification = Verification::new(VOLUME, &inventory, &known, &Sealing::Plain);
        for (name, bytes) in &objects {
            verification.check(&Name::Redo(*name), Some(bytes));
        }
        verification.finish()
    };
    let opening = |epoch, end| EpochOpening {
        epoch: VolumeEpoch(epoch),
        last: RecordSpan { start: Lsn(end), end: Lsn(end) },
        server_version: ServerVersion::NEWEST_TESTED,
    };
    let mut history = EpochHistory::default();
    history.push(opening(1, 0));
    let first = || object(0, &[80, 160, 240], epoch);
    let good = verify(history.clone(), vec![first(), object(160, &[240, 320], epoch)]);
    assert!(good.faults.is_empty() && good.restorable.contains(Lsn(320)), "{good:?}");
    let (bad, bytes) = object(152, &[232, 320], epoch);
    let report = verify(history.clone(), vec![first(), (bad, bytes)]);
    assert_eq!(report.faults, BTreeMap::from([(Name::Redo(bad), Fault::DoesNotMeet(Lsn(152)))]));
    assert_eq!(report.lost.iter().map(|lost| lost.range.from).collect::<Vec<_>>(), [Lsn(241)]);

    // A recovery cut at 160. What it cut may have its records anywhere; what goes on from there begins at an end.
    history.push(opening(2, 160));
    let good = verify(history.clone(), vec![first(), object(160, &[232, 320], VolumeEpoch(2))]);
    assert!(good.faults.is_empty() && good.restorable.contains(Lsn(320)), "{good:?}");
    let mut history = EpochHistory::default();
    history.push(opening(1, 0));
    history.push(opening(2, 152));
    let report = verify(history, vec![first(), object(152, &[232, 320], VolumeEpoch(2))]);
    assert_eq!(report.faults.len(), 1, "{report:?}");
}
