//! When an instance ends because of what storage nodes promised to others, and when it does not.

mod harness;

use std::time::{Duration, Instant};

use borealis_client::{NodeClient, Timeouts};
use borealis_local::cluster::Cluster;
use borealis_types::{VolumeEpoch, WriterId};
use borealis_wire::Caller;
use harness::TestCluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `Tuning::lease_ms`, and what a loaded machine may add to it.
const LEASE: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(5);

fn epoch(cluster: &TestCluster) -> u64 {
    cluster.status()["instances"][0]["driver"]["epoch"].as_u64().expect("the instance runs")
}

fn restarts(cluster: &TestCluster) -> u64 {
    cluster.status()["instances"][0]["driver"]["restarts"].as_u64().unwrap_or(0)
}

/// Has these nodes promise an epoch of which no recovery ever comes.
fn fence(cluster: &TestCluster, nodes: &[u16], epoch: u64) {
    let opened = Cluster::open(&cluster.dir()).expect("the cluster");
    for entry in opened.catalog.nodes.iter().filter(|entry| nodes.contains(&entry.id.0)) {
        let (volume, address) = (opened.catalog.volume_id(), opened.endpoint(entry.id));
        let mut client =
            NodeClient::connect(&address, volume, entry.id, Caller::Recovery, Timeouts::default())
                .expect("the node answers");
        client.fence(VolumeEpoch(epoch), WriterId(666)).expect("nothing stands against it");
    }
}

#[test]
fn promises_to_an_epoch_that_never_began_do_not_end_an_instance() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client.batch_execute("create table t (n int)").expect("created");
    let before = epoch(&cluster);
    let pid = cluster.status()["instances"][0]["postgres_pid"].clone();
    fence(&cluster, &[2, 5], before + 3);
    for number in 0..50 {
        client.execute("insert into t values ($1)", &[&number]).expect("two nodes do not stop it");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = cluster.status();
    assert_eq!(status["instances"][0]["postgres_pid"], pid, "{status}");
    assert_eq!((epoch(&cluster), restarts(&cluster)), (before, 0));
    let shown = status.to_string();
    assert!(shown.contains("fenced"), "the two nodes are shown: {shown}");

    // A third takes its write quorum. No recovery of that epoch comes, so it recovers above it, by itself.
    fence(&cluster, &[3], before + 3);
    cluster.eventually("the instance took the volume again", Duration::from_secs(60), || {
        cluster.try_connect().is_ok_and(|mut client| client.execute("insert into t values (99)", &[]).is_ok())
            && epoch(&cluster) > before + 3
    });
    let failure = cluster.status()["instances"][0]["driver"]["last_failure"].to_string();
    assert!(failure.contains("no recovery finished") || failure.contains("postgres ended"), "{failure}");
    let kept = cluster.connect().query_one("select count(*) from t where n < 50", &[]).expect("counted");
    assert_eq!(kept.get::<_, i64>(0), 50);
}

#[test]
fn an_instance_that_reaches_no_read_quorum_stops_to_answer_within_its_lease() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client.batch_execute("create table t as select generate_series(1, 100) n").expect("created");
    client.query("select sum(n) from t", &[]).expect("read, and in shared buffers from here on");
    let processes: Vec<Pid> = cluster.status()["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .take(4)
        .map(|node| Pid::from_raw(node["pid"].as_i64().expect("running") as i32))
        .collect();
    let begun = Instant::now();
    for process in &processes {
        kill(*process, Signal::SIGSTOP).expect("stopped");
    }
    let mut last = Duration::ZERO;
    while begun.elapsed() < LEASE + SLACK + SLACK && client.query("select sum(n) from t", &[]).is_ok() {
        last = begun.elapsed();
        std::thread::sleep(Duration::from_millis(50));
    }
    for process in &processes {
        kill(*process, Signal::SIGCONT).expect("goes on");
    }
    println!("the last answer came {last:?} after the nodes stood still");
    assert!(last < LEASE + SLACK, "it answered {last:?} after its last confirmation");
    assert!(last > LEASE / 2, "its lease was not over");
    cluster.eventually("the instance is back", Duration::from_secs(90), || {
        cluster.try_connect().is_ok_and(|mut client| client.query("select sum(n) from t", &[]).is_ok())
    });
    let failure = cluster.status()["instances"][0]["driver"]["last_failure"].to_string();
    assert!(failure.contains("read quorum"), "{failure}");
}
