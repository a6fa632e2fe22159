//! The catalog in a file: the suite of all catalogs, several at once, and what a crash may leave.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use borealis_controller::catalog::conformance::{self, Bench};
use borealis_controller::catalog::{
    Acquisition, Catalog, CatalogError, Change, Condition, Key, News, Outcome, Revision, Transaction, Value,
};
use borealis_local::embedded_catalog::{EmbeddedCatalog, Reading};
use tempfile::TempDir;

/// Catalogs in folders of their own, and one clock for all.
#[derive(Default)]
struct Folders {
    folders: BTreeMap<String, TempDir>,
    now_ms: Arc<AtomicU64>,
}

impl Bench for Folders {
    type Catalog = EmbeddedCatalog;

    fn connect(&mut self, name: &str) -> EmbeddedCatalog {
        let new = || tempfile::tempdir().expect("temporary folder");
        let folder = self.folders.entry(name.to_owned()).or_insert_with(new);
        let now_ms = Arc::clone(&self.now_ms);
        EmbeddedCatalog::with_clock(folder.path(), move || {
            Ok(Reading { clock: "a test".to_owned(), now_ms: now_ms.load(SeqCst) })
        })
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms.fetch_add(ms, SeqCst);
    }
}

#[test]
fn the_catalog_in_a_file_is_a_catalog() {
    conformance::check(&mut Folders::default());
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn put(text: &str, value: u64) -> Transaction {
    Transaction { conditions: vec![], changes: vec![Change::Put(key(text), Value::from(value))] }
}

/// Adds one to the entry `count` by a conditional write, again and again until it succeeds.
fn count_up(directory: &Path) {
    let mut catalog = EmbeddedCatalog::new(directory);
    loop {
        let listing = catalog.list("count").expect("usable");
        let entry = listing.entries.get(&key("count"));
        let condition = entry.map_or(Condition::Absent(key("count")), |entry| {
            Condition::Unchanged(key("count"), entry.revision)
        });
        let count = entry.and_then(|entry| entry.value.as_u64()).unwrap_or(0);
        let transaction = Transaction { conditions: vec![condition], ..put("count", count + 1) };
        if catalog.commit(&transaction).expect("usable") != Outcome::Conflict {
            return;
        }
    }
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| count_up(folder.path())));
        }
    });
    let listing = EmbeddedCatalog::new(folder.path()).list("").expect("usable");
    assert_eq!(listing.entries[&key("count")].value, Value::from(100));
    assert_eq!(listing.revision, Revision(100));
}

#[test]
fn the_clock_of_the_machine_ends_leases() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut catalog = EmbeddedCatalog::new(folder.path());
    let acquired = catalog.acquire("controller", "a", 100).expect("usable");
    assert!(matches!(acquired, Acquisition::Acquired(_)));
    while matches!(catalog.acquire("controller", "b", 100).expect("usable"), Acquisition::HeldBy(_)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let Acquisition::Acquired(lease) = acquired else { unreachable!("asserted above") };
    assert!(!catalog.keep(&lease).expect("usable"));
}

#[test]
fn a_crash_while_writing_leaves_the_old_catalog() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut catalog = EmbeddedCatalog::new(folder.path());
    catalog.commit(&put("nodes/1", 1)).expect("usable");
    let old = fs::read(folder.path().join("fleet.json")).expect("read");
    catalog.commit(&put("nodes/1", 2)).expect("usable");
    let new = fs::read(folder.path().join("fleet.json")).expect("read");
    // Every moment before the rename: the old file, and any part of the new one beside it.
    for written in 0..=new.len() {
        fs::write(folder.path().join("fleet.json"), &old).expect("written");
        fs::write(folder.path().join("fleet.json.new"), &new[..written]).expect("written");
        let listing = EmbeddedCatalog::new(folder.path()).list("").expect("usable");
        assert_eq!(
            (listing.revision, &listing.entries[&key("nodes/1")].value),
            (Revision(1), &Value::from(1))
        );
    }
    EmbeddedCatalog::new(folder.path()).commit(&put("nodes/2", 1)).expect("what was left is in nobody's way");
}

#[test]
fn a_lost_file_is_an_empty_catalog_and_a_damaged_one_is_left_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("fleet.json");
    let mut catalog = EmbeddedCatalog::new(folder.path());
    catalog.commit(&put("nodes/1", 1)).expect("usable");
    fs::write(&file, "{").expect("written");
    let said = catalog.commit(&put("nodes/1", 2)).expect_err("damaged");
    assert!(matches!(said, CatalogError::Damaged(_)) && said.to_string().contains("fleet.json"), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("read"), "{", "it is evidence");
    fs::remove_file(&file).expect("removed");
    let listing = catalog.list("").expect("usable");
    assert!(listing.entries.is_empty());
    assert_eq!(
        catalog.news("", Revision(1)).expect("usable"),
        News::TooOld,
        "nobody takes it for the same catalog"
    );
    let nowhere = folder.path().join("nowhere");
    assert!(matches!(EmbeddedCatalog::new(&nowhere).list(""), Err(CatalogError::Unavailable(_))));
}
