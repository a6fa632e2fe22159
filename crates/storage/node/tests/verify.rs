//! Verification finds damage and says where it is.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use borealis_client::verify::{Difference, Subject, verify_volume};
use borealis_store::{Options, Policy, Store};
use borealis_types::{DatabaseKey, MetaKey, NodeId};
use common::{ALL, Cluster, Writer, block, image};

const RELATION: u32 = 16_384;
const PAGES: u32 = 200;

fn filled(group_count: u16) -> (Cluster, Writer) {
    let cluster = Cluster::start(group_count);
    let mut writer = Writer::first(&cluster);
    for number in 0..PAGES {
        writer.put_page(block(RELATION, number), &image(number));
    }
    writer.put_meta(MetaKey::SmallFile("pg_stat/x".into()), b"kept");
    writer.put_meta(MetaKey::Database(DatabaseKey { tablespace: 1663, database: 5 }), b"");
    writer.ship(&ALL);
    writer.announce(&ALL);
    (cluster, writer)
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Flips one bit inside every copy of `needle` in the files below `directory`; returns how many there were.
fn flip_inside(directory: &Path, needle: &[u8]) -> usize {
    let mut flipped = 0;
    for path in files_below(directory) {
        let mut bytes = fs::read(&path).unwrap();
        let places: Vec<usize> = memmem(&bytes, needle);
        if !places.is_empty() {
            for place in &places {
                bytes[place + needle.len() / 2] ^= 0x10;
            }
            fs::write(&path, bytes).unwrap();
            flipped += places.len();
        }
    }
    flipped
}

fn memmem(bytes: &[u8], needle: &[u8]) -> Vec<usize> {
    let first = needle[0];
    (0..bytes.len().saturating_sub(needle.len()))
        .filter(|&at| bytes[at] == first && bytes[at..].starts_with(needle))
        .collect()
}

#[test]
fn a_healthy_volume_is_clean() {
    let (mut cluster, _writer) = filled(2);
    let report = verify_volume(&cluster.verify_target());
    assert!(report.is_clean() && report.is_complete(), "{report:#?}");
    assert_eq!(report.pages_compared, u64::from(PAGES));
    assert!(report.values_compared >= 2 && report.relation_parts_compared >= 1, "{report:#?}");
    // A peer that is down is named, and the others are compared all the same.
    cluster.kill_node(4);
    let report = verify_volume(&cluster.verify_target());
    assert!(report.is_clean() && !report.is_complete(), "{report:#?}");
    assert_eq!(report.unreachable.len(), 1);
    assert_eq!(report.unreachable[0].node, NodeId(5));
    assert_eq!(report.pages_compared, u64::from(PAGES));
}

#[test]
fn a_flipped_bit_on_disk_is_found_and_named() {
    let (mut cluster, _writer) = filled(2);
    let damaged = block(RELATION, 7);
    for index in ALL {
        cluster.nodes[index].take().unwrap().stop();
        let store = Store::open(&cluster.configs[index].store_directory(), Options::default()).unwrap();
        assert!(store.materialize(Policy::Now).unwrap().advanced);
    }
    let segments = cluster.configs[2].store_directory().join("segments");
    assert!(flip_inside(&segments, &image(7)) > 0, "block 7 is not in the page store of node 3");
    for index in ALL {
        cluster.start_node(index);
    }
    let report = verify_volume(&cluster.verify_target());
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    let finding = &report.findings[0];
    assert_eq!(finding.node, NodeId(3));
    assert_eq!(finding.group, cluster.placement.group_of(&damaged));
    assert_eq!(finding.subject, Subject::Page { key: damaged });
    assert_eq!(finding.difference, Difference::Unreadable);
    let text = finding.to_string();
    assert!(text.contains("node 3") && text.contains("1663/5/16384 block 7"), "{text}");
    // The damaged page is refused to readers, and no other page is.
    let mut client = cluster.client(2);
    let lsn = cluster.summary(2, finding.group).readable_through;
    assert!(client.read_page(finding.group, damaged, lsn).is_err());
    let other = block(RELATION, 8);
    let page = client.read_page(cluster.placement.group_of(&other), other, lsn).unwrap();
    assert!(page.expect("the page exists") == image(8));
}

#[test]
fn a_flipped_bit_in_a_record_that_is_not_applied_yet_is_found() {
    let (mut cluster, _writer) = filled(1);
    // While the node runs, so that it is not the restart that notices.
    let log = cluster.configs[1].store_directory().join("log");
    assert!(flip_inside(&log, &image(9)) > 0, "block 9 is not in the log of node 2");
    let report = verify_volume(&cluster.verify_target());
    assert!(report.findings.iter().all(|finding| finding.node == NodeId(2)), "{report:#?}");
    let damaged = Subject::Page { key: block(RELATION, 9) };
    assert!(report.findings.iter().any(|finding| finding.subject == damaged), "{report:#?}");
    // Other pages of that node are compared all the same.
    assert!(!report.findings.iter().any(|f| f.subject == Subject::Page { key: block(RELATION, 10) }));
    assert_eq!(report.pages_compared, u64::from(PAGES));
    cluster.kill_node(1);
}

#[test]
fn a_volume_that_is_being_written_to_raises_no_false_alarm() {
    let (cluster, mut writer) = filled(1);
    let target = cluster.verify_target();
    let stop = AtomicBool::new(false);
    let reports = thread::scope(|scope| {
        scope.spawn(|| {
            for round in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                for number in 0..20 {
                    writer.put_page(block(RELATION, (round * 7 + number) % PAGES), &image(round + number));
                }
                writer.ship(&ALL);
                writer.announce(&ALL);
            }
        });
        let reports: Vec<_> = (0..3).map(|_| verify_volume(&target)).collect();
        stop.store(true, Ordering::Relaxed);
        reports
    });
    for report in reports {
        assert!(report.is_clean(), "{report:#?}");
        assert_eq!(report.unreachable, []);
    }
    let report = verify_volume(&target);
    assert!(report.is_clean() && report.is_complete(), "{report:#?}");
}
