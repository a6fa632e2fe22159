//! Whoever would keep the server's own log, or its files, and take them for whole, is refused and told why.

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use harness::{TestCluster, memory_directory_of, text};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const REFUSAL: &str = "physical replication and base backups are not possible with Borealis";

/// A program, as the server's user, who may read everything the server may.
fn as_server_user(program: &str) -> Command {
    use std::os::unix::process::CommandExt;
    let own = Path::new(PROGRAMS).join(program);
    let mut command = Command::new(if own.is_file() { own } else { PathBuf::from(program) });
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/");
    command
}

fn replication(cluster: &TestCluster, mode: &str, command: &str) -> Output {
    let connection =
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres replication={mode}", cluster.port);
    let mut psql = as_server_user("psql");
    psql.args(["-X", "-d", &connection, "-c", command]).output().expect("psql runs")
}

/// An archive would have zeros where the records of the segment in use were, and a restore from it would end early and
/// say that it is complete.
#[test]
fn an_archive_of_the_log_is_refused_with_the_reason() {
    let cluster = TestCluster::unstarted();
    let port = cluster.port.to_string();
    for setting in ["archive_mode=on", "archive_mode=always", "archive_command=cp %p /tmp/%f"] {
        let said = cluster.fails(&["up", "--detach", "--port", &port, "--pg-set", setting]);
        assert!(said.contains("cannot be used with Borealis") && said.contains("archive"), "{said}");
    }
    cluster.up(&[]);
    // Nor by the ways around the command line: neither file wins over what the server was started with.
    let mut client = cluster.connect();
    client.batch_execute("ALTER SYSTEM SET archive_mode = on").expect("written to a file");
    client.batch_execute("ALTER SYSTEM SET archive_command = 'false'").expect("written to a file");
    let data = memory_directory_of(&cluster.dir()).join("data");
    let own = std::fs::read_to_string(data.join("postgresql.conf")).expect("read");
    std::fs::write(data.join("postgresql.conf"), own + "archive_mode = always\n").expect("written");
    client.batch_execute("SELECT pg_reload_conf()").expect("reloaded");
    let asked = as_server_user("postgres")
        .args(["-C", "archive_mode", "-c", "archive_mode=off", "-D"])
        .arg(&data)
        .output()
        .expect("postgres runs");
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "off", "{}", text(&asked));
    let row = client.query_one("SELECT setting, source FROM pg_settings WHERE name = 'archive_mode'", &[]);
    let row = row.expect("asked");
    assert_eq!((row.get(0), row.get(1)), ("off", "command line"));
    client.batch_execute("CREATE TABLE t (n int); SELECT pg_switch_wal()").expect("written");
    let archiver =
        client.query_one("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'archiver'", &[]);
    assert_eq!(archiver.expect("asked").get::<_, i64>(0), 0);
}

#[test]
fn physical_replication_is_refused_and_logical_replication_is_not() {
    let cluster = TestCluster::start(&["--pg-set", "wal_level=logical"]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1)").expect("written");
    let folder = cluster.postgres_folder("copies");
    let backup = folder.join("backup");
    for (program, arguments) in [
        ("pg_receivewal", vec!["--no-loop".to_owned(), "-D".to_owned(), folder.display().to_string()]),
        (
            "pg_basebackup",
            vec!["-c".to_owned(), "fast".to_owned(), "-D".to_owned(), backup.display().to_string()],
        ),
    ] {
        let port = cluster.port.to_string();
        let mut command = as_server_user(program);
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "--no-password"]).args(arguments);
        let output = command.output().expect("the program runs");
        let said = text(&output);
        assert!(!output.status.success() && said.contains(REFUSAL), "{program}: {said}");
        assert!(said.contains("only the log since its last start"), "the reason is said: {said}");
    }
    let left =
        std::fs::read_dir(&folder).expect("read").flatten().filter(|entry| entry.path().is_file()).count();
    assert_eq!(left, 0, "a refused program left a file");
    let said = text(&replication(&cluster, "true", "IDENTIFY_SYSTEM"));
    assert!(said.contains("FATAL") && said.contains(REFUSAL), "{said}");

    // A connection for logical replication understands the physical commands, too.
    let begin: String =
        client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).expect("asked").get(0);
    client.batch_execute("SELECT pg_create_physical_replication_slot('standby', true)").expect("made");
    for command in [
        format!("START_REPLICATION PHYSICAL {begin}"),
        format!("START_REPLICATION SLOT standby PHYSICAL {begin}"),
        "BASE_BACKUP (CHECKPOINT 'fast')".to_owned(),
    ] {
        client.batch_execute("INSERT INTO t SELECT max(n) + 1 FROM t").expect("written");
        // `psql` cannot receive a stream and goes away at once, often before the server opens its log to send any. So it
        // is tried until the server's own log has the server's answer.
        let log = cluster.dir().join("instances/1/postgres.log");
        let before = std::fs::read_to_string(&log).expect("read").len();
        cluster.eventually(&format!("{command} is refused"), Duration::from_secs(30), || {
            text(&replication(&cluster, "database", &command));
            let log = std::fs::read_to_string(&log).expect("read").split_off(before);
            log.contains(REFUSAL) && log.contains("not supported")
        });
    }

    // What a server can decode while it runs, it does, in a session and for a subscriber.
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('decoded', 'test_decoding')")
        .expect("made");
    client.batch_execute("INSERT INTO t VALUES (4711)").expect("written");
    let changes: Vec<String> = client
        .query("SELECT data FROM pg_logical_slot_peek_changes('decoded', NULL, NULL)", &[])
        .expect("decoded")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(changes.iter().any(|change| change.contains("4711")), "{changes:?}");
    let target: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).expect("asked").get(0);
    let port = cluster.port.to_string();
    let mut receiver = as_server_user("pg_recvlogical");
    receiver.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres", "-S", "decoded"]);
    let output = receiver
        .args(["--start", "--no-loop", "-f", "-", "--endpos", &target])
        .output()
        .expect("the program runs");
    assert!(text(&output).contains("4711"), "{}", text(&output));
}
