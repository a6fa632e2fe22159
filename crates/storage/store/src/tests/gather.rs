//! A store made of others' segments has what they had and promised, under an identity of its own; or it is nothing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use borealis_types::{AvailabilityZone, GroupId, NodeId, VolumeId};

use super::records::{TestEffect, Writer, block, create, environment, fork, identity, open, options};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::{Environment, Identity, Origin, Policy, SegmentSource, Store, StoreError};

fn other_identity(group_count: u16) -> Identity {
    Identity {
        node: NodeId(5),
        zone: AvailabilityZone("az3".to_owned()),
        incarnation: 77,
        ..identity(group_count)
    }
}

fn gather(sources: &[SegmentSource], to: &Path, identity: Identity) -> Result<(), StoreError> {
    Store::gather_in(&environment(), sources, to, identity, &options())
}

fn of(store: &Path, groups: &[u16]) -> SegmentSource {
    SegmentSource { store: store.to_owned(), groups: groups.iter().copied().map(GroupId).collect() }
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
    let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    store.sync(appended.sequence).unwrap();
    writer.durable = writer.last();
    writer.minimum_read_point = writer.durable.end;
    store.note_positions(&writer.header(), &[]).unwrap();
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
    assert!(matches!(gather(&[of(&path, &[0])], &copied, other_identity(1)), Err(StoreError::InUse(_))));
    drop(store);
    gather(&[of(&path, &[0])], &copied, other_identity(1)).unwrap();
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
    let sixth = Identity { node: NodeId(6), incarnation: 78, ..identity(1) };
    gather(&[of(&copied, &[0])], &again, sixth).unwrap();
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
    gather(&[of(&path, &[0])], &copied, other_identity(1)).unwrap();
    let ((apparent, allocated), (_, copied_allocated)) = (space(&path), space(&copied));
    assert!(apparent > 4 * allocated, "the original has holes: {allocated} of {apparent}");
    assert!(copied_allocated <= allocated + (256 << 10), "{copied_allocated}, {allocated}");
}

/// A volume of two groups on two nodes, both with everything, and the writer of it.
fn two_stores(folder: &Path) -> (Vec<std::path::PathBuf>, Writer) {
    let paths = vec![folder.join("first"), folder.join("second")];
    let stores: Vec<Store> = (0..2)
        .map(|index| {
            let identity =
                Identity { node: NodeId(index + 1), incarnation: u128::from(index) + 1, ..identity(2) };
            Store::create_in(&environment(), &paths[usize::from(index)], identity, options()).unwrap()
        })
        .collect();
    let mut writer = Writer::start(&stores[0]);
    assert_eq!(Writer::start(&stores[1]).promise, writer.promise, "one writer has both");
    for round in 0..6 {
        write_spread(&stores, &mut writer, round < 4);
    }
    (paths, writer)
}

/// Appends versions of pages far apart, so that both groups have some, to each store.
fn write_spread(stores: &[Store], writer: &mut Writer, is_materialized: bool) {
    let first = writer.records.len();
    for extent in 0..8 {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), extent * 128))], false);
    }
    let batch = writer.batch(&writer.records[first..]);
    writer.durable = writer.last();
    writer.minimum_read_point = writer.durable.end;
    for store in stores {
        let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
        store.sync(appended.sequence).unwrap();
        store.note_positions(&writer.header(), &[]).unwrap();
        if is_materialized {
            store.materialize(Policy::Now).unwrap();
        }
    }
}

fn spread_pages(store: &Store, writer: &Writer) -> Vec<Option<Vec<u8>>> {
    let read = |extent: u32| {
        let key = block(fork(1, 16_384), extent * 128);
        let group = store.identity().placement.group_of(&key);
        store.read_page(group, &key, writer.durable.end).unwrap().map(|page| page.to_vec())
    };
    (0..8).map(read).collect()
}

#[test]
fn segments_of_several_stores_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let (paths, mut writer) = two_stores(folder.path());
    let original = open(&paths[0]).unwrap();
    let (expected, standing) = (spread_pages(&original, &writer), original.summaries().unwrap());
    assert!(expected.iter().all(Option::is_some));
    drop(original);
    let path = folder.path().join("third");
    gather(&[of(&paths[1], &[1]), of(&paths[0], &[0])], &path, other_identity(2)).unwrap();
    let third = open(&path).unwrap();
    assert_eq!(third.summaries().unwrap(), standing);
    assert_eq!(spread_pages(&third, &writer), expected);
    let mut stores = vec![third];
    write_spread(&stores, &mut writer, true);
    let newer = spread_pages(&stores[0], &writer);
    drop(stores.pop());
    assert_eq!(spread_pages(&open(&path).unwrap(), &writer), newer);
    // A part of one is enough for a node that hosts some groups.
    let part = folder.path().join("part");
    let identity = Identity { groups: vec![GroupId(1)], ..other_identity(2) };
    gather(&[of(&paths[0], &[1])], &part, identity).unwrap();
    assert_eq!(open(&part).unwrap().summaries().unwrap(), standing[1..]);
}

#[test]
fn a_page_that_is_damaged_in_its_source_is_held_as_damaged_and_the_others_are_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copied) = (folder.path().join("node"), folder.path().join("copy"));
    let store = create(&path, 1);
    let mut writer = Writer::start(&store);
    write_round(&store, &mut writer, true);
    let expected = pages(&store, &writer);
    let address = store.lock().segments[&GroupId(0)].materialized.locate(&block(fork(1, 16_384), 1)).unwrap();
    let (file, offset) = store.lock().segments[&GroupId(0)].pages.file_and_offset(address);
    drop(store);
    let file = std::fs::File::options().write(true).open(file).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, &[9; 64], offset + 1000).unwrap();
    gather(&[of(&path, &[0])], &copied, other_identity(1)).unwrap();
    let copy = open(&copied).unwrap();
    let read = |number| copy.read_page(GroupId(0), &block(fork(1, 16_384), number), writer.durable.end);
    assert_eq!(read(0).unwrap().map(|page| page.to_vec()), expected[0]);
    assert!(read(1).is_err(), "damage was served");
    assert_eq!(read(2).unwrap().map(|page| page.to_vec()), expected[2]);
    assert_eq!(copy.pages_to_heal(9, true).len(), 1, "peers bring it");
}

#[test]
fn a_copy_that_was_interrupted_never_opens() {
    for (operation, part) in [
        (Operation::Write, "/copy/segments"),
        (Operation::Sync, "/copy/segments"),
        (Operation::Write, "/copy/log"),
        (Operation::Sync, "/copy/log"),
        (Operation::Open, "/copy/checkpoint"),
        (Operation::Rename, "/copy/checkpoint"),
        (Operation::Open, "/copy/synced"),
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
        let failed = Store::gather_in(&environment, &[of(path, &[0])], copied, other_identity(1), &options());
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
    let refused = |identity: Identity| {
        let groups: Vec<u16> = identity.groups.iter().map(|group| group.0).collect();
        gather(&[of(&path, &groups)], &copied, identity).unwrap_err().to_string()
    };
    assert!(refused(identity(2)).contains("an identity of its own"));
    assert!(refused(Identity { volume: VolumeId(9), ..other_identity(2) }).contains("another volume"));
    let third = Identity { groups: vec![GroupId(0), GroupId(2)], ..other_identity(2) };
    assert!(refused(third).contains("has no segment of group 2"));
    let said = gather(&[of(&path, &[0])], &copied, other_identity(2)).unwrap_err().to_string();
    assert!(said.contains("each group of the new store"), "{said}");
    assert!(!copied.exists(), "nothing was begun");
    let store = open(&path).unwrap();
    store.renounce("its disk was put back");
    drop(store);
    assert!(refused(other_identity(2)).contains("may not vote"), "a copy would");
    std::fs::remove_file(path.join("renounced")).unwrap();
    gather(&[of(&path, &[0, 1])], &copied, other_identity(2)).unwrap();
    assert!(refused(other_identity(2)).contains("holds a store already"));
}
