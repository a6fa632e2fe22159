//! One suite for everything that keeps objects: memory, a folder, and S3 by a real server.

mod moto;

use std::sync::Barrier;

use borealis_archive::inventory::Stored;
use borealis_archive::name::Name;
use borealis_backup::store::cloud::{CloudStore, CredentialSource, Timeouts};
use borealis_backup::store::folder::FolderStore;
use borealis_backup::store::memory::MemoryStore;
use borealis_backup::store::retrying::Retrying;
use borealis_backup::store::{Action, ErrorKind, LIST_MAX, ObjectStore, Put, inventory, open};
use borealis_types::VolumeId;

fn keys(store: &dyn ObjectStore, prefix: &str, after: Option<&str>) -> Vec<String> {
    let listing = store.list(prefix, after).expect("a listing");
    assert!(!listing.more);
    listing.objects.into_iter().map(|object| object.key).collect()
}

fn an_object_is_made_once(store: &dyn ObjectStore) {
    assert_eq!(store.put_new("once/a", b"first"), Ok(Put::Made));
    assert_eq!(store.put_new("once/a", b"second"), Ok(Put::Exists));
    assert_eq!(store.get("once/a").expect("the store answers"), b"first");
    assert!(store.refuses_duplicates());
}

fn of_many_who_make_it_one_does(store: &dyn ObjectStore) {
    let barrier = Barrier::new(8);
    let make = |number: u8| {
        barrier.wait();
        // A conflict may be answered by "try again".
        loop {
            match store.put_new("race/a", &[number; 5000]) {
                Ok(put) => return put,
                Err(error) => assert!(error.kind.is_worth_a_retry(), "{error}"),
            }
        }
    };
    let puts: Vec<Put> = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..8).map(|number| scope.spawn(move || make(number))).collect();
        makers.into_iter().map(|maker| maker.join().expect("no panic")).collect()
    });
    assert_eq!(puts.iter().filter(|put| **put == Put::Made).count(), 1, "{puts:?}");
    let bytes = store.get("race/a").expect("the store answers");
    assert!(bytes.len() == 5000 && bytes.iter().all(|byte| *byte == bytes[0]), "of one maker, and whole");
}

fn parts_are_read(store: &dyn ObjectStore) {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    store.put_new("parts/a", &bytes).expect("the store answers");
    assert!(store.get("parts/a").expect("the store answers") == bytes);
    assert_eq!(store.get_range("parts/a", 0..16).expect("the store answers"), bytes[..16]);
    assert_eq!(
        store.get_range("parts/a", 1_500_000..2_700_001).expect("the store answers"),
        bytes[1_500_000..2_700_001]
    );
    assert_eq!(
        store.get_range("parts/a", 2_999_999..9_000_000).expect("the store answers"),
        bytes[2_999_999..]
    );
    assert!(store.get_range("parts/a", 3_000_000..3_000_001).expect("the store answers").is_empty());
    assert!(store.get_range("parts/a", 8_000_000..9_000_000).expect("the store answers").is_empty());
    assert!(store.get_range("parts/a", 7..7).expect("the store answers").is_empty());
}

fn what_is_missing_is_said_to_be(store: &dyn ObjectStore) {
    for error in [
        store.get("none/a").expect_err("it is refused"),
        store.get_range("none/a", 0..5).expect_err("it is refused"),
        store.get_range("none/a", 5..5).expect_err("it is refused"),
    ] {
        assert_eq!(
            (error.kind, error.action, &*error.key),
            (ErrorKind::Missing, Action::Read, "none/a"),
            "{error}"
        );
    }
    assert!(keys(store, "none/", None).is_empty());
    assert_eq!(store.delete("none/a"), Ok(()));
}

fn names_are_listed_in_order(store: &dyn ObjectStore) {
    // A slash sorts after a dash: a folder's objects are not where its name alone would be.
    let names =
        ["order/a", "order/a-b", "order/a.c", "order/a0", "order/b/a/c", "order/b/d", "order/b0", "order/c"];
    for name in names.iter().rev() {
        store.put_new(name, name.as_bytes()).expect("the store answers");
    }
    store.put_new("order2", b"").expect("the store answers");
    assert_eq!(keys(store, "order/", None), names);
    assert_eq!(keys(store, "order/b", None), names[4..7]);
    assert_eq!(keys(store, "order/b/", None), names[4..6]);
    assert_eq!(keys(store, "order/b/d", None), ["order/b/d"]);
    for (at, name) in names.iter().enumerate() {
        assert_eq!(keys(store, "order/", Some(name)), names[at + 1..], "after {name}");
    }
    assert_eq!(keys(store, "order/", Some("order/b/b")), names[5..], "after what is not there");
    assert_eq!(keys(store, "order/b/", Some("order/a")), names[4..6], "after what is not below the prefix");
    let listed = &store.list("order/a-b", None).expect("the store answers").objects[0];
    assert_eq!(listed.bytes, 9);
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the store answers")
        .as_millis() as u64;
    assert!(
        listed.modified_ms == 0 || listed.modified_ms.abs_diff(clock) < 120_000,
        "{}",
        listed.modified_ms
    );
}

fn what_is_deleted_is_gone_and_can_be_made_again(store: &dyn ObjectStore) {
    store.put_new("gone/a", b"1").expect("the store answers");
    store.delete("gone/a").expect("the store answers");
    assert_eq!(store.get("gone/a").expect_err("it is refused").kind, ErrorKind::Missing);
    assert!(keys(store, "gone/", None).is_empty());
    assert_eq!(store.put_new("gone/a", b"2"), Ok(Put::Made));
    assert_eq!(store.get("gone/a").expect("the store answers"), b"2");
}

fn odd_keys_are_refused(store: &dyn ObjectStore) {
    for key in ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a b", "a\nb", "ä", &"a".repeat(1001)]
    {
        assert_eq!(store.put_new(key, b"").expect_err("it is refused").kind, ErrorKind::Broken, "{key:?}");
        assert_eq!(store.get(key).expect_err("it is refused").kind, ErrorKind::Broken, "{key:?}");
        assert_eq!(store.delete(key).expect_err("it is refused").kind, ErrorKind::Broken, "{key:?}");
    }
}

fn a_long_listing_comes_in_parts(store: &dyn ObjectStore, objects: usize) {
    let volume = VolumeId(5);
    for revision in 0..objects as u64 {
        store.put_new(&Name::Retention { revision }.key(volume), b"x").expect("the store answers");
    }
    store.put_new(&Name::Volume.key(VolumeId(6)), b"x").expect("the store answers");
    store.put_new(&format!("{volume}/stranger"), b"x").expect("the store answers");
    let inventory = inventory(store, volume).expect("the store answers");
    assert_eq!(inventory.objects().count(), objects);
    assert_eq!(inventory.retention_revision(), Some(objects as u64 - 1));
    assert_eq!(inventory.strangers(), [format!("{volume}/stranger")]);
    assert!(inventory.objects().all(|(_, stored)| stored == Stored { bytes: 1, ..stored }));
}

fn conforms(store: &dyn ObjectStore, objects: usize) {
    an_object_is_made_once(store);
    of_many_who_make_it_one_does(store);
    parts_are_read(store);
    what_is_missing_is_said_to_be(store);
    names_are_listed_in_order(store);
    what_is_deleted_is_gone_and_can_be_made_again(store);
    odd_keys_are_refused(store);
    a_long_listing_comes_in_parts(store, objects);
}

#[test]
fn memory() {
    conforms(&MemoryStore::default(), LIST_MAX * 2 + 7);
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().expect("the store answers");
    conforms(&FolderStore::new(folder.path().join("a/b")), LIST_MAX + 7);
}

#[test]
fn a_folder_by_its_url_with_patience() {
    let folder = tempfile::tempdir().expect("a folder");
    let location = format!("file://{}/x", folder.path().display()).parse().expect("a location");
    let store = open(&location, Timeouts::default()).expect("a folder needs no thread");
    store.put_new("a", b"1").expect("the store answers");
    assert_eq!(FolderStore::new(folder.path().join("x")).get("a").expect("the store answers"), b"1");
    let patient = Retrying::new(FolderStore::new(folder.path().join("y")), 3, (1, 1), 7, |_| {});
    conforms(&patient, 7);
}

#[test]
fn two_processes_of_one_folder() {
    // Two stores of one folder share nothing but the folder.
    let folder = tempfile::tempdir().expect("the store answers");
    let (one, two) = (FolderStore::new(folder.path()), FolderStore::new(folder.path()));
    assert_eq!(one.put_new("a/b", b"1"), Ok(Put::Made));
    assert_eq!(two.put_new("a/b", b"2"), Ok(Put::Exists));
    assert_eq!(two.get("a/b").expect("the store answers"), b"1");
    two.delete("a/b").expect("the store answers");
    assert_eq!(one.get("a/b").expect_err("it is refused").kind, ErrorKind::Missing);
}

#[test]
fn s3_by_a_real_server() {
    let Some(moto) = moto::Moto::start() else { return };
    let credentials =
        CredentialSource::of([("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush")]);
    let open = |prefix| {
        CloudStore::new(moto.location(prefix), credentials.clone(), Timeouts::default())
            .expect("the store answers")
    };
    let store = open("some/prefix");
    assert_eq!(store.probe(), Ok(true), "its conditional writes are real");
    conforms(&store, LIST_MAX + 7);
    let other = open("some/other");
    assert!(keys(&other, "", None).is_empty(), "another prefix is another store");
    let whole = open("");
    assert_eq!(whole.put_new("a", b"1"), Ok(Put::Made));
    assert_eq!(whole.get("a").expect("the store answers"), b"1");
    assert_eq!(whole.get("some/prefix/gone/a").expect("the store answers"), b"2");
    let mut location = moto.location("x");
    location.bucket = "nobodys".to_owned();
    let missing = CloudStore::new(location, credentials, Timeouts::default()).expect("the store answers");
    assert_eq!(
        missing.put_new("a", b"1").expect_err("it is refused").kind,
        ErrorKind::Missing,
        "no such bucket"
    );
    assert_eq!(missing.list("", None).expect_err("it is refused").kind, ErrorKind::Missing, "no such bucket");
}
