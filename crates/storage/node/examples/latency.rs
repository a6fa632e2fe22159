//! What one caller waits for, over Unix sockets and over TLS on the loopback address in turns: an append until it is durable
//! on one node, a page, and a question that needs no disk; and what processor time these take on both sides together.
//!
//! Prints the median of the rounds' medians and the range of these, in microseconds, with a bare `fdatasync` beside them.

#[path = "../tests/common/mod.rs"]
mod common;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use borealis_client::NodeClient;
use borealis_types::{GroupId, Lsn, MetaKey, NodeId};
use common::{ALL, Cluster, Writer, block, image};

const ROUNDS: usize = 9;
const REQUESTS: u32 = 400;
const PAGES: u32 = 500;
/// Records of a large append are as long as a batch of a busy driver.
const LARGE_BYTES: usize = 512 << 10;

/// What one round took: its median, and the processor time of one request.
#[derive(Clone, Copy)]
struct Took {
    median: Duration,
    processor: Duration,
}

/// The processor time of all threads of this process, in which both sides run.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("a process sees its threads");
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let times = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn timed(count: u32, mut action: impl FnMut(u32)) -> Took {
    let processor = processor_time();
    let mut samples: Vec<Duration> = (0..count)
        .map(|round| {
            let start = Instant::now();
            action(round);
            start.elapsed()
        })
        .collect();
    // A thread that ended meanwhile took its time with it.
    let processor = processor_time().saturating_sub(processor) / count;
    samples.sort_unstable();
    Took { median: samples[samples.len() / 2], processor }
}

/// Median, least and most of what the rounds took.
fn spread(took: &[Took], of: impl Fn(&Took) -> Duration) -> String {
    let mut values: Vec<u128> = took.iter().map(|took| of(took).as_micros()).collect();
    values.sort_unstable();
    format!("{:>6} ({}-{})", values[values.len() / 2], values[0], values[values.len() - 1])
}

/// A volume of six nodes, and who asks the first of them.
struct Setting {
    name: &'static str,
    cluster: Cluster,
    writer: Writer,
    client: NodeClient,
    durable: Lsn,
    version: u32,
}

impl Setting {
    fn new(name: &'static str, cluster: Cluster) -> Setting {
        let mut writer = Writer::first(&cluster);
        // The pages get one image and ten more.
        for version in 0..11 {
            for number in 0..PAGES {
                writer.put_page(block(1, number), &image(number + version * PAGES));
            }
            writer.ship(&ALL);
        }
        let (client, durable) = (cluster.client(0), writer.durable.end);
        Setting { name, cluster, writer, client, durable, version: 0 }
    }

    fn append(&mut self, count: u32, bytes: usize) -> Took {
        self.version += 1;
        let batches: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                self.writer.put_meta(MetaKey::SmallFile("x".into()), &vec![self.version as u8; bytes]);
                self.writer.take_batch()
            })
            .collect();
        timed(count, |round| drop(self.writer.send(&batches[round as usize], &[0])))
    }

    fn page(&mut self) -> Took {
        let (client, durable) = (&mut self.client, self.durable);
        timed(REQUESTS, |round| {
            let page =
                client.read_page(GroupId(0), block(1, round * 7 % PAGES), durable).expect("the node serves");
            assert!(page.is_some());
        })
    }

    fn question(&mut self) -> Took {
        let client = &mut self.client;
        timed(4 * REQUESTS, |_| drop(client.acquaint(NodeId(2)).expect("the node answers")))
    }
}

fn bare_syncs(setting: &Setting) -> Took {
    let path = setting.cluster.directory.path().join("bare");
    let file = std::fs::File::create(&path).expect("the temporary folder can be written");
    file.write_all_at(&vec![0; 4 << 20], 0).expect("the disk has room");
    file.sync_all().expect("the disk works");
    timed(REQUESTS, |round| {
        file.write_all_at(&[7; 512], u64::from(round) * 512).expect("the disk works");
        file.sync_data().expect("the disk works");
    })
}

fn main() {
    let mut settings =
        [Setting::new("sockets", Cluster::start(1)), Setting::new("TLS", Cluster::start_over_tls(1))];
    let mut took: Vec<(&str, &str, Vec<Took>)> = Vec::new();
    let mut note = |what, name, one| match took.iter_mut().find(|(w, n, _)| (*w, *n) == (what, name)) {
        Some((_, _, list)) => list.push(one),
        None => took.push((what, name, vec![one])),
    };
    for round in 0..ROUNDS {
        note("bare fdatasync of 512 bytes", "", bare_syncs(&settings[0]));
        // In turns, and each first as often as the other.
        for index in [round % 2, 1 - round % 2] {
            let setting = &mut settings[index];
            note("question without the disk", setting.name, setting.question());
            note("page with ten records to apply", setting.name, setting.page());
            note("append of 400 bytes to one node", setting.name, setting.append(REQUESTS, 400));
            note("append of 512 KiB to one node", setting.name, setting.append(REQUESTS / 20, LARGE_BYTES));
        }
    }
    took.sort_by_key(|(what, ..)| *what);
    println!(
        "{:<34}{:<10}{:>22}{:>26}",
        "median of 9 rounds (range), µs", "", "waited", "processor, both sides"
    );
    for (what, name, list) in took {
        let (waited, processor) = (spread(&list, |took| took.median), spread(&list, |took| took.processor));
        println!("{what:<34}{name:<10}{waited:>22}{processor:>26}");
    }
}
