//! Starts from what interrupted commands leave: of SQL, and of a cluster's own first start.

mod harness;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{TestCluster, free_port, memory_directory_of, say, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn execute(cluster: &TestCluster, database: &str, sql: &str) {
    cluster.client_program("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
}

fn answer(cluster: &TestCluster, database: &str, sql: &str) -> String {
    let said = cluster.client_program("psql", &["-X", "-A", "-t", "-d", database, "-c", sql]);
    said.lines().nth(1).unwrap_or_default().to_owned()
}

fn tablespace(cluster: &TestCluster, name: &str) {
    let folder = cluster.postgres_folder(name);
    execute(cluster, "postgres", &format!("CREATE TABLESPACE {name} LOCATION '{}'", folder.display()));
}

fn start_after_kill(cluster: &TestCluster) {
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
}

#[test]
fn a_database_with_several_folders_starts_again() {
    let cluster = TestCluster::start(&[]);
    for name in ["tsa", "tsb", "tsc"] {
        tablespace(&cluster, name);
    }
    execute(&cluster, "postgres", "CREATE DATABASE src");
    execute(&cluster, "src", "CREATE TABLE t TABLESPACE tsa AS SELECT generate_series(1, 1000) AS a");
    execute(&cluster, "postgres", "CREATE DATABASE dst TEMPLATE src STRATEGY file_copy");
    cluster.ok(&["down"]);
    cluster.up(&[]);
    assert_eq!(answer(&cluster, "dst", "SELECT count(*) FROM t"), "1000");
    // The copy's folder in tsa is no database's own: without the tables it counts as empty.
    for database in ["src", "dst"] {
        execute(&cluster, database, "DROP TABLE t");
    }
    start_after_kill(&cluster);
    execute(&cluster, "postgres", "DROP TABLESPACE tsa");

    // The record that removes the old folder comes after the commit. It is durable all the same, or the database could
    // not return to where it was, nor the tablespace be dropped.
    execute(&cluster, "src", "CREATE TABLE u AS SELECT generate_series(1, 500) AS a");
    execute(&cluster, "postgres", "ALTER DATABASE src SET TABLESPACE tsc");
    execute(&cluster, "postgres", "ALTER DATABASE src SET TABLESPACE pg_default");
    start_after_kill(&cluster);
    assert_eq!(answer(&cluster, "src", "SELECT count(*) FROM u"), "500");
    execute(&cluster, "postgres", "DROP TABLESPACE tsc");
    execute(&cluster, "postgres", "ALTER DATABASE src SET TABLESPACE tsb");
    start_after_kill(&cluster);
    execute(&cluster, "postgres", "ALTER DATABASE src SET TABLESPACE pg_default");
    assert_eq!(answer(&cluster, "src", "SELECT count(*) FROM u"), "500");
    execute(&cluster, "postgres", "DROP DATABASE src");
    start_after_kill(&cluster);
    assert_eq!(answer(&cluster, "postgres", "SELECT count(*) FROM pg_database"), "4");
}

/// When a first start is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the volume was opened.
    AfterOpening(Duration),
    /// When a part of the import is durable.
    WhileShipping,
}

/// A first start that is killed at some moment; whether that was before its end.
fn kill_first_start(cluster: &TestCluster, moment: Moment, everything: bool) -> bool {
    let mut up = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["up", "--detach", "--port", &cluster.port.to_string(), "--dir"])
        .arg(cluster.dir())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the borealis program runs");
    let log = cluster.dir().join("instances/1/driver.log");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains("is open for writing")) {
        assert!(Instant::now() < deadline, "the first start does not come so far");
        std::thread::sleep(Duration::from_millis(2));
    }
    match moment {
        Moment::AfterOpening(delay) => std::thread::sleep(delay),
        Moment::WhileShipping => cluster.eventually("nothing is durable", Duration::from_secs(60), || {
            let status = cluster.run(&["status", "--json"]).stdout;
            let status: Option<serde_json::Value> = serde_json::from_slice(&status).ok();
            status.is_some_and(|status| status["volume"]["vdl"].as_str().is_some_and(|vdl| vdl != "0/0"))
        }),
    }
    let running = up.try_wait().expect("asked").is_none();
    up.kill().expect("killed");
    up.wait().expect("it was started");
    if everything {
        kill_recorded(&cluster.dir());
    }
    running
}

/// Starts a cluster of which no more than the command that started it was killed: if it had brought the server so far that it runs, that is
/// said.
fn start_or_find_running(cluster: &TestCluster) {
    let port = cluster.port.to_string();
    let output = cluster.run(&["up", "--detach", "--port", &port, "--replace-after", "0"]);
    let said = harness::text(&output);
    let is_well = output.status.success() || said.contains("is already running at");
    assert!(is_well, "up failed:\n{said}\n{}", cluster.logs());
}

/// Kills what process files below the folder name, as a power cut would.
fn kill_recorded(folder: &Path) {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "process") {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                let number = text.split(' ').next().and_then(|number| number.parse().ok());
                // It may have ended already.
                let _ = number.map(|number| kill(Pid::from_raw(number), Signal::SIGKILL));
            }
        }
    }
}

#[test]
fn an_interrupted_first_start_begins_again() {
    let mut begun_again = 0;
    for step in 0..8_u64 {
        let cluster = TestCluster::unstarted();
        let moment = match step % 2 {
            0 => Moment::AfterOpening(Duration::from_millis(step * 150)),
            _ => Moment::WhileShipping,
        };
        let everything = step % 4 < 2;
        let running = kill_first_start(&cluster, moment, everything);
        if everything {
            cluster.up(&[])
        } else {
            start_or_find_running(&cluster)
        }
        execute(&cluster, "postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS a");
        start_after_kill(&cluster);
        assert_eq!(answer(&cluster, "postgres", "SELECT count(*) FROM t"), "1000");
        let log = std::fs::read_to_string(cluster.dir().join("instances/1/driver.log")).expect("a log");
        let again = log.contains("it is filled anew");
        say(&format!("killed {moment:?}, everything {everything}: running {running}, filled anew {again}"));
        if again {
            begun_again += 1;
            cluster.assert_amcheck_clean();
            assert!(cluster.ok(&["verify"]).contains("no difference"));
        }
    }
    assert!(begun_again > 0, "no import was interrupted half-way");
}

#[test]
fn a_first_up_that_fails_keeps_none_of_its_options() {
    let cluster = TestCluster::unstarted();
    let other = cluster.postgres_folder("memory");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs"]).arg(&other).status();
    if !mounted.is_ok_and(|status| status.success()) {
        harness::not_tested("a second memory folder: only root may mount one");
        return;
    }
    let unmount = || Command::new("umount").arg("-l").arg(&other).status().expect("umount runs");
    let memory = other.display().to_string();
    let port = cluster.port.to_string();
    // PostgreSQL refuses the setting when it starts.
    let output = cluster.run(&[
        "up",
        "--detach",
        "--port",
        &port,
        "--memory-dir",
        &memory,
        "--pg-user",
        "postgres",
        "--cache-limit",
        "1GB",
        "--pg-set",
        "shared_buffers=nonsense",
    ]);
    let failed = !output.status.success();
    unmount();
    assert!(failed, "{}", text(&output));
    let catalog = std::fs::read_to_string(cluster.dir().join("cluster.json")).expect("a catalog");
    for kept in [memory.as_str(), "nonsense", "\"postgres_user\": \"postgres\"", "1073741824", &port] {
        assert!(!catalog.contains(kept), "{kept} was kept: {catalog}");
    }
    assert!(!cluster.dir().join("instances/1/instance.json").exists(), "a lost catalog is made anew from it");
    cluster.up(&[]);
    assert!(memory_directory_of(&cluster.dir()).starts_with("/dev/shm"));

    // Of a start after others that fails nothing is kept either.
    cluster.ok(&["down"]);
    let config = || std::fs::read(cluster.dir().join("instances/1/instance.json")).expect("a configuration");
    let before = config();
    let other_port = free_port().to_string();
    cluster.fails(&["up", "--detach", "--port", &other_port, "--pg-set", "shared_buffers=nonsense"]);
    assert_eq!(config(), before);
    cluster.up(&[]);
}
