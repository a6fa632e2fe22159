//! A fleet of twelve nodes, each of which hosts some of sixteen groups: it outlives what six outlive.

mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use harness::TestCluster;
use harness::ledger::Ledger;

/// The members of every group, by status.
fn members(status: &serde_json::Value) -> BTreeMap<u64, Vec<u64>> {
    let groups = status["protection_groups"].as_array().expect("groups").iter();
    let nodes = |group: &serde_json::Value| {
        let members = group["members"].as_array().expect("members").iter();
        members.map(|member| member["node"].as_u64().expect("a number")).collect()
    };
    groups.map(|group| (group["id"].as_u64().expect("a number"), nodes(group))).collect()
}

fn all_segments_are_up(cluster: &TestCluster) -> bool {
    let status = cluster.status();
    let groups = status["protection_groups"].as_array().expect("groups").iter();
    let mut members = groups.flat_map(|group| group["members"].as_array().expect("members").clone());
    status["volume"]["state"] == "up" && members.all(|member| member["state"] == "up")
}

fn verify(cluster: &TestCluster) {
    cluster.eventually("every segment is up", Duration::from_secs(60), || all_segments_are_up(cluster));
    let said = cluster.ok(&["verify"]);
    assert!(said.contains("no difference"), "{said}");
}

#[test]
fn a_fleet_that_cannot_be_placed_is_refused_and_leaves_nothing() {
    let cluster = TestCluster::unstarted();
    let port = cluster.port.to_string();
    let output = cluster.run(&["up", "--detach", "--port", &port, "--nodes", "5"]);
    assert_eq!(output.status.code(), Some(2), "{}", harness::text(&output));
    let said = cluster.fails(&["up", "--detach", "--port", &port, "--nodes", "30", "--groups", "4"]);
    assert!(said.contains("zone az1 has 10 nodes, and 8 segments to host"), "{said}");
    assert!(!cluster.dir().exists(), "a refused start left something behind");
}

#[test]
fn twelve_nodes_with_some_groups_each_outlive_a_zone_a_restart_and_a_lost_catalog() {
    let cluster = TestCluster::start(&["--nodes", "12", "--groups", "16"]);
    let placed = members(&cluster.status());
    assert_eq!(placed.len(), 16);
    let zone = |node: &u64| (node - 1) / 4;
    for (group, nodes) in &placed {
        let in_zone = |number| nodes.iter().filter(|node| zone(node) == number).count();
        assert_eq!([0, 1, 2].map(in_zone), [2, 2, 2], "group {group}: {nodes:?}");
    }
    for node in 1..=12 {
        assert_eq!(placed.values().filter(|nodes| nodes.contains(&node)).count(), 8, "node {node}");
        let segments = cluster.dir().join(format!("nodes/{node}/store/segments"));
        assert_eq!(std::fs::read_dir(segments).expect("segments").count(), 8, "node {node}");
    }
    Ledger::create(&cluster);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "2"]);
    let mut ledger = Ledger::start(&cluster, 2);
    let mut pgbench =
        cluster.client_command("pgbench", &["-n", "-c", "2", "-T", "12"]).spawn().expect("pgbench runs");
    std::thread::sleep(Duration::from_secs(3));
    cluster.ok(&["az", "kill", "az2"]);
    let before = ledger.acknowledged();
    std::thread::sleep(Duration::from_secs(3));
    assert!(ledger.acknowledged() > before, "commits wait for a zone that is gone");
    cluster.ok(&["az", "start", "az2"]);
    assert!(pgbench.wait().expect("it ends").success(), "a transaction failed: {}", cluster.logs());
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    verify(&cluster);

    cluster.ok(&["down"]);
    std::fs::remove_file(cluster.dir().join("cluster.json")).expect("it was there");
    cluster.up(&[]);
    assert_eq!(members(&cluster.status()), placed, "the nodes know who has which group");
    ledger.assert_nothing_lost(&cluster);
    let said = cluster.fails(&["up", "--detach", "--nodes", "13"]);
    assert!(said.contains("already running"), "{said}");
    cluster.ok(&["instance", "stop"]);
    let said = cluster.fails(&["up", "--detach", "--nodes", "13"]);
    assert!(said.contains("the cluster has 12 nodes"), "{said}");
    cluster.ok(&["instance", "start"]);
    cluster.assert_balances_agree();
    cluster.assert_amcheck_clean();
    verify(&cluster);
}

#[test]
fn a_zone_and_one_more_node_are_made_anew_of_what_several_nodes_have() {
    let cluster = TestCluster::start(&["--nodes", "12", "--groups", "16"]);
    let placed = members(&cluster.status());
    Ledger::create(&cluster);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "2"]);
    let mut ledger = Ledger::start(&cluster, 4);
    std::thread::sleep(Duration::from_secs(2));
    cluster.ok(&["node", "kill", "1", "2", "3", "4", "5"]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ledger.acknowledged() > 100, "{} commits", ledger.acknowledged());
    cluster.ok(&["instance", "kill"]);
    ledger.stop();
    for node in 1..=5 {
        std::fs::remove_dir_all(cluster.dir().join(format!("nodes/{node}"))).expect("removed");
    }
    let said = cluster.fails(&["instance", "start"]);
    assert!(said.contains("has 3 of 6 segments") && said.contains("4 are needed"), "{said}");
    // Node 6 would leave those groups that it shares with node 5 with two.
    let said = cluster.fails(&["node", "replace", "1", "2", "3", "4", "5", "6"]);
    let shared =
        placed.iter().find(|(_, nodes)| nodes.contains(&5) && nodes.contains(&6)).expect("some do").0;
    assert!(said.contains(&format!("2 of 6 nodes of group {shared} would be left")), "{said}");
    let said = cluster.ok(&["node", "replace", "1", "2", "3", "4", "5", "--yes"]);
    assert!(said.contains("node 1 is made of segments of node"), "{said}");
    cluster.ok(&["instance", "start"]);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.assert_amcheck_clean();
    assert_eq!(members(&cluster.status()), placed);
    verify(&cluster);
}
