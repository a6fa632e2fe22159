//! What uploaders brought is read back and proved, while the store fails.

mod moto;
mod rig;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use borealis_archive::history;
use borealis_archive::marks;
use borealis_archive::name::{HistoryName, Name, RedoName};
use borealis_archive::object::Digest;
use borealis_archive::sealing::Sealing;
use borealis_archive::verify::Fault;
use borealis_backup::contents::{Contents, ReadError, TimeError, read, verify, volumes};
use borealis_backup::store::cloud::{CloudStore, CredentialSource, Timeouts};
use borealis_backup::store::folder::FolderStore;
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::store::{ErrorKind, Listing, ObjectStore, ObjectStoreError, Put};
use borealis_types::{EpochHistory, EpochOpening, GroupId, Lsn, RecordSpan, VolumeEpoch, VolumeId};
use rig::{Rig, VOLUME};

/// A volume of two groups and three epochs, all of it in the store.
fn lived() -> Rig {
    lived_with(600_000)
}

/// The same, with lists of marks for so many milliseconds.
fn lived_with(marks_ms: u64) -> Rig {
    let mut rig = Rig::with(2, |options| options.marks_ms = marks_ms);
    for _ in 0..3 {
        for _ in 0..40 {
            rig.volume.write(&[0]);
            rig.volume.write(&[0, 1]);
            rig.pass(100);
        }
        rig.volume.write_uncertain(&[1]);
        rig.volume.recover();
    }
    rig.pass(5_000);
    rig
}

fn contents(rig: &Rig) -> Contents {
    read(&rig.store, VOLUME, &Sealing::Plain).expect("it is there")
}

#[test]
fn a_backup_proves_itself_to_the_newest_point() {
    let rig = lived();
    let contents = contents(&rig);
    assert_eq!(contents.facts.placement, rig.volume.placement);
    assert_eq!(contents.known.history, rig.volume.history);
    let mut seen = 0;
    let report = verify(&rig.store, &contents, &Sealing::Plain, |count| seen = count).expect("it answers");
    assert!(report.faults.is_empty() && report.lost.is_empty() && report.gaps.is_empty(), "{report:?}");
    assert_eq!((report.objects, seen), (contents.inventory.objects().count() as u64, report.objects));
    assert!(report.restorable.contains(Lsn::ZERO) && report.restorable.contains(rig.volume.durable));
}

#[test]
fn a_place_names_its_volumes_and_how_new_the_backup_of_one_is() {
    let rig = lived();
    assert_eq!(volumes(&rig.store), Ok(vec![VOLUME]));
    let whole = contents(&rig);
    let newest = whole.newest().expect("there is one");
    assert_eq!(newest.lsn, rig.volume.durable);
    assert!(newest.clock_ms > 0, "{newest:?}");
    assert!(whole.restorable().contains(newest.lsn) && whole.bytes() > 0);

    // Without the last object of a group the newest point is older, and so is its time, or equal.
    let last = whole.inventory.redo(GroupId(0)).last().expect("redo");
    rig.store.inner.delete(&Name::Redo(last).key(VOLUME)).expect("memory");
    let older = contents(&rig).newest().expect("there is one");
    assert!(older.lsn < newest.lsn && older.clock_ms <= newest.clock_ms, "{older:?} {newest:?}");

    // Another volume, whose name comes after this one's, with more than one object.
    let other = VolumeId(VOLUME.0 + 1);
    for name in [Name::Volume, Name::Redo(last)] {
        rig.store.inner.put_new(&name.key(other), b"whatever").expect("memory");
    }
    assert_eq!(volumes(&rig.store), Ok(vec![VOLUME, other]));
}

fn a_copy_proves_the_same(rig: &Rig, store: &dyn ObjectStore) {
    let original = contents(rig);
    for (name, _) in original.inventory.objects() {
        let key = name.key(VOLUME);
        let bytes = rig.store.inner.get(&key).expect("it is listed");
        assert_eq!(store.put_new(&key, &bytes), Ok(Put::Made));
    }
    let copy = read(store, VOLUME, &Sealing::Plain).expect("it is there");
    assert_eq!(copy.known, original.known);
    let report = verify(store, &copy, &Sealing::Plain, |_| {}).expect("it answers");
    assert_eq!(report, verify(&rig.store, &original, &Sealing::Plain, |_| {}).expect("it answers"));
    let spoilt = Name::Redo(copy.inventory.redo(GroupId(1)).next().expect("redo"));
    store.delete(&spoilt.key(VOLUME)).expect("it answers");
    let report = verify(store, &copy, &Sealing::Plain, |_| {}).expect("it answers");
    assert_eq!(report.faults, BTreeMap::from([(spoilt, Fault::Missing)]));
}

#[test]
fn a_copy_in_a_folder_proves_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    a_copy_proves_the_same(&lived(), &FolderStore::new(folder.path()));
}

#[test]
fn an_object_that_is_too_long_to_read_does_not_hide_what_else_is_damaged() {
    let rig = lived();
    let folder = tempfile::tempdir().expect("a folder");
    a_copy_proves_the_same(&rig, &FolderStore::new(folder.path()));
    let store = FolderStore::new(folder.path());
    let whole = contents(&rig);
    let redo = Name::Redo(whole.inventory.redo(GroupId(0)).next().expect("redo"));
    let marks = Name::Marks(whole.inventory.marks().last().expect("marks"));
    for name in [&redo, &marks] {
        let path = folder.path().join(name.key(VOLUME));
        std::fs::remove_file(&path).expect("it is there");
        // A hole as long as that takes no room.
        std::fs::File::create(&path).and_then(|file| file.set_len((256 << 20) + 1)).expect("a file");
    }
    let read = read(&store, VOLUME, &Sealing::Plain).expect("the rest can be read");
    let report = verify(&store, &read, &Sealing::Plain, |_| {}).expect("it answers");
    assert_eq!(report.faults.get(&redo), Some(&Fault::Missing));
    assert_eq!(report.faults.get(&marks), Some(&Fault::Missing));
}

#[test]
fn a_copy_in_s3_proves_the_same() {
    let Some(moto) = moto::Moto::start() else { return };
    let credentials =
        CredentialSource::of([("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush")]);
    let store = CloudStore::new(moto.location("copy"), credentials, Timeouts::default()).expect("a thread");
    a_copy_proves_the_same(&lived(), &store);
}

#[test]
fn an_object_in_the_place_of_another_is_named_with_what_is_lost() {
    let rig = lived();
    let whole = contents(&rig);
    let redo: Vec<_> = whole.inventory.redo(GroupId(0)).collect();
    let (spoilt, other) = (redo[3], redo[4]);
    let key = |redo| Name::Redo(redo).key(VOLUME);
    let bytes = rig.store.inner.get(&key(other)).expect("it is listed");
    rig.store.inner.delete(&key(spoilt)).expect("memory");
    rig.store.inner.put_new(&key(spoilt), &bytes).expect("memory");
    let report = verify(&rig.store, &contents(&rig), &Sealing::Plain, |_| {}).expect("it answers");
    assert_eq!(report.faults.keys().collect::<Vec<_>>(), [&Name::Redo(spoilt)]);
    assert!(report.lost[0].range.from <= spoilt.last_end, "{:?}", report.lost);
    assert!(!report.restorable.contains(spoilt.last_end) && report.restorable.contains(spoilt.previous_end));

    // One that went away between the listing and now.
    let listed = contents(&rig);
    rig.store.inner.delete(&key(spoilt)).expect("memory");
    let report = verify(&rig.store, &listed, &Sealing::Plain, |_| {}).expect("it answers");
    assert_eq!(report.faults.get(&Name::Redo(spoilt)), Some(&Fault::Missing));
}

#[test]
fn without_the_newest_history_nothing_is_decided_by_an_older_one() {
    let rig = lived();
    let whole = contents(&rig);
    let newest = Name::History(whole.inventory.histories().last().expect("three")).key(VOLUME);
    let bytes = rig.store.inner.get(&newest).expect("it is listed");
    rig.store.inner.delete(&newest).expect("memory");
    rig.store.inner.put_new(&newest, &bytes[..bytes.len() - 1]).expect("memory");
    assert!(matches!(read(&rig.store, VOLUME, &Sealing::Plain), Err(ReadError::Unusable { .. })));
    let error = read(&rig.store, VolumeId(1), &Sealing::Plain).expect_err("another volume");
    assert_eq!(error, ReadError::Nothing(VolumeId(1)));
    *rig.store.failing.lock().expect("no panic") = Some(ErrorKind::Down);
    assert!(matches!(read(&rig.store, VOLUME, &Sealing::Plain), Err(ReadError::Store(_))));
}

#[test]
fn marks_are_few_lists_and_what_a_longer_list_has_is_passed_over() {
    let mut rig = Rig::with(1, |options| options.marks_ms = 10_000);
    for _ in 0..600 {
        rig.volume.write(&[0]);
        rig.pass(100);
    }
    let lists = contents(&rig).inventory.marks().count();
    assert!((6..10).contains(&lists), "{lists} lists in a minute");
    let all: usize = contents(&rig).known.marks.values().map(Vec::len).sum();
    assert!(all > 100, "{all} marks, two a second");
    // Answers are lost: what should have been removed stays.
    *rig.store.one_in.lock().expect("no panic") = 3;
    for _ in 0..600 {
        rig.volume.write(&[0]);
        rig.pass(100);
    }
    *rig.store.one_in.lock().expect("no panic") = 0;
    let whole = contents(&rig);
    assert!(whole.known.marks.len() < whole.inventory.marks().count());
    let clock_ms = rig.now().wall_ms - 30_000;
    let point = whole.known.point_at(clock_ms).expect("a point");
    let longest =
        whole.known.marks.keys().max_by_key(|list| list.to_ms - list.from_ms).copied().expect("a list");
    // A damaged list gives way to the one that it superseded, if that is still there.
    let key = Name::Marks(longest).key(VOLUME);
    rig.store.inner.delete(&key).expect("memory");
    rig.store.inner.put_new(&key, b"damaged").expect("memory");
    assert!(!contents(&rig).known.marks.contains_key(&longest));
    assert!(contents(&rig).known.point_at(clock_ms) <= Some(point));
}

/// Puts other bytes in the place of an object.
fn replace(store: &MemoryStore, name: &Name, bytes: &[u8]) {
    store.delete(&name.key(VOLUME)).expect("memory");
    store.put_new(&name.key(VOLUME), bytes).expect("memory");
}

fn newest_history(contents: &Contents) -> HistoryName {
    contents.inventory.histories().last().expect("a history")
}

#[test]
fn a_damaged_history_of_which_another_object_is_sound_is_named_and_stops_nothing() {
    let rig = lived();
    let whole = contents(&rig);
    let damaged = Name::History(HistoryName { digest: Digest([7; 16]), ..newest_history(&whole) });
    rig.store.inner.put_new(&damaged.key(VOLUME), b"damaged").expect("memory");
    let read = contents(&rig);
    assert_eq!(read.known, whole.known);
    assert_eq!(read.damaged.keys().collect::<Vec<_>>(), [&damaged]);
}

#[test]
fn two_histories_of_one_epoch_that_differ_are_a_contradiction() {
    let rig = lived();
    let known = contents(&rig).known.history;
    let (newest, before) = known.openings().split_last().expect("openings");
    let mut other = EpochHistory::default();
    before.iter().for_each(|opening| other.push(*opening));
    let last = RecordSpan { start: newest.last.end, end: Lsn(newest.last.end.0 + 8) };
    other.push(EpochOpening { last, ..*newest });
    let (name, bytes) = history::encode(VOLUME, &other, &Sealing::Plain);
    rig.store.inner.put_new(&Name::History(name).key(VOLUME), &bytes).expect("memory");
    let error = read(&rig.store, VOLUME, &Sealing::Plain).expect_err("one of them is wrong");
    assert!(matches!(error, ReadError::Contradiction { .. }), "{error}");
    assert!(error.to_string().contains(&Name::History(name).key(VOLUME)), "{error}");
}

#[test]
fn a_newest_history_that_is_gone_is_missed_by_what_was_made_under_it() {
    let mut rig = lived();
    rig.volume.write(&[0, 1]);
    rig.pass(5_000);
    let whole = contents(&rig);
    let newest = newest_history(&whole);
    rig.store.inner.delete(&Name::History(newest).key(VOLUME)).expect("memory");
    let error = read(&rig.store, VOLUME, &Sealing::Plain).expect_err("what was cut would count");
    assert!(
        matches!(error, ReadError::NewestHistoryMissing { epoch, .. } if epoch == newest.epoch),
        "{error}"
    );

    // Marks alone show it, too.
    for redo in (0..2).flat_map(|group| whole.inventory.redo(GroupId(group))) {
        if redo.epoch == newest.epoch {
            rig.store.inner.delete(&Name::Redo(redo).key(VOLUME)).expect("memory");
        }
    }
    let error = read(&rig.store, VOLUME, &Sealing::Plain).expect_err("what was cut would count");
    assert!(
        matches!(&error, ReadError::NewestHistoryMissing { object, .. } if object.contains("/marks/")),
        "{error}"
    );
    // An uploader that is started anew brings what it has.
    rig.stop(borealis_types::NodeId(1));
    rig.start(borealis_types::NodeId(1), &|_| {});
    rig.pass(1_000);
    assert_eq!(contents(&rig).known.history, rig.volume.history);
}

#[test]
fn a_name_alone_does_not_say_that_a_history_is_missing() {
    let rig = lived();
    let whole = contents(&rig);
    let redo = whole.inventory.redo(GroupId(0)).last().expect("redo");
    let bytes = rig.store.inner.get(&Name::Redo(redo).key(VOLUME)).expect("it is listed");
    let stray = Name::Redo(RedoName { epoch: VolumeEpoch(99), ..redo });
    rig.store.inner.put_new(&stray.key(VOLUME), &bytes).expect("memory");
    let read = contents(&rig);
    assert_eq!((read.known, read.damaged), (whole.known, BTreeMap::new()));
}

/// What happens in a store after something was listed.
type Event<'a> = Box<dyn FnOnce() + Send + 'a>;

/// A store in which something happens after the first listing is complete.
struct Meanwhile<'a> {
    store: &'a MemoryStore,
    event: Mutex<Option<Event<'a>>>,
}

impl std::fmt::Debug for Meanwhile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl ObjectStore for Meanwhile<'_> {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        self.store.put_new(key, bytes)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.store.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        let listing = self.store.list(prefix, after)?;
        if let Some(event) = (!listing.more).then(|| self.event.lock().expect("no panic").take()).flatten() {
            event();
        }
        Ok(listing)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.store.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

#[test]
fn a_list_of_marks_that_is_replaced_while_the_backup_is_read_is_no_damage() {
    let rig = lived();
    let whole = contents(&rig);
    let (&list, marks) = whole.known.marks.last_key_value().expect("marks");
    let last = marks.last().expect("a mark");
    let mut more = marks.clone();
    more.push(marks::Mark { clock_ms: last.clock_ms + 500, ..last.clone() });
    let (longer, bytes) = marks::encode(VOLUME, list.node, &more, &Sealing::Plain).expect("marks");
    let replaced = || {
        rig.store.inner.put_new(&Name::Marks(longer).key(VOLUME), &bytes).expect("memory");
        rig.store.inner.delete(&Name::Marks(list).key(VOLUME)).expect("memory");
    };
    let store = Meanwhile { store: &rig.store.inner, event: Mutex::new(Some(Box::new(replaced))) };
    let read = read(&store, VOLUME, &Sealing::Plain).expect("it is there");
    assert!(read.damaged.is_empty(), "{:?}", read.damaged);
    assert_eq!(read.known.marks.get(&longer), Some(&more));
    assert_eq!(read.point_at(last.clock_ms + 500), Ok(last.durable));

    // What is replaced between the reading and the proof is no fault either.
    let report = verify(&rig.store.inner, &whole, &Sealing::Plain, |_| {}).expect("it answers");
    assert!(report.faults.is_empty() && report.lost.is_empty(), "{report:?}");
    // What nobody replaced is.
    rig.store.inner.delete(&Name::Marks(longer).key(VOLUME)).expect("memory");
    let report = verify(&rig.store.inner, &read, &Sealing::Plain, |_| {}).expect("it answers");
    assert_eq!(report.faults, BTreeMap::from([(Name::Marks(longer), Fault::Missing)]));
}

#[test]
fn a_recovery_while_the_backup_is_read_is_no_damage() {
    let mut rig = lived();
    let before = MemoryStore::default();
    let old = contents(&rig);
    for (name, _) in old.inventory.objects() {
        let bytes = rig.store.inner.get(&name.key(VOLUME)).expect("it is listed");
        before.put_new(&name.key(VOLUME), &bytes).expect("memory");
    }
    rig.volume.recover();
    rig.volume.write(&[0, 1]);
    rig.pass(5_000);
    let new = contents(&rig);
    // The listing came past the histories before the recovery, and past everything else after it.
    for (name, _) in new.inventory.objects().filter(|(name, _)| !matches!(name, Name::History(_))) {
        let bytes = rig.store.inner.get(&name.key(VOLUME)).expect("it is listed");
        before.put_new(&name.key(VOLUME), &bytes).expect("memory");
    }
    let newest = Name::History(newest_history(&new)).key(VOLUME);
    let bytes = rig.store.inner.get(&newest).expect("it is listed");
    let came = || assert_eq!(before.put_new(&newest, &bytes), Ok(Put::Made));
    let store = Meanwhile { store: &before, event: Mutex::new(Some(Box::new(came))) };
    let read = read(&store, VOLUME, &Sealing::Plain).expect("nothing is missing");
    assert_eq!(read.known.history, rig.volume.history);
    assert_eq!(read.newest().map(|newest| newest.lsn), Some(rig.volume.durable));
}

#[test]
fn a_time_that_a_damaged_list_alone_may_know_is_refused() {
    let mut rig = Rig::new(1);
    for _ in 0..40 {
        rig.volume.write(&[0]);
        rig.pass(500);
    }
    let whole = contents(&rig);
    let (&list, marks) = whole.known.marks.last_key_value().expect("marks");
    let (half, last) = (&marks[..marks.len() / 2], marks.last().expect("a mark"));
    let (shorter, bytes) = marks::encode(VOLUME, list.node, half, &Sealing::Plain).expect("marks");
    replace(&rig.store.inner, &Name::Marks(list), b"damaged");
    let refused = |clock_ms| matches!(contents(&rig).point_at(clock_ms), Err(TimeError::DamagedMarks { .. }));
    assert!(refused(list.from_ms) && refused(last.clock_ms), "nothing is known of either");
    assert!(contents(&rig).damaged.contains_key(&Name::Marks(list)));

    // The list that it superseded is still there: what that one says is said again, and no more.
    rig.store.inner.put_new(&Name::Marks(shorter).key(VOLUME), &bytes).expect("memory");
    let known = half[half.len() - 2].clone();
    assert_eq!(contents(&rig).point_at(known.clock_ms), Ok(known.durable));
    assert!(refused(last.clock_ms) && refused(shorter.to_ms + 1));
    let beyond = contents(&rig).point_at(last.clock_ms + 1);
    assert!(matches!(beyond, Err(TimeError::NotThen { .. })), "{beyond:?}");
}
