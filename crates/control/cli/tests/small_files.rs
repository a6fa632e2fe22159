//! Small files in which a user says how the server should run outlive the server: what `ALTER SYSTEM` writes, and what a
//! person edits.

mod harness;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use harness::{TestCluster, memory_directory_of};

fn shown(cluster: &TestCluster, name: &str) -> String {
    cluster.connect().query_one(&format!("SHOW {name}"), &[]).expect("shown").get(0)
}

fn run(cluster: &TestCluster, sql: &str) {
    cluster.connect().batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn file(cluster: &TestCluster, name: &str) -> PathBuf {
    memory_directory_of(&cluster.dir()).join("data").join(name)
}

/// Adds a line to a file of the server's, as an editor does: a new file takes the old one's place.
fn edit(cluster: &TestCluster, name: &str, line: &str) {
    let path = file(cluster, name);
    let text = fs::read_to_string(&path).expect("read") + line + "\n";
    let new = path.with_extension("new");
    fs::copy(&path, &new).expect("copied, with its owner's permissions");
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
        nix::unistd::chown(&new, Some(user.uid), Some(user.gid)).expect("given");
    }
    fs::write(&new, text).expect("written");
    fs::rename(&new, &path).expect("renamed");
}

/// Reloads the settings, and waits until the server has said that it keeps the file.
fn reload_until_kept(cluster: &TestCluster, name: &str) {
    let log = cluster.dir().join("instances/1/postgres.log");
    let said = format!("borealis: kept {name} as it is now");
    let times = || fs::read_to_string(&log).expect("read").matches(&said).count();
    let before = times();
    run(cluster, "SELECT pg_reload_conf()");
    cluster.eventually("the edit is kept", Duration::from_secs(20), || times() > before);
}

fn text_of(cluster: &TestCluster, name: &str) -> String {
    fs::read_to_string(file(cluster, name)).expect("read")
}

/// What a start without the folder has of what was set, edited and refused below.
fn assert_kept(cluster: &TestCluster, when: &str) {
    assert_eq!(shown(cluster, "work_mem"), "7MB", "{when}: ALTER SYSTEM");
    assert_eq!(shown(cluster, "maintenance_work_mem"), "23MB", "{when}: postgresql.conf");
    assert_eq!(shown(cluster, "max_connections"), "150", "{when}: what needs a start");
    let rules = "SELECT count(*) FROM pg_hba_file_rules WHERE database = '{kept}' AND error IS NULL";
    let rules: i64 = cluster.connect().query_one(rules, &[]).expect("asked").get(0);
    assert_eq!(rules, 1, "{when}: pg_hba.conf");
    assert!(text_of(cluster, "pg_ident.conf").contains("kept somebody postgres"), "{when}: pg_ident.conf");
    // What would break a promise is left out, wherever it was said.
    assert_eq!(shown(cluster, "zero_damaged_pages"), "off", "{when}");
    assert_eq!(shown(cluster, "fsync"), "on", "{when}");
    assert_eq!(shown(cluster, "wal_level"), "replica", "{when}");
}

#[test]
fn settings_and_edited_files_outlive_the_server() {
    let cluster = TestCluster::start(&["--pg-set", "wal_level=replica"]);
    for sql in [
        "ALTER SYSTEM SET work_mem = '7MB'",
        "ALTER SYSTEM SET max_connections = 150",
        "ALTER SYSTEM SET zero_damaged_pages = on",
        "ALTER SYSTEM SET fsync = off",
        "ALTER SYSTEM SET wal_level = minimal",
    ] {
        run(&cluster, sql);
    }
    edit(&cluster, "pg_hba.conf", "local kept all reject");
    reload_until_kept(&cluster, "pg_hba.conf");
    edit(&cluster, "pg_ident.conf", "kept somebody postgres");
    reload_until_kept(&cluster, "pg_ident.conf");
    edit(&cluster, "postgresql.conf", "maintenance_work_mem = 23MB");
    reload_until_kept(&cluster, "postgresql.conf");

    cluster.ok(&["instance", "kill"]);
    fs::remove_dir_all(cluster.dir().join("instances/1")).expect("deleted");
    cluster.ok(&["instance", "start"]);
    assert_kept(&cluster, "after a kill, the folder deleted");
    let status = cluster.status()["instances"][0]["driver"]["warnings"].to_string();
    let log = fs::read_to_string(cluster.dir().join("instances/1/driver.log")).expect("read");
    for said in ["zero_damaged_pages", "fsync", "wal_level"] {
        assert!(
            log.contains(&format!("is left out: PostgreSQL setting {said} cannot be used")),
            "{said}: {log}"
        );
        assert!(status.contains(said), "{said}: {status}");
    }

    // What was left out stays away when the file is written again.
    run(&cluster, "ALTER SYSTEM SET statement_timeout = '77s'");
    assert!(!text_of(&cluster, "postgresql.auto.conf").contains("fsync"));
    cluster.ok(&["down"]);
    cluster.up(&[]);
    assert_kept(&cluster, "after `down` and `up`");
    assert_eq!(shown(&cluster, "statement_timeout"), "77s");
    assert_eq!(cluster.status()["instances"][0]["driver"]["warnings"], serde_json::json!([]));
    cluster.ok(&["verify"]);

    // `--pg-set` wins over a file.
    run(&cluster, "ALTER SYSTEM RESET statement_timeout");
    cluster.ok(&["down"]);
    cluster.up(&["--pg-set", "work_mem=9MB"]);
    assert_eq!(
        (shown(&cluster, "work_mem"), shown(&cluster, "statement_timeout")),
        ("9MB".into(), "0".into())
    );
}

#[test]
fn a_kept_file_that_keeps_the_server_from_starting_can_be_done_without() {
    let cluster = TestCluster::start(&[]);
    run(&cluster, "ALTER SYSTEM SET shared_buffers = '7TB'");
    edit(&cluster, "pg_hba.conf", "nonsense");
    reload_until_kept(&cluster, "pg_hba.conf");
    cluster.ok(&["down"]);
    let port = cluster.port.to_string();
    let said = cluster.fails(&["up", "--detach", "--port", &port]);
    assert!(said.contains("--pg-set borealis.kept_files=off"), "{said}");
    cluster.run(&["down"]);
    // The settings are not taken over, and the rules of who may enter are: they are to blame, too.
    let said = cluster.fails(&["up", "--detach", "--port", &port, "--pg-set", "borealis.kept_files=off"]);
    assert!(said.contains("borealis.kept_files=none"), "{said}");
    cluster.run(&["down"]);
    cluster.up(&["--pg-set", "borealis.kept_files=none"]);
    assert!(!text_of(&cluster, "pg_hba.conf").contains("nonsense"));
    // What is written now takes the place of what was kept.
    run(&cluster, "ALTER SYSTEM SET work_mem = '7MB'");
    edit(&cluster, "pg_hba.conf", "local kept all reject");
    reload_until_kept(&cluster, "pg_hba.conf");
    cluster.ok(&["down"]);
    cluster.up(&["--pg-set", "borealis.kept_files="]);
    assert_eq!(shown(&cluster, "work_mem"), "7MB");
    let rules = text_of(&cluster, "pg_hba.conf");
    assert!(rules.contains("local kept all reject") && !rules.contains("nonsense"), "{rules}");
}

#[test]
fn a_file_that_is_too_long_is_refused_or_said() {
    let cluster = TestCluster::start(&[]);
    // A value of a hundred thousand bytes is one that PostgreSQL allows; six of them are too much for the file.
    let mut failed = None;
    for number in 0..7 {
        let value = "x".repeat(100_000);
        let sql = format!("ALTER SYSTEM SET long.setting{number} = '{value}'");
        let mut client = cluster.connect();
        client.batch_execute(&format!("SET long.setting{number} = ''")).expect("a setting of nobody's");
        if let Err(error) = client.batch_execute(&sql) {
            failed = error.as_db_error().map(|error| error.message().to_owned());
            break;
        }
    }
    let error = failed.expect("the file is too long at last");
    assert!(error.contains("File too large"), "{error}");
    run(&cluster, "ALTER SYSTEM RESET ALL");
    run(&cluster, "ALTER SYSTEM SET work_mem = '7MB'");
    edit(&cluster, "pg_hba.conf", &format!("# {}", "x".repeat(600 << 10)));
    run(&cluster, "SELECT pg_reload_conf()");
    cluster.eventually("it is said", Duration::from_secs(20), || {
        let log = fs::read_to_string(cluster.dir().join("instances/1/postgres.log")).expect("read");
        log.contains("borealis: pg_hba.conf is longer than 524288 bytes and is not kept")
    });
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    assert_eq!(shown(&cluster, "work_mem"), "7MB");
    assert!(text_of(&cluster, "pg_hba.conf").len() < 100_000);
}

#[test]
fn statistics_outlive_an_orderly_stop_as_they_do_elsewhere() {
    let cluster = TestCluster::start(&[]);
    run(&cluster, "CREATE TABLE counted (n int); INSERT INTO counted SELECT generate_series(1, 1234)");
    let inserted = || -> i64 {
        let sql = "SELECT coalesce(pg_stat_get_tuples_inserted('counted'::regclass), 0)";
        cluster.connect().query_one(sql, &[]).expect("asked").get(0)
    };
    cluster.eventually("the rows are counted", Duration::from_secs(20), || inserted() == 1234);
    for _ in 0..2 {
        cluster.ok(&["down"]);
        cluster.up(&[]);
        assert_eq!(inserted(), 1234);
    }
    cluster.ok(&["verify"]);
    // After a crash, PostgreSQL counts anew, wherever its files are.
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    assert_eq!(inserted(), 0);
}
