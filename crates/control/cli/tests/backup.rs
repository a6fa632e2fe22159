//! The nodes' backup, in a real S3 server and in a folder: everything is deleted and comes back, as of any point; a store in whatever mood
//! holds up no commit; and damage is named.
//!
//! `BOREALIS_TEST_MOMENTS=50` restores to so many points (3 without it), `BOREALIS_TEST_MOOD_SECONDS=100` hurts the store for so long in
//! each way (5 without it).

#[path = "../../../storage/backup/tests/moto/mod.rs"]
mod moto;

mod harness;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use borealis_types::Lsn;
use harness::latencies::Latencies;
use harness::ledger::Ledger;
use harness::proxy::{Mood, Proxy};
use harness::{TestCluster, memory_directory_of, memory_folders, say, text};
use moto::Moto;

/// Longest wait for the backup to have everything, on a machine that does other things too.
const UPLOADED_WITHIN: Duration = Duration::from_secs(120);
/// Longest until a node says of a request what was wrong with it: the timeout of one that is not answered, and a look.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(80);

fn number_from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// What the S3 server wants to hear.
fn credentials() -> Vec<(String, String)> {
    [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn s3_url(port: u16, prefix: &str) -> String {
    format!("s3://shop/{prefix}?endpoint=http://127.0.0.1:{port}&region=us-east-1")
}

fn unstarted() -> TestCluster {
    let mut cluster = TestCluster::unstarted();
    cluster.environment = credentials();
    cluster
}

fn flushed(cluster: &TestCluster) -> Lsn {
    let row = cluster.connect().query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).expect("an LSN");
    row.get::<_, String>(0).parse().expect("an LSN")
}

/// The newest point that can be restored; `None` if there is none.
fn newest(cluster: &TestCluster) -> Option<Lsn> {
    let output = cluster.run(&["backup", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    status["newest_lsn"].as_str()?.parse().ok()
}

/// Waits until the backup has everything that is flushed now.
fn wait_until_uploaded(cluster: &TestCluster) -> Duration {
    let (begin, end) = (Instant::now(), flushed(cluster));
    while newest(cluster).is_none_or(|newest| newest < end) {
        let said = || text(&cluster.run(&["backup", "status"])) + &cluster.logs();
        assert!(begin.elapsed() < UPLOADED_WITHIN, "{end} is not in the backup: {}", said());
        std::thread::sleep(Duration::from_millis(100));
    }
    begin.elapsed()
}

/// Everything in the database, as text.
fn dump(cluster: &TestCluster) -> String {
    let dumped = cluster.client_program("pg_dump", &["--no-sync"]);
    // A word made up anew for each dump, so that no data can end the restricted mode.
    let is_data = |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
    dumped.lines().filter(is_data).collect::<Vec<_>>().join("\n")
}

/// Says where two dumps differ first.
fn assert_same(restored: &str, then: &str, point: &str) {
    let differs = restored.lines().zip(then.lines()).find(|(one, other)| one != other);
    assert!(restored == then, "at {point} it was another database: {differs:?}");
}

/// Tables and indexes come, change and go.
fn change_definitions(cluster: &TestCluster, round: u64) {
    let mut client = cluster.connect();
    let mut run = |sql: &str| client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    run(&format!(
        "CREATE TABLE made_{round} AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 500) n;
         CREATE INDEX ON made_{round} (n); ALTER TABLE made_{round} ADD COLUMN round int DEFAULT {round};
         UPDATE made_{round} SET n = -n WHERE n % 3 = 0"
    ));
    run(&format!("VACUUM FULL made_{round}"));
    if round >= 2 {
        run(&format!("DROP TABLE made_{}", round - 2));
    }
}

/// Has nodes that do not run make snapshots after little redo.
fn make_snapshots_often(cluster: &TestCluster) {
    for entry in std::fs::read_dir(cluster.dir().join("nodes")).expect("nodes").flatten() {
        let file = entry.path().join("node.json");
        let config = std::fs::read(&file).expect("a configuration");
        let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        config["backup_snapshot_bytes"] = 65_536.into();
        std::fs::write(&file, config.to_string()).expect("written");
    }
}

fn snapshot_count(cluster: &TestCluster) -> u64 {
    let status: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["backup", "status", "--json"])).expect("JSON");
    status["snapshots"].as_u64().expect("a number")
}

/// A moment in which nothing was written, and what the database was.
struct Moment {
    lsn: Lsn,
    clock_ms: u64,
    dump: String,
}

fn clock_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

fn write_for_a_moment(cluster: &TestCluster, round: u64) -> Moment {
    let mut ledger = Ledger::start(cluster, 2);
    cluster.client_program("pgbench", &["-c", "4", "-j", "2", "-T", "1", "-n"]);
    change_definitions(cluster, round);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    // Marks of the time are made every second or so: one falls into this moment.
    std::thread::sleep(Duration::from_millis(1_500));
    let moment = Moment { lsn: flushed(cluster), clock_ms: clock_ms(), dump: dump(cluster) };
    std::thread::sleep(Duration::from_millis(1_500));
    moment
}

/// A client that writes down when each of its commits was acknowledged.
struct Timed {
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    thread: JoinHandle<()>,
}

impl Timed {
    fn start(cluster: &TestCluster) -> Timed {
        let acknowledged = Arc::<Mutex<Vec<Instant>>>::default();
        let mut client = cluster.connect();
        client.batch_execute("CREATE TABLE timed (number bigint PRIMARY KEY)").expect("made");
        let of_thread = Arc::clone(&acknowledged);
        let thread = std::thread::spawn(move || {
            let mut number: i64 = 0;
            while client.execute("INSERT INTO timed VALUES ($1)", &[&number]).is_ok() {
                of_thread.lock().expect("nobody panics").push(Instant::now());
                number += 1;
            }
        });
        Timed { acknowledged, thread }
    }

    /// How long before `end` the oldest commit was acknowledged that `restored` has not; and whether all older ones are there.
    fn assert_older_are_there(self, restored: &TestCluster, end: Instant) -> Duration {
        self.thread.join().expect("it does not panic");
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().expect("nobody panics"));
        let row = restored
            .connect()
            .query_one("SELECT count(*), coalesce(max(number) + 1, 0) FROM timed", &[])
            .expect("counted");
        let (count, next): (i64, i64) = (row.get(0), row.get(1));
        assert_eq!(count, next, "there are holes");
        say(&format!("{} commits were acknowledged, {count} are there", acknowledged.len()));
        acknowledged.get(count as usize).map_or(Duration::ZERO, |lost| end.saturating_duration_since(*lost))
    }
}

/// A new cluster of what the backup has, up and answering; and how long the command and the first query took.
fn restore(url: &str, arguments: &[&str]) -> TestCluster {
    let restored = unstarted();
    let port = restored.port.to_string();
    let words: Vec<&str> =
        ["restore", "--from", url, "--port", &port].iter().chain(arguments).copied().collect();
    let begin = Instant::now();
    let output = restored.run(&words);
    assert!(output.status.success(), "{}", text(&output));
    let command = begin.elapsed();
    restored.up(&[]);
    restored.connect().query_one("SELECT count(*) FROM pg_class", &[]).expect("answered");
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    say(&format!("restore {arguments:?}: {command:?}, first query {:?}; {said}", begin.elapsed()));
    restored
}

/// The newest point of a backup whose nodes and instance were all killed and deleted under load.
fn assert_newest_is_whole(url: &str, timed: Timed, end: Instant) {
    let restored = restore(url, &[]);
    let lost = timed.assert_older_are_there(&restored, end);
    say(&format!("all that was acknowledged up to {lost:?} before the end is there"));
    assert!(lost < Duration::from_secs(1), "{lost:?}");
    restored.assert_balances_agree();
    restored.assert_amcheck_clean();
    // It is an ordinary cluster.
    restored.client_program("pgbench", &["-c", "2", "-T", "2", "-n"]);
    restored.ok(&["verify"]);
    let port = restored.port.to_string();
    let again = restored.fails(&["restore", "--from", url, "--port", &port]);
    assert!(again.contains("is not empty"), "{again}");
}

#[test]
fn all_nodes_and_the_instance_are_deleted_and_come_back_from_s3() {
    let Some(moto) = Moto::start() else { return };
    let moments = number_from_environment("BOREALIS_TEST_MOMENTS", 3);
    let (cluster, url) = (unstarted(), s3_url(moto.port, "all"));
    cluster.up(&["--backup", &url]);
    cluster.ok(&["down"]);
    make_snapshots_often(&cluster);
    cluster.up(&[]);
    cluster.client_program("pgbench", &["-i", "-s", "2", "-q"]);
    Ledger::create(&cluster);
    let mut known = Vec::new();
    for round in 0..moments {
        if round == moments / 2 {
            // Another epoch, with whatever was in flight cut.
            let mut ledger = Ledger::start(&cluster, 4);
            std::thread::sleep(Duration::from_millis(500));
            cluster.ok(&["instance", "kill"]);
            ledger.stop();
            cluster.up(&[]);
        }
        known.push(write_for_a_moment(&cluster, round));
    }
    say(&format!("the backup has everything after {:?}", wait_until_uploaded(&cluster)));
    say(&cluster.ok(&["backup", "status"]));
    assert!(snapshot_count(&cluster) > 0);
    let state = cluster.status()["backup"].clone();
    assert_eq!((&state["url"], &state["gaps"]), (&url.as_str().into(), &0.into()), "{state}");
    let timed = Timed::start(&cluster);
    let mut pgbench = cluster
        .client_command("pgbench", &["-n", "-c", "4", "-j", "2", "-T", "60"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    std::thread::sleep(Duration::from_secs(6));
    cluster.kill_everything();
    let end = Instant::now();
    pgbench.wait().expect("it ends");
    // Nobody can find the server's memory any more once the cluster's folder is gone.
    for folder in memory_folders(&memory_directory_of(&cluster.dir())) {
        std::fs::remove_dir_all(folder).expect("removed");
    }
    std::fs::remove_dir_all(cluster.dir()).expect("all nodes and the instance are deleted");

    let listed = unstarted();
    say(&listed.ok(&["restore", "--list", "--from", &url]));
    say(&listed.ok(&["backup", "verify", "--from", &url]));
    assert_newest_is_whole(&url, timed, end);
    for (index, moment) in known.iter().enumerate() {
        let (lsn, seconds) = (moment.lsn.to_string(), format!("{:.3}", moment.clock_ms as f64 / 1000.0));
        let restored = restore(&url, &["--to-lsn", &lsn]);
        assert_same(&dump(&restored), &moment.dump, &lsn);
        drop(restored);
        if index % 5 == 1 {
            let restored = restore(&url, &["--to-time", &seconds]);
            assert_same(&dump(&restored), &moment.dump, &seconds);
        }
    }
}

/// What the nodes say of why nothing gets to the backup.
fn hindrances(cluster: &TestCluster) -> BTreeSet<String> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("nodes").iter();
    nodes.filter_map(|node| node["hindrance"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_store_in_any_mood_holds_up_no_commit_and_gets_everything_later() {
    let Some(moto) = Moto::start() else { return };
    let seconds = Duration::from_secs(number_from_environment("BOREALIS_TEST_MOOD_SECONDS", 5));
    let proxy = Proxy::start(moto.port);
    let (cluster, url) = (unstarted(), s3_url(proxy.port, "moods"));
    cluster.up(&["--backup", &url]);
    cluster.client_program("pgbench", &["-i", "-s", "1", "-q"]);
    wait_until_uploaded(&cluster);
    let latencies = Latencies::measure(&cluster);
    std::thread::sleep(seconds);
    let well = latencies.since();
    say(&format!("well: p50 {:?} p99 {:?} longest {:?}", well[0], well[1], well[2]));
    for mood in [Mood::Down, Mood::Cutting, Mood::Refusing, Mood::Full, Mood::Silent] {
        latencies.since();
        proxy.become_(mood);
        std::thread::sleep(seconds);
        // A request that gets no answer is given up only after its timeout.
        let mut said = BTreeSet::new();
        if mood != Mood::Silent || seconds > GIVEN_UP_AFTER {
            cluster.eventually("a node says so", GIVEN_UP_AFTER, || {
                said = hindrances(&cluster);
                said.iter().any(|what| what.contains("uploaded nothing to the backup for"))
            });
        }
        let during = latencies.since();
        proxy.become_(Mood::Well);
        say(&format!("{mood:?}: p50 {:?} p99 {:?} longest {:?}", during[0], during[1], during[2]));
        said.iter().take(1).for_each(|what| say(what));
        assert!(during[1] < well[1] * 5 + Duration::from_millis(100), "{mood:?}: {during:?}, well {well:?}");
        say(&format!("and the backup has everything again after {:?}", wait_until_uploaded(&cluster)));
    }
    latencies.end();
    cluster.eventually("all is well", UPLOADED_WITHIN, || hindrances(&cluster).is_empty());
    let verified = cluster.ok(&["backup", "verify"]);
    assert!(verified.contains(" 0 damaged; 0 gaps"), "{verified}");
}

/// The backup's objects of one kind.
fn objects(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it can be read").flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.to_str().expect("text").contains(kind) => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_folder_that_lost_an_object_says_so_and_is_never_restored_as_whole() {
    let cluster = TestCluster::unstarted();
    let folder = cluster.postgres_folder("kept");
    let backup = folder.join("backup");
    cluster.up(&["--backup", backup.to_str().expect("text")]);
    cluster.connect().batch_execute("CREATE TABLE kept AS SELECT 42 AS answer").expect("made");
    wait_until_uploaded(&cluster);
    let end = flushed(&cluster);
    cluster.ok(&["down"]);
    let url = format!("file://{}", backup.display());
    say(&cluster.ok(&["backup", "status"]));
    cluster.ok(&["backup", "verify"]);
    let first = objects(&backup, "/redo/").first().expect("there is redo").clone();
    let bytes = std::fs::read(&first).expect("read");
    let name = first.file_name().expect("a name").to_str().expect("text").to_owned();
    let elsewhere = unstarted();
    let port = elsewhere.port.to_string();
    let end = end.to_string();
    let words = ["restore", "--from", &url, "--port", &port, "--to-lsn", &end];
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    for (what, spoilt) in [("flipped", flipped), ("cut", bytes[..bytes.len() / 2].to_vec())] {
        std::fs::write(&first, spoilt).expect("written");
        let found = cluster.fails(&["backup", "verify"]);
        assert!(found.contains(&name) && found.contains("1 damaged"), "{what}: {found}");
        let refused = elsewhere.fails(&words);
        assert!(refused.contains(&name) && refused.contains("cannot be restored"), "{what}: {refused}");
    }
    std::fs::remove_file(&first).expect("removed");
    let refused = elsewhere.fails(&words);
    assert!(refused.contains("cannot be restored"), "{refused}");
    std::fs::write(&first, bytes).expect("written");

    // As a kill leaves a restore.
    std::fs::create_dir_all(elsewhere.dir().join("nodes/restored/log")).expect("made");
    for mark in ["cluster.creating", "cluster.restoring"] {
        std::fs::write(elsewhere.dir().join(mark), "").expect("written");
    }
    let refused = elsewhere.fails(&["up", "--detach", "--port", &port]);
    assert!(refused.contains("a restore into") && refused.contains("was interrupted"), "{refused}");
    elsewhere.ok(&words);
    elsewhere.up(&[]);
    let answer: i32 = elsewhere.connect().query_one("SELECT answer FROM kept", &[]).expect("read").get(0);
    assert_eq!(answer, 42);
}

#[test]
fn a_point_with_a_name_is_restored_by_it_until_the_name_is_deleted() {
    let cluster = TestCluster::unstarted();
    let folder = cluster.postgres_folder("kept");
    let backup = folder.join("backup");
    cluster.up(&["--backup", backup.to_str().expect("text")]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE kept AS SELECT 1 AS round").expect("made");
    wait_until_uploaded(&cluster);
    let then = dump(&cluster);
    let said = cluster.ok(&["backup", "snapshot", "create", "before-upgrade"]);
    assert!(said.contains("restore --snapshot before-upgrade"), "{said}");
    client.batch_execute("UPDATE kept SET round = 2").expect("changed");
    wait_until_uploaded(&cluster);

    let said = cluster.ok(&["backup", "retention"]);
    assert!(said.contains("7 days") && said.contains("nothing is deleted"), "{said}");
    let said = cluster.ok(&["backup", "retention", "--days", "14"]);
    assert!(said.contains("14 days"), "{said}");
    let said = cluster.ok(&["backup", "snapshot", "list"]);
    assert!(said.contains("before-upgrade") && said.contains("restorable"), "{said}");
    let said = cluster.fails(&["backup", "snapshot", "create", "before-upgrade"]);
    assert!(said.contains("called before-upgrade already"), "{said}");
    let said = text(&cluster.run(&["backup", "snapshot", "create", "Before Upgrade"]));
    assert!(said.contains("lower-case letters"), "{said}");
    cluster.ok(&["backup", "verify"]);
    cluster.ok(&["down"]);

    let url = format!("file://{}", backup.display());
    let restored = restore(&url, &["--snapshot", "before-upgrade"]);
    assert_same(&dump(&restored), &then, "before-upgrade");
    drop(restored);
    cluster.ok(&["backup", "snapshot", "delete", "before-upgrade"]);
    let elsewhere = unstarted();
    let said = elsewhere.fails(&["restore", "--from", &url, "--snapshot", "before-upgrade"]);
    assert!(said.contains("no snapshot called before-upgrade"), "{said}");
}
