//! A node process with few descriptors, and with a small disk: what it cannot do passes, and nothing is lost.
//!
//! Run without arguments it is the tests; with `node FILE` it is a storage node. The small disk is a memory file system in
//! a mount namespace of the node's own, which is gone with the node; it needs root.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use borealis_client::{NodeClient, Timeouts};
use borealis_spec::{Endpoint, NodeConfig};
use borealis_types::{GroupId, VolumeEpoch};
use borealis_wire::{Caller, GroupTail, Refusal};
use common::{Cluster, VOLUME, Writer, block, image};

const BATCH_PAGES: u32 = 100;
const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, file] = &arguments[..]
        && word == "node"
    {
        let run = borealis_node::config::load(Path::new(file)).and_then(borealis_node::run);
        return match run {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let tests: [(&str, fn()); 3] = [
        ("missing_descriptors_pass", missing_descriptors_pass),
        ("a_nearly_full_disk_passes", a_nearly_full_disk_passes),
        ("a_full_disk_passes", a_full_disk_passes),
    ];
    let wanted: Vec<&String> = arguments.iter().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, test) in tests {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// Ends the node, whatever the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One node of a volume whose other nodes do not run, and its writer.
struct Alone {
    cluster: Cluster,
    running: Running,
    writer: Writer,
    client: NodeClient,
    pages: u32,
}

impl Alone {
    /// Starts the node by a shell `script`, in which `$0` is this program and `$1` the configuration.
    fn start(script: &str, free_space_min_bytes: u64) -> Alone {
        let mut cluster = Cluster::create(1);
        cluster.configs[0].free_space_min_bytes = Some(free_space_min_bytes);
        let config = &cluster.configs[0];
        std::fs::write(config.file(), serde_json::to_vec(config).unwrap()).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-e", "-c", script]);
        command.arg(std::env::current_exe().unwrap()).arg(config.file()).arg(config.store_directory());
        let running = Running(command.spawn().unwrap());
        let writer = Writer::first(&cluster);
        let mut client = connect(config, Caller::Recovery);
        client.fence(writer.epoch, writer.writer).unwrap();
        client.install(writer.epoch, writer.writer, &writer.history, &writer.durable_tails).unwrap();
        let client = connect(config, writer.caller());
        Alone { cluster, running, writer, client, pages: 0 }
    }

    fn config(&self) -> &NodeConfig {
        &self.cluster.configs[0]
    }

    /// The node's store, in the node's own view of the file system.
    fn inside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.running.0.id()));
        root.join(self.config().store_directory().strip_prefix("/").unwrap())
    }

    fn next_batch(&mut self) -> Vec<u8> {
        for _ in 0..BATCH_PAGES {
            self.writer.put_page(block(16_384, self.pages), &image(self.pages));
            self.pages += 1;
        }
        self.writer.take_batch()
    }

    /// Sends a batch; true if it was taken. A refusal must be one that passes.
    fn send(&mut self, batch: &[u8]) -> bool {
        match self.client.append(batch) {
            Ok(_) => {
                let writer = &mut self.writer;
                writer.durable = writer.last;
                let tail = |(&group, &last_end): (&GroupId, _)| GroupTail { group, last_end };
                writer.durable_tails = writer.group_ends.iter().map(tail).collect();
                writer.minimum_read_point = writer.durable.end;
                true
            }
            Err(error) => {
                assert!(matches!(error.refusal(), Some(Refusal::NotNow(_))), "{error}");
                false
            }
        }
    }

    /// Sends it until it is taken.
    fn send_at_last(&mut self, batch: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.send(batch) {
            assert!(Instant::now() < deadline, "it is still refused");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends batches until one is refused, which is returned.
    fn send_until_refused(&mut self, most: usize) -> Vec<u8> {
        for _ in 0..most {
            let batch = self.next_batch();
            if !self.send(&batch) {
                return batch;
            }
        }
        panic!("{most} batches were all taken");
    }

    fn assert_hindered(&self) {
        let status = connect(self.config(), Caller::Client).status().unwrap();
        assert_eq!(status.failure, None);
        assert!(status.hindrance.is_some());
    }

    /// Every page is there, and nothing is said to be wrong.
    fn check(&mut self) {
        let mut client = connect(self.config(), Caller::Recovery);
        for number in (0..self.pages).step_by(17) {
            self.check_page(&mut client, number);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = client.status().unwrap();
            assert_eq!(status.failure, None);
            assert_eq!(status.segments[0].segment_complete_lsn, self.writer.last.end);
            if status.hindrance.is_none() {
                return;
            }
            assert!(Instant::now() < deadline, "{:?}", status.hindrance);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn check_page(&self, client: &mut NodeClient, number: u32) {
        let page = client.read_page(GroupId(0), block(16_384, number), self.writer.durable.end).unwrap();
        assert!(page.is_some_and(|page| page[..] == image(number)[..]), "page {number}");
    }
}

fn connect(config: &NodeConfig, caller: Caller) -> NodeClient {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match NodeClient::connect(&config.listen, VOLUME, config.node, caller, Timeouts::default()) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "the node does not serve: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn can_mount() -> bool {
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    tried.is_ok_and(|output| output.status.success())
}

/// A shell script that gives the node's store a file system of this size, and runs the node in the shell's place.
fn on_small_disk(size_bytes: u64) -> String {
    format!(
        r#"mkdir "$2.seed"; cp -a "$2/." "$2.seed"
        mount -t tmpfs -o size={size_bytes} none "$2"; cp -a "$2.seed/." "$2"
        exec "$0" node "$1""#
    )
}

fn missing_descriptors_pass() {
    if !can_mount() {
        println!("not tested: missing_descriptors_pass: no mount namespaces here");
        return;
    }
    let mut alone = Alone::start(r#"ulimit -n 80; exec "$0" node "$1""#, 0);
    // Strangers take every descriptor there is.
    let Endpoint::Unix(socket) = &alone.config().listen else { panic!("it listens on a socket") };
    let strangers: Vec<UnixStream> = (0..60).filter_map(|_| UnixStream::connect(socket).ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    // More than may wait to be applied to pages, for which there is no descriptor now.
    let begun = Instant::now();
    let refused = alone.send_until_refused(500);
    assert!(begun.elapsed() < Duration::from_secs(60));
    drop(strangers);
    alone.send_at_last(&refused);
    alone.check();
    for _ in 0..20 {
        let batch = alone.next_batch();
        alone.send_at_last(&batch);
    }
    alone.check();
}

fn a_nearly_full_disk_passes() {
    if !can_mount() {
        println!("not tested: a_nearly_full_disk_passes: it needs root, for a small file system");
        return;
    }
    let mut alone = Alone::start(&on_small_disk(128 * MIB), 32 * MIB);
    let filler = alone.inside().join("filler");
    std::fs::write(&filler, vec![1; 70 * MIB as usize]).unwrap();
    let refused = alone.send_until_refused(60);
    alone.assert_hindered();
    // Not welcome, so that nothing is sent in vain; and reads go on.
    let error = NodeClient::connect(
        &alone.config().listen,
        VOLUME,
        alone.config().node,
        alone.writer.caller(),
        Timeouts::default(),
    )
    .unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::NotNow(_))), "{error}");
    let mut client = connect(alone.config(), Caller::Recovery);
    alone.check_page(&mut client, 5);
    client.fence(alone.writer.epoch, alone.writer.writer).unwrap();
    // Nor is a recovery kept from bringing what it decided to keep: its writer has not begun.
    let (epoch, writer) = (VolumeEpoch(alone.writer.epoch.0 + 1), alone.writer.writer);
    drop(connect(alone.config(), Caller::Writer { epoch, writer }));
    std::fs::remove_file(&filler).unwrap();
    alone.send_at_last(&refused);
    alone.check();
}

fn a_full_disk_passes() {
    if !can_mount() {
        println!("not tested: a_full_disk_passes: it needs root, for a small file system");
        return;
    }
    // No watermark: the disk itself says that it is full.
    let mut alone = Alone::start(&on_small_disk(160 * MIB), 0);
    let filler = alone.inside().join("filler");
    for _ in 0..3 {
        let _ = std::fs::write(&filler, vec![1; 120 * MIB as usize]);
        let refused = alone.send_until_refused(100);
        std::fs::remove_file(&filler).unwrap();
        alone.send_at_last(&refused);
        alone.check();
    }
}
