//! Pages that cannot be written are written later: nothing that was promised depends on them.

use std::path::Path;
use std::sync::Arc;

use borealis_types::GroupId;

use super::records::{TestEffect, Writer, block, environment, fork, identity, options};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::{Environment, Origin, Policy, Store, StoreError};

/// Appends a record for each of `blocks`, durable and below every read.
fn append(store: &Store, writer: &mut Writer, blocks: std::ops::Range<u32>) {
    let first = writer.records.len();
    for number in blocks {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false);
    }
    let batch = writer.batch(&writer.records[first..]);
    let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    store.sync(appended.sequence).unwrap();
    writer.durable = writer.last();
    writer.minimum_read_point = writer.durable.end;
    store.note_positions(&writer.header(), &[]).unwrap();
}

fn pages(store: &Store, writer: &Writer) -> Vec<Option<u32>> {
    let listed = store.page_checksums(GroupId(0), writer.durable.end, None, 1000).unwrap();
    listed.into_iter().map(|page| page.checksum).collect()
}

#[test]
fn a_full_disk_holds_materialization_up_for_as_long_as_it_is_full() {
    let faults = [
        (Operation::Open, "segments"),
        (Operation::Write, "segments"),
        (Operation::Sync, "segments"),
        (Operation::SyncFolder, "segments"),
        (Operation::Write, "checkpoint.new"),
        (Operation::Sync, "checkpoint.new"),
    ];
    for (operation, part) in faults {
        let disk = MemoryDisk::default();
        let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
        let store = Store::create_in(&environment, Path::new("/node"), identity(1), options()).unwrap();
        let mut writer = Writer::start(&store);
        append(&store, &mut writer, 0..20);
        let expected = pages(&store, &writer);
        assert_eq!(expected.len(), 20);

        disk.fail(operation, part, 0);
        let error = store.materialize(Policy::Now).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }) && disk.heal() == 1, "{operation:?} {part}: {error}");
        assert!(store.hindrance().unwrap().contains("could not apply redo"), "it is reported");
        // Meanwhile the node goes on.
        append(&store, &mut writer, 20..40);
        assert_eq!(pages(&store, &writer)[..20], expected);
        let expected = pages(&store, &writer);

        assert!(store.materialize(Policy::Now).unwrap().advanced, "{operation:?} {part}");
        assert_eq!((store.failure(), store.hindrance()), (None, None));
        drop(store);
        disk.lose_power(|_| 0);
        let store = Store::open_in(&environment, Path::new("/node"), options()).unwrap();
        assert!(store.lock().segments[&GroupId(0)].materialized.lsn >= writer.records[19].span.end);
        assert_eq!(pages(&store, &writer), expected, "{operation:?} {part}");
    }
}

#[test]
fn a_checkpoint_that_may_be_the_newest_or_not_is_final() {
    for operation in [Operation::Rename, Operation::SyncFolder] {
        let disk = MemoryDisk::default();
        let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
        let store = Store::create_in(&environment, Path::new("/node"), identity(1), options()).unwrap();
        let mut writer = Writer::start(&store);
        append(&store, &mut writer, 0..20);
        // The second: the first is that of the page files' folder.
        let (part, after) = if operation == Operation::Rename { ("checkpoint", 0) } else { ("/node", 1) };
        disk.fail(operation, part, after);
        assert!(matches!(store.materialize(Policy::Now), Err(StoreError::Poisoned(_))), "{operation:?}");
        assert_eq!(disk.heal(), 1);
        assert!(store.summaries().is_err());
    }
}

#[test]
fn an_append_that_would_need_room_is_refused_while_there_is_none() {
    let disk = MemoryDisk::default();
    let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
    let options = crate::Options { materialize_after_bytes: 100, ..options() };
    let store = Store::create_in(&environment, Path::new("/node"), identity(1), options).unwrap();
    let mut writer = Writer::start(&store);
    append(&store, &mut writer, 0..40);
    assert!(store.backlog().share(&store.options) > 1.0);
    let batch = writer.batch(&[]);
    disk.fail(Operation::Write, "segments", 0);
    let refused = || store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap_err();
    assert!(matches!(refused(), StoreError::Io { .. }) && disk.heal() == 1);
    assert!(matches!(refused(), StoreError::Refused(_)), "no round for each append");
    assert!(store.materialize(Policy::Now).unwrap().advanced);
    store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
}
