//! A round that takes its time gets out of the way when somebody waits, and when the store is closed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use borealis_types::{GroupId, Lsn, MetaKey};
use borealis_wire::BatchBuilder;

use super::records::{TestEffect, Writer, block, create, environment, fork, mix, options, page_of};
use crate::materialize::pace::{PAUSE, PAUSES_MAX, PIECE_PAGES};
use crate::{Options, Origin, Policy, Store};

/// Enough that an unhurried round, to which nothing is added, pauses for many seconds.
const PAGES: u32 = 3000;

/// A store with records of a page each, all of which can be materialized and are just due.
fn filled(path: &Path, pages: u32) -> (Store, Writer) {
    let store = create(path, 1);
    let mut writer = Writer::start(&store);
    for number in 0..pages {
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false);
    }
    store.append(&writer.batch(&writer.records), Origin::Writer(writer.promise), &[]).unwrap();
    writer.durable = writer.last();
    writer.minimum_read_point = writer.durable.end;
    store.note_positions(&writer.header(), &[]).unwrap();
    let due = store.lock().applicable_record_bytes();
    drop(store);
    (reopen(path, due), writer)
}

fn reopen(path: &Path, materialize_after_bytes: u64) -> Store {
    // Files large enough that appends do not wait for new ones.
    let log_file_bytes = 16 << 20;
    let options =
        Options { materialize_after_bytes, memory_limit_bytes: 256 << 20, log_file_bytes, ..options() };
    Store::open_in(&environment(), path, options).unwrap()
}

fn assert_all_there(store: &Store, writer: &Writer) {
    for (number, record) in (0..).zip(&writer.records) {
        let lsn = record.span.end;
        let page = store.read_page(GroupId(0), &block(fork(1, 16_384), number), writer.last().end).unwrap();
        assert_eq!(page.unwrap(), page_of(mix(0, lsn)), "block {number}");
    }
}

/// Waits until a round has made two pieces' worth of pages, of which some are written.
fn wait_until_a_round_works(store: &Store) {
    while store.counters.records_applied_for_reads.load(Ordering::Relaxed) < 2 * PIECE_PAGES as u64 {
        std::thread::yield_now();
    }
}

#[test]
fn a_round_nobody_waits_for_takes_its_time_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writer) = filled(&folder.path().join("node"), 4 * PIECE_PAGES as u32);
    let began = Instant::now();
    assert!(store.materialize(Policy::IfDue).unwrap().advanced);
    let least = 3 * PAUSES_MAX * PAUSE;
    assert!((least..least + Duration::from_secs(10)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_all_there(&store, &writer);
}

#[test]
fn a_group_with_many_pages_is_more_work_than_one_with_many_records() {
    let folder = tempfile::tempdir().unwrap();
    let store = create(&folder.path().join("node"), 2);
    let mut writer = Writer::start(&store);
    let of_group = |group: u16, count: usize| {
        let placement = store.identity().placement;
        let blocks = (0..).map(|number| block(fork(1, 16_384), number));
        blocks.filter(|page| placement.group_of(page) == GroupId(group)).take(count).collect::<Vec<_>>()
    };
    // Hot pages here, pages that change once there.
    for (at, page) in of_group(1, 200).into_iter().enumerate() {
        writer.write(vec![TestEffect::Page(page)], false);
        for hot in of_group(0, 2) {
            writer.write(vec![TestEffect::Page(hot), TestEffect::Meta(MetaKey::Counters)], false);
        }
        if at % 50 == 49 {
            store
                .append(&writer.batch(&writer.records[3 * (at - 49)..]), Origin::Writer(writer.promise), &[])
                .unwrap();
            writer.durable = writer.last();
        }
    }
    let record_bytes = |group: u16| store.lock().segments[&GroupId(group)].index.record_bytes;
    assert!(record_bytes(0) > record_bytes(1));
    let work = store.work_of(&[(GroupId(0), Lsn::MAX), (GroupId(1), Lsn::MAX)]);
    assert!(work[1] > 3.0 * work[0], "{work:?}");
}

#[test]
fn who_waits_for_a_slow_round_ends_its_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let (store, writer) = filled(&folder.path().join("node"), PAGES);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| store.materialize(Policy::IfDue).unwrap());
        wait_until_a_round_works(&store);
        let began = Instant::now();
        store.materialize(Policy::Now).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
        assert!(slow.join().unwrap().advanced);
    });
    assert_all_there(&store, &writer);
}

#[test]
fn a_round_given_up_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let (store, writer) = filled(&path, PAGES);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| store.materialize(Policy::IfDue).unwrap());
        wait_until_a_round_works(&store);
        let began = Instant::now();
        store.end_materialization();
        assert!(!slow.join().unwrap().advanced);
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    });
    let written: u64 = std::fs::read_dir(path.join("segments/0"))
        .unwrap()
        .flatten()
        .map(|f| f.metadata().unwrap().len())
        .sum();
    assert!(written > 0, "the round had not begun to write");
    assert!(!store.materialize(Policy::Now).unwrap().advanced, "no other round begins");
    assert_all_there(&store, &writer);
    drop(store);
    let store = reopen(&path, 1);
    assert_eq!(store.lock().segments[&GroupId(0)].materialized.lsn, Lsn::ZERO);
    assert_all_there(&store, &writer);
    assert!(store.materialize(Policy::Now).unwrap().advanced);
    assert_all_there(&store, &writer);
}

#[test]
fn an_append_that_was_held_back_goes_on_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node");
    let (store, mut writer) = filled(&path, 500);
    // Goes on writing: each batch says that all before it can be materialized.
    let mut go_on = |store: &Store| {
        let number = writer.records.len() as u32;
        writer.write(vec![TestEffect::Page(block(fork(1, 16_384), number))], false);
        let batch = writer.batch(&writer.records[number as usize..]);
        store.append(&batch, Origin::Writer(writer.promise), &[]).unwrap();
        writer.durable = writer.last();
        writer.minimum_read_point = writer.durable.end;
        writer.header()
    };
    let newest = go_on(&store);
    let bytes = store.lock().applicable_record_bytes();
    drop(store);
    let store = reopen(&path, bytes / 10);
    assert!(store.backlog().share(&store.options) > 1.0);
    let is_over = AtomicBool::new(false);
    let mut written = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.append(&BatchBuilder::new(&newest).finish(), Origin::Peer(GroupId(0)), &[]).unwrap();
            is_over.store(true, Ordering::Relaxed);
        });
        wait_until_a_round_works(&store);
        // What the round under way leaves over, and from then on always something more.
        store.note_positions(&newest, &[]).unwrap();
        while store.backlog().share(&store.options) > 1.0 {
            std::thread::yield_now();
        }
        while !is_over.load(Ordering::Relaxed) {
            // Not so much that it is held back itself: nobody should materialize any of it.
            if store.backlog().share(&store.options) < 0.5 {
                go_on(&store);
                written += 1;
            }
        }
    });
    assert!(written < 300, "it was held back while others appended {written} records");
}
