//! Disks that fill up, and disks that were put back to an earlier state, under a server.
#![allow(unsafe_code)] // Mounts of a test's own.

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use borealis_types::Lsn;
use harness::TestCluster;
use harness::ledger::Ledger;

fn node_field(cluster: &TestCluster, node: u64, field: &str) -> serde_json::Value {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("nodes").clone();
    nodes
        .iter()
        .find(|found| found["id"] == node)
        .map_or(serde_json::Value::Null, |found| found[field].clone())
}

fn store_of(cluster: &TestCluster, node: u64) -> PathBuf {
    cluster.dir().join("nodes").join(node.to_string()).join("store")
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

/// Starts a node in a mount namespace of its own, in which its store is on a memory file system of this size. What is on
/// it is gone with the node.
fn start_on_small_disk(cluster: &TestCluster, node: u64, size_mib: u64, free_space_min_mib: u64) {
    let file = store_of(cluster, node).with_file_name("node.json");
    let text = std::fs::read(&file).expect("node.json is there");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    config["free_space_min_bytes"] = (free_space_min_mib << 20).into();
    std::fs::write(&file, config.to_string()).expect("written");
    let script = format!(
        r#"cp -a "$0" "$0.seed"; mount -t tmpfs -o size={size_mib}m,mode=700 none "$0"; cp -a "$0.seed/." "$0"
        rm -r "$0.seed"; exec "$@""#
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-e", "-c", &script])
        .arg(store_of(cluster, node))
        .arg(env!("CARGO_BIN_EXE_borealis"))
        .args(["node", "start", &node.to_string(), "--dir"])
        .arg(cluster.dir())
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    assert!(output.status.success(), "{}\n{}", harness::text(&output), cluster.logs());
}

#[test]
fn a_disk_that_fills_up_stops_its_node_from_taking_redo_and_nothing_is_lost() {
    if !nix::unistd::geteuid().is_root() {
        harness::not_tested("a full disk under a server: it needs root, for a small file system");
        return;
    }
    const NODE: u64 = 3;
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    cluster.ok(&["node", "kill", "3"]);
    start_on_small_disk(&cluster, NODE, 600, 64);
    let mut ledger = Ledger::start(&cluster, 2);
    let process = node_field(&cluster, NODE, "pid").as_u64().expect("the node runs");
    let inside = PathBuf::from(format!("/proc/{process}/root"))
        .join(store_of(&cluster, NODE).strip_prefix("/").expect("an absolute path"));
    let filler = inside.join("filler");
    let say_full =
        || node_field(&cluster, NODE, "hindrance").as_str().is_some_and(|why| why.contains("takes no redo"));

    // It fills up to the last byte, while commits come in.
    let full =
        Command::new("sh").args(["-c", "cat /dev/zero > \"$0\" 2> /dev/null || true"]).arg(&filler).status();
    assert!(full.expect("sh runs").success());
    cluster.eventually("the node says that its disk is full", Duration::from_secs(10), say_full);
    let why = node_field(&cluster, NODE, "hindrance").to_string();
    let is_as_configured = why.contains("64 are kept free") || why.contains("80 are kept free");
    assert!(is_as_configured, "64 MiB, and a quarter more to go on: {why}");
    let before = ledger.acknowledged();
    cluster.client_program("pgbench", &["-i", "-q", "-s", "3"]);
    let pgbench = cluster.client_program("pgbench", &["-n", "-c", "4", "-T", "5"]);
    assert!(pgbench.contains("number of failed transactions: 0"), "{pgbench}");
    assert!(ledger.acknowledged() > before, "the other five go on");
    assert!(say_full());
    assert_eq!(node_field(&cluster, NODE, "state"), "up");
    assert!(node_field(&cluster, NODE, "failure").is_null());
    assert!(cluster.ok(&["status"]).contains("node 3 takes no redo"));

    // There is room again, and nobody does anything else about it.
    std::fs::remove_file(&filler).expect("removed");
    cluster.eventually("the node catches up", Duration::from_secs(60), || {
        let status = cluster.status();
        let groups = status["protection_groups"].as_array().expect("groups").clone();
        node_field(&cluster, NODE, "hindrance").is_null()
            && groups.iter().all(|group| {
                group["members"].as_array().expect("members").iter().all(|member| member["state"] == "up")
            })
    });
    assert_eq!(node_field(&cluster, NODE, "pid").as_u64(), Some(process), "it is the same process");
    // It counts: with two others gone it is one of the four.
    cluster.ok(&["node", "kill", "1", "5"]);
    let before = ledger.acknowledged();
    cluster.eventually("commits go on", Duration::from_secs(15), || ledger.acknowledged() > before + 10);
    cluster.ok(&["node", "start", "1", "5"]);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.ok(&["verify"]);
}

#[test]
fn a_disk_that_was_put_back_does_not_vote() {
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 2);
    let store = store_of(&cluster, 4);
    cluster.ok(&["node", "kill", "4"]);
    copy(&store, &store.with_file_name("earlier"));
    cluster.ok(&["node", "start", "4"]);
    std::thread::sleep(Duration::from_secs(3));
    cluster.ok(&["node", "kill", "4"]);
    std::fs::remove_dir_all(&store).expect("removed");
    std::fs::rename(store.with_file_name("earlier"), &store).expect("renamed");
    cluster.run(&["node", "start", "4"]);
    cluster.eventually("the node knows it", Duration::from_secs(10), || {
        let failure = node_field(&cluster, 4, "failure");
        failure.as_str().is_some_and(|failure| failure.contains("put back to an earlier state"))
    });
    let before = ledger.acknowledged();
    cluster
        .eventually("the other five go on", Duration::from_secs(15), || ledger.acknowledged() > before + 10);
    // It is not one of four.
    cluster.ok(&["node", "kill", "1", "2"]);
    std::thread::sleep(Duration::from_millis(500));
    let waiting_at = ledger.acknowledged();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ledger.acknowledged(), waiting_at, "its acknowledgement was counted");
    cluster.ok(&["node", "start", "1", "2"]);
    cluster.eventually("commits go on", Duration::from_secs(15), || ledger.acknowledged() > waiting_at + 10);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
}

fn mount(words: &[&str]) {
    let output = Command::new("mount").args(words).output().expect("mount runs");
    assert!(output.status.success(), "mount {words:?}: {}", harness::text(&output));
}

/// From now on this thread and the processes that it starts have mounts of their own, which end with them.
fn have_own_mounts() {
    // SAFETY: it concerns what is mounted, and nothing in memory.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
    mount(&["--make-rprivate", "/"]);
}

/// A file system that is gone with this, so that the folder can be removed.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_backup_stops_before_its_disk_is_full_and_goes_on_when_there_is_room() {
    if !nix::unistd::geteuid().is_root() {
        harness::not_tested("a full disk below a backup: it needs root, for a small file system");
        return;
    }
    const SIZE_MIB: u64 = 64;
    have_own_mounts();
    let cluster = TestCluster::unstarted();
    let folder = cluster.postgres_folder("kept");
    let text = folder.to_str().expect("text").to_owned();
    let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
    let options = format!("size={SIZE_MIB}m,mode=700,uid={},gid={}", user.uid, user.gid);
    mount(&["-t", "tmpfs", "-o", &options, "none", &text]);
    let _mounted = Mounted(folder.clone());
    cluster.up(&["--backup", &text]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 1);
    let mut client = cluster.connect();
    let flushed = |client: &mut postgres::Client| -> Lsn {
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).expect("an LSN");
        row.get::<_, String>(0).parse().expect("an LSN")
    };
    let newest = || -> Option<Lsn> {
        let output = cluster.run(&["backup", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["newest_lsn"].as_str()?.parse().ok()
    };
    let hindrances = || -> Vec<String> {
        let nodes = cluster.status()["nodes"].as_array().expect("nodes").clone();
        nodes.iter().filter_map(|node| node["hindrance"].as_str().map(str::to_owned)).collect()
    };

    // Bytes that cannot be compressed, more than the disk has.
    client
        .batch_execute(
            "CREATE TABLE filler (bytes bytea); ALTER TABLE filler ALTER bytes SET STORAGE external",
        )
        .expect("made");
    let insert = "INSERT INTO filler SELECT decode(string_agg(md5(random()::text), ''), 'hex') \
                  FROM generate_series(1, 262144) n GROUP BY n % 64";
    for _ in 0..SIZE_MIB / 4 + 6 {
        client.batch_execute(insert).expect("nothing is refused");
    }
    let end = flushed(&mut client);
    cluster.eventually("nodes say that the disk is full", Duration::from_secs(60), || {
        hindrances().iter().any(|what| what.contains("MiB of the disk are free, where"))
    });
    assert!(newest().is_none_or(|newest| newest < end), "it has everything");
    let room = nix::sys::statvfs::statvfs(&folder).expect("asked");
    let (free, all) = (room.blocks_available(), room.blocks());
    assert!(free >= all / 20, "{free} of {all} blocks are free");
    assert!(free <= all / 5, "{free} of {all} blocks are free: it stopped early");
    client.batch_execute("INSERT INTO filler VALUES ('\\x00')").expect("and commits go on");

    mount(&["-o", "remount,size=1g", &text]);
    cluster.eventually("the backup has everything", Duration::from_secs(120), || {
        newest().is_some_and(|newest| newest >= end)
    });
    cluster.eventually("nobody complains", Duration::from_secs(60), || hindrances().is_empty());
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    let verified = cluster.ok(&["backup", "verify"]);
    assert!(verified.contains(" 0 damaged; 0 gaps"), "{verified}");
}
