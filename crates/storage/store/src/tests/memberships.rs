//! Memberships on disk: segments that come and leave, what is stored of them, and requests made for others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_quorum::Promise;
use borealis_quorum::membership::{Accepted, Ballot, GroupMembership, Replacement, Transition};
use borealis_quorum::segment::Standing;
use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId, ReadPoint, VolumeEpoch, WriterId};
use borealis_wire::Refusal;

use super::records::{TestEffect, Writer, block, environment, fork, identity, options};
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Operation};
use crate::{Environment, Identity, Origin, Policy, SegmentSource, Store, StoreError};

const OWN: NodeId = NodeId(3);
const GROUPS: u16 = 2;
const GROUP: GroupId = GroupId(1);

fn on(disk: &MemoryDisk) -> Environment {
    Environment { disk: Arc::new(disk.clone()), ..environment() }
}

fn root() -> &'static Path {
    Path::new("/node")
}

fn first() -> GroupMembership {
    GroupMembership::created([NodeId(0), NodeId(1), NodeId(2), OWN, NodeId(4), NodeId(5)]).unwrap()
}

fn replaces(old: u16, new: u16) -> Replacement {
    Replacement { old: NodeId(old), new: NodeId(new) }
}

/// The memberships after each other, from the first on: node 3 leaves with the third, and comes again with the fourth.
fn chain() -> Vec<GroupMembership> {
    let steps = [
        Transition::Begin(replaces(3, 9)),
        Transition::Finish(replaces(3, 9)),
        Transition::Begin(replaces(9, 3)),
        Transition::Finish(replaces(9, 3)),
    ];
    let mut chain = vec![first()];
    chain.extend(steps.into_iter().scan(first(), |last, step| {
        *last = last.after(step).unwrap();
        Some(last.clone())
    }));
    chain
}

fn open(disk: &MemoryDisk) -> Store {
    Store::open_in(&on(disk), root(), options()).unwrap()
}

fn configured() -> BTreeMap<GroupId, GroupMembership> {
    (0..GROUPS).map(|group| (GroupId(group), first())).collect()
}

/// A store with both groups, and some records of each.
fn store(disk: &MemoryDisk) -> (Store, Writer) {
    let store = Store::create_in(&on(disk), root(), identity(GROUPS), options()).unwrap();
    store.configure_memberships(&configured()).unwrap();
    let mut writer = Writer::start(&store);
    write(&store, &mut writer, 60);
    (store, writer)
}

fn write(store: &Store, writer: &mut Writer, count: u32) {
    let before = writer.records.len();
    for number in 0..count {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number * 40))], false);
    }
    let batch = writer.batch(&writer.records[before..]);
    let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    store.sync(appended.sequence).unwrap();
}

fn announce(store: &Store, writer: &mut Writer) {
    writer.durable = writer.last();
    writer.minimum_read_point = writer.durable.end;
    store.note_positions(&writer.header(), &[]).unwrap();
}

/// A store that waits to be given segments.
fn spare(disk: &MemoryDisk) -> Store {
    let identity = Identity { groups: Vec::new(), ..identity(GROUPS) };
    Store::create_in(&on(disk), root(), identity, options()).unwrap()
}

fn folders(disk: &MemoryDisk) -> Vec<String> {
    let mut folders = disk.list(&root().join("segments")).unwrap();
    folders.sort();
    folders
}

fn installed(store: &Store, group: GroupId) -> Option<MembershipEpoch> {
    store.membership(group).unwrap().map(|state| state.installed().epoch())
}

fn is_no_segment(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(Refusal::NoSegment(_)))
}

/// Power is lost, and what was not synced with it.
fn reopen(disk: &MemoryDisk, store: Store) -> Store {
    drop(store);
    disk.lose_power(|_| 0);
    open(disk)
}

#[test]
fn segments_are_given_the_configured_membership_once() {
    let disk = MemoryDisk::default();
    let store = Store::create_in(&on(&disk), root(), identity(GROUPS), options()).unwrap();
    assert_eq!(store.memberships().unwrap(), []);
    let others = GroupMembership::created([0, 1, 2, 7, 4, 5].map(NodeId)).unwrap();
    let without = BTreeMap::from([(GroupId(0), first()), (GROUP, others)]);
    assert!(matches!(store.configure_memberships(&without), Err(StoreError::Refused(Refusal::Misuse(_)))));
    assert_eq!(store.memberships().unwrap(), [], "neither is changed");
    store.configure_memberships(&BTreeMap::from([(GROUP, first())])).unwrap();
    let store = reopen(&disk, store);
    assert_eq!((installed(&store, GroupId(0)), installed(&store, GROUP)), (None, Some(MembershipEpoch(1))));
    store.install_membership(GROUP, &chain()[1]).unwrap();
    store.configure_memberships(&configured()).unwrap();
    let store = reopen(&disk, store);
    assert_eq!(store.membership(GROUP).unwrap().unwrap().installed(), &chain()[1], "it was changed since");
    assert_eq!(installed(&store, GroupId(0)), Some(MembershipEpoch(1)));
}

#[test]
fn what_was_promised_and_accepted_is_stored() {
    let disk = MemoryDisk::default();
    let (mut store, _) = store(&disk);
    let ballot = |counter| Ballot { counter, proposer: 7 };
    let proposed = Accepted { ballot: ballot(5), membership: chain()[1].clone() };
    store.prepare_membership(GROUP, MembershipEpoch(1), ballot(4)).unwrap();
    store.prepare_membership(GROUP, MembershipEpoch(2), ballot(9)).unwrap();
    store = reopen(&disk, store);
    let state = store.membership(GROUP).unwrap().unwrap();
    assert_eq!((state.promised(), state.accepted()), (ballot(4), None), "the other is of another epoch");
    store.accept_membership(GROUP, &proposed).unwrap();
    let no_step = Accepted { ballot: ballot(6), membership: chain()[2].clone() };
    store.accept_membership(GROUP, &no_step).unwrap();
    let older = Accepted { ballot: ballot(3), ..proposed.clone() };
    store.accept_membership(GROUP, &older).unwrap();
    for _ in 0..2 {
        store = reopen(&disk, store);
        let state = store.membership(GROUP).unwrap().unwrap();
        assert_eq!((state.promised(), state.accepted()), (ballot(5), Some(&proposed)));
        // The second time it is in the checkpoint.
        store.write_checkpoint(&BTreeMap::new()).unwrap();
    }
    store.install_membership(GROUP, &chain()[1]).unwrap();
    let state = reopen(&disk, store).membership(GROUP).unwrap().unwrap();
    assert_eq!((state.promised(), state.accepted()), (Ballot::default(), None), "another choice begins");
}

#[test]
fn what_would_end_the_counting_is_refused() {
    let disk = MemoryDisk::default();
    let (store, _) = store(&disk);
    let is_misuse = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::Refused(Refusal::Misuse(_)))), "{result:?}");
    };
    let far = GroupMembership::new(MembershipEpoch(u64::MAX), vec![*first().base()]).unwrap();
    is_misuse(store.install_membership(GROUP, &far).map(drop));
    let ballot = Ballot { counter: u64::MAX, proposer: 1 };
    is_misuse(store.prepare_membership(GROUP, MembershipEpoch(1), ballot));
    is_misuse(store.accept_membership(GROUP, &Accepted { ballot, membership: chain()[1].clone() }));
    is_misuse(store.install_membership(GroupId(GROUPS), &first()).map(drop));
    let other = GroupMembership::created([3, 11, 12, 13, 14, 15].map(NodeId)).unwrap();
    is_misuse(store.install_membership(GROUP, &other).map(drop));
    assert_eq!(store.memberships().unwrap().len(), 2);
    assert_eq!(store.membership(GROUP).unwrap().unwrap().installed(), &first());
}

#[test]
fn a_segment_comes_to_a_node_without_any_and_leaves_it() {
    let disk = MemoryDisk::default();
    let mut store = spare(&disk);
    let promise = Promise { epoch: VolumeEpoch(4), writer: WriterId(5) };
    assert_eq!(store.fence(promise, &[]).unwrap(), [], "it has nothing to promise");
    assert!(store.groups().is_empty() && folders(&disk).is_empty());
    store.install_membership(GROUP, &chain()[2]).unwrap();
    assert_eq!((store.groups(), installed(&store, GROUP)), (Vec::new(), Some(MembershipEpoch(3))));
    let came = store.install_membership(GROUP, &chain()[3]).unwrap();
    assert!(came.changed && !came.left);
    for round in 0..3 {
        assert_eq!(store.groups(), [GROUP]);
        assert_eq!((store.standing(GROUP), folders(&disk)), (Standing::Joining, vec!["1.4".to_owned()]));
        let summary = &store.summaries().unwrap()[0];
        assert_eq!((summary.group, summary.segment_complete_lsn), (GROUP, Lsn::ZERO));
        assert!(store.page_checksums(GROUP, Lsn::ZERO, None, 10).is_err());
        store = reopen(&disk, store);
        if round == 1 {
            store.write_checkpoint(&BTreeMap::new()).unwrap();
        }
    }
    // It takes promises, and so does what comes of a crash.
    store.fence(promise, &[]).unwrap();
    let taken_back = chain()[3].after(Transition::TakeBack(replaces(9, 3))).unwrap();
    assert!(store.install_membership(GROUP, &taken_back).unwrap().left);
    assert!(store.groups().is_empty() && is_no_segment(&store.with_segment(GROUP, |_| ()).unwrap_err()));
    store = reopen(&disk, store);
    assert!(store.groups().is_empty());
    assert_eq!(folders(&disk), ["1.4"], "the checkpoint names it");
    store.materialize(Policy::IfDue).unwrap();
    assert!(folders(&disk).is_empty());
    assert_eq!(reopen(&disk, store).membership(GROUP).unwrap().unwrap().installed(), &taken_back);
}

#[test]
fn a_segment_that_leaves_gives_back_its_pages_and_its_log() {
    let disk = MemoryDisk::default();
    let (store, mut writer) = store(&disk);
    announce(&store, &mut writer);
    store.materialize(Policy::Now).unwrap();
    write(&store, &mut writer, 200);
    // A round is not due, so the log of group 0 stays; there is none but for these two.
    store.pin(GROUP, ReadPoint::from(writer.durable.end), NodeId(9), Duration::from_secs(60)).unwrap();
    store.set_peer_floor(GROUP, Lsn(1));
    for group in [GROUP, GroupId(0)] {
        store.install_membership(group, &chain()[1]).unwrap();
        assert!(store.install_membership(group, &chain()[2]).unwrap().left);
    }
    let page = block(fork(1, 16_384), 40);
    let group = writer.placement.group_of(&page);
    assert!(is_no_segment(&store.read_page(group, &page, writer.durable.end).unwrap_err()));
    assert!(is_no_segment(&store.read_tail(GROUP, Lsn::ZERO, 1000).unwrap_err()));
    assert!(is_no_segment(&store.refill(GROUP).unwrap_err()));
    let (log_files, before) = (store.files.numbers().len(), folders(&disk));
    assert!(log_files > 1 && before == ["0", "1"], "{log_files} {before:?}");
    store.materialize(Policy::IfDue).unwrap();
    assert!(folders(&disk).is_empty());
    assert_eq!(store.files.numbers().len(), 1, "nobody needs any");
    let batch = writer.batch(&writer.records);
    let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    assert_eq!((appended.taken, appended.progress), (0, Vec::new()));
    let store = reopen(&disk, store);
    assert_eq!((store.groups(), store.memberships().unwrap().len()), (Vec::new(), 2));
}

#[test]
fn a_segment_that_comes_again_has_nothing_of_its_earlier_stay() {
    let disk = MemoryDisk::default();
    let (mut store, mut writer) = store(&disk);
    announce(&store, &mut writer);
    store.materialize(Policy::Now).unwrap();
    write(&store, &mut writer, 60);
    store.install_membership(GROUP, &chain()[1]).unwrap();
    store.install_membership(GROUP, &chain()[2]).unwrap();
    store.install_membership(GROUP, &chain()[3]).unwrap();
    for round in 0..4 {
        {
            let state = store.lock();
            let hosted = &state.segments[&GROUP];
            assert!(hosted.segment.is_joining_empty() && hosted.pending.is_empty(), "round {round}");
            assert!(hosted.materialized.extents.is_empty());
        }
        let tail = store.read_tail(GROUP, Lsn::ZERO, 1 << 20).unwrap();
        assert!(tail.batches.is_empty());
        if round == 1 {
            // Group 0 needs its log still, in which the other has records of before.
            store.write_checkpoint(&BTreeMap::new()).unwrap();
            assert_eq!(folders(&disk), ["0", "1.4"]);
        }
        store = reopen(&disk, store);
    }
    assert!(!store.read_tail(GroupId(0), Lsn::ZERO, 1 << 20).unwrap().batches.is_empty());
}

trait IsEmpty {
    fn is_joining_empty(&self) -> bool;
}

impl IsEmpty for borealis_quorum::segment::Segment {
    fn is_joining_empty(&self) -> bool {
        let is_new = self.uncertain().next().is_none() && self.history().newest().is_none();
        self.standing() == Standing::Joining && is_new && self.promise() == Promise::default()
    }
}

#[test]
fn a_refill_and_a_round_of_an_earlier_stay_do_not_touch_the_later_one() {
    let disk = MemoryDisk::default();
    let (store, mut writer) = store(&disk);
    // It lacks what it knows to be durable.
    let missing = writer.records.len();
    for number in 0..40 {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_385), number * 40))], false);
    }
    announce(&store, &mut writer);
    let mut refill = store.refill(GROUP).unwrap().expect("records are missing");
    refill.take_range(None, &[]).unwrap();
    for membership in &chain()[1..4] {
        store.install_membership(GROUP, membership).unwrap();
    }
    assert!(is_no_segment(&refill.is_needed().unwrap_err()));
    assert!(is_no_segment(&refill.save().unwrap_err()));
    assert!(is_no_segment(&refill.begin_again().unwrap_err()));
    assert!(is_no_segment(&refill.finish(&[], Vec::new()).unwrap_err()));
    assert_eq!(store.standing(GROUP), Standing::Joining);
    assert!(!store.is_refilling(GROUP));
    let batch = writer.batch(&writer.records[missing..]);
    store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    announce(&store, &mut writer);
    // A round of another stay is abandoned for it.
    let next = {
        let mut state = store.lock();
        let hosted = state.segments.get_mut(&GROUP).unwrap();
        let stale = crate::segment::stay::Stay::SINCE_CREATION;
        crate::materialize::page_writer::NextState {
            materialized: Arc::new(crate::pages::materialized_state::MaterializedState {
                lsn: writer.durable.end,
                ..Default::default()
            }),
            files: Arc::new(store.homes().pages(hosted.group(), stale)),
            freed_regions: Vec::new(),
            run: crate::pages::page_files::SlotRun::default(),
            pages_written: 0,
            mended: Vec::new(),
            pages_moved: 0,
            synced: true,
        }
    };
    let next = BTreeMap::from([(GROUP, next)]);
    store.write_checkpoint(&next).unwrap();
    assert!(store.publish_states(next).is_empty());
    let store = reopen(&disk, store);
    assert_eq!(store.lock().segments[&GROUP].materialized.lsn, Lsn::ZERO);
}

#[test]
fn requests_made_for_other_memberships_change_nothing() {
    let disk = MemoryDisk::default();
    let (store, mut writer) = store(&disk);
    store.install_membership(GROUP, &chain()[1]).unwrap();
    for number in 0..40 {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_385), number * 40))], false);
    }
    let batch = writer.batch(&writer.records);
    let next = Promise { epoch: VolumeEpoch(2), writer: WriterId(12) };
    let end = || store.lock().log.end();
    let before = (end(), store.summaries().unwrap());
    let is_other = |result: Result<(), StoreError>, newer: &[GroupId], not_learned: &[GroupId]| match result {
        Err(StoreError::OtherMembership { newer: a, not_learned: b }) => {
            assert_eq!((&a[..], &b[..]), (newer, not_learned))
        }
        other => panic!("{other:?}"),
    };
    let cases = [
        (vec![(GROUP, MembershipEpoch(1))], vec![GROUP], vec![]),
        (vec![(GroupId(0), MembershipEpoch(1)), (GROUP, MembershipEpoch(4))], vec![], vec![GROUP]),
        (vec![(GroupId(0), MembershipEpoch(0)), (GROUP, MembershipEpoch(9))], vec![GroupId(0)], vec![GROUP]),
    ];
    for (made_for, newer, not_learned) in &cases {
        let attempts: [&dyn Fn() -> Result<(), StoreError>; 5] = [
            &|| store.append(&batch, Origin::Writer(writer.promise), made_for).map(drop),
            &|| store.note_positions(&writer.header(), made_for),
            &|| store.fence(next, made_for).map(drop),
            &|| store.install(writer.promise.writer, &writer.history, &[], made_for).map(drop),
            &|| store.repair(writer.promise, GROUP, &writer.history, &[], made_for).map(drop),
        ];
        for attempt in attempts {
            is_other(attempt(), newer, not_learned);
        }
        assert_eq!((end(), store.summaries().unwrap()), before);
        // A promise that is over is what it hears of first.
        let older = Promise { epoch: VolumeEpoch(0), writer: WriterId(1) };
        let refused = store.fence(older, made_for).unwrap_err();
        assert!(matches!(refused, StoreError::Refused(Refusal::Fenced(VolumeEpoch(1)))), "{refused}");
    }
    // What is installed, and one step ahead of it.
    let made_for = [(GroupId(0), MembershipEpoch(1)), (GROUP, MembershipEpoch(3))];
    assert!(store.append(&batch, Origin::Writer(writer.promise), &made_for).unwrap().taken > 0);
    // Whoever knows that this node left need not be told.
    store.install_membership(GROUP, &chain()[2]).unwrap();
    store.fence(next, &[(GROUP, MembershipEpoch(3))]).unwrap();
    is_other(store.fence(next, &[(GROUP, MembershipEpoch(2))]).map(drop), &[GROUP], &[]);
}

#[test]
fn a_segment_that_just_came_does_not_keep_the_others_from_their_redo() {
    let disk = MemoryDisk::default();
    let (store, mut writer) = store(&disk);
    for membership in &chain()[1..4] {
        store.install_membership(GROUP, membership).unwrap();
    }
    let complete = |store: &Store, group| store.with_segment(group, |s| s.segment_complete_lsn()).unwrap();
    let before = complete(&store, GroupId(0));
    write(&store, &mut writer, 60);
    store.append(&writer.batch(&[]), Origin::Writer(writer.promise), &[]).unwrap();
    assert!(complete(&store, GroupId(0)) > before);
    let held = |store: &Store| store.with_segment(GROUP, |segment| segment.held_count()).unwrap();
    assert_eq!((complete(&store, GROUP), held(&store)), (Lsn::ZERO, 0));
    // With the history it takes what comes.
    store.install_from_peers(GROUP, &writer.history).unwrap();
    write(&store, &mut writer, 60);
    assert_eq!(complete(&store, GROUP), Lsn::ZERO);
    assert!(held(&store) > 0);
}

#[test]
fn an_installation_that_does_not_list_the_group_of_a_joining_segment_says_nothing_of_it() {
    let disk = MemoryDisk::default();
    let (store, mut writer) = store(&disk);
    for membership in &chain()[1..4] {
        store.install_membership(GROUP, membership).unwrap();
    }
    let promise = Promise { epoch: VolumeEpoch(2), writer: WriterId(12) };
    store.fence(promise, &[]).unwrap();
    let last = writer.last();
    let opening = *writer.history.newest().unwrap();
    writer.history.push(borealis_types::EpochOpening { epoch: promise.epoch, last, ..opening });
    store.install(promise.writer, &writer.history, &[], &[]).unwrap();
    let known = store.with_segment(GROUP, |segment| segment.known_durable()).unwrap();
    assert_eq!(known, borealis_quorum::DurablePoint::default());
}

#[test]
fn a_segment_that_came_since_the_fence_does_not_keep_the_others_from_their_history() {
    let disk = MemoryDisk::default();
    let (store, mut writer) = store(&disk);
    let promise = Promise { epoch: VolumeEpoch(2), writer: WriterId(12) };
    for membership in &chain()[1..3] {
        store.install_membership(GROUP, membership).unwrap();
    }
    store.fence(promise, &[]).unwrap();
    store.install_membership(GROUP, &chain()[3]).unwrap();
    let last = writer.last();
    let opening = *writer.history.newest().unwrap();
    writer.history.push(borealis_types::EpochOpening { epoch: promise.epoch, last, ..opening });
    let installed = store.install(promise.writer, &writer.history, &[], &[]).unwrap();
    let epochs: Vec<_> = installed.iter().map(|summary| summary.history.newest_epoch()).collect();
    assert_eq!(epochs, [VolumeEpoch(2), VolumeEpoch(0)]);
    let store = reopen(&disk, store);
    store.install_from_peers(GROUP, &writer.history).unwrap();
    assert_eq!(store.summaries().unwrap()[1].history, writer.history);
}

#[test]
fn a_folder_that_cannot_be_made_leaves_everything_as_it_was() {
    for (operation, after) in [(Operation::SyncFolder, 0), (Operation::SyncFolder, 1), (Operation::Remove, 0)]
    {
        let disk = MemoryDisk::default();
        let mut store = spare(&disk);
        store.install_membership(GROUP, &chain()[2]).unwrap();
        // What an attempt left that did not get as far as the log.
        let folder = root().join("segments").join("1.4");
        disk.create_folder(&folder).unwrap();
        disk.open(&folder.join("pages.064.0000"), crate::OpenMode::Create).unwrap();
        disk.fail(operation, "segments", after);
        let failed = store.install_membership(GROUP, &chain()[3]);
        assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
        assert_eq!((store.failure(), store.groups()), (None, Vec::new()));
        if after == 1 {
            store = reopen(&disk, store);
            assert!(folders(&disk).is_empty(), "nobody named it");
        }
        store.install_membership(GROUP, &chain()[3]).unwrap();
        assert!(disk.list(&folder).unwrap().is_empty());
        assert_eq!(reopen(&disk, store).groups(), [GROUP]);
    }
}

#[test]
#[should_panic(expected = "invariant removed-folder-is-nobodys is broken")]
fn the_folder_of_a_segment_is_not_removed() {
    let disk = MemoryDisk::default();
    let (store, _) = store(&disk);
    store.lock().left_folders.push((GROUP, MembershipEpoch(0)));
    let _ = store.materialize(Policy::Now);
}

#[test]
fn a_store_without_the_folder_of_a_segment_is_not_opened() {
    let disk = MemoryDisk::default();
    let store = spare(&disk);
    store.install_membership(GROUP, &chain()[0]).unwrap();
    drop(store);
    disk.remove_folder(&root().join("segments").join("1.1")).unwrap();
    let error = Store::open_in(&on(&disk), root(), options()).expect_err("it is missing").to_string();
    assert!(error.contains("segments/1.1 is missing"), "{error}");
}

#[test]
fn a_store_made_of_segments_has_their_memberships_and_takes_none_that_is_joining() {
    let disk = MemoryDisk::default();
    let (store, _) = store(&disk);
    store.install_membership(GroupId(0), &chain()[1]).unwrap();
    let all = store.memberships().unwrap();
    let gather = |to: &str| {
        let source = SegmentSource { store: root().to_owned(), groups: vec![GroupId(0), GROUP] };
        let identity = Identity { incarnation: 1000, ..identity(GROUPS) };
        Store::gather_in(&on(&disk), &[source], Path::new(to), identity, &options())
    };
    drop(store);
    gather("/other").unwrap();
    let other = Store::open_in(&on(&disk), &PathBuf::from("/other"), options()).unwrap();
    assert_eq!(other.memberships().unwrap(), all);
    let store = open(&disk);
    store.install_membership(GROUP, &chain()[2]).unwrap();
    drop(store);
    let error = gather("/third").unwrap_err().to_string();
    assert!(error.contains("has no segment of group 1"), "{error}");
    let store = open(&disk);
    store.install_membership(GROUP, &chain()[3]).unwrap();
    drop(store);
    let error = gather("/third").unwrap_err().to_string();
    assert!(error.contains("is joining group 1"), "{error}");
}
