//! A copy of a store is the original under another identity, or nothing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use borealis_types::{AvailabilityZone, GroupId, NodeId, VolumeId};

use super::records::{TestEffect, Writer, block, create, environment, fork, identity, open, options};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::{Environment, Identity, Origin, Policy, Store, StoreError};

fn other_identity(group_count: u16) -> Identity {
    Identity {
        node: NodeId(5),
        zone: AvailabilityZone("az3".to_owned()),
        incarnation: 77,
        ..identity(group_count)
    }
}

/// Appends a version of three blocks.
fn write_round(store: &Store, writer: &mut Writer, is_materialized: bool) {
    write_blocks(store, writer, &[0, 1, 2], is_materialized);
}

fn write_blocks(store: &Store, writer: &mut Writer, blocks: &[u32], is_materialized: bool) {
    let first = writer.records.len();
    for &number in blocks {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false);
    }
    let batch = writer.batch(&writer.records[first..]);
    let appended = store.append(&batch, Origin::Writer(writer.promise)).unwrap();
    store.sync(appended.sequence).unwrap();
    writer.durable = writer.last();
    writer.minimum_read_point = writer.durable.end;
    store.note_positions(&writer.header()).unwrap();
    if is_materialized {
        store.materialize(Policy::Now).unwrap();
    }
}

fn pages(store: &Store, writer: &Writer) -> Vec<Option<Vec<u8>>> {
    let read =
        |number| store.read_page(GroupId(0), &block(fork(1, 16_384), number), writer.durable.end).unwrap();
    (0..3).map(read).map(|page| page.map(|page| page.to_vec())).collect()
}

#[test]
fn a_copy_has_what_the_original_has_and_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copied) = (folder.path().join("node"), folder.path().join("copy"));
    let store = create(&path, 1);
    let mut writer = Writer::start(&store);
    for round in 0..4 {
        write_round(&store, &mut writer, round < 3);
    }
    let (expected, standing) = (pages(&store, &writer), store.summaries().unwrap());
    assert!(matches!(Store::copy(&path, &copied, other_identity(1)), Err(StoreError::InUse(_))));
    drop(store);
    std::fs::write(path.join("log").join("spare"), [0; 4096]).unwrap();
    Store::copy(&path, &copied, other_identity(1)).unwrap();
    assert!(!copied.join("log").join("spare").exists(), "holes are no space for the next file");
    let copy = open(&copied).unwrap();
    assert_eq!(*copy.identity(), other_identity(1));
    assert_eq!(copy.summaries().unwrap(), standing, "it promises what the original promised");
    assert_eq!(pages(&copy, &writer), expected);
    write_round(&copy, &mut writer, true);
    let newer = pages(&copy, &writer);
    assert!(newer != expected && copy.failure().is_none());
    drop(copy);
    let copy = open(&copied).unwrap();
    assert_eq!(pages(&copy, &writer), newer, "what it wrote itself has the same seal");
    drop(copy);
    assert_eq!(open(&path).unwrap().summaries().unwrap(), standing, "the original is as it was");
    let again = folder.path().join("again");
    Store::copy(&copied, &again, Identity { node: NodeId(6), incarnation: 78, ..identity(1) }).unwrap();
    assert_eq!(pages(&open(&again).unwrap(), &writer), newer, "a copy may be copied");
}

/// Apparent and allocated bytes of the files below a folder.
fn space(folder: &Path) -> (u64, u64) {
    let (mut apparent, mut allocated) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let (more_apparent, more_allocated) =
            if metadata.is_dir() { space(&entry.path()) } else { (metadata.len(), metadata.blocks() * 512) };
        apparent += more_apparent;
        allocated += more_allocated;
    }
    (apparent, allocated)
}

#[test]
fn a_copy_takes_hardly_more_space_than_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copied) = (folder.path().join("node"), folder.path().join("copy"));
    let store = create(&path, 1);
    let mut writer = Writer::start(&store);
    // Far apart, so that there are holes between them.
    write_blocks(&store, &mut writer, &[1, 1000, 5000], true);
    drop(store);
    Store::copy(&path, &copied, other_identity(1)).unwrap();
    let ((apparent, allocated), (copied_apparent, copied_allocated)) = (space(&path), space(&copied));
    assert!(apparent > 4 * allocated, "the original has holes: {allocated} of {apparent}");
    assert!(
        copied_apparent.abs_diff(apparent) < 1000,
        "{copied_apparent}, {apparent}: all but `identity` are as long"
    );
    // A block of the copy that is not all zero is written whole.
    assert!(copied_allocated <= allocated + 8 * (64 << 10), "{copied_allocated}, {allocated}");
}

#[test]
fn a_copy_that_was_interrupted_never_opens() {
    for (operation, part) in [
        (Operation::Write, "/copy/segments"),
        (Operation::Open, "/copy/checkpoint"),
        (Operation::Sync, "/copy/log"),
        (Operation::Write, "/copy/identity"),
        (Operation::Rename, "/copy/identity"),
    ] {
        let disk = MemoryDisk::default();
        let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
        let (path, copied) = (Path::new("/node"), Path::new("/copy"));
        let store = Store::create_in(&environment, path, identity(1), options()).unwrap();
        let mut writer = Writer::start(&store);
        write_round(&store, &mut writer, true);
        drop(store);
        disk.fail(operation, part, 0);
        let failed = Store::copy_in(&environment, path, copied, other_identity(1));
        assert!(failed.is_err() && disk.heal() == 1, "{operation:?} of {part}");
        assert!(Store::open_in(&environment, copied, options()).is_err(), "{operation:?} of {part}");
        Store::open_in(&environment, path, options()).expect("the original is as it was");
    }
}

#[test]
fn a_copy_is_refused_for_a_node_that_it_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copied) = (folder.path().join("node"), folder.path().join("copy"));
    drop(create(&path, 2));
    let refused = |identity: Identity| Store::copy(&path, &copied, identity).unwrap_err().to_string();
    assert!(refused(identity(2)).contains("an identity of its own"));
    assert!(refused(Identity { volume: VolumeId(9), ..other_identity(2) }).contains("another volume"));
    assert!(refused(Identity { groups: vec![GroupId(0)], ..other_identity(2) }).contains("other groups"));
    assert!(!copied.exists(), "nothing was begun");
    let store = open(&path).unwrap();
    store.renounce("its disk was put back");
    drop(store);
    assert!(refused(other_identity(2)).contains("may not vote"), "a copy would");
    std::fs::remove_file(path.join("renounced")).unwrap();
    Store::copy(&path, &copied, other_identity(2)).unwrap();
    assert!(refused(other_identity(2)).contains("holds a store already"));
}
