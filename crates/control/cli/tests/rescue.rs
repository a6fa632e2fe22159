//! A zone and one more node are lost for good: three intact copies are made a volume again.

mod harness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::TestCluster;
use harness::ledger::Ledger;

fn node_folder(cluster: &TestCluster, node: u16) -> PathBuf {
    cluster.dir().join("nodes").join(node.to_string())
}

fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("the folder is removed");
}

/// Runs writers until commits wait, and kills the instance then. Node 4 misses most of it: what it has not is on the two
/// others that will be left only.
fn write_until_three_are_left(cluster: &TestCluster) -> Ledger {
    Ledger::create(cluster);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "2"]);
    let mut ledger = Ledger::start(cluster, 4);
    cluster.ok(&["node", "kill", "4"]);
    std::thread::sleep(Duration::from_secs(3));
    cluster.ok(&["node", "kill", "1", "2", "3"]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(ledger.acknowledged() > 100, "{} commits", ledger.acknowledged());
    cluster.ok(&["instance", "kill"]);
    ledger.stop();
    ledger
}

#[test]
fn three_intact_copies_are_made_a_volume_again() {
    let cluster = TestCluster::start(&[]);
    let ledger = write_until_three_are_left(&cluster);
    // A whole zone is gone, and node 3 has only an old copy of its folder, which somebody brings back later.
    remove(&node_folder(&cluster, 1));
    remove(&node_folder(&cluster, 2));
    let said = cluster.fails(&["instance", "start"]);
    assert!(said.contains("4 are needed to open the volume"), "{said}");

    let said = cluster.fails(&["node", "replace", "1", "2", "3", "6"]);
    assert!(said.contains("2 of 6 nodes of group 0 would be left"), "{said}");
    let said = cluster.fails(&["node", "replace", "1", "2", "5"]);
    assert!(said.contains("node 5 runs"), "{said}");
    let said = cluster.fails(&["node", "replace", "1", "2", "3"]);
    assert!(
        said.contains("Nothing was changed") && said.contains("borealis node replace 1 2 3 --yes"),
        "{said}"
    );
    assert!(!node_folder(&cluster, 1).exists(), "nothing was changed");

    let said = cluster.ok(&["node", "replace", "1", "2", "3", "--yes"]);
    assert!(said.contains("nodes/3.lost-1"), "{said}");
    cluster.ok(&["instance", "start"]);
    ledger.assert_nothing_lost(&cluster);
    cluster.assert_balances_agree();
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);

    // It is an ordinary volume again: writes go on, and a zone may die.
    let mut ledger = Ledger::start(&cluster, 4);
    std::thread::sleep(Duration::from_secs(1));
    cluster.ok(&["az", "kill", "az3"]);
    std::thread::sleep(Duration::from_secs(1));
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    cluster.ok(&["az", "start", "az3"]);
    ledger.assert_nothing_lost(&cluster);

    // The old node 3 must not vote in the place of its copy.
    cluster.ok(&["node", "kill", "3"]);
    remove(&node_folder(&cluster, 3));
    std::fs::rename(cluster.dir().join("nodes/3.lost-1"), node_folder(&cluster, 3)).expect("renamed");
    let said = cluster.fails(&["node", "start", "3"]);
    assert!(said.contains("give the node its own folder back"), "{said}");
}

#[test]
fn a_replacement_is_refused_while_anything_of_it_runs_and_repeated_after_a_failure() {
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 2);
    std::thread::sleep(Duration::from_millis(500));
    cluster.ok(&["node", "kill", "6"]);
    let said = cluster.fails(&["node", "replace", "6", "--yes"]);
    assert!(said.contains("instance 1 runs"), "{said}");
    ledger.stop();
    cluster.ok(&["instance", "stop"]);
    // A survivor that cannot start: all others are needed.
    cluster.ok(&["node", "kill", "2"]);
    let (place, away) = (node_folder(&cluster, 2), cluster.dir().join("nodes/away"));
    std::fs::rename(&place, &away).expect("renamed");
    let said = cluster.fails(&["node", "replace", "6", "--yes"]);
    assert!(said.contains("node 2 has lost its data"), "{said}");
    std::fs::rename(&away, &place).expect("renamed");
    // What a copy that was interrupted left is in nobody's way.
    std::fs::create_dir_all(cluster.dir().join("nodes/6.new/store/log")).expect("made");
    cluster.ok(&["node", "replace", "6", "--yes"]);
    assert!(!cluster.dir().join("nodes/6.new").exists());
    cluster.ok(&["instance", "start"]);
    ledger.assert_nothing_lost(&cluster);
    cluster.ok(&["verify"]);
}
