//! One suite for everything that keeps objects: memory, a folder, S3 by a real server, and models of Google's and Azure's.

mod model;
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
use model::{Model, Protocol};

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
    let store = open(&location, Timeouts::default(), None).expect("a folder needs no thread");
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

const GOOGLE: [(&str, &str); 1] = [("GOOGLE_BEARER_TOKEN", "a-token")];
/// Azure's keys are in base 64.
const AZURE: [(&str, &str); 1] = [("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaA==")];

fn open_model(model: &Model, prefix: &str, options: &str, credentials: &[(&str, &str)]) -> CloudStore {
    let credentials = CredentialSource::of(credentials.iter().copied());
    CloudStore::new(model.location(prefix, options), credentials, Timeouts::default()).expect("a thread")
}

#[test]
fn a_model_of_google() {
    let model = Model::start(Protocol::Google, false);
    let store = open_model(&model, "some/prefix", "&storage_class=NEARLINE", &GOOGLE);
    assert_eq!(store.probe(), Ok(true));
    conforms(&store, LIST_MAX + 7);
    let asked = model.asked();
    let made: Vec<_> = asked.iter().filter(|asked| asked.method == "PUT").collect();
    for asked in &made {
        assert!(asked.path.starts_with("/shop/some/prefix/"), "{}", asked.path);
        assert_eq!(asked.header("x-goog-if-generation-match"), Some("0"));
        assert_eq!(asked.header("x-goog-storage-class"), Some("NEARLINE"));
    }
    assert!(made.len() > LIST_MAX && asked.iter().all(|asked| asked.header("authorization").is_some()));
    assert!(keys(&open_model(&model, "some/other", "", &GOOGLE), "", None).is_empty());
}

#[test]
fn a_model_of_azure() {
    for ignores_offset in [false, true] {
        let model = Model::start(Protocol::Azure, ignores_offset);
        let store = open_model(&model, "some/prefix", "&storage_class=Cool", &AZURE);
        assert_eq!(store.probe(), Ok(true));
        conforms(&store, LIST_MAX + 7);
        for asked in model.asked().iter().filter(|asked| asked.method == "PUT") {
            assert!(asked.path.starts_with("/shop/some/prefix/"), "{}", asked.path);
            assert_eq!(asked.header("if-none-match"), Some("*"));
            assert_eq!(asked.header("x-ms-access-tier"), Some("Cool"));
        }
        assert!(keys(&open_model(&model, "some/other", "", &AZURE), "", None).is_empty());
    }
}

/// Every request fails with this kind, and shows no secret.
fn all_are_refused(store: &CloudStore, kind: ErrorKind) {
    for error in [
        store.put_new("a", b"1").expect_err("it is refused"),
        store.get("a").expect_err("it is refused"),
        store.list("", None).expect_err("it is refused"),
        store.delete("a").expect_err("it is refused"),
    ] {
        assert_eq!(error.kind, kind, "{error}");
        assert!(!error.to_string().contains("hush") && !format!("{error:?}").contains("hush"), "{error}");
    }
}

#[test]
fn a_signature_for_azure_is_used_and_never_shown() {
    let model = Model::start(Protocol::Azure, false);
    let signed = [("AZURE_STORAGE_SAS_TOKEN", "?sv=2024-11-04&sig=signed")];
    let store = open_model(&model, "", "", &signed);
    assert_eq!(store.put_new("a", b"1"), Ok(Put::Made));
    assert_eq!(store.get("a").expect("the store answers"), b"1");
    all_are_refused(
        &open_model(&model, "", "", &[("AZURE_STORAGE_SAS_TOKEN", "?sv=2024-11-04&sig=hush")]),
        ErrorKind::Denied,
    );
}

#[test]
fn credentials_that_are_missing_or_wrong_are_refused() {
    let google = Model::start(Protocol::Google, false);
    all_are_refused(&open_model(&google, "", "", &[("GOOGLE_BEARER_TOKEN", "hush")]), ErrorKind::Denied);
    let nowhere = [("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/hush.json")];
    let store = open_model(&google, "", "", &nowhere);
    assert_eq!(store.get("a").expect_err("it is refused").kind, ErrorKind::Denied);
    let azure = Model::start(Protocol::Azure, false);
    let mut location = azure.location("", "");
    location.account = None;
    let store =
        CloudStore::new(location, CredentialSource::of(AZURE), Timeouts::default()).expect("a thread");
    let error = store.get("a").expect_err("it is refused");
    assert!(error.kind == ErrorKind::Denied && error.what.contains("Account"), "{error}");
}

#[test]
fn no_bucket_is_not_an_empty_one() {
    for (protocol, credentials) in [(Protocol::Google, &GOOGLE), (Protocol::Azure, &AZURE)] {
        let model = Model::start(protocol, false);
        let mut location = model.location("x", "");
        location.bucket = "nobodys".to_owned();
        let credentials = CredentialSource::of(credentials.iter().copied());
        let store = CloudStore::new(location, credentials, Timeouts::default()).expect("a thread");
        for error in [store.put_new("a", b"1").map(drop), store.list("", None).map(drop)] {
            assert_eq!(error.expect_err("it is refused").kind, ErrorKind::Missing, "{protocol:?}");
        }
    }
}

#[test]
fn what_the_environment_says_of_encryption_reaches_the_server() {
    let Some(moto) = moto::Moto::start() else { return };
    let encrypted = |prefix: &str, settings: &[(&str, &str)]| {
        let login = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush")];
        let credentials = CredentialSource::of(login.iter().chain(settings).copied());
        let mut location = moto.location(prefix);
        location.storage_class = Some("STANDARD_IA".to_owned());
        let store = CloudStore::new(location, credentials, Timeouts::default()).expect("a thread");
        store.put_new("a", b"1").expect("the store answers");
        assert_eq!(store.get("a").expect("the store answers"), b"1");
        moto.headers_of(&format!("{prefix}/a"))
    };
    let kms = [
        ("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"),
        ("AWS_SSE_KMS_KEY_ID", "a-key"),
        ("AWS_SSE_BUCKET_KEY_ENABLED", "true"),
    ];
    let headers = encrypted("kms", &kms);
    for header in [
        "x-amz-server-side-encryption: aws:kms\r\n",
        "x-amz-server-side-encryption-aws-kms-key-id: a-key\r\n",
        "x-amz-storage-class: standard_ia\r\n",
    ] {
        assert!(headers.contains(header), "{header}\n{headers}");
    }
    let headers = encrypted("own", &[("AWS_SERVER_SIDE_ENCRYPTION", "AES256")]);
    assert!(headers.contains("x-amz-server-side-encryption: aes256\r\n"), "{headers}");
    assert!(!encrypted("none", &[]).contains("server-side-encryption"));
}
