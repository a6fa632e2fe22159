//! Nobody is locked in: what `borealis export base` writes, a stock server starts from, with no shim and nothing of Borealis.
//! Once at rest, when a dump of both must be the same, and once while clients write, when nothing acknowledged before may be
//! missing and every transaction is there whole or not at all.

mod harness;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use borealis_types::Lsn;
use harness::{TestCluster, free_port, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";

/// One of PostgreSQL's programs as the user who may run a server, without anything of Borealis.
fn program(name: &str) -> Command {
    let mut command = Command::new(Path::new(POSTGRES_BIN).join(name));
    command.env_remove("LD_PRELOAD").current_dir("/");
    if geteuid().is_root() {
        let user = User::from_name("postgres").expect("asked").expect("a user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn ok(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A stock server on an exported folder.
struct Stock {
    port: u16,
    child: Child,
}

impl Stock {
    fn start(data: &Path) -> Stock {
        let port = free_port();
        let child = program("postgres")
            .arg("-D")
            .arg(data)
            .args(["-c", &format!("port={port}"), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "dynamic_shared_memory_type=mmap"])
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut stock = Stock { port, child };
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while stock.try_connect().is_err() {
            let ended = stock.child.try_wait().expect("asked");
            assert!(ended.is_none(), "the stock server ended: {ended:?}");
            assert!(std::time::Instant::now() < deadline, "the stock server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        stock
    }

    fn try_connect(&self) -> Result<postgres::Client, postgres::Error> {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres").connect(postgres::NoTls)
    }

    fn client(&self) -> postgres::Client {
        self.try_connect().expect("it answers")
    }

    fn stop(mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
        self.child.wait().expect("it ends");
    }

    fn assert_amcheck_clean(&self) {
        let options = ["--install-missing", "--heapallindexed", "--parent-check", "--all"];
        ok(program("pg_amcheck")
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.to_string())
            .args(options));
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGQUIT);
            let _ = self.child.wait();
        }
    }
}

fn dump(port: u16) -> String {
    ok(program("pg_dumpall").args(["-h", "127.0.0.1", "-U", "postgres", "-p"]).arg(port.to_string()))
}

/// Lines that say where a tablespace is, and the key that each dump has of its own, are not the data's.
fn comparable(dump: &str) -> Vec<&str> {
    let is_data = |line: &&str| {
        !line.starts_with("CREATE TABLESPACE")
            && !line.starts_with("\\restrict")
            && !line.starts_with("\\unrestrict")
    };
    dump.lines().filter(is_data).collect()
}

fn export(cluster: &TestCluster, folder: &Path) {
    let said = cluster.ok(&["export", "base", "--to", folder.to_str().expect("text")]);
    assert!(said.contains("is the volume as of"), "{said}");
}

/// Of everything a little: indexes of all kinds, databases of both strategies, a tablespace, a prepared transaction, settings.
fn make_everything(cluster: &TestCluster) {
    let tablespace = cluster.postgres_folder("tablespace");
    let mut client = cluster.connect();
    client
        .batch_execute(
            "CREATE TABLE plain (id serial PRIMARY KEY, words text, point point);
             INSERT INTO plain (words, point) SELECT repeat(md5(i::text), i % 40), point(i, i) FROM generate_series(1, 20000) i;
             CREATE INDEX ON plain USING gist (point);
             CREATE INDEX ON plain USING gin (to_tsvector('simple', words));
             CREATE INDEX ON plain USING hash (words);
             CREATE INDEX ON plain USING brin (id);
             DELETE FROM plain WHERE id % 7 = 0;
             CREATE UNLOGGED TABLE passing (id int PRIMARY KEY);
             INSERT INTO passing SELECT generate_series(1, 1000);
             CREATE SEQUENCE numbers START 41;
             SELECT nextval('numbers');
             CREATE TABLE locked (id int PRIMARY KEY);
             INSERT INTO locked VALUES (1);
             SELECT lo_from_bytea(4711, decode(repeat('ab', 10000), 'hex'));",
        )
        .expect("made");
    client.batch_execute("VACUUM plain").expect("vacuumed");
    client.batch_execute("ALTER SYSTEM SET maintenance_work_mem = '33MB'").expect("set");
    client.batch_execute("ALTER SYSTEM SET work_mem = '6MB'").expect("set");
    client.batch_execute("CREATE DATABASE second").expect("made");
    client.batch_execute("CREATE DATABASE copied STRATEGY file_copy").expect("made");
    client
        .batch_execute(&format!("CREATE TABLESPACE far LOCATION '{}'", tablespace.display()))
        .expect("made");
    client
        .batch_execute("CREATE TABLE away (id int PRIMARY KEY USING INDEX TABLESPACE far) TABLESPACE far; INSERT INTO away SELECT generate_series(1, 5000)")
        .expect("made");
    // Two lockers of one row make a multixact.
    let mut other = cluster.connect();
    let mut first = client.transaction().expect("begun");
    first.batch_execute("SELECT * FROM locked FOR SHARE").expect("locked");
    other.batch_execute("SELECT * FROM locked FOR SHARE").expect("locked");
    first.commit().expect("committed");
    client
        .batch_execute(
            "BEGIN; INSERT INTO plain (id, words) VALUES (900001, 'prepared'); PREPARE TRANSACTION 'later'",
        )
        .expect("prepared");
    // Not part of the equality: what an unlogged table has does not outlive its server.
    client.batch_execute("TRUNCATE passing").expect("emptied");
}

#[test]
fn a_stock_server_goes_on_with_everything() {
    let cluster =
        TestCluster::start(&["--pg-set", "max_prepared_transactions=5", "--pg-set", "work_mem=5MB"]);
    make_everything(&cluster);
    // What a sequence has beyond its last logged value is lost with its server, here as there.
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    let mut client = cluster.connect();
    let theirs = dump(cluster.port);
    let folder = cluster.dir().with_file_name("exported");
    export(&cluster, &folder);
    let again = cluster.fails(&["export", "base", "--to", folder.to_str().expect("text")]);
    assert!(again.contains("not empty"), "{again}");
    client.batch_execute("CREATE TABLE afterwards ()").expect("the instance goes on");

    let stock = Stock::start(&folder);
    let ours = dump(stock.port);
    assert!(comparable(&ours).len() > 17_000, "the dump has everything");
    assert!(comparable(&theirs) == comparable(&ours), "the dumps differ");
    let mut local = stock.client();
    let work_mem: String = local.query_one("SHOW work_mem", &[]).expect("shown").get(0);
    let page_writes: String = local.query_one("SHOW full_page_writes", &[]).expect("shown").get(0);
    assert_eq!((work_mem.as_str(), page_writes.as_str()), ("5MB", "on"), "what --pg-set says wins");
    let set_by_sql: String = local.query_one("SHOW maintenance_work_mem", &[]).expect("shown").get(0);
    assert_eq!(set_by_sql, "33MB", "what ALTER SYSTEM has set goes along");
    local.batch_execute("COMMIT PREPARED 'later'").expect("committed");
    local
        .batch_execute(
            "INSERT INTO passing VALUES (1); UPDATE away SET id = id + 10000; UPDATE locked SET id = 2",
        )
        .expect("it writes");
    drop(local);
    stock.assert_amcheck_clean();
    // A crash: it has to replay its own log, and finds its tablespace by the link.
    stock.stop(Signal::SIGQUIT);
    let stock = Stock::start(&folder);
    let row = stock
        .client()
        .query_one("SELECT (SELECT count(*) FROM plain WHERE id = 900001), (SELECT min(id)::bigint FROM away), nextval('numbers')", &[])
        .expect("read");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (1, 10_001, 42 + 32));
    stock.stop(Signal::SIGINT);
    // Every page can be read by a program that knows nothing of us, and is one.
    ok(program("pg_checksums").arg("--enable").arg("-D").arg(&folder));
    ok(program("pg_checksums").arg("--check").arg("-D").arg(&folder));
    let stock = Stock::start(&folder);
    stock.assert_amcheck_clean();
    stock.stop(Signal::SIGINT);
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn an_export_under_load_is_of_one_moment() {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-s", "4", "-q"]);
    let mut load = cluster
        .client_command("pgbench", &["-n", "-c", "4", "-j", "2", "-T", "300"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench runs");
    let count = "SELECT count(*) FROM pgbench_history";
    let mut client = cluster.connect();
    let mut committed = || client.query_one(count, &[]).expect("counted").get::<_, i64>(0);
    cluster.eventually("transactions are committed", Duration::from_secs(30), || committed() > 200);
    let before = committed();
    let folder = cluster.dir().with_file_name("exported");
    export(&cluster, &folder);
    let after = committed();
    assert!(load.try_wait().expect("asked").is_none(), "the load goes on");
    kill(Pid::from_raw(load.id() as i32), Signal::SIGTERM).expect("it runs");
    load.wait().expect("it ends");
    assert!(after > before, "commits went on during the export");

    let stock = Stock::start(&folder);
    let sums = stock
        .client()
        .query_one(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches), \
             (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history), \
             (SELECT count(*) FROM pgbench_history)",
            &[],
        )
        .expect("read");
    let balances: [i64; 4] = std::array::from_fn(|column| sums.get(column));
    assert!(balances.iter().all(|sum| *sum == balances[0]), "balances differ: {balances:?}");
    let exported: i64 = sums.get(4);
    assert!(
        (before..=after).contains(&exported),
        "{exported} transactions, {before} before and {after} after"
    );
    stock.assert_amcheck_clean();
    stock.stop(Signal::SIGINT);
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn what_was_acknowledged_last_is_not_left_out() {
    let cluster = TestCluster::start(&[]);
    cluster
        .connect()
        .batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        .expect("made");
    let folder = cluster.dir().with_file_name("exported");
    let to = folder.to_str().expect("text").to_owned();

    // A node that hangs costs time and nothing else.
    let node = cluster.status()["nodes"][3]["pid"].as_i64().expect("it runs");
    let node = Pid::from_raw(i32::try_from(node).expect("a process"));
    kill(node, Signal::SIGSTOP).expect("it runs");
    let began = std::time::Instant::now();
    let exported = cluster.run(&["export", "base", "--to", &to]);
    kill(node, Signal::SIGCONT).expect("it runs");
    assert!(exported.status.success(), "{}", text(&exported));
    println!("exported beside a node that hangs in {:?}", began.elapsed());
    std::fs::remove_dir_all(&folder).expect("removed");

    // Stopped in order: all is known.
    cluster.ok(&["instance", "stop"]);
    export(&cluster, &folder);
    let stock = Stock::start(&folder);
    let rows: i64 = stock.client().query_one("SELECT count(*) FROM kept", &[]).expect("read").get(0);
    assert_eq!(rows, 1000);
    stock.stop(Signal::SIGINT);
    std::fs::remove_dir_all(&folder).expect("removed");

    // Killed: either all is known, or it is said that it is not.
    cluster.ok(&["instance", "start"]);
    let mut client = cluster.connect();
    for _ in 0..200 {
        client.batch_execute("INSERT INTO kept VALUES (0)").expect("acknowledged");
    }
    cluster.ok(&["instance", "kill"]);
    let exported = cluster.run(&["export", "base", "--to", &to]);
    if exported.status.success() {
        let stock = Stock::start(&folder);
        let rows: i64 = stock.client().query_one("SELECT count(*) FROM kept", &[]).expect("read").get(0);
        assert_eq!(rows, 1200);
        stock.stop(Signal::SIGINT);
    } else {
        assert!(text(&exported).contains("instance start"), "{}", text(&exported));
        assert!(!folder.join("global/pg_control").exists(), "no server takes it for whole");
    }
}

/// The exported log, by the names of its files, without the ending of those that are not whole.
fn log_files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("listed")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name.trim_end_matches(".partial").to_owned(), std::fs::read(&path).expect("read"))
        })
        .collect();
    files.sort();
    files
}

fn position(client: &mut postgres::Client, expression: &str) -> Lsn {
    let row = client.query_one(&format!("SELECT ({expression})::text"), &[]).expect("asked");
    row.get::<_, String>(0).parse().expect("a position")
}

#[test]
fn the_log_is_byte_for_byte_what_the_server_wrote() {
    const PAGE: usize = 8192;
    const SEGMENT: u64 = 16 << 20;
    let cluster = TestCluster::unstarted();
    let backup = cluster.postgres_folder("kept").join("backup");
    cluster.up(&["--backup", backup.to_str().expect("text")]);
    cluster.client_program("pgbench", &["-i", "-s", "1", "-q"]);
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    let mut client = cluster.connect();
    let begin = position(&mut client, "SELECT redo_lsn FROM pg_control_checkpoint()");
    client.batch_execute("SELECT pg_switch_wal()").expect("switched");
    client
        .batch_execute("SELECT pg_logical_emit_message(false, 'large', repeat('a', 3000000))")
        .expect("a record of many pages");
    cluster.client_program("pgbench", &["-n", "-c", "4", "-t", "300"]);
    client.batch_execute("CREATE TABLE copied AS SELECT * FROM pgbench_accounts").expect("copied");
    let end = position(&mut client, "SELECT pg_current_wal_flush_lsn()");
    cluster.eventually("the backup has it", Duration::from_secs(60), || {
        let output = cluster.run(&["backup", "status", "--json"]);
        let status: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
        let newest = status.and_then(|status| status["newest_lsn"].as_str()?.parse::<Lsn>().ok());
        newest.is_some_and(|newest| newest >= end)
    });

    let folder = cluster.dir().with_file_name("log");
    let to = folder.to_str().expect("text");
    let said = cluster.ok(&["export", "wal", "--to", to]);
    assert!(said.contains("whole files"), "{said}");
    assert!(cluster.fails(&["export", "wal", "--to", to]).contains("not empty"));
    let status = cluster.status();
    let theirs = Path::new(status["instances"][0]["data_dir"].as_str().expect("its folder")).join("pg_wal");
    let mut compared = 0;
    for (name, ours) in log_files(&folder) {
        let Ok(theirs) = std::fs::read(theirs.join(&name)) else { continue };
        let number = u64::from_str_radix(&name[8..16], 16).expect("hexadecimal") * (0x1_0000_0000 / SEGMENT)
            + u64::from_str_radix(&name[16..], 16).expect("hexadecimal");
        for (index, (ours, theirs)) in ours.chunks(PAGE).zip(theirs.chunks(PAGE)).enumerate() {
            let page = number * SEGMENT + (index * PAGE) as u64;
            // The server has log since it started, and perhaps more than was exported.
            let is_known = page > begin.0 && page + PAGE as u64 <= end.0;
            if is_known && theirs.iter().any(|byte| *byte != 0) {
                assert!(ours == theirs, "the page at {} differs", Lsn(page));
                compared += 1;
            }
        }
    }
    println!("{compared} pages compared with those of the server");
    assert!(compared > 1000, "{compared} pages compared");
    // And PostgreSQL's own program reads all of it, over the crash.
    let last = end.to_string();
    for (name, _) in log_files(&folder) {
        let partial = folder.join(format!("{name}.partial"));
        if partial.exists() {
            std::fs::rename(&partial, folder.join(&name)).expect("named");
        }
    }
    let records =
        ok(program("pg_waldump").args(["--path", to, "--end", &last, "--start"]).arg(first_record(&said)));
    for what in ["NOOP", "SWITCH", "CHECKPOINT_SHUTDOWN", "LogicalMessage", "COMMIT"] {
        assert!(records.contains(what), "no {what} in the log");
    }
    assert!(records.lines().count() > 10_000, "{} lines", records.lines().count());
}

/// The first record's position, as the command says it.
fn first_record(said: &str) -> String {
    let after = said.split("records from ").nth(1).expect("it says so");
    after.split(' ').next().expect("a position").to_owned()
}
