//! Minor releases of PostgreSQL: a volume moves between them and back, each is recorded as the writer of what it
//! wrote, and one that is newer than any tested is not silent.
//!
//! `scripts/fetch-postgres.sh` fetches what the machine's package archive offers; with one release alone there is
//! nothing to move between, and the tests say so.

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use borealis_client::{Endpoint, NodeClient, Timeouts};
use borealis_store::{Options, Policy, Store};
use borealis_types::{NodeId, ServerVersion, VolumeId};
use borealis_wire::Caller;
use harness::{TestCluster, text};
use postgres::Client;

/// Where a distribution puts the programs, below its root.
const PROGRAMS: &str = "usr/lib/postgresql/15/bin";

/// A relocatable installation.
#[derive(Clone, Debug)]
struct Installation {
    release: ServerVersion,
    root: PathBuf,
}

impl Installation {
    fn at(root: &Path) -> Option<Installation> {
        let output = Command::new(root.join(PROGRAMS).join("postgres")).arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let release = said.split_whitespace().find_map(|word| word.parse().ok())?;
        Some(Installation { release, root: root.to_owned() })
    }

    fn bin(&self) -> String {
        self.root.join(PROGRAMS).to_str().expect("a name").to_owned()
    }

    /// A copy that the test may change, in a folder that the server's user can read.
    fn copy_to(&self, folder: &Path) -> Installation {
        for part in ["usr/lib/postgresql/15", "usr/share/postgresql/15"] {
            let target = folder.join(part);
            std::fs::create_dir_all(target.parent().expect("a folder")).expect("made");
            let copied =
                Command::new("cp").arg("-rL").arg(self.root.join(part)).arg(&target).output().expect("cp");
            assert!(copied.status.success(), "{}", text(&copied));
        }
        Installation { root: folder.to_owned(), ..self.clone() }
    }
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("mode");
}

/// The installed release and the fetched ones, oldest first.
fn installations() -> Vec<Installation> {
    let target = Path::new(env!("CARGO_BIN_EXE_borealis")).parent().and_then(Path::parent).expect("target");
    let fetched = std::fs::read_dir(target.join("postgresql")).into_iter().flatten().flatten();
    let mut roots: Vec<PathBuf> = fetched.map(|entry| entry.path()).collect();
    roots.push(PathBuf::from("/"));
    let mut found: Vec<Installation> = roots.iter().filter_map(|root| Installation::at(root)).collect();
    found.sort_by_key(|installation| installation.release);
    found.dedup_by_key(|installation| installation.release);
    assert!(!found.is_empty(), "no PostgreSQL 15 is installed");
    found
}

/// The oldest and the newest release, or a word on why they are not tested.
fn two_releases() -> Option<[Installation; 2]> {
    let found = installations();
    let (Some(oldest), Some(newest)) = (found.first(), found.last()) else { return None };
    if oldest.release == newest.release {
        harness::not_tested(&format!(
            "moving between releases. Only PostgreSQL {} is on this machine; scripts/fetch-postgres.sh \
             fetches others where the package archive has them",
            oldest.release
        ));
        return None;
    }
    Some([oldest.clone(), newest.clone()])
}

fn execute(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn make_tables(client: &mut Client) {
    execute(
        client,
        "CREATE EXTENSION amcheck;
         CREATE TABLE items (id int PRIMARY KEY, era int, v text, at point);
         CREATE INDEX items_v ON items (v);
         CREATE INDEX items_at ON items USING gist (at);
         CREATE INDEX items_era ON items USING hash (era)",
    );
}

/// Changes heap, B-tree and GiST, with whole index pages emptied by VACUUM.
fn change(client: &mut Client, era: i32) {
    execute(
        client,
        &format!(
            "INSERT INTO items SELECT {era} * 100000 + n, {era}, repeat('v' || n, 8), point(n % 173, n / 173 + {era})
                 FROM generate_series(1, 12000) n;
             UPDATE items SET v = v || '{era}' WHERE id % 7 = 0;
             DELETE FROM items WHERE era = {era} AND id % 100000 BETWEEN 3000 AND 9000;
             DELETE FROM items WHERE era = {era} - 1 AND id % 3 = 0"
        ),
    );
    // Alone: it runs in no transaction.
    execute(client, "VACUUM items");
}

/// What every row is, read from the heap and through each index.
fn digests(client: &mut Client) -> Vec<String> {
    let rows = "SELECT coalesce(md5(string_agg(r::text, '|' ORDER BY id)), '') FROM items r WHERE";
    let by_heap = "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_seqscan = on";
    let by_index = "SET enable_indexscan = on; SET enable_bitmapscan = on; SET enable_seqscan = off";
    let mut digests = Vec::new();
    for (settings, condition) in [
        (by_heap, "true"),
        (by_index, "id > 0"),
        (by_index, "v > ''"),
        (by_index, "at <@ box '(-1,-1),(100000,100000)'"),
    ] {
        execute(client, settings);
        digests.push(client.query_one(&format!("{rows} {condition}"), &[]).expect("readable").get(0));
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "heap and indexes differ: {digests:?}");
    digests
}

fn assert_runs(cluster: &TestCluster, installation: &Installation) {
    let instance = &cluster.status()["instances"][0];
    assert_eq!(instance["server_version"], installation.release.to_string());
    let number: String =
        cluster.connect().query_one("SHOW server_version_num", &[]).expect("answered").get(0);
    assert_eq!(number, installation.release.server_version_num().to_string());
}

/// The releases in the history of every node, once all nodes have the same: a recovery needs four of six only.
fn recorded_releases(cluster: &TestCluster) -> Option<Vec<ServerVersion>> {
    let status = cluster.status();
    let volume = status["volume"]["id"].as_str().expect("an identity");
    let volume = VolumeId(u128::from_str_radix(volume, 16).expect("hexadecimal"));
    let mut histories = Vec::new();
    for node in status["nodes"].as_array().expect("nodes") {
        let address: Endpoint = node["address"].as_str().expect("text").parse().expect("an address");
        let id = NodeId(node["id"].as_u64().expect("a number") as u16);
        let client = NodeClient::connect(&address, volume, id, Caller::Client, Timeouts::default());
        let client = client.expect("the node answers");
        histories.extend(client.welcome().iter().map(|segment| segment.history.clone()));
    }
    assert!(histories.len() >= 6);
    let same = histories.iter().all(|history| *history == histories[0]);
    same.then(|| histories[0].openings().iter().map(|opening| opening.server_version).collect())
}

fn assert_recorded(cluster: &TestCluster, expected: &[ServerVersion]) {
    cluster.eventually("every node has the history", Duration::from_secs(20), || {
        // A start that had to be repeated opens another epoch.
        let mut recorded = recorded_releases(cluster).unwrap_or_default();
        recorded.dedup();
        recorded == expected
    });
}

/// Folds into pages, on some of the stopped nodes, what all readers have left behind.
fn materialize(cluster: &TestCluster, nodes: impl Iterator<Item = u16>) {
    for node in nodes {
        let directory = cluster.dir().join("nodes").join(node.to_string()).join("store");
        let store = Store::open(&directory, Options::default()).expect("opened");
        assert!(
            store.materialize(Policy::Now).expect("materialized").advanced,
            "node {node} had nothing to do"
        );
    }
}

/// `redo-check --live` follows the release that the volume's history has for the running server.
fn assert_live_redo_is_right(cluster: &TestCluster, installation: &Installation) {
    let mut client = cluster.connect();
    execute(
        &mut client,
        "SET wal_consistency_checking = 'all'; CREATE TABLE IF NOT EXISTS checked (i int PRIMARY KEY)",
    );
    let follower = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["redo-check", "--live", "--json", "--seconds", "4", "--dir"])
        .arg(cluster.dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the borealis program runs");
    for _ in 0..30 {
        execute(
            &mut client,
            "INSERT INTO checked SELECT (SELECT count(*) FROM checked) + n FROM generate_series(1, 10) n",
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = follower.wait_with_output().expect("it ends by itself");
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["server_version"], installation.release.to_string());
    assert!(
        report["server_version_source"].as_str().is_some_and(|source| source.contains("history")),
        "{report}"
    );
    assert!(report["total"]["compared"].as_u64().is_some_and(|compared| compared > 50), "{report}");
}

#[test]
fn a_volume_moves_between_minor_releases_and_back() {
    let Some([older, newer]) = two_releases() else { return };
    // The server's user may be kept from the folder that they were fetched to, such as one in root's home.
    let folder = tempfile::Builder::new().prefix("borealis-test-").tempdir().expect("temporary folder");
    open_to_all(folder.path());
    let [older, newer] =
        [older, newer].map(|release| release.copy_to(&folder.path().join(release.release.to_string())));
    harness::say(&format!("moving a volume between PostgreSQL {} and {}", older.release, newer.release));
    let cluster = TestCluster::unstarted();
    cluster.up(&["--pg-bin", &older.bin(), "--pg-set", "autovacuum=off", "--protection-groups", "2"]);
    make_tables(&mut cluster.connect());
    let mut expected = vec![older.release];
    let mut before: Option<Vec<String>> = None;
    for (era, installation) in (1..).zip([&older, &newer, &older, &newer, &older]) {
        if era > 1 {
            if era == 4 {
                // Once without any farewell.
                cluster.ok(&["instance", "kill"]);
            } else {
                cluster.ok(&["down"]);
                // Nodes 1 to 3 each time; nodes 4 to 6 apply what all releases wrote at once, in the end.
                materialize(&cluster, 1..=3);
            }
            cluster.up(&["--pg-bin", &installation.bin()]);
            expected.push(installation.release);
        }
        assert_runs(&cluster, installation);
        let mut client = cluster.connect();
        if let Some(before) = &before {
            assert_eq!(&digests(&mut client), before, "after the move to {}", installation.release);
        }
        change(&mut client, era);
        if era <= 2 {
            assert_live_redo_is_right(&cluster, installation);
        }
        before = Some(digests(&mut client));
        drop(client);
        assert_recorded(&cluster, &expected);
        cluster.ok(&["verify"]);
        cluster.assert_amcheck_clean();
    }
    cluster.ok(&["down"]);
    materialize(&cluster, 1..=6);
    cluster.up(&["--pg-bin", &newer.bin()]);
    assert_eq!(Some(digests(&mut cluster.connect())), before);
    cluster.ok(&["verify"]);
    cluster.assert_amcheck_clean();
}

#[test]
fn a_release_newer_than_any_tested_starts_with_a_warning() {
    let folder = tempfile::Builder::new().prefix("borealis-test-").tempdir().expect("temporary folder");
    open_to_all(folder.path());
    let is_tested =
        |release: ServerVersion| !release.is_older_than_tested() && !release.is_newer_than_tested();
    let tested = installations().into_iter().rfind(|installation| is_tested(installation.release));
    let Some(known) = tested else {
        harness::not_tested(
            "the move to a release that is too new. None on this machine is tested itself, to begin with",
        );
        return;
    };
    let known = known.copy_to(&folder.path().join("known"));
    let mut unknown = known.copy_to(&folder.path().join("unknown"));
    // The same server, which says of itself that it is of a later release.
    let minor = known.release.server_version_num() % 100;
    unknown.release = ServerVersion::new(150_099).expect("a release");
    for program in ["postgres", "initdb"] {
        let path = unknown.root.join(PROGRAMS).join(program);
        let mut bytes = std::fs::read(&path).expect("a program");
        let (old, new) = (format!("(PostgreSQL) 15.{minor}"), "(PostgreSQL) 15.99");
        assert_eq!(old.len(), new.len());
        let places: Vec<usize> =
            (0..bytes.len() - old.len()).filter(|&at| bytes[at..].starts_with(old.as_bytes())).collect();
        assert!(!places.is_empty(), "{program} does not say its release");
        for at in places {
            bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
        }
        std::fs::write(&path, bytes).expect("written");
    }
    let cluster = TestCluster::unstarted();
    cluster.up(&["--pg-bin", &known.bin()]);
    let warnings = |cluster: &TestCluster| cluster.status()["instances"][0]["warnings"].clone();
    assert_eq!(warnings(&cluster), serde_json::json!([]));
    assert!(!cluster.ok(&["status"]).contains("warning"));
    cluster.ok(&["down"]);
    cluster.up(&["--pg-bin", &unknown.bin()]);
    // It works, and is not silent.
    execute(&mut cluster.connect(), "CREATE TABLE t AS SELECT generate_series(1, 1000)");
    let status = cluster.ok(&["status"]);
    for part in ["15.99", "warning: PostgreSQL 15.99 is newer than", "redo-check"] {
        assert!(status.contains(part), "{part} is missing from\n{status}");
    }
    assert_eq!(warnings(&cluster).as_array().map(Vec::len), Some(1));
    let log = std::fs::read_to_string(cluster.dir().join("instances/1/driver.log")).expect("a log");
    assert!(log.contains("PostgreSQL 15.99 is newer than"), "{log}");
    assert_recorded(&cluster, &[known.release, unknown.release]);
    cluster.ok(&["verify"]);
    cluster.ok(&["down"]);
    cluster.up(&["--pg-bin", &known.bin()]);
    assert_eq!(warnings(&cluster), serde_json::json!([]));
}

#[test]
fn a_server_replaced_under_its_driver_is_recorded_as_what_it_is() {
    let Some([older, newer]) = two_releases() else { return };
    let folder = tempfile::Builder::new().prefix("borealis-test-").tempdir().expect("temporary folder");
    open_to_all(folder.path());
    let installed = older.copy_to(folder.path());
    let cluster = TestCluster::unstarted();
    cluster.up(&["--pg-bin", &installed.bin()]);
    execute(&mut cluster.connect(), "CREATE TABLE t AS SELECT generate_series(1, 1000) i");
    let driver = cluster.status()["instances"][0]["driver_pid"].clone();
    // As a package upgrade does it: new files are renamed over the old ones, and what runs goes on.
    let programs = installed.root.join(PROGRAMS);
    std::fs::copy(newer.root.join(PROGRAMS).join("postgres"), programs.join("postgres.new")).expect("copied");
    std::fs::rename(programs.join("postgres.new"), programs.join("postgres")).expect("replaced");
    assert_runs(&cluster, &installed);
    let postmaster = cluster.status()["instances"][0]["postgres_pid"].as_i64().expect("running") as i32;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), nix::sys::signal::Signal::SIGKILL)
        .expect("killed");
    cluster.eventually("the new release runs", Duration::from_secs(60), || {
        cluster.status()["instances"][0]["server_version"] == newer.release.to_string()
            && cluster.try_connect().is_ok()
    });
    assert_runs(&cluster, &newer);
    assert_eq!(cluster.status()["instances"][0]["driver_pid"], driver, "the driver is the same");
    let count: i64 = cluster.connect().query_one("SELECT count(*) FROM t", &[]).expect("read").get(0);
    assert_eq!(count, 1000);
    assert_recorded(&cluster, &[older.release, newer.release]);
    cluster.ok(&["verify"]);
}
