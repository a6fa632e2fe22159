//! What must survive: nodes, zones, the instance, everything at once.

mod harness;

use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::TestCluster;
use harness::ledger::Ledger;

/// Runs TPC-B for `seconds` and calls `during` after a third of that; fails if any transaction failed.
fn pgbench_with(cluster: &TestCluster, seconds: u64, during: impl FnOnce()) {
    let duration = seconds.to_string();
    let pgbench = cluster
        .client_command("pgbench", &["-n", "-M", "prepared", "-c", "8", "-T", &duration, "-P", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench starts");
    std::thread::sleep(Duration::from_secs(seconds / 3));
    during();
    let output = pgbench.wait_with_output().expect("pgbench ends");
    let text = harness::text(&output);
    assert!(output.status.success(), "pgbench:\n{text}\n{}", cluster.logs());
    assert!(text.contains("number of failed transactions: 0"), "{text}");
    println!("{text}");
}

#[test]
fn two_nodes_die_under_load_and_come_back() {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "5"]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 1);
    pgbench_with(&cluster, 12, || {
        cluster.ok(&["node", "kill", "2", "5"]);
    });
    println!("longest commit with two nodes killed: {:?}", ledger.longest_commit());
    cluster.ok(&["node", "start", "2", "5"]);
    assert_catches_up(&cluster);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.ok(&["verify"]);
}

#[test]
fn a_zone_dies_under_load_and_a_third_node_stops_commits_until_one_returns() {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "5"]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 2);
    pgbench_with(&cluster, 9, || {
        cluster.ok(&["az", "kill", "az2"]);
    });
    println!("longest commit with a zone killed: {:?}", ledger.longest_commit());

    // With three of six, commits wait, and reads go on.
    cluster.ok(&["node", "kill", "1"]);
    std::thread::sleep(Duration::from_millis(500));
    let waiting_at = ledger.acknowledged();
    let mut reader = cluster.connect();
    let accounts: i64 =
        reader.query_one("SELECT count(*) FROM pgbench_accounts", &[]).expect("reads go on").get(0);
    assert_eq!(accounts, 500_000);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ledger.acknowledged(), waiting_at, "commits were acknowledged by three of six");
    assert_eq!(ledger.failures(), 0, "a commit must wait, not fail");

    // One node is enough for commits to go on by themselves.
    cluster.ok(&["node", "start", "3"]);
    cluster.eventually("commits go on", Duration::from_secs(15), || ledger.acknowledged() > waiting_at + 10);
    cluster.ok(&["node", "start"]);
    assert_catches_up(&cluster);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.ok(&["verify"]);
}

/// Every segment reaches its group's complete point.
fn assert_catches_up(cluster: &TestCluster) {
    cluster.eventually("restarted nodes catch up", Duration::from_secs(30), || {
        let status = cluster.status();
        let groups = status["protection_groups"].as_array().expect("groups");
        groups
            .iter()
            .all(|group| group["members"].as_array().expect("members").iter().all(|m| m["state"] == "up"))
    });
}

#[test]
fn restarted_nodes_catch_up_from_their_peers_without_the_driver() {
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    cluster.ok(&["node", "kill", "4"]);
    let mut ledger = Ledger::start(&cluster, 2);
    std::thread::sleep(Duration::from_secs(2));
    cluster.ok(&["instance", "kill"]);
    ledger.stop();
    cluster.ok(&["node", "start", "4"]);
    // No writer runs: what node 4 missed can only come from its peers.
    cluster.eventually("node 4 catches up", Duration::from_secs(30), || {
        let status = cluster.status();
        let groups = status["protection_groups"].as_array().expect("groups").clone();
        groups.iter().all(|group| {
            let members = group["members"].as_array().expect("members");
            let scl = |node: u64| members.iter().find(|m| m["node"] == node).map(|m| m["scl"].clone());
            scl(4) == scl(1)
        })
    });
    cluster.ok(&["instance", "start"]);
    ledger.assert_nothing_lost(&cluster);
}

#[test]
fn an_instance_is_killed_and_its_directory_deleted() {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "5"]);
    Ledger::create(&cluster);
    for round in 0..3 {
        let mut ledger = Ledger::start(&cluster, 4);
        let mut pgbench = cluster
            .client_command("pgbench", &["-n", "-M", "prepared", "-c", "4", "-T", "60"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pgbench starts");
        std::thread::sleep(Duration::from_millis(2500));
        cluster.ok(&["instance", "kill"]);
        ledger.stop();
        pgbench.wait().expect("pgbench ends");
        std::fs::remove_dir_all(cluster.dir().join("instances")).expect("deleted");
        let begin = Instant::now();
        cluster.ok(&["instance", "start"]);
        println!("round {round}: first query {:?} after the start command", begin.elapsed());
        ledger.assert_nothing_lost(&cluster);
        cluster.assert_balances_agree();
    }
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);
}

#[test]
fn everything_is_killed_at_once_twenty_times() {
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    let mut acknowledged = 0;
    for round in 0..20u64 {
        let mut ledger = Ledger::start(&cluster, 4);
        // A moment that differs from round to round, from a fixed sequence.
        std::thread::sleep(Duration::from_millis(150 + round * 7919 % 700));
        cluster.kill_everything();
        ledger.stop();
        acknowledged = ledger.acknowledged();
        cluster.up(&[]);
        ledger.assert_nothing_lost(&cluster);
    }
    println!("20 times everything killed; {acknowledged} commits acknowledged, none lost");
    assert!(acknowledged > 100, "hardly anything was written: {acknowledged}");
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);
}

#[test]
fn clients_are_let_go_when_driver_and_postmaster_are_both_killed() {
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    for _ in 0..5 {
        let mut ledger = Ledger::start(&cluster, 8);
        std::thread::sleep(Duration::from_millis(400));
        let instance = cluster.status()["instances"][0].clone();
        // Not by the command, which ends the server's other processes too.
        for name in ["driver_pid", "postgres_pid"] {
            let process = nix::unistd::Pid::from_raw(instance[name].as_i64().expect("running") as i32);
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).expect("killed");
        }
        // A client of a process that waits for ever would hang here.
        let begin = Instant::now();
        ledger.stop();
        println!("all clients were let go after {:?}", begin.elapsed());
        cluster.ok(&["instance", "start"]);
        ledger.assert_nothing_lost(&cluster);
    }
}
