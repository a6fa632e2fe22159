//! Uploaders of six nodes against a store that fails in every way, by a clock that is turned by hand: whatever happens, what is in the store
//! is a prefix of the volume's history, and it catches up by itself.

mod rig;

use std::collections::BTreeSet;

use borealis_archive::duty::Duty;
use borealis_archive::name::Name;
use borealis_archive::restorable::restorable;
use borealis_archive::sealing::{Sealing, SealingKey};
use borealis_backup::store::retrying::Retrying;
use borealis_backup::store::{ErrorKind, ObjectStore};
use borealis_types::{GroupId, Lsn, NodeId};
use rig::{NODES, Rig, VOLUME};

/// Records in groups 0 and 1 for some time, of which group 2 has none.
fn write_for(rig: &mut Rig, seconds: u64) {
    let has_two = rig.volume.placement.group_count() > 1;
    for tick in 0..seconds * 10 {
        rig.volume.write(if has_two && tick % 3 == 0 { &[0, 1] } else { &[0] });
        if has_two {
            rig.volume.write(&[1]);
        }
        rig.pass(100);
    }
}

#[test]
fn the_newest_point_is_never_more_than_a_second_old_and_one_node_uploads_each_group() {
    let mut rig = Rig::new(3);
    let mut a_second_ago = Lsn::ZERO;
    for second in 0..30 {
        write_for(&mut rig, 1);
        let newest = rig.newest_restorable();
        assert!(newest >= a_second_ago, "second {second}: {newest} of {a_second_ago}");
        a_second_ago = rig.volume.durable;
    }
    for group in 0..2 {
        assert_eq!(rig.uploaders_of(group, Lsn::ZERO).len(), 1, "group {group}");
    }
    assert!(rig.uploaders_of(2, Lsn::ZERO).is_empty(), "an idle group costs no object, and holds nothing up");
    rig.pass(1_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
    let objects = rig.inventory().objects().count();
    rig.pass(60_000);
    assert_eq!(rig.inventory().objects().count(), objects, "an idle volume costs nothing");
}

/// Providers take money for each: 16 busy groups ask for two objects of redo and one of marks (and the removal of the one before) every half
/// second, beside looks of those who would take over.
#[test]
fn requests_are_few_and_one_node_makes_the_marks() {
    const GROUPS: u16 = 16;
    const SECONDS: u64 = 120;
    let mut rig = Rig::new(GROUPS);
    let all: Vec<u16> = (0..GROUPS).collect();
    let write = |rig: &mut Rig, seconds| {
        for _ in 0..seconds * 10 {
            rig.volume.write(&all);
            rig.pass(100);
        }
    };
    write(&mut rig, 60);
    let before = *rig.store.requests.lock().unwrap();
    write(&mut rig, SECONDS);
    let requests = *rig.store.requests.lock().unwrap() - before;
    let of_objects = SECONDS * 2 * u64::from(GROUPS + 2);
    assert!(requests < of_objects + SECONDS * 5, "{requests} requests, {of_objects} of them for objects");
    let lately = rig.now().wall_ms - SECONDS * 500;
    let makers: BTreeSet<_> =
        rig.inventory().marks().filter(|list| list.to_ms > lately).map(|list| list.node).collect();
    assert_eq!(makers.len(), 1, "{makers:?}");
    // When it is gone another makes them.
    let gone = makers.into_iter().next().unwrap();
    rig.stop(gone);
    write(&mut rig, 60);
    rig.pass(2_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
}

/// Whoever uploads a group that has nothing new shows nobody that it is well, so others do not rely on its marks.
#[test]
fn marks_go_on_while_the_first_group_is_quiet_and_its_uploader_is_stuck() {
    let mut rig = Rig::new(3);
    write_for(&mut rig, 40);
    let first = rig.uploaders_of(0, Lsn::ZERO)[0];
    let second = rig.uploaders_of(1, Lsn::ZERO)[0];
    assert_ne!(first, second, "or this shows nothing");
    // It leaves nothing for which another would take over.
    rig.pass(2_000);
    rig.stop(first);
    for _ in 0..1_500 {
        rig.volume.write(&[1]);
        rig.pass(100);
    }
    rig.pass(2_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
}

#[test]
fn a_store_that_fails_for_ten_minutes_is_caught_up_with() {
    for kind in ErrorKind::ALL {
        let mut rig = Rig::new(2);
        write_for(&mut rig, 3);
        let before = rig.newest_restorable();
        *rig.store.failing.lock().unwrap() = Some(kind);
        let asked = *rig.store.requests.lock().unwrap();
        let began_ms = rig.now().wall_ms;
        write_for(&mut rig, 600);
        let attempts = *rig.store.requests.lock().unwrap() - asked;
        assert!(attempts < 6 * 60, "{kind}: {attempts} attempts in ten minutes");
        for (uploader, _) in rig.uploaders.borrow().values() {
            let status = uploader.status(rig.now());
            let failure = status.last_failure.expect("it says what is wrong");
            assert_eq!(failure.kind, Some(kind));
            // Who uploads nothing asks the store only now and then.
            let uploads = status.groups.iter().any(|group| group.duty == Some(Duty::Upload));
            let noticed_ms = if uploads { 10_000 } else { 40_000 };
            assert!((began_ms..began_ms + noticed_ms).contains(&failure.since_ms), "and since when");
            assert!(failure.attempts > 5 && status.failures[&kind] == failure.attempts);
            assert!(status.groups.iter().all(|group| group.durable > before && group.behind_ms > 500_000));
        }
        assert_eq!(rig.newest_restorable(), before);
        *rig.store.failing.lock().unwrap() = None;
        rig.pass(120_000);
        assert_eq!(rig.newest_restorable(), rig.volume.durable, "{kind}");
        let uploaders = rig.uploaders.borrow();
        let status: Vec<_> = uploaders.values().map(|(uploader, _)| uploader.status(rig.now())).collect();
        assert!(status.iter().all(|status| status.last_failure.is_none() && status.gaps.is_empty()));
        assert!(status.iter().flat_map(|status| &status.groups).all(|group| group.behind_ms < 10_000));
    }
}

#[test]
fn lost_answers_and_broken_connections_lose_nothing() {
    for one_in in [2, 3, 10] {
        let mut rig = Rig::new(2);
        *rig.store.one_in.lock().unwrap() = one_in;
        for _ in 0..10 {
            write_for(&mut rig, 3);
            assert!(rig.newest_restorable() <= rig.volume.durable);
        }
        *rig.store.one_in.lock().unwrap() = 0;
        rig.pass(60_000);
        assert_eq!(rig.newest_restorable(), rig.volume.durable, "one in {one_in}");
    }
}

#[test]
fn another_peer_takes_over_and_the_first_does_not_fight_for_it() {
    let mut rig = Rig::new(1);
    write_for(&mut rig, 5);
    let first = rig.uploaders_of(0, Lsn::ZERO);
    assert_eq!(first.len(), 1);
    rig.stop(first[0]);
    let stopped = rig.volume.durable;
    write_for(&mut rig, 40);
    let second = rig.uploaders_of(0, stopped);
    assert!(!second.is_empty() && !second.contains(&first[0]), "{second:?}");
    rig.pass(1_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable, "nothing is missing between the two");
    write_for(&mut rig, 20);
    rig.start(first[0], &|_| {});
    let back = rig.volume.durable;
    write_for(&mut rig, 60);
    let now = rig.uploaders_of(0, back);
    assert!(now.len() == 1 && now != first, "{now:?} goes on");
}

#[test]
fn a_peer_that_has_not_everything_does_not_upload() {
    let mut rig = Rig::new(1);
    write_for(&mut rig, 5);
    let first = rig.uploaders_of(0, Lsn::ZERO)[0];
    rig.volume.incomplete = vec![first];
    let from = rig.volume.durable;
    write_for(&mut rig, 30);
    assert_ne!(rig.uploaders_of(0, Lsn(from.0 + 10_000)), [first]);
    let uploaders = rig.uploaders.borrow();
    assert_eq!(uploaders[&first].0.status(rig.now()).groups[0].duty, Some(Duty::Unfit));
}

#[test]
fn redo_that_the_node_let_go_of_is_a_gap_that_is_said_and_never_restored_over() {
    let mut rig = Rig::new(1);
    write_for(&mut rig, 3);
    rig.pass(1_000);
    let before = rig.volume.durable;
    *rig.store.failing.lock().unwrap() = Some(ErrorKind::Full);
    write_for(&mut rig, 20);
    rig.volume.log_floor = rig.volume.durable;
    let let_go = rig.volume.tail(GroupId(0), rig.volume.durable);
    write_for(&mut rig, 3);
    *rig.store.failing.lock().unwrap() = None;
    rig.pass(400_000);
    let inventory = rig.inventory();
    let known = rig.known(&inventory);
    let points = restorable(&inventory, &known);
    assert_eq!(points.at_or_below(Lsn::MAX), Some(before), "without a snapshot the rest is of no use");
    rig.restore(&inventory, &known, before);
    let uploaders = rig.uploaders.borrow();
    let gaps: Vec<_> = uploaders.values().flat_map(|(uploader, _)| uploader.status(rig.now()).gaps).collect();
    assert!(!gaps.is_empty());
    assert!(gaps.iter().all(|gap| gap.from == before && gap.through == let_go && gap.group == GroupId(0)));
    let newest = inventory.redo(GroupId(0)).last().expect("it goes on after the gap");
    assert_eq!(newest.last_end, rig.volume.durable);
}

#[test]
fn what_one_node_let_go_of_another_may_still_have() {
    for has_all in 1..=NODES {
        let mut rig = Rig::new(1);
        write_for(&mut rig, 3);
        *rig.store.failing.lock().unwrap() = Some(ErrorKind::Full);
        write_for(&mut rig, 20);
        rig.volume.log_floor = rig.volume.durable;
        rig.volume.has_all = vec![NodeId(has_all)];
        write_for(&mut rig, 3);
        *rig.store.failing.lock().unwrap() = None;
        rig.pass(400_000);
        assert_eq!(rig.newest_restorable(), rig.volume.durable, "node {has_all} has it");
        let uploaders = rig.uploaders.borrow();
        assert!(uploaders.values().all(|(uploader, _)| uploader.status(rig.now()).gaps.is_empty()));
    }
}

#[test]
fn redo_that_has_not_arrived_yet_is_waited_for() {
    let mut rig = Rig::new(1);
    write_for(&mut rig, 3);
    rig.pass(1_000);
    let from = rig.volume.durable;
    write_for(&mut rig, 1);
    rig.volume.hole = Lsn(from.0 + 1)..Lsn(rig.volume.durable.0 + 1);
    let before = rig.newest_restorable();
    write_for(&mut rig, 400);
    assert_eq!(rig.newest_restorable(), before.max(from));
    rig.volume.hole = Lsn::ZERO..Lsn::ZERO;
    rig.pass(60_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
    let uploaders = rig.uploaders.borrow();
    assert!(uploaders.values().all(|(uploader, _)| uploader.status(rig.now()).gaps.is_empty()));
}

#[test]
fn what_is_not_durable_is_not_uploaded_and_a_cut_is_never_restored() {
    let mut rig = Rig::new(2);
    for _ in 0..6 {
        write_for(&mut rig, 2);
        for _ in 0..7 {
            rig.volume.write_uncertain(&[0, 1]);
        }
        rig.pass(2_000);
        assert_eq!(rig.newest_restorable(), rig.volume.durable);
        rig.volume.recover();
        write_for(&mut rig, 2);
        assert!(rig.newest_restorable() <= rig.volume.durable);
    }
    rig.pass(2_000);
    let inventory = rig.inventory();
    let known = rig.known(&inventory);
    assert_eq!(known.history, rig.volume.history);
    for record in rig.volume.line.iter().step_by(7) {
        rig.restore(&inventory, &known, record.span.end);
    }
}

/// The history of an epoch is in the store before any redo of it, whatever fails.
#[test]
fn history_comes_before_redo() {
    let mut rig = Rig::new(1);
    *rig.store.one_in.lock().unwrap() = 2;
    for _ in 0..20 {
        write_for(&mut rig, 1);
        let inventory = rig.inventory();
        let newest = inventory.histories().last().map(|history| history.epoch);
        assert!(inventory.redo(GroupId(0)).all(|redo| Some(redo.epoch) <= newest));
        rig.volume.recover();
    }
}

#[test]
fn one_group_that_cannot_be_read_does_not_hold_up_the_others() {
    let mut rig = Rig::new(2);
    write_for(&mut rig, 2);
    rig.volume.unreadable.set(Some(GroupId(0)));
    write_for(&mut rig, 5);
    rig.pass(1_000);
    let newest = rig.inventory().redo(GroupId(1)).last().expect("group 1 goes on");
    assert_eq!(newest.last_end, rig.volume.durable);
    let says = |rig: &Rig| {
        let uploaders = rig.uploaders.borrow();
        let failures = uploaders.values().filter_map(|(uploader, _)| uploader.status(rig.now()).last_failure);
        failures.filter(|failure| failure.kind.is_none() && failure.what.contains("group 0")).count()
    };
    assert!(says(&rig) > 0);
    rig.volume.unreadable.set(None);
    rig.pass(60_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
    assert_eq!(says(&rig), 0);
}

#[test]
fn the_rate_is_bounded_and_objects_are_of_the_size_they_should_be() {
    const RATE: u64 = 200_000;
    let mut rig = Rig::with(1, |options| {
        options.bytes_per_second = RATE;
        options.object_bytes = 100_000;
    });
    rig.volume.record_bytes = 2_000;
    *rig.store.failing.lock().unwrap() = Some(ErrorKind::Down);
    for _ in 0..2_000 {
        rig.volume.write(&[0]);
    }
    rig.pass(1_000);
    *rig.store.failing.lock().unwrap() = None;
    let uploaded = |rig: &Rig| rig.inventory().objects().map(|(_, stored)| stored.bytes).sum::<u64>();
    let mut before = uploaded(&rig);
    for _ in 0..12 {
        rig.pass(1_000);
        let now = uploaded(&rig);
        assert!(now - before <= 2 * RATE + 100_000, "{} bytes in a second", now - before);
        before = now;
        // An object that has not all says so: what is restored is compared.
        assert!(rig.newest_restorable() < rig.volume.durable);
    }
    rig.pass(60_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
    let sizes: Vec<u64> = rig
        .inventory()
        .objects()
        .filter_map(|(name, stored)| matches!(name, Name::Redo(_)).then_some(stored.bytes))
        .collect();
    assert!(sizes.len() > 20 && sizes.iter().all(|bytes| *bytes < 1_300_000), "{sizes:?}");
}

#[test]
fn what_is_uploaded_encrypted_says_nothing_without_the_key() {
    let sealing = Sealing::from(SealingKey::new([7; 32]));
    let mut rig = Rig::with(1, |options| options.sealing = sealing.clone());
    rig.sealing = sealing;
    write_for(&mut rig, 3);
    rig.pass(1_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
    let (name, _) =
        rig.inventory().objects().next().map(|(name, stored)| (name.clone(), stored)).expect("objects");
    let bytes = rig.store.inner.get(&name.key(VOLUME)).expect("it is listed");
    assert_eq!(bytes[10], 1, "it says that it is encrypted");
}

#[test]
fn nodes_that_all_come_back_at_once_go_on_where_the_store_is() {
    let mut rig = Rig::new(2);
    write_for(&mut rig, 10);
    rig.pass(1_000);
    let redo =
        |rig: &Rig| rig.inventory().redo(GroupId(0)).count() + rig.inventory().redo(GroupId(1)).count();
    let objects = redo(&rig);
    for node in (1..=NODES).map(NodeId) {
        rig.stop(node);
        rig.start(node, &|_| {});
    }
    rig.pass(30_000);
    assert_eq!(redo(&rig), objects, "nothing is uploaded twice");
    write_for(&mut rig, 2);
    rig.pass(1_000);
    assert_eq!(rig.newest_restorable(), rig.volume.durable);
}

#[test]
fn who_reads_with_patience_gets_through_a_bad_connection_and_no_further_than_told() {
    let rig = Rig::new(1);
    rig.store.inner.put_new("a", b"1").expect("memory");
    let store = Retrying::new(rig.store, 8, (1, 1), 7, |_| {});
    let failing = |kind| *store.inner().failing.lock().expect("no panic") = kind;
    let requests = || *store.inner().requests.lock().expect("no panic");
    *store.inner().one_in.lock().expect("no panic") = 2;
    for _ in 0..50 {
        assert_eq!(store.get("a"), Ok(b"1".to_vec()));
    }
    for (kind, attempts) in [
        (ErrorKind::Slow, 8),
        (ErrorKind::Down, 8),
        (ErrorKind::Denied, 1),
        (ErrorKind::Missing, 1),
        (ErrorKind::Full, 1),
    ] {
        failing(Some(kind));
        let before = requests();
        assert_eq!(store.get("a").expect_err("it is refused").kind, kind);
        assert_eq!(requests() - before, attempts, "{kind}");
    }
}
