//! A node that was away for longer than its peers keep log, or that lost everything, gets pages from them by itself.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use borealis_client::verify::verify_volume;
use borealis_types::{GroupId, Lsn, MetaKey};
use common::{ALL, Cluster, Writer, block, image, wait_until};

const RELATION: u32 = 16_384;
const PAGES: u32 = 1500;
/// Far more redo than makes a round due, so that the first log file is collected.
const REDO_BYTES_MAX: usize = 1 << 30;

/// Waits longer than for anything else: there is much to do.
fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::create(2);
    for config in &mut cluster.configs {
        config.log_retention_bytes = 0;
    }
    for index in ALL {
        cluster.start_node(index);
    }
    cluster
}

/// Writes pages over and over without node 6, until its peers have collected log that it lacks.
fn write_beyond_the_log(cluster: &Cluster, writer: &mut Writer, rest: &[usize]) {
    let (mut written, mut number) = (0, 0);
    let is_collected = |index: &usize| cluster.metric(*index, "store_log_files_lost_to_peers") > 0;
    while !rest.iter().all(is_collected) {
        assert!(written < REDO_BYTES_MAX, "no log is collected");
        for _ in 0..100 {
            let page = number % PAGES;
            writer.put_page(block(RELATION + page % 7, page), &image(number));
            number += 1;
        }
        written += 100 * 8192;
        writer.ship(rest);
        writer.announce(rest);
    }
    writer.put_meta(MetaKey::SmallFile("pg_stat/x".into()), b"kept");
    writer.put_meta(MetaKey::SmallFile("pg_stat/long".into()), &vec![7; 9 << 20]);
    writer.ship(rest);
    writer.announce(rest);
}

fn complete(cluster: &Cluster, index: usize) -> Vec<Lsn> {
    cluster.placement.groups().map(|group| cluster.summary(index, group).segment_complete_lsn).collect()
}

fn is_level(cluster: &Cluster, index: usize) -> bool {
    let groups = cluster.placement.groups();
    complete(cluster, index) == complete(cluster, 0)
        && groups.into_iter().all(|group| {
            cluster.summary(index, group).readable_through >= cluster.summary(0, group).readable_through
        })
}

fn assert_the_same_everywhere(cluster: &Cluster) {
    let report = verify_volume(&cluster.verify_target());
    assert!(report.is_clean() && report.is_complete(), "{report:#?}");
}

#[test]
fn a_node_that_was_away_for_longer_than_the_log_comes_back_by_itself() {
    let mut cluster = cluster();
    let mut writer = Writer::first(&cluster);
    for number in 0..200 {
        writer.put_page(block(RELATION, number), &image(number));
    }
    writer.ship(&ALL);
    writer.announce(&ALL);
    writer.clients.remove(&5);
    cluster.kill_node(5);
    let rest = [0, 1, 2, 3, 4];
    write_beyond_the_log(&cluster, &mut writer, &rest);
    // So slow that it can be watched.
    cluster.configs[5].refill_bytes_per_second = 1 << 20;
    cluster.start_node(5);
    wait_until("the node is refilled", || cluster.metric(5, "refill_done_bytes") > 0);
    for group in cluster.placement.groups() {
        let read = cluster.client(5).page_checksums(group, writer.durable.end, None, 1);
        assert!(read.is_err(), "half of it is served");
    }
    // The writer goes on, to all: what comes meanwhile waits.
    writer.connect(&cluster, 5);
    for number in 0..300 {
        writer.put_page(block(RELATION + 9, number), &image(77_000 + number));
        if number % 10 == 9 {
            writer.ship(&ALL);
            writer.announce(&ALL);
        }
    }
    // Both ends die in the middle.
    writer.clients.remove(&5);
    let refills = cluster.metric(5, "refills");
    cluster.kill_node(5);
    writer.clients.remove(&1);
    cluster.kill_node(1);
    cluster.start_node(5);
    wait_until("it is refilled again", || cluster.metric(5, "refill_done_bytes") > 0);
    cluster.start_node(1);
    let refills = refills + cluster.metric(5, "refills");
    cluster.kill_node(5);
    cluster.configs[5].refill_bytes_per_second = 0;
    cluster.start_node(5);
    wait_long("it has everything", || is_level(&cluster, 5));
    // It counts a refill after the segment went on, and what still waits when it looks next.
    wait_until("it says so", || cluster.metric(5, "refill_groups") == 0);
    assert!(refills + cluster.metric(5, "refills") > 0, "it came from peers' pages");
    assert_eq!(cluster.node(5).status().failure, None);
    wait_long("the others have what they missed", || ALL.iter().all(|index| is_level(&cluster, *index)));
    assert_the_same_everywhere(&cluster);
    // It takes redo like the others.
    writer.connect(&cluster, 1);
    writer.connect(&cluster, 5);
    writer.put_page(block(RELATION, 3), &image(99_999));
    writer.ship(&[1, 2, 3, 5]);
    writer.announce(&[1, 2, 3, 5]);
    let key = block(RELATION, 3);
    let page =
        cluster.client(5).read_page(cluster.placement.group_of(&key), key, writer.durable.end).unwrap();
    assert!(page.expect("the page exists") == image(99_999));
}

#[test]
fn a_node_that_lost_everything_is_filled_when_it_is_told_to() {
    let mut cluster = cluster();
    let mut writer = Writer::first(&cluster);
    for number in 0..600 {
        writer.put_page(block(RELATION, number), &image(number));
    }
    writer.put_meta(MetaKey::SmallFile("pg_stat/x".into()), b"kept");
    writer.ship(&ALL);
    writer.announce(&ALL);
    cluster.kill_node(5);
    std::fs::remove_dir_all(cluster.configs[5].store_directory()).unwrap();
    cluster.configs[5].incarnation = 0x9999;
    borealis_node::create(&cluster.configs[5]).unwrap();
    // No log comes to it: it would do here, for none is collected yet.
    let begun = Instant::now();
    cluster.start_node(5);
    for group in 0..2 {
        cluster.node(5).refill(GroupId(group));
    }
    wait_long("it has everything", || is_level(&cluster, 5));
    eprintln!("filled within {:?}", begun.elapsed());
    assert_the_same_everywhere(&cluster);
}
