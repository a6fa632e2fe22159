//! Taking redo: from whom, in which order, how much at once, and from hostile senders.

use std::sync::atomic::Ordering;

use borealis_quorum::Promise;
use borealis_types::{GroupId, Lsn, MetaKey, VolumeEpoch, WriterId};
use borealis_wire::Refusal;
use proptest::prelude::*;

use super::records::{TestEffect, Writer, Written, block, create, fork, open};
use crate::{Origin, Policy, StoreError};

fn page(number: u32) -> Vec<TestEffect> {
    vec![TestEffect::Page(block(fork(1, 16_384), number))]
}

#[test]
fn concurrent_syncs_are_shared() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(&folder.path().join("node"), 1);
    let mut writer = Writer::start(&store);
    for number in 0..200 {
        writer.write(page(number % 4), false);
    }
    let before = store.counters.log_syncs.load(Ordering::Relaxed);
    let origin = Origin::Writer(writer.promise);
    let batches: Vec<_> = writer.records.chunks(1).map(|record| writer.batch(record)).collect();
    let next = std::sync::Mutex::new(batches.iter());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let appended = {
                        let mut next = next.lock().unwrap();
                        let Some(batch) = next.next() else { return };
                        store.append(batch, origin, &[]).unwrap()
                    };
                    store.sync(appended.sequence).unwrap();
                    assert!(store.commit.durable() >= appended.sequence.0);
                }
            });
        }
    });
    let syncs = store.counters.log_syncs.load(Ordering::Relaxed) - before;
    assert!(syncs < 200, "{syncs} syncs for 200 appends by 8 threads");
    assert_eq!(store.summaries().unwrap()[0].segment_complete_lsn, writer.last().end);
}

#[test]
fn a_batch_that_is_known_in_part_and_out_of_order_is_taken_in_few_entries() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["plain", "mixed"].map(|name| folder.path().join(name));
    let plain = create(&paths[0], 3);
    let mut writer = Writer::start(&plain);
    for number in 0..60 {
        let effects = [(16_384, number), (16_385, number % 7)]
            .map(|(relation, extent)| TestEffect::Page(block(fork(1, relation), extent * 128)));
        writer.write(effects.to_vec(), false);
    }
    let origin = Origin::Writer(writer.promise);
    for record in &writer.records {
        plain.append(&writer.batch(std::slice::from_ref(record)), origin, &[]).unwrap();
    }
    let mixed = create(&paths[1], 3);
    assert_eq!(Writer::start(&mixed).promise, writer.promise);
    // A peer was faster for a part of one group; the writer's batch then has everything, last record first.
    let has = |record: &&Written| record.links.iter().any(|link| link.group == GroupId(1));
    let of_group: Vec<Written> = writer.records.iter().filter(has).cloned().collect();
    let known = &of_group[..of_group.len() / 2];
    mixed.append(&writer.batch(known), Origin::Peer(GroupId(1)), &[]).unwrap();
    let mut all = writer.records.clone();
    all.reverse();
    let entries = || mixed.counters.log_entries.load(Ordering::Relaxed);
    let before = entries();
    let appended = mixed.append(&writer.batch(&all), origin, &[]).unwrap();
    mixed.sync(appended.sequence).unwrap();
    // No more entries than there are sets of three groups.
    assert!((2..=7).contains(&(entries() - before)), "{} entries", entries() - before);
    writer.durable = writer.last();
    plain.note_positions(&writer.header(), &[]).unwrap();
    mixed.note_positions(&writer.header(), &[]).unwrap();
    let same = |mixed: &crate::Store| {
        for (one, other) in plain.summaries().unwrap().iter().zip(mixed.summaries().unwrap()) {
            assert_eq!(one.segment_complete_lsn, other.segment_complete_lsn);
            let lsn = writer.durable.end;
            let checksums = |store: &crate::Store| store.page_checksums(one.group, lsn, None, 1000).unwrap();
            assert!(!checksums(&plain).is_empty());
            assert_eq!(checksums(&plain), checksums(mixed));
        }
    };
    same(&mixed);
    drop(mixed);
    same(&open(&paths[1]).unwrap());
}

#[test]
fn an_older_writer_is_fenced_and_a_promise_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 2);
    let mut writer = Writer::start(&store);
    writer.write(page(0), false);
    let batch = writer.batch(&writer.records);
    let newer = Promise { epoch: VolumeEpoch(7), writer: WriterId(5) };
    store.fence(newer, &[]).unwrap();
    let refused = |result: Result<(), StoreError>| {
        matches!(result, Err(StoreError::Refused(Refusal::Fenced(VolumeEpoch(7)))))
    };
    assert!(refused(store.append(&batch, Origin::Writer(writer.promise), &[]).map(drop)));
    drop(store);
    let store = open(&path).unwrap();
    assert!(refused(store.append(&batch, Origin::Writer(writer.promise), &[]).map(drop)));
    let rival = Promise { epoch: VolumeEpoch(7), writer: WriterId(6) };
    assert!(refused(store.fence(rival, &[]).map(drop)));
    assert!(refused(
        store
            .install(writer.promise.writer, &writer.history, &[], &[])
            .map(drop)
            .map_err(|error| { StoreError::Refused(error.to_refusal()) })
    ));
    store.fence(newer, &[]).unwrap();
}

#[test]
fn a_full_index_is_emptied_before_more_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    drop(create(&path, 1));
    let options = crate::Options { memory_limit_bytes: 64 << 10, ..super::records::options() };
    let store = crate::Store::open_in(&super::records::environment(), &path, options).unwrap();
    let mut writer = Writer::start(&store);
    for _ in 0..100 {
        let first = writer.records.len();
        for number in 0..20 {
            writer.write(page(number), false);
        }
        let batch = writer.batch(&writer.records[first..]);
        store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        for group in writer.placement.groups() {
            store.set_peer_floor(group, writer.durable.end);
        }
    }
    let metrics: std::collections::BTreeMap<_, _> = store.metrics().into_iter().collect();
    assert!(metrics["appends_held_back"] > 0);
    assert!(metrics["index_memory_bytes"] < 96 << 10, "{metrics:?}");
    assert!(metrics["log_file_bytes"] < 256 << 10, "{metrics:?}");
}

#[test]
fn a_materializer_that_is_kept_from_its_work_cannot_make_the_log_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    // Memory enough, and nobody but the appends themselves materializes.
    let store = create(&folder.path().join("node"), 1);
    let mut writer = Writer::start(&store);
    let unapplied = || store.lock().applicable_record_bytes();
    let bound = 8 * super::records::options().materialize_after_bytes;
    let mut highest = 0;
    while store.counters.appends_held_back.load(Ordering::Relaxed) == 0 {
        assert!(highest <= 2 * bound, "{highest} bytes wait, and appends go on");
        let first = writer.records.len();
        for number in 0..20 {
            writer.write(page(number), false);
        }
        store.append(&writer.batch(&writer.records[first..]), Origin::Writer(writer.promise), &[]).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        highest = highest.max(unapplied());
    }
    assert!(highest > bound && unapplied() < bound / 2, "{highest} before, {} after", unapplied());
}

#[test]
fn what_is_dropped_makes_room_for_what_comes_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let mut store = create(&path, 1);
    let mut writer = Writer::start(&store);
    for round in 0..30 {
        let relation = fork(1, 20_000 + round);
        let first = writer.records.len();
        for extent in 0..3 {
            writer.write(vec![TestEffect::Page(block(relation, extent * 128))], false);
        }
        if round > 0 {
            writer.write(vec![TestEffect::Drop(fork(1, 20_000 + round - 1).locator)], false);
        }
        store.append(&writer.batch(&writer.records[first..]), Origin::Writer(writer.promise), &[]).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        store.note_positions(&writer.header(), &[]).unwrap();
        assert!(store.materialize(Policy::Now).unwrap().advanced);
        if round == 15 {
            drop(store);
            store = open(&path).unwrap();
        }
        for extent in 0..3 {
            let key = block(relation, extent * 128);
            let lsn = writer.records[first + extent as usize].span.end;
            let page = store.read_page(GroupId(0), &key, writer.last().end).unwrap().unwrap();
            assert_eq!(page, super::records::page_of(super::records::mix(0, lsn)));
        }
    }
    let regions = store.lock().segments[&GroupId(0)].materialized.regions.all().count();
    assert!(regions <= 6, "{regions} regions for 3 in use at a time");
}

#[test]
fn log_that_a_backup_lacks_is_kept_within_the_bound_and_let_go_once_it_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    drop(create(&path, 1));
    let options = crate::Options { log_retention_bytes: 64 << 10, ..super::records::options() };
    let store = crate::Store::open_in(&super::records::environment(), &path, options).unwrap();
    let mut writer = Writer::start(&store);
    // No peer needs any of it.
    store.set_peer_floor(GroupId(0), Lsn::MAX);
    store.set_backup_floors(std::collections::BTreeMap::new());
    let mut write = |count: u32| {
        for number in 0..count {
            let first = writer.records.len();
            writer.write(page(number % 20), false);
            let batch = writer.batch(&writer.records[first..]);
            store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
            writer.durable = writer.last();
            writer.minimum_read_point = writer.durable.end;
        }
        store.note_positions(&writer.header(), &[]).unwrap();
        store.materialize(Policy::Now).unwrap();
        (store.files.total_bytes(), writer.durable.end)
    };
    let first = |store: &crate::Store| store.read_tail(GroupId(0), Lsn::ZERO, 1).unwrap().batches;
    let beginning = {
        write(100);
        first(&store)
    };
    let (kept, _) = write(50);
    assert!(!beginning.is_empty() && first(&store) == beginning, "{kept} bytes, from the first record on");
    let (kept, end) = write(3000);
    assert!(kept <= 80 << 10, "{kept} bytes are kept for a backup that takes nothing");
    assert_ne!(first(&store), beginning);
    store.set_backup_floors([(GroupId(0), end)].into());
    let (kept, _) = write(1);
    assert!(kept <= 16 << 10, "{kept} bytes are kept for a backup that has them");
}

#[test]
fn a_peer_that_is_gone_does_not_make_every_append_a_checkpoint() {
    const APPENDS: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    drop(create(&path, 1));
    let options = crate::Options {
        memory_limit_bytes: 32 << 10,
        materialize_after_bytes: 64 << 10,
        log_file_bytes: 32 << 10,
        ..super::records::options()
    };
    let store = crate::Store::open_in(&super::records::environment(), &path, options).unwrap();
    let mut writer = Writer::start(&store);
    // The peer has nothing, so the whole log is kept.
    for number in 0..APPENDS {
        let first = writer.records.len();
        writer.write(page(number as u32 % 20), false);
        let batch = writer.batch(&writer.records[first..]);
        store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        store.materialize(Policy::IfDue).unwrap();
    }
    let metrics: std::collections::BTreeMap<_, _> = store.metrics().into_iter().collect();
    assert!(metrics["checkpoints"] > 3, "{metrics:?}");
    assert!(metrics["checkpoints"] + metrics["appends_held_back"] < 300, "{metrics:?}");
    assert!(metrics["catalog_memory_bytes"] < 40 << 10, "{metrics:?}");
    // It comes back and is given everything, in order, a piece at a time.
    let mut from = Lsn::ZERO;
    let mut found = 0;
    loop {
        let tail = store.read_tail(GroupId(0), from, 10_000).unwrap();
        for batch in &tail.batches {
            let (_, reader) = borealis_wire::BatchReader::new(batch).unwrap();
            for record in reader {
                let record = record.unwrap();
                assert_eq!(record.span, writer.records[found].span);
                from = record.span.end;
                found += 1;
            }
        }
        if !tail.more {
            break;
        }
        if found % 7 == 0 {
            // A checkpoint in between drops the batch locations again.
            store.materialize(Policy::Now).unwrap();
        }
    }
    assert_eq!(found, APPENDS);
}

#[test]
fn a_page_with_many_records_is_prepared_for_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(&folder.path().join("node"), 1);
    let mut writer = Writer::start(&store);
    for _ in 0..1100 {
        writer.write(page(0), false);
    }
    store.append(&writer.batch(&writer.records), Origin::Writer(writer.promise), &[]).unwrap();
    writer.durable = writer.last();
    store.note_positions(&writer.header(), &[]).unwrap();
    // Nothing can be materialized, because someone may still read at the beginning.
    assert!(!store.materialize(Policy::Now).unwrap().advanced);
    let before = store.counters.records_applied_for_reads.load(Ordering::Relaxed);
    store.read_page(GroupId(0), &block(fork(1, 16_384), 0), writer.last().end).unwrap().unwrap();
    assert_eq!(store.counters.records_applied_for_reads.load(Ordering::Relaxed), before);
    let oldest = writer.records[0].span.end;
    let first = store.read_page(GroupId(0), &block(fork(1, 16_384), 0), oldest).unwrap().unwrap();
    assert_eq!(first, super::records::page_of(super::records::mix(0, oldest)));
}

#[test]
fn counters_with_many_records_are_prepared_for_their_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 1);
    let mut writer = Writer::start(&store);
    for number in 0..100 {
        writer.write(page(number % 3), false);
    }
    store.append(&writer.batch(&writer.records), Origin::Writer(writer.promise), &[]).unwrap();
    writer.durable = writer.last();
    store.note_positions(&writer.header(), &[]).unwrap();
    let read = |store: &crate::Store, lsn| store.read_meta(&MetaKey::Counters, lsn).unwrap();
    let (early, late) = (writer.records[40].span.end, writer.last().end);
    let expected = (read(&store, early), read(&store, late));
    assert!(!store.materialize(Policy::IfDue).unwrap().advanced, "nothing is due");
    let prepared = store.lock().segments[&GroupId(0)].prepared_counters.clone();
    let (at, counters) = prepared.expect("a hundred records are many in tests");
    assert_eq!((at, Some(&counters)), (late, expected.1.as_ref()));
    assert_eq!((read(&store, early), read(&store, late)), expected);
    drop(store);
    let store = open(&path).unwrap();
    assert_eq!((read(&store, early), read(&store, late)), expected);
}

#[test]
fn counters_are_prepared_although_the_newest_records_are_of_other_groups() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(&folder.path().join("node"), 2);
    let mut writer = Writer::start(&store);
    for _ in 0..100 {
        writer.write(vec![TestEffect::Meta(MetaKey::Counters)], false);
    }
    let newest = writer.last().end;
    let of_other = |&number: &u32| writer.placement.group_of(&block(fork(1, 16_384), number)) == GroupId(1);
    let other = (0..).find(of_other).expect("the pages are spread over the groups");
    writer.write(page(other), false);
    store.append(&writer.batch(&writer.records), Origin::Writer(writer.promise), &[]).unwrap();
    writer.durable = writer.last();
    store.note_positions(&writer.header(), &[]).unwrap();
    let read = |lsn| store.read_meta(&MetaKey::Counters, lsn).unwrap();
    let expected = (read(newest), read(writer.last().end));
    store.materialize(Policy::IfDue).unwrap();
    let prepared = store.lock().segments[&GroupId(0)].prepared_counters.clone();
    assert_eq!(prepared.map(|(at, _)| at), Some(newest));
    assert_eq!((read(newest), read(writer.last().end)), expected);
}

#[test]
fn a_record_that_names_a_value_twice_changes_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let store = create(&path, 1);
    let mut writer = Writer::start(&store);
    let key = MetaKey::RelationMap(super::records::database(5));
    let lsn =
        writer.write(vec![TestEffect::Meta(key.clone()), TestEffect::Meta(key.clone())], false).span.end;
    store.append(&writer.batch(&writer.records), Origin::Writer(writer.promise), &[]).unwrap();
    writer.durable = writer.last();
    store.note_positions(&writer.header(), &[]).unwrap();
    let hash = super::records::mix(0, lsn);
    let expected = (!hash.is_multiple_of(5)).then(|| hash.to_le_bytes().to_vec());
    assert_eq!(store.read_meta(&key, lsn).unwrap(), expected);
}

#[test]
fn reads_are_exact_while_pages_are_overwritten_and_log_files_reused() {
    const PAGES: u32 = 6;
    const RECORDS: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    let store = create(&folder.path().join("node"), 1);
    let mut writer = Writer::start(&store);
    let mut versions = vec![vec![(Lsn::ZERO, 0)]; PAGES as usize];
    let mut batches = Vec::new();
    for first in (0..RECORDS).step_by(10) {
        for number in first..first + 10 {
            let number = (number * 7 % PAGES as usize) as u32;
            let lsn = writer.write(page(number), false).span.end;
            let (_, hash) = *versions[number as usize].last().unwrap();
            versions[number as usize].push((lsn, super::records::mix(hash, lsn)));
        }
        batches.push(writer.batch(&writer.records[first..]));
        writer.durable = writer.last();
        writer.minimum_read_point = writer.records[first.saturating_sub(30)].span.end;
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut exact = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for batch in &batches {
                let appended = store.append(batch, Origin::Writer(writer.promise), &[]).unwrap();
                // The others get their turn meanwhile.
                store.sync(appended.sequence).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let summary = &store.summaries().unwrap()[0];
                store.set_peer_floor(GroupId(0), summary.segment_complete_lsn);
                store.materialize(Policy::Now).unwrap();
            }
        });
        let mut round = 0u64;
        while !done.load(Ordering::Acquire) {
            round += 1;
            let summary = &store.summaries().unwrap()[0];
            let (from, through) = (summary.minimum_read_point.0, summary.readable_through.0);
            let lsn = Lsn(from + round.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (through - from + 1));
            let number = (round % u64::from(PAGES)) as u32;
            let found = match store.read_page(GroupId(0), &block(fork(1, 16_384), number), lsn) {
                Err(StoreError::Refused(_)) => continue,
                found => found.unwrap(),
            };
            let of_page = &versions[number as usize];
            let (since, hash) = of_page[of_page.partition_point(|(at, _)| *at <= lsn) - 1];
            let expected = (since != Lsn::ZERO).then(|| super::records::page_of(hash));
            assert_eq!(found, expected, "page {number} as of {lsn}");
            exact += 1;
        }
    });
    let metrics: std::collections::BTreeMap<_, _> = store.metrics().into_iter().collect();
    assert!(exact > 10 && metrics["checkpoints"] > 3, "{exact} reads, {metrics:?}");
}

#[test]
fn hostile_batches_never_panic_and_bring_no_positions() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(&folder.path().join("node"), 2);
    let mut writer = Writer::start(&store);
    for number in 0..4 {
        writer.write(page(number), false);
    }
    let whole = writer.batch(&writer.records);
    let origins = [
        Origin::Writer(writer.promise),
        Origin::Peer(GroupId(0)),
        Origin::Recovery(writer.promise, GroupId(1)),
        Origin::Peer(GroupId(9)),
    ];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = (0..whole.len(), any::<u8>(), 0..origins.len(), any::<bool>());
    runner
        .run(&strategy, |(at, value, origin, cut)| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if cut {
                bytes.truncate(at);
            }
            // Where records stand is the sender's word, which the frame's checksum covers; the positions in the
            // header count from the writer only.
            let origin = if origins[origin] == origins[0] { origins[1] } else { origins[origin] };
            let _ = store.append(&bytes, origin, &[]);
            Ok(())
        })
        .unwrap();
    runner
        .run(&prop::collection::vec(any::<u8>(), 0..200), |bytes| {
            let _ = store.append(&bytes, origins[0], &[]);
            let _ = store.append(&bytes, origins[1], &[]);
            Ok(())
        })
        .unwrap();
    assert_eq!(store.failure(), None);
    for summary in store.summaries().unwrap() {
        assert_eq!(summary.minimum_read_point, Lsn::ZERO);
    }
}
