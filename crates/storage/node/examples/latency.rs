//! What one caller waits for over loopback: an append until it is durable on one node, and a page.
//!
//! Prints medians and 99th percentiles in microseconds, with the time of a bare `fdatasync` beside them.

#[path = "../tests/common/mod.rs"]
mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use borealis_types::{GroupId, MetaKey};
use common::{ALL, Cluster, Writer, block, image};

const ROUNDS: u32 = 2000;
const PAGES: u32 = 500;

fn report(what: &str, mut samples: Vec<Duration>) {
    samples.sort_unstable();
    let at = |part: usize| samples[(samples.len() * part / 100).min(samples.len() - 1)].as_micros();
    println!("{what}: p50 {} µs, p99 {} µs", at(50), at(99));
}

fn timed(mut action: impl FnMut(u32)) -> Vec<Duration> {
    (0..ROUNDS)
        .map(|round| {
            let start = Instant::now();
            action(round);
            start.elapsed()
        })
        .collect()
}

fn main() {
    let cluster = Cluster::start(1);
    let mut writer = Writer::first(&cluster);
    let path = cluster.directory.path().join("bare");
    let file = std::fs::File::create(&path).expect("the temporary folder can be written");
    file.write_all_at(&vec![0; 4 << 20], 0).expect("the disk has room");
    file.sync_all().expect("the disk works");
    let bare = timed(|round| {
        file.write_all_at(&[7; 512], u64::from(round) * 512).expect("the disk works");
        file.sync_data().expect("the disk works");
    });
    report("bare fdatasync of 512 bytes in place", bare);
    let batches: Vec<Vec<u8>> = (0..ROUNDS)
        .map(|_| {
            writer.put_meta(MetaKey::SmallFile("x".into()), &[1; 400]);
            writer.take_batch()
        })
        .collect();
    let appends = timed(|round| {
        writer.send(&batches[round as usize], &[0]);
    });
    report("append of 400 bytes to one node", appends);
    // The others are level again, and the pages get one image and ten more.
    writer.durable = writer.last;
    for version in 0..11 {
        for number in 0..PAGES {
            writer.put_page(block(1, number), &image(number + version * PAGES));
        }
        writer.ship(&[0, 1, 2, 3]);
    }
    let lsn = writer.durable.end;
    let mut client = cluster.client(0);
    let mut read = |round: u32| {
        let page = client.read_page(GroupId(0), block(1, round * 7 % PAGES), lsn).expect("the node serves");
        assert!(page.is_some());
    };
    report("page with eleven records to apply", timed(&mut read));
    writer.announce(&[0, 1, 2, 3]);
    let nodes = ALL.map(|index| cluster.summary(index, GroupId(0)).segment_complete_lsn);
    println!("segments complete to {nodes:?}");
    let metrics = cluster.node(0).status().metrics;
    for (name, value) in
        metrics.iter().filter(|(name, _)| name.starts_with("ack_") || name.starts_with("page_read_"))
    {
        println!("{name} = {value}");
    }
}
