//! Snapshots of a life with redo, recoveries and faults: whatever is restored from them is what the volume was, at every point, and a
//! snapshot that did not get to its end does no harm.

#![allow(clippy::unwrap_used)] // All of this is test code.

mod life;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use borealis_archive::name::{ManifestName, Name};
use borealis_archive::plan::Plan;
use borealis_archive::sealing::Sealing;
use borealis_archive::snapshot::Snapshot;
use borealis_backup::contents::read;
use borealis_backup::restore::{Order, Progress, RestoreError, Restored, restore};
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::store::{Action, ErrorKind, Listing, ObjectStore, ObjectStoreError, Put, inventory};
use borealis_store::Store;
use borealis_types::{GroupId, Lsn, MetaKey, PAGE_SIZE, PageKey, VolumeId};
use life::{ALWAYS, Life, Random, Turn, VOLUME, environment, fork, identity, options};

const GROUPS: u16 = 4;
/// The volume that is made of a backup.
const NEW: VolumeId = VolumeId(77);

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

/// What a restore to a point reads; `None` if the point cannot be restored.
fn plan_of(objects: &MemoryStore, point: Lsn) -> Option<Plan> {
    let contents = read(objects, VOLUME, &Sealing::Plain).unwrap();
    assert_eq!(contents.restorable().contains(point), contents.plan(point).is_ok(), "{point}");
    contents.plan(point).ok()
}

fn restored(objects: &MemoryStore, point: Lsn, folder: &Path) -> Result<Restored, RestoreError> {
    restored_with(objects, point, folder, 0)
}

fn restored_with(
    objects: &MemoryStore,
    point: Lsn,
    folder: &Path,
    copies: u64,
) -> Result<Restored, RestoreError> {
    let contents = read(objects, VOLUME, &Sealing::Plain).unwrap();
    let order = Order {
        point,
        sealing: &Sealing::Plain,
        environment: &environment(),
        folder,
        identity: &identity(NEW, contents.facts.placement.group_count()),
        options: options(),
        copies,
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

/// What a volume was at some points.
type Memories = Vec<(Lsn, Everything)>;

fn groups() -> Vec<GroupId> {
    (0..GROUPS).map(GroupId).collect()
}

fn remember(life: &Life, memories: &mut Memories) {
    let at = life.durable.end;
    memories.push((at, everything(&life.store, &life.pages, at)));
}

/// Redo, snapshots of some groups or all, and recoveries that cut what somebody had uploaded. Old versions are kept by nobody.
fn live(folder: &Path, seed: u64) -> (Life, Memories) {
    let (mut life, mut memories) = (Life::begin(folder, GROUPS, seed), Memories::new());
    let mut random = Random(seed ^ 99);
    for _ in 0..16 {
        life.write(1 + random.below(30) as usize);
        remember(&life, &mut memories);
        let some: Vec<GroupId> = groups().into_iter().filter(|_| random.below(2) == 0).collect();
        match random.below(5) {
            0 => life.forget(),
            1 => drop(life.snapshot(1, &groups())),
            2 | 3 => drop(life.snapshot(1 + random.below(3) as u16, &some)),
            _ => life.upload(1, false),
        }
        if random.below(4) == 0 {
            life.write_uncertain(10);
            life.upload(2, true);
            life.recover();
        }
    }
    life.upload(1, false);
    (life, memories)
}

fn check(life: &Life, objects: &MemoryStore, (point, was): &(Lsn, Everything), folder: &Path) {
    let result = restored(objects, *point, folder).unwrap();
    assert_eq!(result.end, *point);
    assert!(result.history.newest_epoch() > life.history.newest_epoch());
    let newest = result.history.newest().expect("an opening").last;
    assert!(
        life.spans().contains(&newest),
        "the new volume links back to a record that there was: {newest:?}"
    );
    let store = Store::open_in(&environment(), folder, options()).unwrap();
    let is = everything(&store, &pages_of(was), *point);
    assert!(is == *was, "the state at {point} is another");
    drop(store);
    std::fs::remove_dir_all(folder).unwrap();
}

fn pages_of(was: &Everything) -> BTreeSet<PageKey> {
    was.0.iter().map(|(key, _)| *key).collect()
}

#[test]
fn every_point_is_restored_from_the_snapshots_before_it_and_what_was_cut_never_is() {
    let (mut with_base, mut at_different_points) = (0, 0);
    for seed in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let (life, memories) = live(&folder.path().join("volume"), seed);
        for memory in &memories {
            let plan = plan_of(&life.objects, memory.0).expect("restorable");
            let bases: BTreeSet<_> =
                plan.groups.iter().map(|group| group.base.map(|base| base.lsn)).collect();
            with_base += usize::from(bases.iter().any(Option::is_some));
            at_different_points += usize::from(bases.len() > 1);
            check(&life, &life.objects, memory, &folder.path().join("restored"));
        }
    }
    assert!(with_base > 30 && at_different_points > 10, "{with_base} {at_different_points}");
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("life"), GROUPS, 3);
    life.write(40);
    life.snapshot(1, &groups());
    life.upload(1, false);
    let new = folder.path().join("new");
    const COPIES: u64 = 1 << 40;
    let refused = restored_with(&life.objects, life.durable.end, &new, COPIES - 1).unwrap_err();
    assert!(refused.to_string().contains("MiB are free in"), "{refused}");
    let RestoreError::NoRoom { needed, .. } = refused else { panic!("{refused}") };
    // Every group knows how long a fork is, and it is that long once.
    let at = life.durable.end;
    let in_group = |group, fork| life.store.relation_size(group, fork, at).unwrap().unwrap_or(0);
    let length = |fork| groups().into_iter().map(|group| u64::from(in_group(group, fork))).max().unwrap();
    let blocks: u64 = (16_384..16_388).map(|number| length(fork(number))).sum();
    assert!(blocks > 0);
    assert_eq!(needed / COPIES, blocks * PAGE_SIZE as u64);
    std::fs::remove_dir_all(&new).unwrap();
    restored_with(&life.objects, at, &new, 6).unwrap();
}

/// What a restore from the beginning would need is gone.
#[test]
fn redo_before_a_snapshot_is_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut life, mut memories) = (Life::begin(&folder.path().join("volume"), GROUPS, 7), Memories::new());
    life.write(60);
    life.snapshot(1, &groups());
    let snapshot = life.durable.end;
    remember(&life, &mut memories);
    for name in inventory(&life.objects, VOLUME).unwrap().objects().map(|(name, _)| name) {
        if matches!(name, Name::Redo(_)) {
            life.objects.delete(&name.key(VOLUME)).unwrap();
        }
    }
    check(&life, &life.objects, &memories[0], &folder.path().join("restored"));
    let newest = read(&life.objects, VOLUME, &Sealing::Plain).unwrap().newest();
    assert_eq!(newest.map(|newest| newest.lsn), Some(snapshot), "it is said that it can be restored");
    life.write(20);
    remember(&life, &mut memories);
    life.upload(2, false);
    for memory in &memories {
        check(&life, &life.objects, memory, &folder.path().join("restored"));
    }
    let before = restored(&life.objects, Lsn(snapshot.0 - 1), &folder.path().join("restored"));
    assert!(matches!(before, Err(RestoreError::NotRestorable(_))), "{before:?}");
}

#[test]
fn a_snapshot_costs_what_changed_whoever_makes_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("volume"), GROUPS, 8);
    life.write(400);
    assert_eq!(life.snapshot(1, &groups()).snapshots, u64::from(GROUPS));
    let pages = |life: &Life| {
        let inventory = inventory(&life.objects, VOLUME).unwrap();
        let pages = inventory.objects().filter(|(name, _)| matches!(name, Name::Pages(_)));
        pages.map(|(_, stored)| stored.bytes).sum::<u64>()
    };
    let first = pages(&life);
    assert_eq!(life.snapshot(2, &groups()).snapshots, 0, "nothing changed");
    life.write(1);
    let made = life.snapshot(2, &groups()).snapshots;
    assert!((1..=3).contains(&made), "{made} groups changed");
    let second = pages(&life) - first;
    assert!(second > 0 && second < first / 2, "{second} bytes after {first}");
}

#[test]
fn a_gap_is_closed_by_a_snapshot_of_its_own_accord() {
    let folder = tempfile::tempdir().unwrap();
    let (mut life, mut memories) = (Life::begin(&folder.path().join("volume"), 1, 9), Memories::new());
    for _ in 0..3 {
        life.write(60);
        life.upload(1, false);
        remember(&life, &mut memories);
    }
    let listed = inventory(&life.objects, VOLUME).unwrap();
    let redo: Vec<_> = listed.redo(GroupId(0)).collect();
    life.objects.delete(&Name::Redo(redo[redo.len() / 2]).key(VOLUME)).unwrap();
    assert!(plan_of(&life.objects, life.durable.end).is_none());
    // It has everything itself, and uploads it again; a snapshot does not wait for that.
    let status = life.take_turn(&Turn { node: 1, steps: 40, ..life.turn() }, &life.objects);
    assert_eq!((status.snapshots, status.gaps.len()), (1, 0), "{status:?}");
    check(&life, &life.objects, memories.last().unwrap(), &folder.path().join("restored"));
}

#[test]
fn a_backup_begins_with_snapshots_where_the_redo_before_is_gone_and_nothing_more_comes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut life, mut memories) = (Life::begin(&folder.path().join("volume"), GROUPS, 10), Memories::new());
    life.write(100);
    remember(&life, &mut memories);
    let begun = life.durable.end;
    let turn = |steps| Turn { steps, log_floor: begun, ..life.turn() };
    // While another node may have it, nothing is given up.
    let status = life.take_turn(&turn(100), &life.objects);
    assert_eq!((status.snapshots, status.gaps.len()), (0, 0), "{status:?}");
    let status = life.take_turn(&turn(1_000), &life.objects);
    assert_eq!((status.snapshots, status.gaps.len()), (u64::from(GROUPS), 0), "{status:?}");
    check(&life, &life.objects, &memories[0], &folder.path().join("restored"));
    life.write(30);
    remember(&life, &mut memories);
    life.take_turn(&Turn { node: 2, log_floor: begun, ..life.turn() }, &life.objects);
    for memory in &memories {
        check(&life, &life.objects, memory, &folder.path().join("restored"));
    }
}

/// A store that fails now and then; half of what it failed to make is there.
#[derive(Debug)]
struct Unlucky<'a>(&'a MemoryStore, Mutex<Random>);

impl Unlucky<'_> {
    fn luck(&self, action: Action, key: &str) -> Result<(), ObjectStoreError> {
        match self.1.lock().unwrap().below(6) {
            0 => Err(ObjectStoreError {
                kind: ErrorKind::Down,
                action,
                key: key.to_owned(),
                what: "luck".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

impl ObjectStore for Unlucky<'_> {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        let failed = self.luck(Action::Make, key);
        if failed.is_ok() || self.1.lock().unwrap().below(2) == 0 {
            return failed.and(self.0.put_new(key, bytes));
        }
        failed.map(|()| Put::Made)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.luck(Action::Read, key)?;
        self.0.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        self.luck(Action::List, prefix)?;
        self.0.list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.0.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

/// A store that has room for redo, and none for objects of this kind.
#[derive(Debug)]
struct NoRoomFor<'a>(&'static str, &'a MemoryStore);

impl ObjectStore for NoRoomFor<'_> {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        if key.contains(self.0) {
            let (key, what) = (key.to_owned(), "no room".to_owned());
            return Err(ObjectStoreError { kind: ErrorKind::Full, action: Action::Make, key, what });
        }
        self.1.put_new(key, bytes)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.1.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        self.1.list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.1.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

#[test]
fn redo_goes_on_where_pages_have_no_room_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("volume"), GROUPS, 3);
    life.write(2_000);
    let turn = Turn { rule: ALWAYS, steps: 100, ..life.turn() };
    let status = life.take_turn(&turn, &NoRoomFor("/pages/", &life.objects));
    assert!(status.snapshot_trouble.is_some_and(|(_, what)| what.contains("no room")));
    assert!(status.last_failure.is_none());
    let newest = read(&life.objects, VOLUME, &Sealing::Plain).unwrap().newest();
    assert_eq!(newest.map(|newest| newest.lsn), life.ends().last().copied());
}

/// What is in the store of it may be going by then.
#[test]
fn a_snapshot_that_does_not_get_to_its_end_in_a_day_begins_again() {
    const HOUR_MS: u64 = 60 * 60 * 1000;
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("volume"), 1, 17);
    life.write(200);
    let store = NoRoomFor("/manifests/", &life.objects);
    let turn = |steps| Turn { rule: ALWAYS, steps, step_ms: HOUR_MS, ..life.turn() };
    life.take_turn(&turn(20), &store);
    assert_eq!(life.holds.get(), 1, "it goes on with what it has");
    life.take_turn(&turn(60), &store);
    assert_eq!(
        life.holds.get(),
        1 + 3,
        "the one after it begins at once, and again a day later, and once more"
    );
}

#[test]
fn a_snapshot_that_ends_anywhere_does_no_harm_and_the_next_gets_through() {
    for seed in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let (mut life, mut memories) =
            (Life::begin(&folder.path().join("volume"), GROUPS, seed), Memories::new());
        let mut random = Random(seed);
        for round in 0..8 {
            // Now and then there is more redo than gets to the store before a snapshot's pages do.
            life.write(if round % 2 == 0 { 80 } else { 500 });
            remember(&life, &mut memories);
            if round % 3 == 1 {
                life.forget();
            }
            // The process ends after any step; its successor is another node, or the same.
            for _ in 0..4 {
                let turn = Turn {
                    node: 1 + random.below(3) as u16,
                    rule: ALWAYS,
                    steps: random.below(12) as usize,
                    pages_fail_one_in: random.below(8),
                    ..life.turn()
                };
                let store = Unlucky(&life.objects, Mutex::new(Random(random.below(u64::MAX))));
                life.take_turn(&turn, &store);
                // Every manifest that is there has all that it names.
                all_that_manifests_name_is_there(&life.objects);
            }
        }
        let status = life.snapshot(1, &groups());
        assert!(status.groups.iter().all(|group| group.snapshot.is_some()), "{status:?}");
        life.upload(1, false);
        let contents = read(&life.objects, VOLUME, &Sealing::Plain).unwrap();
        for end in life.ends() {
            // No snapshot came before the redo that it stands in for.
            contents.plan(end).unwrap();
        }
        for memory in &memories {
            check(&life, &life.objects, memory, &folder.path().join("restored"));
        }
    }
}

fn all_that_manifests_name_is_there(objects: &MemoryStore) {
    let listed = inventory(objects, VOLUME).unwrap();
    for name in groups().into_iter().flat_map(|group| listed.manifests(group)) {
        all_that_it_names_is_there(objects, &name);
    }
}

fn all_that_it_names_is_there(objects: &MemoryStore, name: &ManifestName) {
    let listed = inventory(objects, VOLUME).unwrap();
    let bytes = objects.get(&Name::Manifest(*name).key(VOLUME)).unwrap();
    let snapshot = Snapshot::decode(&bytes, VOLUME, name, &Sealing::Plain).unwrap();
    for (first, placed) in snapshot.extents.iter() {
        assert!(listed.get(&Name::Pages(placed.object)).is_some(), "{first} of {name:?}");
    }
}

#[test]
fn pages_that_are_lost_are_in_the_next_snapshot_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(&folder.path().join("volume"), GROUPS, 13);
    life.write(200);
    life.snapshot(1, &groups());
    let listed = inventory(&life.objects, VOLUME).unwrap();
    let is_pages = |name: &&Name| matches!(name, Name::Pages(_));
    let lost: Vec<Name> = listed.objects().map(|(name, _)| name).filter(is_pages).cloned().collect();
    assert!(!lost.is_empty());
    lost.iter().for_each(|name| life.objects.delete(&name.key(VOLUME)).unwrap());
    // Little, so that most extents stay what they were.
    life.write(3);
    life.snapshot(2, &groups());
    let before = listed;
    let listed = inventory(&life.objects, VOLUME).unwrap();
    let is_new = |name: &ManifestName| before.get(&Name::Manifest(*name)).is_none();
    let made: Vec<ManifestName> =
        groups().into_iter().flat_map(|group| listed.manifests(group)).filter(is_new).collect();
    assert!(!made.is_empty());
    made.iter().for_each(|name| all_that_it_names_is_there(&life.objects, name));
}

#[test]
fn a_snapshot_with_anything_spoilt_is_passed_over_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let (mut life, mut memories) = (Life::begin(&folder.path().join("volume"), GROUPS, 21), Memories::new());
    for _ in 0..2 {
        life.write(60);
        life.snapshot(1, &groups());
    }
    life.write(10);
    life.upload(1, false);
    remember(&life, &mut memories);
    let listed = inventory(&life.objects, VOLUME).unwrap();
    let of_snapshots = |name: &Name| matches!(name, Name::Manifest(_) | Name::Pages(_));
    let keys: Vec<String> = listed
        .objects()
        .map(|(name, _)| name)
        .filter(|name| of_snapshots(name))
        .map(|name| name.key(VOLUME))
        .collect();
    let mut passed_over = 0;
    for (number, key) in keys.iter().enumerate() {
        let bytes = life.objects.get(key).unwrap();
        let at = Random(number as u64).below(bytes.len() as u64) as usize;
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        let foreign = life.objects.get(&keys[(number + 1) % keys.len()]).unwrap();
        for spoilt in [None, Some(flipped), Some(bytes[..at].to_vec()), Some(foreign)] {
            let objects = MemoryStore::default();
            for object in life.objects.list("", None).unwrap().objects {
                let is_spoilt = object.key == *key;
                let bytes = if is_spoilt { spoilt.clone() } else { life.objects.get(&object.key).ok() };
                bytes.into_iter().for_each(|bytes| drop(objects.put_new(&object.key, &bytes)));
            }
            let path = folder.path().join("restored");
            let result = restored(&objects, memories[0].0, &path).unwrap();
            passed_over += usize::from(!result.passed_over.is_empty());
            let store = Store::open_in(&environment(), &path, options()).unwrap();
            assert!(everything(&store, &life.pages, memories[0].0) == memories[0].1, "{key}");
            drop(store);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
    assert!(passed_over > keys.len(), "{passed_over} of {}", keys.len() * 4);
}
