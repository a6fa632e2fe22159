//! Nodes that are lost with all they had are replaced without a command, while pgbench runs and no transaction fails: one, two at
//! once, and then every one that the volume was made on.

mod harness;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::TestCluster;
use harness::ledger::Ledger;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for a group to be whole again, on a machine that does other things too.
const HEALED_WITHIN: Duration = Duration::from_secs(180);

/// Small commits at a steady pace, and how long each took.
struct Latencies {
    taken: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Latencies {
    fn measure(cluster: &TestCluster) -> Latencies {
        let mut client = cluster.connect();
        client.batch_execute("CREATE TABLE IF NOT EXISTS paced (at timestamptz)").expect("made");
        let (taken, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (taken, stop) = (Arc::clone(&taken), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let begin = Instant::now();
                    client.batch_execute("INSERT INTO paced VALUES (now())").expect("no transaction fails");
                    taken.lock().expect("nobody panics").push(begin.elapsed());
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Latencies { taken, stop, thread: Some(thread) }
    }

    /// The median, the 99th percentile and the longest since the last call.
    fn since(&self) -> String {
        let mut taken = std::mem::take(&mut *self.taken.lock().expect("nobody panics"));
        taken.sort_unstable();
        let at = |part: usize| taken.get(taken.len() * part / 100).copied().unwrap_or_default();
        format!("p50 {:?} p99 {:?} longest {:?}", at(50), at(99), taken.last().copied().unwrap_or_default())
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it runs").join().expect("no transaction failed");
    }
}

fn pgbench(cluster: &TestCluster, seconds: u32) -> Child {
    cluster
        .client_command("pgbench", &["-n", "-c", "4", "-j", "2", "-T", &seconds.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench runs")
}

fn assert_nothing_failed(pgbench: Child) {
    let output = pgbench.wait_with_output().expect("pgbench ends");
    let said = harness::text(&output);
    assert!(output.status.success() && !said.contains("aborted"), "{said}");
}

/// Bytes that the files below a folder take on disk.
fn size_bytes(folder: &Path) -> u64 {
    let output = Command::new("du").arg("-s").arg("-B1").arg(folder).output().expect("du runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// The nodes of the cluster by their numbers.
fn nodes(status: &serde_json::Value) -> BTreeSet<u64> {
    let nodes = status["nodes"].as_array().expect("nodes").iter();
    nodes.map(|node| node["id"].as_u64().expect("a number")).collect()
}

/// Ends a node's process as a power cut would, and removes its disk.
fn lose(cluster: &TestCluster, node: u64) {
    let status = cluster.status();
    let all = status["nodes"].as_array().expect("nodes");
    let entry = all.iter().find(|entry| entry["id"] == node).expect("the node is there");
    let process = entry["pid"].as_i64().expect("it runs");
    let folder = cluster.dir().join(format!("nodes/{node}"));
    kill(Pid::from_raw(process as i32), Signal::SIGKILL).expect("it ran");
    cluster.eventually("the folder is gone", Duration::from_secs(10), || {
        let _ = std::fs::remove_dir_all(&folder);
        !folder.exists()
    });
}

/// Every member of every group.
fn members(status: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    let groups = status["protection_groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["members"].as_array().expect("members"))
}

/// Whether every group has six members that answer and are full ones, none of them one of these, and nothing changes.
fn has_six(status: &serde_json::Value, lost: &[u64]) -> bool {
    let groups = status["protection_groups"].as_array().expect("groups");
    let is_well = |member: &serde_json::Value| {
        let node = member["node"].as_u64().expect("a number");
        (member["state"] == "up" || member["state"] == "behind") && !lost.contains(&node)
    };
    groups.iter().all(|group| group["members"].as_array().expect("members").len() == 6)
        && members(status).all(is_well)
        && status["healing"]["changes"].as_array().is_some_and(Vec::is_empty)
}

/// The same, and each of them has everything.
fn is_whole(status: &serde_json::Value, lost: &[u64]) -> bool {
    has_six(status, lost) && members(status).all(|member| member["state"] == "up")
}

/// Loses nodes and waits until the cluster is whole without them; says how long that took and how fast it was.
fn lose_and_heal(cluster: &TestCluster, lost: &[u64], latencies: &Latencies) {
    let (before, before_nodes) = (latencies.since(), nodes(&cluster.status()));
    for &node in lost {
        lose(cluster, node);
    }
    let begin = Instant::now();
    let mut first_change = None;
    cluster.eventually(&format!("nodes {lost:?} are replaced"), HEALED_WITHIN, || {
        let status = cluster.status();
        if first_change.is_none()
            && status["healing"]["changes"].as_array().is_some_and(|all| !all.is_empty())
        {
            first_change = Some(begin.elapsed());
        }
        is_whole(&status, lost)
    });
    let took = begin.elapsed();
    let during = latencies.since();
    std::thread::sleep(Duration::from_secs(2));
    let status = cluster.status();
    let new: Vec<u64> = nodes(&status).difference(&before_nodes).copied().collect();
    assert_eq!(new.len(), lost.len(), "one for each: {status}");
    let segments = |node: &u64| cluster.dir().join(format!("nodes/{node}/store/segments"));
    let bytes: u64 = new.iter().map(|node| size_bytes(&segments(node))).sum();
    let mib = bytes as f64 / f64::from(1 << 20);
    harness::say(&format!(
        "nodes {lost:?} lost, nodes {new:?} in their place: begun after {first_change:?}, whole after {:.1} s, {mib:.0} MiB, \
         {:.0} MiB/s; commits before: {before}; meanwhile: {during}; after: {}",
        took.as_secs_f64(),
        mib / took.as_secs_f64(),
        latencies.since(),
    ));
}

/// Every node compared with every other, once what was in flight is there.
fn verify(cluster: &TestCluster) {
    cluster.eventually("every node is level", Duration::from_secs(60), || {
        cluster.run(&["verify"]).status.success()
    });
    assert!(cluster.ok(&["verify"]).contains("no difference"));
}

#[test]
fn lost_nodes_are_replaced_without_a_command_until_no_original_one_is_left() {
    let cluster = TestCluster::start(&["--replace-after", "10"]);
    Ledger::create(&cluster);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "10"]);
    let mut ledger = Ledger::start(&cluster, 1);
    let latencies = Latencies::measure(&cluster);
    std::thread::sleep(Duration::from_secs(3));

    let load = pgbench(&cluster, 30);
    std::thread::sleep(Duration::from_secs(3));
    lose_and_heal(&cluster, &[3], &latencies);
    assert_nothing_failed(load);
    verify(&cluster);

    let load = pgbench(&cluster, 40);
    std::thread::sleep(Duration::from_secs(3));
    lose_and_heal(&cluster, &[1, 6], &latencies);
    assert_nothing_failed(load);
    verify(&cluster);

    let load = pgbench(&cluster, 60);
    for node in [2, 4, 5] {
        lose_and_heal(&cluster, &[node], &latencies);
    }
    assert_nothing_failed(load);
    latencies.end();
    ledger.stop();
    assert_eq!(ledger.failures(), 0, "no transaction failed");
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.eventually("those that are lost are struck off", Duration::from_secs(30), || {
        nodes(&cluster.status()).iter().all(|node| *node > 6)
    });
    verify(&cluster);
    assert_eq!(cluster.status()["volume"]["state"], "up");

    // Nobody but the catalog and the nodes knows where everything is now.
    cluster.ok(&["instance", "kill"]);
    std::fs::remove_dir_all(cluster.dir().join("instances")).expect("what the README says one may do");
    cluster.ok(&["instance", "start"]);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.assert_amcheck_clean();

    // And neither does a start of everything need them.
    cluster.ok(&["down"]);
    std::fs::remove_file(cluster.dir().join("fleet.json")).expect("it was there");
    cluster.up(&["--replace-after", "10"]);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    verify(&cluster);
}

#[test]
fn a_node_that_dies_is_started_again_and_not_replaced() {
    let cluster = TestCluster::start(&["--replace-after", "10"]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "1"]);
    let pid = |node: usize| cluster.status()["nodes"][node - 1]["pid"].as_i64().expect("it runs") as i32;
    let before = pid(2);
    kill(Pid::from_raw(before), Signal::SIGKILL).expect("it ran");
    cluster.eventually("node 2 runs again", Duration::from_secs(30), || {
        let status = cluster.status();
        status["nodes"][1]["state"] == "up" && status["nodes"][1]["pid"].as_i64() != Some(i64::from(before))
    });
    // The controller dies as well, and is started again.
    let controller = cluster.status()["controller_pid"].as_i64().expect("a controller") as i32;
    kill(Pid::from_raw(controller), Signal::SIGKILL).expect("it ran");
    cluster.eventually("another controller runs", Duration::from_secs(30), || {
        cluster.status()["controller_pid"].as_i64().is_some_and(|pid| pid != i64::from(controller))
    });
    std::thread::sleep(Duration::from_secs(15));
    let status = cluster.status();
    assert_eq!(nodes(&status), (1..=6).collect(), "nobody was replaced");
    assert!(
        status["protection_groups"].as_array().expect("groups").iter().all(|group| group["membership"] == 1)
    );
}

#[test]
fn nodes_are_added_emptied_and_removed_under_load() {
    let cluster = TestCluster::start(&["--replace-after", "10"]);
    Ledger::create(&cluster);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "5"]);
    let mut ledger = Ledger::start(&cluster, 1);
    let load = pgbench(&cluster, 40);
    for zone in ["az1", "az2", "az3"] {
        let said = cluster.ok(&["node", "add", "--az", zone]);
        assert!(said.contains(&format!("added in {zone}")), "{said}");
    }
    let said = cluster.ok(&["rebalance"]);
    // Sixteen groups, two of each in a zone: 32 segments on three nodes instead of two.
    assert_eq!(said.lines().filter(|line| line.contains("-> node 7")).count(), 10, "{said}");
    cluster.ok(&["rebalance", "--yes"]);
    let segments = |node: usize| cluster.status()["nodes"][node - 1]["groups"].as_u64().expect("a number");
    cluster.eventually("every node has its share", HEALED_WITHIN, || {
        is_whole(&cluster.status(), &[]) && (1..=9).all(|node| (10..=11).contains(&segments(node)))
    });
    let said = cluster.fails(&["node", "remove", "1"]);
    assert!(said.contains("empty it first"), "{said}");
    cluster.ok(&["node", "drain", "1"]);
    cluster
        .eventually("node 1 is empty", HEALED_WITHIN, || cluster.status()["nodes"][0]["state"] == "removed");
    let status = cluster.status();
    assert!(has_six(&status, &[1]), "{status:#}");
    cluster.ok(&["node", "remove", "1", "--yes"]);
    assert!(!cluster.dir().join("nodes/1").exists());
    assert_nothing_failed(load);
    // Under load two of six may be some records behind the four that a commit waits for.
    cluster.eventually("all have everything", HEALED_WITHIN, || is_whole(&cluster.status(), &[1]));
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    verify(&cluster);
}
