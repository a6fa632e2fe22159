//! What is restored is what the volume was: every page, size and value at many points, over histories in which recoveries cut tails that
//! somebody had uploaded; and whatever is missing, damaged or of another volume is named, and never restored as whole.

#![allow(clippy::unwrap_used)] // All of this is test code.

mod life;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use borealis_archive::name::{HistoryName, Name, RedoName};
use borealis_archive::redo::{RedoBuilder, for_each_record};
use borealis_archive::sealing::Sealing;
use borealis_backup::contents::{Contents, ReadError, TimeError, read, volumes};
use borealis_backup::restore::{Order, Progress, RestoreError, Restored, restore};
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::store::{Listing, ObjectStore, ObjectStoreError, Put};
use borealis_store::{SegmentSource, Store};
use borealis_types::{GroupId, Lsn, MetaKey, PageKey, VolumeEpoch, VolumeId};
use life::{Life, Random, VOLUME, environment, fork, identity, options};

const GROUPS: u16 = 4;
const NEW: VolumeId = VolumeId(77);

/// Why there is nothing restored.
#[derive(Debug)]
enum Refused {
    Read(ReadError),
    Restore(RestoreError),
}

impl From<ReadError> for Refused {
    fn from(error: ReadError) -> Refused {
        Refused::Read(error)
    }
}

impl From<RestoreError> for Refused {
    fn from(error: RestoreError) -> Refused {
        Refused::Restore(error)
    }
}

fn contents(objects: &MemoryStore) -> Contents {
    read(objects, VOLUME, &Sealing::Plain).unwrap()
}

fn restored(objects: &MemoryStore, point: Lsn, folder: &Path) -> Result<Restored, Refused> {
    let contents = read(objects, VOLUME, &Sealing::Plain)?;
    let order = Order {
        point,
        sealing: &Sealing::Plain,
        environment: &environment(),
        folder,
        identity: &identity(NEW, GROUPS),
        options: options(),
        copies: 0,
    };
    let mut last = Progress::default();
    let result = restore(&order, objects, &contents, &mut |progress| {
        let goes_on = progress.bytes >= last.bytes && progress.at >= last.at;
        assert!(goes_on && progress.bytes <= progress.total_bytes, "{progress:?} after {last:?}");
        last = progress;
    })?;
    assert_eq!((last.bytes, last.at), (result.bytes, result.end), "progress ends with everything");
    Ok(result)
}

/// Every page, size and value of a store at a point.
type Everything = (Vec<(PageKey, Option<Vec<u8>>)>, Vec<Option<u32>>, Option<Vec<u8>>);

fn everything(store: &Store, pages: &BTreeSet<PageKey>, at: Lsn) -> Everything {
    let placement = store.identity().placement;
    let read = |key: &PageKey| {
        let page = store.read_page(placement.group_of(key), key, at).unwrap();
        (*key, page.map(|page| page.to_vec()))
    };
    let forks = (16_384..16_388).map(fork);
    let sizes = forks.flat_map(|fork| placement.groups().map(move |group| (group, fork)));
    let sizes = sizes.map(|(group, fork)| store.relation_size(group, fork, at).unwrap()).collect();
    (pages.iter().map(read).collect(), sizes, store.read_meta(&MetaKey::Counters, at).unwrap())
}

fn check_same(life: &Life, objects: &MemoryStore, point: Lsn, folder: &Path) {
    let result = restored(objects, point, folder).unwrap();
    let end = life.ends().into_iter().rfind(|end| *end <= point).expect("a record");
    assert_eq!(result.end, end, "every record that ends at or before {point}, and no other");
    assert!(result.history.newest_epoch() > life.history.newest_epoch(), "a higher epoch");
    let store = Store::open_in(&environment(), folder, options()).unwrap();
    assert_eq!(store.identity().volume, NEW);
    let (there, here) = (everything(&life.store, &life.pages, point), everything(&store, &life.pages, end));
    assert!(there == here, "the state at {point} is another");
    assert!(there.0.iter().any(|(_, page)| page.is_some()) || end < Lsn(5000));
    drop(store);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn any_point_is_restored_as_it_was_and_never_a_record_that_was_cut() {
    for seed in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, seed);
        assert_eq!(volumes(&life.objects).unwrap(), [VOLUME]);
        let newest = contents(&life.objects).newest().expect("there is one");
        assert_eq!(newest.lsn, life.durable.end);
        let cuts = life.history.openings().iter().map(|opening| opening.last.end);
        let around =
            cuts.flat_map(|cut| [Lsn(cut.0.saturating_sub(1)), cut, Lsn(cut.0 + 1), Lsn(cut.0 + 500)]);
        let mut random = Random(seed);
        let ends = life.ends();
        let anywhere = (0..8).map(|_| ends[random.below(ends.len() as u64) as usize]);
        let points = around.chain(anywhere).chain([life.durable.end]);
        for point in points.filter(|point| *point >= ends[0]).collect::<BTreeSet<_>>() {
            check_same(&life, &life.objects, point, &folder.path().join("restored"));
        }
        let beyond = restored(&life.objects, Lsn(life.durable.end.0 + 8), &folder.path().join("restored"));
        assert!(matches!(beyond, Err(Refused::Restore(RestoreError::NotRestorable(_)))), "{beyond:?}");
    }
}

#[test]
fn a_second_is_the_last_mark_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, 5);
    let backup = contents(&life.objects);
    let reach = backup.reach();
    let (first, last) = reach.last().and_then(|reach| reach.clock_ms).expect("marks");
    assert!(first < last);
    assert_eq!(backup.point_at(last).unwrap(), life.durable.end);
    assert!(backup.point_at(first).unwrap() < life.durable.end);
    assert!(matches!(backup.point_at(first - 1), Err(TimeError::NotThen { .. })));
    assert!(matches!(backup.point_at(last + 1), Err(TimeError::NotThen { .. })));
}

#[test]
fn a_node_is_made_of_what_was_restored() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, 9);
    let (path, node) = (folder.path().join("restored"), folder.path().join("node"));
    let result = restored(&life.objects, life.durable.end, &path).unwrap();
    let identity = borealis_store::Identity { incarnation: 5, ..identity(NEW, GROUPS) };
    let source = SegmentSource { store: path, groups: identity.groups.clone() };
    Store::gather_in(&environment(), &[source], &node, identity, &options()).unwrap();
    let store = Store::open_in(&environment(), &node, options()).unwrap();
    let at = life.durable.end;
    assert!(everything(&store, &life.pages, at) == everything(&life.store, &life.pages, at));
    for summary in store.summaries().unwrap() {
        assert_eq!(summary.history, result.history);
        assert_eq!(summary.known_durable.end, at);
    }
}

fn copy_without(objects: &MemoryStore, left_out: &str) -> MemoryStore {
    let copy = MemoryStore::default();
    let listed = objects.list("", None).unwrap();
    assert!(!listed.more, "one page of a listing is all");
    for object in listed.objects.iter().filter(|object| object.key != left_out) {
        copy.put_new(&object.key, &objects.get(&object.key).unwrap()).unwrap();
    }
    copy
}

#[test]
fn each_object_that_is_spoilt_is_named_and_never_restored_as_whole() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, 11);
    let path = folder.path().join("restored");
    let end = life.durable.end;
    let (mut named, mut passed_over) = (0, 0);
    let keys: Vec<String> = life.objects.list("", None).unwrap().objects.into_iter().map(|o| o.key).collect();
    for (number, key) in keys.iter().enumerate() {
        let bytes = life.objects.get(key).unwrap();
        let mut flipped = bytes.clone();
        let at = Random(number as u64).below(bytes.len() as u64) as usize;
        flipped[at] ^= 1;
        let foreign = life.objects.get(&keys[(number + 1) % keys.len()]).unwrap();
        let spoilt = match number % 4 {
            0 => None,
            1 => Some(flipped),
            2 => Some(bytes[..at].to_vec()),
            _ => Some(foreign),
        };
        let is_there = spoilt.is_some();
        let objects = copy_without(&life.objects, key);
        if let Some(spoilt) = spoilt {
            objects.put_new(key, &spoilt).unwrap();
        }
        let (_, name) = Name::of_key(key).unwrap();
        match restored(&objects, end, &path) {
            Ok(result) => {
                // Of an object that was not needed: marks, an old history, what a fenced writer left, what two have.
                assert_eq!(result.end, end);
                let store = Store::open_in(&environment(), &path, options()).unwrap();
                assert!(
                    everything(&store, &life.pages, end) == everything(&life.store, &life.pages, end),
                    "{key}"
                );
                passed_over += 1;
            }
            Err(Refused::Restore(RestoreError::Damaged { object, lost, below, .. })) => {
                assert!(is_there && object == *key, "{object} is named, and {key} is spoilt");
                assert!(lost.iter().any(|range| range.from <= end && end <= range.through), "{lost:?}");
                if let Some(below) = below.filter(|below| *below >= life.ends()[0]) {
                    drop(std::fs::remove_dir_all(&path));
                    check_same(&life, &objects, below, &path);
                }
                named += 1;
            }
            Err(Refused::Read(ReadError::Unusable { object, .. })) => {
                assert_eq!(object, *key);
                assert!(matches!(name, Name::Volume | Name::History(_)));
                named += 1;
            }
            Err(Refused::Restore(RestoreError::NotRestorable(error))) => {
                assert!(!is_there, "{key}: {error}");
                assert!(error.below.is_none_or(|below| below < end), "{error}");
                named += 1;
            }
            // Without the newest history what it cut would count.
            Err(Refused::Read(ReadError::NewestHistoryMissing { epoch, newest, .. })) => {
                assert!(!is_there && matches!(name, Name::History(_)) && epoch > newest);
                named += 1;
            }
            Err(other) => panic!("{key}: {other:?}"),
        }
        drop(std::fs::remove_dir_all(&path));
    }
    assert!(named > 20 && passed_over > 5, "{named} named, {passed_over} passed over");
}

#[test]
fn an_epoch_above_all_that_were_is_opened_even_when_the_point_is_old() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, 13);
    let first = life.ends()[3];
    let result = restored(&life.objects, first, &folder.path().join("restored")).unwrap();
    assert_eq!(result.history.openings().len(), 2, "what came after the point is not of this volume");
    assert_eq!(result.history.newest_epoch(), VolumeEpoch(life.history.newest_epoch().0 + 1));
    assert!(!result.has_template, "test records make none");
}

fn copy_of(objects: &MemoryStore) -> MemoryStore {
    copy_without(objects, "")
}

fn flip_a_bit(objects: &MemoryStore, key: &str) {
    let mut bytes = objects.get(key).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    objects.delete(key).unwrap();
    objects.put_new(key, &bytes).unwrap();
}

#[test]
fn a_restore_that_begins_anew_for_a_damaged_object_gets_there_and_its_progress_never_falls() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("volume"), GROUPS, 17);
    life.write(150);
    life.upload(1, false);
    // The same redo by another node, which found nothing in the store.
    let first = std::mem::take(&mut life.objects);
    life.upload(2, false);
    for object in first.list("", None).unwrap().objects {
        life.objects.put_new(&object.key, &first.get(&object.key).unwrap()).unwrap();
    }
    let plan = contents(&life.objects).plan(life.durable.end).unwrap();
    // The last one that is needed: much was read before it.
    let last =
        plan.groups.iter().flat_map(|group| group.redo.last()).max_by_key(|redo| redo.name.previous_end);
    let spoilt = Name::Redo(last.expect("redo").name).key(VOLUME);
    flip_a_bit(&life.objects, &spoilt);
    let path = folder.path().join("restored");
    // It asserts that progress does not fall.
    let result = restored(&life.objects, life.durable.end, &path).unwrap();
    assert_eq!(result.passed_over.iter().map(|(object, _)| object).collect::<Vec<_>>(), [&spoilt]);
    std::fs::remove_dir_all(&path).unwrap();
    check_same(&life, &life.objects, life.durable.end, &path);
}

/// The writers and the recoveries of [`life`], and uploaders as they are: what is not durable is there while they look, and stays where it is.
fn honest_life(folder: &Path, seed: u64) -> Life {
    let mut life = Life::begin(folder, GROUPS, seed);
    for _ in 0..3 {
        for _ in 0..3 {
            life.write(20);
            life.upload(1, false);
        }
        life.write_uncertain(10);
        life.upload(2, false);
        life.recover();
        // Of the epoch that was opened there is the history, and nothing else yet.
        life.upload(2, false);
    }
    life
}

#[test]
fn what_a_recovery_cut_never_was_in_the_backup() {
    for seed in 20..23 {
        let folder = tempfile::tempdir().unwrap();
        let life = honest_life(&folder.path().join("volume"), seed);
        let whole = contents(&life.objects);
        assert_eq!(whole.known.history, life.history);
        let mut records = 0;
        for redo in (0..GROUPS).flat_map(|group| whole.inventory.redo(GroupId(group)).collect::<Vec<_>>()) {
            let bytes = life.objects.get(&Name::Redo(redo).key(VOLUME)).unwrap();
            for_each_record(&bytes, VOLUME, &redo, &Sealing::Plain, |record| {
                records += 1;
                assert!(life.history.admits(redo.epoch, record.span.end), "{} was cut", record.span.end);
            })
            .unwrap();
        }
        assert!(records > 180, "{records} records");
    }
}

#[test]
fn an_older_history_counts_nothing_that_the_one_that_is_gone_cut() {
    let folder = tempfile::tempdir().unwrap();
    let life = honest_life(&folder.path().join("volume"), 23);
    let objects = copy_of(&life.objects);
    let path = folder.path().join("restored");
    let whole = contents(&objects);
    let mut newest: Vec<HistoryName> = whole.inventory.histories().collect();
    assert_eq!(newest.len(), 4);
    // Without a trace of the newest epoch nobody can tell that its history is gone: what is restored is right all the same.
    objects.delete(&Name::History(newest.pop().unwrap()).key(VOLUME)).unwrap();
    for (list, marks) in &whole.known.marks {
        if marks.iter().any(|mark| mark.epoch == life.history.newest_epoch()) {
            objects.delete(&Name::Marks(*list).key(VOLUME)).unwrap();
        }
    }
    let older = contents(&objects);
    assert!(older.known.history.newest_epoch() < life.history.newest_epoch());
    assert_eq!(older.newest().map(|newest| newest.lsn), Some(life.durable.end));
    let beyond = restored(&objects, Lsn(life.durable.end.0 + 8), &path);
    assert!(matches!(beyond, Err(Refused::Restore(RestoreError::NotRestorable(_)))), "{beyond:?}");
    restored(&objects, life.durable.end, &path).unwrap();
    let store = Store::open_in(&environment(), &path, options()).unwrap();
    let at = life.durable.end;
    assert!(everything(&store, &life.pages, at) == everything(&life.store, &life.pages, at));
    // Of each epoch before there is redo: that its history is gone shows.
    for name in newest.into_iter().skip(1).rev() {
        objects.delete(&Name::History(name).key(VOLUME)).unwrap();
        let refused = restored(&objects, life.ends()[0], &path);
        let Err(Refused::Read(ReadError::NewestHistoryMissing { newest, .. })) = refused else {
            panic!("{refused:?}");
        };
        assert!(newest < name.epoch);
    }
}

#[test]
fn a_cut_record_that_somebody_uploaded_does_not_come_back_with_an_older_history() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("volume"), GROUPS, 24);
    let objects = copy_of(&life.objects);
    let newest = contents(&objects).inventory.histories().last().unwrap();
    objects.delete(&Name::History(newest).key(VOLUME)).unwrap();
    let refused = restored(&objects, life.ends()[0], &folder.path().join("restored"));
    assert!(
        matches!(refused, Err(Refused::Read(ReadError::NewestHistoryMissing { epoch, .. })) if epoch == newest.epoch)
    );
}

/// Makes an object anew that says it has all to where the old one did, without its last record.
fn deny_the_last_record(objects: &MemoryStore, name: RedoName) {
    let bytes = objects.get(&Name::Redo(name).key(VOLUME)).unwrap();
    let mut builder = RedoBuilder::new(VOLUME, name.group, name.node, name.epoch, name.previous_end);
    for_each_record(&bytes, VOLUME, &name, &Sealing::Plain, |record| {
        if record.span.end < name.last_end {
            builder.push(name.epoch, record).unwrap();
        }
    })
    .unwrap();
    let (new, bytes) = builder.finish(name.complete_through, &Sealing::Plain).unwrap();
    objects.delete(&Name::Redo(name).key(VOLUME)).unwrap();
    objects.put_new(&Name::Redo(new).key(VOLUME), &bytes).unwrap();
}

#[test]
fn a_record_that_its_groups_redo_denies_is_missed_by_the_one_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut denied = 0;
    for seed in 30..60 {
        let mut life = Life::begin(&folder.path().join(format!("volume-{seed}")), GROUPS, seed);
        life.write(40);
        life.upload(1, false);
        let whole = contents(&life.objects);
        for name in (0..GROUPS).filter_map(|group| whole.inventory.redo(GroupId(group)).last()) {
            let bytes = life.objects.get(&Name::Redo(name).key(VOLUME)).unwrap();
            let mut groups_of_last = 0;
            let facts = for_each_record(&bytes, VOLUME, &name, &Sealing::Plain, |record| {
                groups_of_last = record.links.len()
            });
            // What other groups have they would not deny; and after the last one nobody misses it.
            if groups_of_last > 1 || facts.unwrap().records < 2 || name.last_end == life.durable.end {
                continue;
            }
            let objects = copy_of(&life.objects);
            deny_the_last_record(&objects, name);
            let path = folder.path().join("restored");
            let refused = restored(&objects, life.durable.end, &path);
            let Err(Refused::Restore(RestoreError::Contradiction(what))) = &refused else {
                panic!("{refused:?}");
            };
            assert!(what.contains("is missing"), "{what}");
            std::fs::remove_dir_all(&path).unwrap();
            denied += 1;
        }
    }
    assert!(denied > 3, "{denied} records");
}

/// A store that panics when redo is read for the first time.
#[derive(Debug)]
struct Panicking(MemoryStore, AtomicBool);

impl ObjectStore for Panicking {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        self.0.put_new(key, bytes)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        let is_first = key.contains("/redo/") && !self.1.swap(true, Ordering::Relaxed);
        assert!(!is_first, "a fault of whoever reads {key}");
        self.0.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        self.0.list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.0.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

#[test]
fn a_panic_of_a_thread_that_reads_ends_the_restore() {
    let folder = tempfile::tempdir().unwrap();
    // Many more objects than threads: those that wait for their turn must hear of it, too.
    let mut life = Life::begin(&folder.path().join("volume"), GROUPS, 50);
    for _ in 0..12 {
        life.write(10);
        life.upload(1, false);
    }
    let (contents, point) = (contents(&life.objects), life.durable.end);
    let path = folder.path().join("restored");
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let order = Order {
            point,
            sealing: &Sealing::Plain,
            environment: &environment(),
            folder: &path,
            identity: &identity(NEW, GROUPS),
            options: options(),
            copies: 0,
        };
        let objects = Panicking(life.objects, AtomicBool::new(false));
        let run = || restore(&order, &objects, &contents, &mut |_| ()).map(|restored| restored.end);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        sender.send(ended.is_err()).unwrap();
    });
    let panicked = receiver.recv_timeout(Duration::from_secs(120)).expect("it does not wait for ever");
    assert!(panicked, "nobody overlooks a panic");
}

#[test]
fn before_the_first_record_there_is_nothing_and_the_first_point_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::of_three_writers(&folder.path().join("life"), GROUPS, 11);
    let objects = &life.objects;
    let to = folder.path().join("restored");
    let error = match restored(objects, Lsn::ZERO, &to) {
        Err(Refused::Restore(error @ RestoreError::BeforeAll { .. })) => error,
        other => panic!("{other:?}"),
    };
    let RestoreError::BeforeAll { point: Lsn::ZERO, earliest: Some(earliest) } = error else {
        panic!("{error}")
    };
    let said = error.to_string();
    assert!(said.contains(&format!("the first point that can be restored is {earliest}")), "{said}");
    assert!(!to.exists(), "nothing was made");
    check_same(&life, objects, earliest, &to);
}
