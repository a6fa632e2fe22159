//! Log records that are longer than a message to a node holds: they are shipped in pieces, the volume goes on beside them,
//! and memory stays bounded.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{TestCluster, say};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A message of so many MiB, which PostgreSQL logs as one record.
fn emit(mib: u32) -> String {
    format!("SELECT pg_logical_emit_message(false, 'x', repeat('a', {mib} * 1024 * 1024))")
}

fn process(value: &serde_json::Value) -> Pid {
    Pid::from_raw(value.as_i64().expect("it runs") as i32)
}

/// The most memory that a process has ever had, in MiB.
fn peak_mib(process: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has memory");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") >> 10
}

/// The peaks of the driver, without what it shares with the server, and of the nodes, in MiB.
fn peaks(cluster: &TestCluster) -> (u64, Vec<u64>) {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("nodes").iter().map(|node| peak_mib(process(&node["pid"])));
    (peak_mib(process(&status["instances"][0]["driver_pid"])), nodes.collect())
}

/// Selects and commits that go on beside something, and the longest that one of each took, in milliseconds.
struct Others {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    slowest: [Arc<AtomicU64>; 2],
    done: [Arc<AtomicU64>; 2],
}

impl Others {
    fn start(cluster: &TestCluster) -> Others {
        cluster
            .connect()
            .batch_execute("CREATE TABLE IF NOT EXISTS beside (n int); ANALYZE beside")
            .expect("a table");
        let stop = Arc::new(AtomicBool::new(false));
        let (slowest, done) = (<[Arc<AtomicU64>; 2]>::default(), <[Arc<AtomicU64>; 2]>::default());
        let statements = ["SELECT count(*) FROM pg_class", "INSERT INTO beside VALUES (1)"];
        let mut threads = Vec::new();
        for (kind, statement) in statements.into_iter().enumerate() {
            let (mut client, stop) = (cluster.connect(), Arc::clone(&stop));
            let (slowest, done) = (Arc::clone(&slowest[kind]), Arc::clone(&done[kind]));
            let run = move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    if client.batch_execute(statement).is_err() {
                        return;
                    }
                    slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            };
            let thread = std::thread::Builder::new().name("beside".to_owned()).spawn(run);
            threads.push(thread.expect("a thread"));
        }
        Others { stop, threads, slowest, done }
    }

    /// Ends them; how many selects and commits there were, and the slowest of each.
    fn end(self) -> [(u64, u64); 2] {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("it ends");
        }
        let of = |kind: usize| {
            (self.done[kind].load(Ordering::Relaxed), self.slowest[kind].load(Ordering::Relaxed))
        };
        [of(0), of(1)]
    }
}

fn kill_instance(cluster: &TestCluster) {
    let instance = cluster.status()["instances"][0].clone();
    for name in ["driver_pid", "postgres_pid"] {
        kill(process(&instance[name]), Signal::SIGKILL).expect("killed");
    }
    cluster.eventually("its end", Duration::from_secs(20), || {
        let instance = &cluster.status()["instances"][0];
        instance["driver_pid"].is_null() && instance["postgres_pid"].is_null()
    });
}

fn restart_instance(cluster: &TestCluster) {
    cluster.ok(&["instance", "start", "1"]);
    cluster.eventually("an answer", Duration::from_secs(60), || cluster.try_connect().is_ok());
}

#[test]
fn messages_of_any_length_are_shipped_while_others_go_on() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE t AS SELECT 1 n").expect("a table");
    for mib in [1, 3, 70, 130, 600, 1023] {
        let others = Others::start(&cluster);
        std::thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        client
            .batch_execute(&emit(mib))
            .unwrap_or_else(|error| panic!("{mib} MiB: {error}\n{}", cluster.logs()));
        // What follows is durable only when all of the message is.
        client.batch_execute("INSERT INTO t VALUES (2)").expect("a commit");
        let took = begun.elapsed();
        std::thread::sleep(Duration::from_millis(200));
        let [selects, commits] = others.end();
        say(&format!(
            "{mib} MiB in {took:?}; {} selects, slowest {} ms; {} commits, slowest {} ms; peaks {:?} MiB",
            selects.0,
            selects.1,
            commits.0,
            commits.1,
            peaks(&cluster)
        ));
        assert!(selects.0 > 3 && commits.0 > 1, "{selects:?} selects and {commits:?} commits went on");
        assert!(selects.1 < 5000, "a select took {} ms beside a message of {mib} MiB", selects.1);
    }
    let (driver, nodes) = peaks(&cluster);
    assert!(driver < 160, "the driver had {driver} MiB\n{}", cluster.logs());
    assert!(nodes.iter().all(|node| *node < 256), "the nodes had {nodes:?} MiB");
    let rows: i64 = client.query_one("SELECT count(*) FROM t", &[]).expect("rows").get(0);
    assert_eq!(rows, 7);
    // The next start reads what is there.
    kill_instance(&cluster);
    restart_instance(&cluster);
    let rows: i64 = cluster.connect().query_one("SELECT count(*) FROM t", &[]).expect("rows").get(0);
    assert_eq!(rows, 7);
    cluster.ok(&["verify"]);
}

/// Prepares a transaction whose state is as long as its locks make it: 32 bytes each.
fn prepare(cluster: &TestCluster, number: i32, locks: u32) {
    let sql = format!(
        "BEGIN; INSERT INTO t VALUES ({number}); SELECT count(pg_advisory_xact_lock({number}, n)) FROM \
         generate_series(1, {locks}) n; PREPARE TRANSACTION 'p{number}'"
    );
    cluster.connect().batch_execute(&sql).unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
}

fn rows_of_t(cluster: &TestCluster) -> i64 {
    cluster.connect().query_one("SELECT count(*) FROM t", &[]).expect("rows").get(0)
}

#[test]
fn prepared_transactions_of_any_size_are_there_after_a_crash() {
    let settings = ["max_prepared_transactions=8", "max_connections=20", "max_locks_per_transaction=180000"];
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--pg-set", setting]).collect();
    let cluster = TestCluster::start(&arguments);
    cluster.connect().batch_execute("CREATE TABLE t (n int)").expect("a table");
    // Two of 35 MB, more than an answer of a node holds; then one of 102 MB, more than any message does.
    for transactions in [&[(1, 1_100_000), (2, 1_100_000)][..], &[(3, 3_200_000)]] {
        let before = rows_of_t(&cluster);
        for &(number, locks) in transactions {
            prepare(&cluster, number, locks);
        }
        for _ in 0..2 {
            kill_instance(&cluster);
            restart_instance(&cluster);
        }
        for (number, _) in transactions {
            let commit = format!("COMMIT PREPARED 'p{number}'");
            cluster.connect().batch_execute(&commit).expect("it is prepared");
        }
        assert_eq!(rows_of_t(&cluster), before + transactions.len() as i64);
        say(&format!("peaks {:?} MiB", peaks(&cluster)));
    }
    let (driver, nodes) = peaks(&cluster);
    // A few copies of the longest state.
    assert!(driver < 600 && nodes.iter().all(|node| *node < 600), "{driver} MiB, {nodes:?} MiB");
    cluster.ok(&["verify"]);
}

/// Waits until the driver has begun to ship another long record.
fn wait_for_pieces(cluster: &TestCluster, before: usize) {
    cluster.eventually("a record in pieces", Duration::from_secs(60), || records_in_pieces(cluster) > before);
}

fn records_in_pieces(cluster: &TestCluster) -> usize {
    let log = std::fs::read_to_string(cluster.dir().join("instances/1/driver.log")).unwrap_or_default();
    log.matches("shipped in pieces").count()
}

#[test]
fn an_instance_killed_in_the_middle_of_a_message_starts_again() {
    let cluster = TestCluster::start(&[]);
    cluster.connect().batch_execute("CREATE TABLE t (n int)").expect("a table");
    for round in 0..4_u32 {
        cluster.connect().execute("INSERT INTO t VALUES ($1)", &[&(round as i32)]).expect("a commit");
        let (mut client, before) = (cluster.connect(), records_in_pieces(&cluster));
        let emitting = std::thread::Builder::new()
            .name("emit".to_owned())
            .spawn(move || client.batch_execute(&emit(400)).is_ok())
            .expect("a thread");
        wait_for_pieces(&cluster, before);
        std::thread::sleep(Duration::from_millis(100 * u64::from(round)));
        kill_instance(&cluster);
        assert!(!emitting.join().expect("it ends"), "the message was whole before the instance was killed");
        restart_instance(&cluster);
        assert_eq!(rows_of_t(&cluster), i64::from(round) + 1, "{}", cluster.logs());
    }
    cluster.connect().batch_execute(&emit(5)).expect("a message");
    cluster
        .eventually("complete peers", Duration::from_secs(60), || cluster.run(&["verify"]).status.success());
}

#[test]
fn a_log_that_stands_still_is_said_in_the_drivers_log() {
    let cluster = TestCluster::start(&[]);
    cluster.connect().batch_execute("CREATE TABLE t (n int)").expect("a table");
    let said = |what: &str| {
        let log = std::fs::read_to_string(cluster.dir().join("instances/1/driver.log")).unwrap_or_default();
        log.contains(what)
    };
    for node in ["1", "3", "5"] {
        cluster.ok(&["node", "kill", node]);
    }
    let mut client = cluster.connect();
    let commit = std::thread::Builder::new()
        .name("commit".to_owned())
        .spawn(move || client.batch_execute("INSERT INTO t VALUES (1)"))
        .expect("a thread");
    cluster.eventually("a line", Duration::from_secs(30), || said("the log stands still"));
    assert!(said("node 3 is not connected"), "{}", cluster.logs());
    cluster.ok(&["node", "start", "3"]);
    commit.join().expect("it ends").expect("a commit");
    cluster.eventually("its end", Duration::from_secs(10), || said("the log goes on"));
}
