//! Bytes that rot on the disks of nodes, in pages and in the log: it heals by itself, nothing is lost, and nobody but the page is concerned.

mod harness;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use harness::TestCluster;
use harness::ledger::Ledger;

/// A slot of a page file: a header of 64 bytes and the page.
const SLOT_BYTES: u64 = 64 + 8192;

/// The page files of a node.
fn page_files(cluster: &TestCluster, node: u16) -> Vec<PathBuf> {
    let segments = cluster.dir().join(format!("nodes/{node}/store/segments"));
    let groups = std::fs::read_dir(&segments).expect("the node has segments").flatten();
    let files = groups.flat_map(|group| std::fs::read_dir(group.path()).expect("a folder").flatten());
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pages.")));
    files.sort();
    files
}

/// Flips a byte in every slot that holds something and whose number leaves `remainder` divided by `divisor`. Returns
/// how many.
fn damage_pages(cluster: &TestCluster, node: u16, divisor: u64, remainder: u64) -> u64 {
    let mut damaged = 0;
    for path in page_files(cluster, node) {
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("a page file");
        let slots = file.metadata().expect("its size").len() / SLOT_BYTES;
        for slot in (0..slots).filter(|slot| slot % divisor == remainder) {
            let mut header = [0; 64];
            file.read_exact_at(&mut header, slot * SLOT_BYTES).expect("a header");
            if header == [0; 64] {
                continue;
            }
            let mut byte = [0];
            file.read_exact_at(&mut byte, slot * SLOT_BYTES + 3000).expect("a byte");
            file.write_all_at(&[byte[0] ^ 0x40], slot * SLOT_BYTES + 3000).expect("damaged");
            damaged += 1;
        }
    }
    damaged
}

fn node_status(cluster: &TestCluster, node: u16) -> serde_json::Value {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("nodes");
    nodes.iter().find(|of| of["id"] == node).expect("the node").clone()
}

fn metric(cluster: &TestCluster, node: u16, name: &str) -> u64 {
    node_status(cluster, node)["metrics"][name].as_u64().unwrap_or_else(|| panic!("no metric {name}"))
}

/// A cluster whose nodes have page files, and clients that go on writing for `seconds`.
fn under_load(seconds: u64) -> (TestCluster, std::process::Child) {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "15"]);
    Ledger::create(&cluster);
    cluster.eventually("every node has pages on disk", Duration::from_secs(120), || {
        (1..=6).all(|node| metric(&cluster, node, "store_pages_written") > 0)
    });
    let pgbench = cluster
        .client_command("pgbench", &["-n", "-M", "prepared", "-c", "4", "-T", &seconds.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench starts");
    (cluster, pgbench)
}

fn ends_well(cluster: &TestCluster, pgbench: std::process::Child) {
    let output = pgbench.wait_with_output().expect("pgbench ends");
    let text = harness::text(&output);
    assert!(output.status.success(), "pgbench:\n{text}\n{}", cluster.logs());
    assert!(text.contains("number of failed transactions: 0"), "{text}");
}

/// Waits until a comparison of all nodes finds nothing, which also finds what nobody has read.
fn verified(cluster: &TestCluster) {
    cluster.eventually("verify finds nothing", Duration::from_secs(180), || {
        cluster.run(&["verify"]).status.success()
    });
}

#[test]
fn damaged_pages_of_two_nodes_come_back_from_their_peers_under_load() {
    let (cluster, pgbench) = under_load(20);
    let mut ledger = Ledger::start(&cluster, 2);
    // Different pages on the two nodes.
    let first = damage_pages(&cluster, 2, 16, 3);
    let second = damage_pages(&cluster, 5, 16, 4);
    assert!(first > 50 && second > 50, "{first} and {second} slots: hardly anything was on disk");
    // What nobody reads is found by the comparison, and healed then.
    let _ = cluster.run(&["verify"]);
    ends_well(&cluster, pgbench);
    verified(&cluster);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    for node in [2, 5] {
        cluster.eventually("nothing is left to repair", Duration::from_secs(60), || {
            let status = node_status(&cluster, node);
            status["damage"].is_null() && status["failure"].is_null() && status["state"] == "up"
        });
        let healed = metric(&cluster, node, "store_pages_healed");
        assert!(healed > 10, "node {node}: {healed} pages healed");
        println!("node {node}: {healed} pages healed");
    }
    // It is on the disks again: a restarted node has nothing else.
    cluster.ok(&["node", "kill", "2", "5"]);
    cluster.ok(&["node", "start", "2", "5"]);
    verified(&cluster);
    // What only the caches of before the restart hid is found by now. It is written by a round of its own, which does not
    // take its time as others do in an idle volume.
    for node in [2, 5] {
        cluster.eventually("what was found is healed on disk", Duration::from_secs(60), || {
            metric(&cluster, node, "store_pages_in_trouble") == 0
        });
    }
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.assert_amcheck_clean();
}

/// Lets a node read everything it has within seconds.
fn scrub_quickly(cluster: &TestCluster, node: u16) {
    cluster.ok(&["node", "kill", &node.to_string()]);
    let path = cluster.dir().join(format!("nodes/{node}/node.json"));
    let text = std::fs::read_to_string(&path).expect("the node's configuration");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["scrub_period_seconds"] = 4.into();
    std::fs::write(&path, config.to_string()).expect("changed");
    cluster.ok(&["node", "start", &node.to_string()]);
}

/// Flips bytes in the middle of each log file of a node but the newest; returns how many files that were.
fn damage_log(cluster: &TestCluster, node: u16) -> usize {
    let folder = cluster.dir().join(format!("nodes/{node}/store/log"));
    let files = std::fs::read_dir(&folder).expect("the node has a log").flatten().map(|file| file.path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|extension| extension == "log")).collect();
    files.sort();
    files.pop();
    for path in &files {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("a log file");
        // Entries fill it from the front; a file that was rolled is nearly full.
        let offset = file.metadata().expect("its size").len() / 3;
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, offset).expect("bytes");
        file.write_all_at(&bytes.map(|byte| byte ^ 0x11), offset).expect("damaged");
    }
    files.len()
}

#[test]
fn a_damaged_log_is_found_by_the_scrubber_and_replaced_while_the_node_serves() {
    let (cluster, pgbench) = under_load(30);
    scrub_quickly(&cluster, 3);
    let mut ledger = Ledger::start(&cluster, 2);
    cluster.eventually("node 3 has more than one log file", Duration::from_secs(60), || {
        metric(&cluster, 3, "store_log_files") > 1
    });
    let damaged = damage_log(&cluster, 3);
    assert!(damaged > 0);
    cluster.eventually("the damaged entries are replaced", Duration::from_secs(90), || {
        let status = node_status(&cluster, 3);
        let repaired = status["metrics"]["store_log_entries_repaired"].as_u64();
        repaired.is_some_and(|repaired| repaired > 0) && status["damage"].is_null()
    });
    println!("{} log entries replaced in {damaged} files", metric(&cluster, 3, "store_log_entries_repaired"));
    ends_well(&cluster, pgbench);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    // The log connects: a node with a gap in it would not open.
    cluster.ok(&["node", "kill", "3"]);
    cluster.ok(&["node", "start", "3"]);
    verified(&cluster);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
}
