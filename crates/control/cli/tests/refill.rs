//! A node that was away for ten times the kept log comes back by itself, under load.

mod harness;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::TestCluster;
use harness::ledger::Ledger;

const MIB: u64 = 1 << 20;
/// What nodes keep for peers that are behind.
const KEPT_BYTES: u64 = 40 * MIB;

/// Sets a value in the configuration file of each node.
fn configure(cluster: &TestCluster, name: &str, value: u64) {
    for node in 1..=6 {
        let file = cluster.dir().join(format!("nodes/{node}/node.json"));
        let text = std::fs::read(&file).expect("the node has a configuration");
        let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        config[name] = value.into();
        std::fs::write(&file, serde_json::to_vec_pretty(&config).expect("plain data")).expect("written");
    }
}

fn metric(cluster: &TestCluster, node: usize, name: &str) -> u64 {
    cluster.status()["nodes"][node - 1]["metrics"][name].as_u64().unwrap_or(0)
}

fn redo_bytes(cluster: &TestCluster) -> i64 {
    let row = cluster.connect().query_one("SELECT (pg_current_wal_lsn() - '0/0')::bigint", &[]);
    row.expect("the server answers").get(0)
}

/// Bytes that the files below a folder take on disk.
fn size_bytes(folder: &Path) -> u64 {
    let output = Command::new("du").arg("-s").arg("-B1").arg(folder).output().expect("du runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// Copies the segments of node 6 from one folder of this disk to another: how many bytes, and how long it takes.
fn copy_segments(cluster: &TestCluster) -> (u64, Duration) {
    let segments = cluster.dir().join("nodes/6/store/segments");
    let (copy, bytes, begun) = (cluster.dir().join("copy"), size_bytes(&segments), Instant::now());
    let copied = Command::new("cp").arg("-r").arg(&segments).arg(&copy).status().expect("cp runs");
    let synced = Command::new("sync").arg("-f").arg(&copy).status().expect("sync runs");
    assert!(copied.success() && synced.success());
    (bytes, begun.elapsed())
}

#[test]
fn a_node_that_was_away_for_ten_times_the_kept_log_comes_back_by_itself() {
    let cluster = TestCluster::start(&[]);
    cluster.ok(&["down"]);
    configure(&cluster, "log_retention_bytes", KEPT_BYTES);
    // So slow that it can be watched.
    configure(&cluster, "refill_bytes_per_second", 16 * MIB);
    cluster.up(&[]);
    Ledger::create(&cluster);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "5"]);
    cluster.ok(&["node", "kill", "6"]);
    let mut ledger = Ledger::start(&cluster, 2);
    let before = redo_bytes(&cluster);
    while redo_bytes(&cluster) - before < 10 * KEPT_BYTES as i64 {
        cluster.client_program("pgbench", &["-i", "-q", "-s", "10"]);
    }
    cluster.eventually("log that node 6 lacks is collected", Duration::from_secs(120), || {
        cluster.client_program("pgbench", &["-i", "-q", "-s", "10"]);
        (1..=5).all(|node| metric(&cluster, node, "store_log_files_lost_to_peers") > 0)
    });
    let (written, quiet) = (redo_bytes(&cluster) - before, ledger.longest_commit());
    ledger.reset_longest_commit();

    // It is the node's own matter from here on.
    let pgbench = cluster
        .client_command("pgbench", &["-n", "-c", "4", "-j", "2", "-T", "20"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("pgbench runs");
    let begun = Instant::now();
    cluster.ok(&["node", "start", "6"]);
    let mut lines = Vec::new();
    cluster.eventually("node 6 has all it lacked", Duration::from_secs(180), || {
        let status = cluster.status();
        lines.extend(status["nodes"][5]["catching_up"].as_str().map(str::to_owned));
        let metrics = &status["nodes"][5]["metrics"];
        metrics["refills"].as_u64() >= Some(1) && metrics["refill_groups"].as_u64() == Some(0)
    });
    let took = begun.elapsed();
    let busy = ledger.longest_commit();
    let output = pgbench.wait_with_output().expect("pgbench ends");
    ledger.stop();
    let said = harness::text(&output);
    assert!(output.status.success() && !said.contains("aborted"), "{said}");
    assert_eq!(ledger.failures(), 0, "no transaction failed");
    assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with("catching up: ")), "{lines:?}");
    cluster.eventually("node 6 is level with the others", Duration::from_secs(60), || {
        cluster.run(&["verify"]).status.success()
    });
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    assert_eq!(cluster.status()["nodes"][5]["state"], "up");
    assert!(!cluster.logs().contains("keeps log that old"), "the old message is gone");

    let fetched = metric(&cluster, 6, "refill_fetched_bytes");
    let (copied_bytes, copying) = copy_segments(&cluster);
    let rate = |bytes: u64, took: Duration| bytes as f64 / MIB as f64 / took.as_secs_f64();
    harness::say(&format!(
        "{} MiB of redo while away, {} MiB kept; back within {:.1} s of its start, of which {} MiB came as pages \
         ({:.0} MiB/s over all of it); cp and sync of {} MiB: {:.0} MiB/s; longest commit {:?} before, {:?} meanwhile",
        written as u64 / MIB,
        KEPT_BYTES / MIB,
        took.as_secs_f64(),
        fetched / MIB,
        rate(fetched, took),
        copied_bytes / MIB,
        rate(copied_bytes, copying),
        quiet,
        busy,
    ));
    harness::say(&format!("it said: {lines:?}"));
    assert!(fetched > 0);
}
