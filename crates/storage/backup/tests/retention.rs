//! Deleting what nobody can need, on random lives of a volume: whatever interrupts it and whatever is missing, what must stay can be restored.

#[path = "../../archive/tests/world/mod.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

use borealis_archive::known::Known;
use borealis_archive::name::Name;
use borealis_archive::plan::plan;
use borealis_archive::restorable::restorable;
use borealis_archive::sealing::Sealing;
use borealis_archive::settings::{self, NamedSnapshot, Retention, VolumeFacts};
use borealis_backup::retention::{
    Deleted, RetentionError, Settings, delete_old, forget_name, name_point, set_retention,
    settings as read_settings, window_start,
};
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::store::{Action, ErrorKind, Listing, ObjectStore, ObjectStoreError, Put, inventory};
use borealis_types::{Lsn, PAGE_SIZE, PostgresVersion};
use proptest::prelude::*;
use world::{FIRST_MS, Random, VOLUME, World};

/// A store that ends somebody's work in the middle: after so many requests that delete, none does.
#[derive(Debug)]
struct Ending {
    inner: MemoryStore,
    deletions_left: Mutex<usize>,
    /// Somebody gives a name before this look at the names.
    named_at_look: Mutex<Option<u32>>,
}

impl ObjectStore for Ending {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        self.inner.put_new(key, bytes)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.inner.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        if prefix.ends_with("/snapshots/") {
            let mut at_look = self.named_at_look.lock().expect("no panic");
            *at_look = at_look.and_then(|looks| looks.checked_sub(1));
            if *at_look == Some(0) {
                self.inner.put_new(&format!("{prefix}late"), b"somebody's")?;
            }
        }
        self.inner.list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        let mut left = self.deletions_left.lock().expect("no panic");
        if *left == 0 {
            let (kind, action, what) = (ErrorKind::Down, Action::Delete, "as it was told".to_owned());
            return Err(ObjectStoreError { kind, action, key: key.to_owned(), what });
        }
        *left -= 1;
        self.inner.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

struct Life {
    world: World,
    store: Ending,
    now_ms: u64,
}

impl Life {
    /// The life of a seed, without these objects, and some time later.
    fn new(world: World, missing: &BTreeSet<Name>, retention: Retention, age_ms: u64) -> Life {
        let store = Ending {
            inner: MemoryStore::default(),
            deletions_left: Mutex::new(usize::MAX),
            named_at_look: Mutex::default(),
        };
        for (name, (bytes, made_ms)) in world.objects.iter().filter(|(name, _)| !missing.contains(name)) {
            store.inner.set_clock_ms(*made_ms);
            store.inner.put_new(&name.key(VOLUME), bytes).expect("memory");
        }
        let (placement, version) = (world.placement, PostgresVersion::V15);
        let facts = VolumeFacts { placement, version, page_bytes: PAGE_SIZE as u32, created_ms: FIRST_MS };
        let bytes = settings::encode(VOLUME, facts, &Sealing::Plain);
        store.inner.put_new(&Name::Volume.key(VOLUME), &bytes).expect("memory");
        set_retention(&store, VOLUME, &Sealing::Plain, &Settings::default(), retention).expect("the first");
        let (last_ms, now_ms) = (world.clock_ms, world.clock_ms + age_ms);
        let mut life = Life { world, store, now_ms };
        // Time passes for the store too, as marks show.
        for at_ms in (last_ms..now_ms).step_by(250).chain([now_ms]) {
            life.put_late_mark(at_ms);
        }
        life
    }

    fn put_late_mark(&mut self, at_ms: u64) {
        self.store.inner.set_clock_ms(at_ms);
        let (name, bytes) = self.world.late_mark(at_ms);
        self.store.inner.put_new(&name.key(VOLUME), &bytes).expect("memory");
        self.world.objects.insert(name, (bytes, at_ms));
    }

    fn name(&self, number: u64, lsn: Lsn) {
        let epoch = self.world.history.newest_epoch();
        let name = format!("s{number}").try_into().expect("a name");
        let named = NamedSnapshot { name, lsn, epoch, created_ms: FIRST_MS };
        name_point(&self.store, VOLUME, &Sealing::Plain, &named).expect("free");
    }

    fn known(&self) -> (borealis_archive::inventory::Inventory, Known) {
        let inventory = inventory(&self.store, VOLUME).expect("memory");
        let known = self.world.known(&inventory);
        // A snapshot without its pages is none.
        let broken = inventory.without_broken(&self.world.references(&inventory));
        (broken, known)
    }

    fn delete(&self, deletions: usize, thorough: bool) -> Result<Deleted, RetentionError> {
        *self.store.deletions_left.lock().expect("no panic") = deletions;
        delete_old(&self.store, VOLUME, &Sealing::Plain, self.now_ms, thorough)
    }

    fn start(&self) -> Lsn {
        window_start(&self.store, VOLUME, &Sealing::Plain, self.now_ms).expect("memory").lsn
    }
}

proptest! {
    #[test]
    fn a_deletion_cut_anywhere_keeps_what_must_stay_and_is_finished_by_the_next(
        seed: u64,
        age_ms in 0u64..40_000,
        window_ms in 0u64..20_000,
        missing_one_in in 3u64..40,
    ) {
        let mut random = Random::new(seed);
        let world = World::new(&mut random);
        let redo_or_pages = |name: &&Name| matches!(name, Name::Redo(_) | Name::Pages(_));
        let missing: BTreeSet<Name> =
            world.objects.keys().filter(redo_or_pages).filter(|_| random.one_in(missing_one_in)).cloned().collect();
        let ends: Vec<Lsn> = world.line.iter().map(|record| record.span.end).filter(|end| *end <= world.durable).collect();
        let mut life = Life::new(world, &missing, Retention { window_ms, unfinished_ms: 2_000 }, age_ms);
        let mut named = BTreeSet::new();
        for number in 0..random.below(3) {
            if let Some(lsn) = ends.get(random.below(ends.len().max(1) as u64) as usize) {
                life.name(number, *lsn);
                named.insert(*lsn);
            }
        }
        let (whole, known) = life.known();
        let before = restorable(&whole, &known);
        let start = life.start();
        let needed: Vec<Lsn> = ends
            .iter()
            .copied()
            .chain([start])
            .filter(|point| before.contains(*point) && (*point >= start || named.contains(point)))
            .collect();
        let mut rounds = 0;
        loop {
            rounds += 1;
            let result = life.delete(random.below(4) as usize, random.one_in(2));
            let (inventory, known) = life.known();
            for &point in &needed {
                let plan = plan(&inventory, &known, point).unwrap_or_else(|error| panic!("{error} {named:?} {start}"));
                life.world.restore(&plan, &inventory);
            }
            match result {
                Ok(deleted) if deleted.objects == 0 => break,
                Ok(_) => {}
                Err(error) => prop_assert!(matches!(error, RetentionError::Read(_)), "{error}"),
            }
            prop_assert!(rounds < 1000, "it ends");
        }
        // Nothing is left over that a whole one would take.
        let last = life.delete(usize::MAX, true).expect("memory");
        let (inventory, known) = life.known();
        for &point in &needed {
            life.world.restore(&plan(&inventory, &known, point).expect("it stays"), &inventory);
        }
        prop_assert_eq!(life.delete(usize::MAX, true).expect("memory").objects, 0, "after {:?}", last);
        life.now_ms += 1;
    }
}

/// What the test above is about happens often.
#[test]
fn of_many_lives_much_of_every_kind_is_deleted() {
    let mut gone: BTreeMap<&str, usize> = BTreeMap::new();
    let mut kept_whole = 0;
    for seed in 0..300 {
        let world = World::new(&mut Random::new(seed));
        let retention = Retention { window_ms: 3_000, unfinished_ms: 1_000 };
        let life = Life::new(world, &BTreeSet::new(), retention, 2_000);
        let before = inventory(&life.store, VOLUME).expect("memory");
        let deleted = life.delete(usize::MAX, true).expect("memory");
        kept_whole += deleted.kept_whole.len();
        let after = inventory(&life.store, VOLUME).expect("memory");
        for (name, _) in before.objects().filter(|(name, _)| after.get(name).is_none()) {
            let kind = match name {
                Name::Manifest(_) => "manifests",
                Name::Pages(_) => "pages",
                Name::Redo(_) => "redo",
                Name::Marks(_) => "marks",
                Name::History(_) => "histories",
                _ => "others",
            };
            *gone.entry(kind).or_default() += 1;
        }
        let start = life.start();
        let (whole, known) = (&before, life.world.known(&before));
        let range = restorable(whole, &known);
        assert!(start == Lsn::ZERO || range.contains(start));
    }
    let often = |kind: &str| gone.get(kind).copied().unwrap_or(0) > 50;
    let all = ["manifests", "pages", "redo", "marks", "histories"];
    assert!(all.iter().all(|kind| often(kind)) && !gone.contains_key("others"), "{gone:?}");
    assert!(kept_whole < 30, "{kept_whole}: nothing was missing");
}

fn small_life() -> Life {
    let retention = Retention { window_ms: 3_000, unfinished_ms: 1_000 };
    Life::new(World::new(&mut Random::new(7)), &BTreeSet::new(), retention, 2_000)
}

#[test]
fn a_change_of_settings_meanwhile_is_noticed_and_two_changes_at_once_are_not_both_made() {
    let life = small_life();
    let before = read_settings(&life.store, VOLUME, &Sealing::Plain).expect("memory");
    assert_eq!(before.revision, 1);
    let longer = Retention { window_ms: 9_000, ..before.retention };
    set_retention(&life.store, VOLUME, &Sealing::Plain, &before, longer).expect("nobody else did");
    assert_eq!(
        set_retention(&life.store, VOLUME, &Sealing::Plain, &before, longer),
        Err(RetentionError::ChangedMeanwhile)
    );
    let after = read_settings(&life.store, VOLUME, &Sealing::Plain).expect("memory");
    assert_eq!((after.revision, after.retention), (2, longer));
    life.name(1, Lsn(64));
    let name = after_name(&life);
    assert_eq!(forget_name(&life.store, VOLUME, &name), Ok(()));
    assert_eq!(forget_name(&life.store, VOLUME, &name), Err(RetentionError::NoSuchName(name)));
}

fn after_name(life: &Life) -> borealis_archive::name::SnapshotName {
    let named = read_settings(&life.store, VOLUME, &Sealing::Plain).expect("memory").named;
    assert_eq!(named.len(), 1);
    let taken = name_point(&life.store, VOLUME, &Sealing::Plain, &named[0]);
    assert_eq!(taken, Err(RetentionError::NameTaken(named[0].name.clone())));
    named[0].name.clone()
}

#[test]
fn a_name_that_is_given_in_the_middle_ends_the_deletion() {
    let life = small_life();
    let before = inventory(&life.store, VOLUME).expect("memory");
    // The first look is the one by which is decided.
    *life.store.named_at_look.lock().expect("no panic") = Some(2);
    assert_eq!(life.delete(usize::MAX, true), Err(RetentionError::ChangedMeanwhile));
    let after = inventory(&life.store, VOLUME).expect("memory");
    assert_eq!(after.objects().count(), before.objects().count() + 1, "the name alone is new");
}

#[test]
fn nothing_is_deleted_while_a_named_snapshot_cannot_be_read() {
    let life = small_life();
    assert!(life.delete(0, true).is_err(), "there is something to delete");
    let key = format!("{VOLUME}/snapshots/spoilt");
    life.store.inner.put_new(&key, b"spoilt").expect("memory");
    let error = life.delete(usize::MAX, true).expect_err("it may need anything");
    assert!(matches!(&error, RetentionError::Damaged { object, .. } if *object == key), "{error}");
    let name = "spoilt".to_owned().try_into().expect("a name");
    forget_name(&life.store, VOLUME, &name).expect("a person may");
    assert!(life.delete(usize::MAX, true).expect("memory").objects > 0);
}

/// A node whose clock is years behind writes marks of long ago about what is new.
#[test]
fn a_clock_that_is_behind_makes_nothing_old() {
    let life = small_life();
    let start = life.start();
    let (name, bytes) = life.world.late_mark(FIRST_MS - 900_000);
    life.store.inner.put_new(&name.key(VOLUME), &bytes).expect("memory");
    assert_eq!(life.start(), start);
    // And one of whoever deletes that is ahead, nothing either.
    let ahead =
        window_start(&life.store, VOLUME, &Sealing::Plain, life.now_ms + 1_000_000_000).expect("memory");
    assert_eq!(ahead.lsn, start);
}

/// In a folder, the store and the node have one clock.
#[test]
fn a_clock_that_jumps_ahead_for_everybody_makes_nothing_old() {
    let mut life = small_life();
    let start = life.start();
    let ahead_ms = life.now_ms + 30 * 24 * 60 * 60 * 1000;
    life.put_late_mark(ahead_ms);
    life.put_late_mark(ahead_ms + 200);
    life.now_ms = ahead_ms + 300;
    assert_eq!(life.start(), start);
    // It is the time after all, and goes on.
    life.put_late_mark(ahead_ms + 600);
    life.now_ms = ahead_ms + 700;
    assert_eq!(life.start(), life.world.durable);
}
