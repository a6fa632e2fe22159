//! Damaged files are noticed and named; a failed disk is never trusted again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use borealis_quorum::Promise;
use borealis_types::{GroupId, Lsn, VolumeEpoch, WriterId};

use super::records::{TestEffect, Writer, block, create, environment, fork, identity, open, options};
use crate::disk::memory::{MemoryDisk, Operation};
use crate::disk::{Disk, OpenMode};
use crate::log::position::LogPosition;
use crate::{Environment, Origin, Policy, Store, StoreError};

/// Writes `rounds` versions of three blocks, each round materialized.
fn filled(store: &Store, rounds: usize) -> Writer {
    let mut writer = Writer::start(store);
    for _ in 0..rounds {
        let first = writer.records.len();
        for number in 0..3 {
            writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false);
        }
        let batch = writer.batch(&writer.records[first..]);
        let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
        store.sync(appended.sequence).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        store.note_positions(&writer.header(), &[]).unwrap();
        store.materialize(Policy::Now).unwrap();
    }
    writer
}

fn flip(path: &std::path::Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[test]
fn a_flipped_bit_of_a_page_is_noticed_and_named() {
    for rounds in [1, 2, 3] {
        for inside in [0u64, 30, 63, 64, 5000, 8255] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("node");
            let store = create(&path, 1);
            let writer = filled(&store, rounds);
            let lsn = writer.durable.end;
            drop(store);
            // Block 1: the slot of its newest generation.
            let offset = (rounds as u64 % 2 * 4 + 1) * 8256 + inside;
            flip(&path.join("segments/0/pages.004.0000"), offset);
            let store = open(&path).unwrap();
            let error = store.read_page(GroupId(0), &block(fork(1, 16_384), 1), lsn).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{text}");
            assert!(text.contains("node 3 group 0 page 1663/1/16384 block 1"), "{text}");
            assert!(store.read_page(GroupId(0), &block(fork(1, 16_384), 0), lsn).unwrap().is_some());
            let checksums = store.page_checksums(GroupId(0), lsn, None, 10).unwrap();
            assert_eq!(
                checksums.iter().map(|sum| sum.checksum.is_some()).collect::<Vec<_>>(),
                [true, false, true]
            );
            assert!(store.damage().is_some() && store.failure().is_none());
        }
    }
}

#[test]
fn a_write_the_disk_lost_is_not_taken_for_the_newest_version() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 1);
    let writer = filled(&store, 2);
    drop(store);
    let pages = path.join("segments/0/pages.004.0000");
    let old = std::fs::read(&pages).unwrap();
    // Two rounds later the same slots are newer; put the old bytes back as if the write had never happened.
    let store = open(&path).unwrap();
    let mut writer = writer;
    for _ in 0..2 {
        let first = writer.records.len();
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), 1))], false);
        let batch = writer.batch(&writer.records[first..]);
        store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        store.note_positions(&writer.header(), &[]).unwrap();
        store.materialize(Policy::Now).unwrap();
    }
    drop(store);
    std::fs::write(&pages, old).unwrap();
    let store = open(&path).unwrap();
    let error = store.read_page(GroupId(0), &block(fork(1, 16_384), 1), writer.durable.end).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn a_torn_write_of_the_materializer_leaves_the_version_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 1);
    let writer = filled(&store, 2);
    let key = block(fork(1, 16_384), 1);
    let before = store.read_page(GroupId(0), &key, writer.durable.end).unwrap();
    drop(store);
    // What a crash in the middle of the next round leaves: rubbish in the slots that are not current.
    let file = OpenOptions::new().write(true).open(path.join("segments/0/pages.004.0000")).unwrap();
    for page in 0..3u64 {
        file.write_all_at(&[0xAB; 5000], (4 + page) * 8256).unwrap();
    }
    let store = open(&path).unwrap();
    assert_eq!(store.read_page(GroupId(0), &key, writer.durable.end).unwrap(), before);
}

#[test]
fn unknown_redo_is_stored_reported_and_never_passed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 1);
    let mut writer = filled(&store, 1);
    let good = writer.durable.end;
    let first = writer.records.len();
    writer.write(vec![TestEffect::Unknown], false);
    writer.write(vec![TestEffect::Page(block(fork(1, 16_384), 1))], false);
    let batch = writer.batch(&writer.records[first..]);
    let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    assert_eq!(appended.progress[0].segment_complete_lsn, writer.last().end, "it is stored");
    assert!(store.failure().unwrap().contains("unknown redo"));
    let key = block(fork(1, 16_384), 1);
    assert!(store.read_page(GroupId(0), &key, good).unwrap().is_some());
    assert!(matches!(store.read_page(GroupId(0), &key, writer.last().end), Err(StoreError::Redo { .. })));
    writer.durable = writer.last();
    writer.minimum_read_point = writer.last().end;
    store.note_positions(&writer.header(), &[]).unwrap();
    store.materialize(Policy::Now).unwrap();
    let materialized = store.summaries().unwrap()[0].materialized_lsn;
    assert!(materialized < writer.records[first].span.end);
    drop(store);
    assert!(open(&path).unwrap().failure().unwrap().contains("unknown redo"), "forgotten by a restart");
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_any_more() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = MemoryDisk::default();
        let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
        let store = Store::create_in(&environment, Path::new("/node"), identity(1), options()).unwrap();
        let mut writer = filled(&store, 1);
        writer.write(vec![], false);
        let batch = writer.batch(&writer.records[3..]);
        let origin = Origin::Writer(writer.promise);
        disk.fail(operation, "log", 0);
        let first = store.append(&batch, origin, &[]).and_then(|appended| store.sync(appended.sequence));
        assert!(first.is_err() && disk.heal() == 1, "{operation:?}");
        assert_promises_nothing(&store, &writer, &batch);
        // What was acknowledged is there, and the disk works: the node may be started again.
        drop(store);
        disk.lose_power(|bound| bound - 1);
        let store = Store::open_in(&environment, Path::new("/node"), options()).unwrap();
        assert!(store.summaries().unwrap()[0].segment_complete_lsn >= writer.durable.end);
    }
}

fn assert_promises_nothing(store: &Store, writer: &Writer, batch: &[u8]) {
    for error in [
        store.append(batch, Origin::Writer(writer.promise), &[]).unwrap_err(),
        store.summaries().unwrap_err(),
        store.fence(writer.promise, &[]).unwrap_err(),
        store.materialize(Policy::Now).unwrap_err(),
        store.read_tail(GroupId(0), Lsn::ZERO, 100).unwrap_err(),
    ] {
        assert!(error.to_string().contains("a planted fault"), "{error}");
    }
    assert!(store.failure().unwrap().contains("a planted fault"));
}

/// A store of one group whose newest log entry is a fence that was acknowledged, and where that entry ends.
fn fenced(disk: &MemoryDisk) -> (Environment, LogPosition) {
    let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
    let store = Store::create_in(&environment, Path::new("/node"), identity(1), options()).unwrap();
    filled(&store, 1);
    store.fence(Promise { epoch: VolumeEpoch(2), writer: WriterId(9) }, &[]).unwrap();
    let end = store.lock().log.end();
    (environment, end)
}

#[test]
fn damage_to_the_last_promise_does_not_pass_for_a_torn_tail() {
    let disk = MemoryDisk::default();
    let (environment, end) = fenced(&disk);
    let path = format!("/node/log/{:010}.log", end.file());
    let file = disk.open(Path::new(&path), OpenMode::Write).unwrap();
    let mut byte = [0];
    let at = u64::from(end.offset()) - 9;
    file.read_at(&mut byte, at).unwrap();
    file.write_at(&[byte[0] ^ 1], at).unwrap();
    for _ in 0..2 {
        let error = Store::open_in(&environment, Path::new("/node"), options()).unwrap_err();
        assert!(error.to_string().contains("an entry that was acknowledged is damaged"), "{error}");
    }
    file.write_at(&byte, at).unwrap();
    let store = Store::open_in(&environment, Path::new("/node"), options()).unwrap();
    assert_eq!(
        store.summaries().unwrap()[0].promised_writer,
        WriterId(9),
        "the refusal left the log as it was"
    );
}

#[test]
fn what_a_failed_sync_left_in_the_cache_is_written_again_before_it_is_believed() {
    let disk = MemoryDisk::default();
    let environment = Environment { disk: Arc::new(disk.clone()), ..environment() };
    let path = Path::new("/node");
    let store = Store::create_in(&environment, path, identity(1), options()).unwrap();
    let mut writer = filled(&store, 1);
    writer.write(vec![], false);
    let batch = writer.batch(&writer.records[3..]);
    let appended = store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
    disk.fail(Operation::Sync, "log", 0);
    assert!(store.sync(appended.sequence).is_err());
    drop(store);
    // The process is started again; the machine is not.
    let store = Store::open_in(&environment, path, options()).unwrap();
    let told = store.summaries().unwrap()[0].segment_complete_lsn;
    assert_eq!(told, writer.last().end, "the cache has it");
    drop(store);
    disk.lose_power(|_| 0);
    let store = Store::open_in(&environment, path, options()).unwrap();
    assert_eq!(store.summaries().unwrap()[0].segment_complete_lsn, told, "it was told, and is lost");
    drop(store);
    // A disk that does not take it: nothing is opened, so nothing is told.
    let store = Store::open_in(&environment, path, options()).unwrap();
    writer.write(vec![], false);
    store.append(&writer.batch(&writer.records[4..]), Origin::Writer(writer.promise), &[]).unwrap();
    drop(store);
    disk.fail(Operation::Sync, ".log", 0);
    assert!(Store::open_in(&environment, path, options()).is_err());
}

#[test]
fn each_opening_is_a_boot_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    assert_eq!(create(&path, 1).boot(), 1);
    for boot in [2, 3] {
        assert_eq!(open(&path).unwrap().boot(), boot);
    }
}

#[test]
fn a_directory_is_opened_once_and_only_if_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 1);
    filled(&store, 1);
    assert!(matches!(open(&path), Err(StoreError::InUse(_))));
    drop(store);
    assert!(open(folder.path()).unwrap_err().to_string().contains("holds no store"));
    for missing in ["checkpoint", "synced", "segments/0/pages.004.0000", "log/0000000001.log"] {
        let hidden = folder.path().join("hidden");
        std::fs::rename(path.join(missing), &hidden).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("is missing"), "{missing}: {error}");
        std::fs::rename(&hidden, path.join(missing)).unwrap();
    }
    for damaged in ["checkpoint", "identity"] {
        flip(&path.join(damaged), 21);
        assert!(matches!(open(&path), Err(StoreError::Corrupt { .. })), "{damaged}");
        flip(&path.join(damaged), 21);
    }
    open(&path).unwrap();
}

#[test]
fn a_store_of_an_older_format_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    drop(create(&path, 1));
    let file = OpenOptions::new().write(true).open(path.join("identity")).unwrap();
    // Version 2 knew no releases.
    file.write_all_at(&[2], 7).unwrap();
    let error = open(&path).expect_err("it must not be opened").to_string();
    for part in ["identity", "format version 2", "knows 6", "pg_dump"] {
        assert!(error.contains(part), "{part} is missing from: {error}");
    }
}
