//! Ordinary use: what a person does with a PostgreSQL, and what must not be found on its disk.

mod harness;

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use harness::TestCluster;

#[test]
fn tpcb_runs_and_its_sums_agree() {
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "20"]);
    let text = cluster.client_program("pgbench", &["-n", "-c", "8", "-T", "30", "-M", "prepared"]);
    assert!(text.contains("number of failed transactions: 0"), "{text}");
    println!("{text}");
    cluster.assert_balances_agree();
    assert_nothing_durable(&cluster);
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);
}

/// No WAL segment and no relation file lies below the instance's directory, and every one that a server
/// process has open is on a memory file system.
fn assert_nothing_durable(cluster: &TestCluster) {
    let status = cluster.status();
    let data = PathBuf::from(status["instances"][0]["data_dir"].as_str().expect("a data directory"));
    for folder in ["pg_wal", "base", "global", "pg_xact"] {
        assert_on_memory(&data.join(folder));
    }
    let mut folders = vec![cluster.dir().join("instances")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("listed") {
            let entry = entry.expect("listed");
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("known");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if !kind.is_symlink() && !kind.is_socket() {
                assert!(!looks_like_data(&name), "{} is on the instance's disk", entry.path().display());
            }
        }
    }
    // What the server's processes have open right now.
    let postmaster = status["instances"][0]["postgres_pid"].as_u64().expect("running");
    let mut seen = 0;
    for process in children_and_self(postmaster) {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
            let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if target.starts_with(&data) && looks_like_data(&name) && target.exists() {
                assert_on_memory(&target);
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no open data file was found to check");
}

fn assert_on_memory(path: &Path) {
    let kind = nix::sys::statfs::statfs(path).expect("a file system").filesystem_type();
    assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC, "{} is not on a memory file system", path.display());
}

/// A WAL segment (24 hexadecimal digits) or a relation file (a number, perhaps with a fork and a segment).
fn looks_like_data(name: &str) -> bool {
    let wal = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &name[digits..];
    let fork_or_segment =
        rest.is_empty() || ["_fsm", "_vm", "_init", "."].iter().any(|s| rest.starts_with(s));
    wal || (digits > 0 && fork_or_segment)
}

fn children_and_self(parent: u64) -> Vec<u64> {
    let children =
        std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|id| id.parse().ok()).chain([parent]).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one session of a user, statement after statement")]
fn everyday_sql_survives_a_crash_of_the_instance() {
    let cluster =
        TestCluster::start(&["--pg-set", "shared_buffers=16MB", "--pg-set", "max_prepared_transactions=8"]);
    let mut client = cluster.connect();
    client
        .batch_execute(
            "CREATE TABLE people (id serial PRIMARY KEY, name text, born date, notes jsonb);
             CREATE INDEX people_by_name ON people (name);
             INSERT INTO people (name, born, notes) SELECT 'person ' || n, date '1970-01-01' + n % 9000, \
                 jsonb_build_object('n', n, 'long', repeat(md5(n::text), n % 100)) FROM generate_series(1, 20000) n;
             UPDATE people SET name = upper(name) WHERE id % 7 = 0;
             DELETE FROM people WHERE id % 11 = 0;
             CREATE UNLOGGED TABLE scratch (n int); INSERT INTO scratch SELECT generate_series(1, 1000);
             CREATE SEQUENCE counter; SELECT nextval('counter') FROM generate_series(1, 100);
             CREATE MATERIALIZED VIEW summary AS SELECT id % 10 AS part, count(*) FROM people GROUP BY 1;
             CREATE TABLE parent (id int PRIMARY KEY);
             CREATE TABLE child (id int REFERENCES parent, v text) PARTITION BY RANGE (id);
             CREATE TABLE child_1 PARTITION OF child FOR VALUES FROM (0) TO (1000);
             INSERT INTO parent SELECT generate_series(0, 999);
             INSERT INTO child SELECT g, repeat('x', g) FROM generate_series(0, 999) g;
             TRUNCATE child; INSERT INTO child SELECT g, 'again' FROM generate_series(0, 499) g;
             ALTER TABLE people ADD COLUMN extra int DEFAULT 42; ALTER TABLE people ALTER COLUMN born TYPE timestamp;
             CLUSTER people USING people_pkey; REINDEX TABLE people",
        )
        .expect("everyday SQL");
    client.batch_execute("VACUUM ANALYZE people").expect("vacuumed");
    // A tablespace on the user's disk: its relations are in the volume like all others.
    let elsewhere = cluster.postgres_folder("elsewhere");
    let create = format!("CREATE TABLESPACE elsewhere LOCATION '{}'", elsewhere.display());
    client.batch_execute(&create).expect("a tablespace");
    client
        .batch_execute("CREATE TABLE far TABLESPACE elsewhere AS SELECT generate_series(1, 5000) n")
        .expect("a table elsewhere");
    client.batch_execute("CREATE DATABASE fourth TABLESPACE elsewhere").expect("a database elsewhere");
    let there: Vec<_> = std::fs::read_dir(&elsewhere).expect("listed").flatten().map(|e| e.path()).collect();
    assert!(there.is_empty(), "pages went to the user's disk: {there:?}");
    client.batch_execute("CREATE DATABASE second").expect("a database");
    client.batch_execute("CREATE DATABASE third STRATEGY file_copy").expect("a database by file copy");
    client
        .batch_execute("BEGIN; INSERT INTO parent VALUES (5000); PREPARE TRANSACTION 'open'")
        .expect("prepared");
    let checks = [
        "SELECT count(*)::bigint, sum(hashtext(people::text)::bigint)::bigint FROM people",
        "SELECT count(*)::bigint, sum(hashtext(child::text)::bigint)::bigint FROM child",
        "SELECT count(*)::bigint, sum(count)::bigint FROM summary",
        "SELECT count(*)::bigint, sum(n)::bigint FROM far",
        "SELECT count(*)::bigint, sum(length(prosrc))::bigint FROM pg_proc",
    ];
    let answers = |client: &mut postgres::Client| -> Vec<(i64, i64)> {
        checks
            .iter()
            .map(|sql| client.query_one(*sql, &[]).map(|row| (row.get(0), row.get(1))).expect(sql))
            .collect()
    };
    let before = answers(&mut client);
    drop(client);

    cluster.ok(&["instance", "kill"]);
    std::fs::remove_dir_all(cluster.dir().join("instances")).expect("deleted");
    cluster.ok(&["instance", "start"]);

    let mut client = cluster.connect();
    assert_eq!(answers(&mut client), before);
    let unlogged: i64 = client.query_one("SELECT count(*) FROM scratch", &[]).expect("readable").get(0);
    assert_eq!(unlogged, 0, "an unlogged table is empty after a crash, as PostgreSQL promises");
    client.batch_execute("INSERT INTO scratch VALUES (1)").expect("an unlogged table works after a crash");
    let next: i64 = client.query_one("SELECT nextval('counter')", &[]).expect("a number").get(0);
    assert!(next > 100, "a sequence went backwards: {next}");
    client.batch_execute("COMMIT PREPARED 'open'").expect("a prepared transaction outlives the instance");
    let committed: i64 =
        client.query_one("SELECT count(*) FROM parent WHERE id = 5000", &[]).expect("readable").get(0);
    assert_eq!(committed, 1);
    for database in ["second", "third", "fourth"] {
        let text =
            cluster.client_program("psql", &["-d", database, "-Atc", "SELECT count(*) > 300 FROM pg_class"]);
        assert!(text.contains("\nt\n"), "{database}: {text}");
    }
    client.batch_execute("DROP DATABASE second").expect("dropped");
    client.batch_execute("DROP DATABASE fourth").expect("dropped");
    client.batch_execute("DROP TABLE far").expect("dropped");
    client.batch_execute("DROP TABLESPACE elsewhere").expect("an empty tablespace is dropped");
    cluster.assert_amcheck_clean();
    cluster.ok(&["verify"]);
}
