//! Redo that panics on all six nodes at the same record: the page is in quarantine, and the cluster goes on.
//!
//! Part of `./test cluster`. It needs a program with the feature `broken-redo`; the ordinary one has no way to be broken.
#![allow(unsafe_code)] // The environment of the programs that the test starts.

mod harness;

use std::time::Duration;

use harness::TestCluster;

fn nodes(cluster: &TestCluster) -> Vec<serde_json::Value> {
    cluster.status()["nodes"].as_array().expect("nodes").clone()
}

#[test]
fn a_panic_in_redo_on_all_six_nodes_costs_one_page_until_a_release_knows_better() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("relation");
    // SAFETY: the only test of this program, before it has any other thread that reads the environment.
    unsafe { std::env::set_var("BOREALIS_BROKEN_REDO", &broken) };
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 1)").expect("written");
    let row = client.query_one("SELECT pg_relation_filenode('t')::oid", &[]).expect("asked");
    let relation: u32 = row.get(0);
    std::fs::write(&broken, relation.to_string()).expect("broken from here on");
    client.batch_execute("UPDATE t SET v = 2").expect("acknowledged: it is stored");
    // Enough redo for rounds of materialization.
    cluster.client_program("pgbench", &["-i", "-q", "-s", "15"]);
    cluster.eventually("every node has the page in quarantine", Duration::from_secs(180), || {
        nodes(&cluster).iter().all(|node| {
            let damage = node["damage"].as_str().unwrap_or_default();
            damage.contains("in quarantine because their redo failed")
                && node["metrics"]["materializations"] != 0
        })
    });
    assert!(nodes(&cluster).iter().all(|node| node["state"] == "up" && node["failure"].is_null()));
    // Everything else goes on.
    cluster.client_program("pgbench", &["-n", "-M", "prepared", "-c", "4", "-T", "5"]);
    cluster.assert_balances_agree();

    // The release that knows better, one node after another.
    std::fs::remove_file(&broken).expect("mended");
    for node in 1..=6 {
        cluster.ok(&["node", "kill", &node.to_string()]);
        cluster.ok(&["node", "start", &node.to_string()]);
    }
    cluster.eventually("no page is in quarantine", Duration::from_secs(60), || {
        nodes(&cluster).iter().all(|node| node["state"] == "up" && node["damage"].is_null())
    });
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    let row = cluster.connect().query_one("SELECT v FROM t", &[]).expect("read from storage");
    assert_eq!(row.get::<_, i32>(0), 2);
    cluster.eventually("verify finds nothing", Duration::from_secs(60), || {
        cluster.run(&["verify"]).status.success()
    });
}
