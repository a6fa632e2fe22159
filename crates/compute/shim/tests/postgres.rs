//! Stock PostgreSQL on absent files, with a driver made of a folder: what the shim promises, end to end.
#![allow(unsafe_code)] // Signals and poll, in the harness.
#![allow(clippy::unwrap_used)] // The harness is test code too; only its callers are test functions.

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use harness::{Instance, output_within};

#[test]
fn a_server_without_the_shim_does_not_start() {
    let instance = Instance::start("bare");
    assert_eq!(
        instance.server.sql("postgres", "SELECT state FROM pg_control_system(), (VALUES ('read')) v(state)"),
        "read"
    );
    instance.server.sql("postgres", "CHECKPOINT");
    let said = instance.start_without_shim();
    assert!(said.contains("could not find the database system"), "{said}");
}

#[test]
fn a_program_of_the_server_is_not_shown_holes_as_zeros() {
    let instance = Instance::start("programs");
    let server = &instance.server;
    let file = server.sql("postgres", "SELECT pg_relation_filepath('stored')");
    server.sql("postgres", "CREATE TABLE said (line text); SELECT id FROM stored LIMIT 1");
    let name = file.rsplit('/').next().unwrap();
    let folder = file.strip_suffix(name).unwrap();
    // However the program gets there (relative, absolute, from within the folder, over a link) and whatever function
    // it opens files with: `tar` and `python3` are compiled with checks, `uniq` reopens its input.
    let absolute = instance.data().join(&file);
    let link = instance.folder("links").join("innocent");
    std::os::unix::fs::symlink(&absolute, &link).unwrap();
    for program in [
        format!("head -c 10 {file}"),
        format!("head -c 10 {}", absolute.display()),
        format!("cd {folder} && head -c 10 {name}"),
        format!("cd / && head -c 10 {}/../{file}", instance.data().join("global").display()),
        format!("head -c 10 {}", link.display()),
        "head -c 10 pg_xact/0000".to_owned(),
        format!("tar cf /dev/null {file} && tar cf - {file} | wc -c"),
        format!("cp {file} /dev/null"),
        format!("uniq {file} | wc -c"),
        format!("cat < {file} | wc -c"),
        format!("perl -e \"open(F, q({file})) or die qq(not opened: \\$!); print length(<F>)\""),
    ] {
        let before = server.log_text().len();
        let shell = format!("set -e; {program}");
        let copy = format!("COPY said FROM PROGRAM '{}'", shell.replace('\'', "''"));
        let output = server.client("psql").args(["-X", "-c", &copy]).output().unwrap();
        let log = server.log_text();
        assert!(
            log[before..].contains("borealis: a program started by the server may not read"),
            "{program}: {log}"
        );
        let is_pipeline = program.contains("| wc");
        assert!(is_pipeline || !output.status.success(), "{program}");
    }
    server.sql("postgres", "TRUNCATE said");
    // What has no holes is a program's to read, and others go on as ever.
    assert_eq!(
        server.sql(
            "postgres",
            "COPY said FROM PROGRAM 'cat PG_VERSION; cat /etc/hostname > /dev/null'; SELECT * FROM said"
        ),
        "15"
    );
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM stored"), "100000");
}

#[test]
fn ordinary_work_runs_on_files_that_are_not_there() {
    let instance = Instance::start("work");
    let server = &instance.server;
    let sql = |text: &str| server.sql("postgres", text);

    // Nothing but what the first queries needed is local.
    let served = instance.controls.blocks_served.load(Ordering::Relaxed);
    assert!(served > 0 && served < 1000, "{served} blocks fetched to connect");

    // Stored data: sizes, sequential and index reads, a hash index with its holes.
    assert_eq!(sql("SELECT pg_relation_size('stored') / 8192 > 1000"), "t");
    assert_eq!(sql("SELECT count(*), sum(id) FROM stored"), "100000|5000050000");
    assert!(instance.controls.prefetches.load(Ordering::Relaxed) > 100, "the scan did not look ahead");
    assert_eq!(sql("SET enable_bitmapscan = off; SELECT length(filler) FROM stored WHERE id = 4711"), "100");
    let before = instance.controls.blocks_served.load(Ordering::Relaxed);
    assert_eq!(sql("SELECT count(*) FROM stored"), "100000");
    let again = instance.controls.blocks_served.load(Ordering::Relaxed) - before;
    assert!(again < 20, "{again} blocks fetched again, though shared buffers are smaller than the table");

    // An unlogged table is empty after a restart, and works.
    assert_eq!(sql("SELECT count(*) FROM stored_unlogged"), "0");
    assert_eq!(
        sql(
            "INSERT INTO stored_unlogged SELECT generate_series(1, 5000); SELECT count(*) FROM stored_unlogged"
        ),
        "5000"
    );

    // Definitions of every kind.
    sql("CREATE TABLE fresh (id int, t text); INSERT INTO fresh SELECT i, i::text FROM generate_series(1, 50000) i;
         CREATE INDEX ON fresh USING hash (id); CREATE INDEX ON fresh USING gist (point(id, id));
         CREATE INDEX ON fresh USING gin (to_tsvector('simple', t)); CREATE INDEX ON fresh USING brin (id);
         CREATE INDEX ON fresh USING spgist (t); CREATE UNIQUE INDEX ON fresh (id);
         CREATE UNLOGGED TABLE fresh_unlogged AS SELECT * FROM fresh;
         CREATE TEMP TABLE passing AS SELECT * FROM fresh; SELECT count(*) FROM passing");
    assert_eq!(sql("DELETE FROM fresh WHERE id % 2 = 0; SELECT count(*) FROM fresh"), "25000");
    assert_eq!(
        sql(
            "BEGIN; CREATE TABLE gone AS SELECT * FROM fresh; ROLLBACK; SELECT count(*) FROM pg_class WHERE relname = 'gone'"
        ),
        "0"
    );
    sql("VACUUM fresh");
    sql("VACUUM FULL stored");
    sql("TRUNCATE fresh_unlogged; ALTER TABLE fresh_unlogged SET LOGGED");
    sql("UPDATE stored SET filler = 'y' WHERE id <= 1000; DELETE FROM stored WHERE id > 500");
    sql("VACUUM stored");
    sql("INSERT INTO stored SELECT i, 'z' FROM generate_series(200001, 260000) i");
    assert_eq!(sql("SELECT count(*) FROM stored"), "60500");
    sql("CHECKPOINT");

    // A tablespace, and moving a table there and back.
    let space = instance.folder("space");
    sql(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", space.display()));
    sql("ALTER TABLE stored SET TABLESPACE elsewhere");
    assert_eq!(sql("SELECT count(*) FROM stored"), "60500");
    sql("ALTER TABLE stored SET TABLESPACE pg_default");
    sql("DROP TABLESPACE elsewhere");

    // Reading a file's bytes from SQL sees blocks that are still in storage.
    assert_eq!(
        sql(
            "SELECT encode(substr(pg_read_binary_file(pg_relation_filepath('pg_description')), 19, 2), 'hex')"
        ),
        "0420",
        "page size and version of the first page"
    );

    // Reads past shared buffers fill the cache too, and do not bring back older blocks.
    sql("CREATE EXTENSION pg_prewarm; UPDATE stored SET filler = 'newer' WHERE id = 1;
         SELECT pg_prewarm('stored', 'read'), pg_prewarm('stored', 'prefetch'), pg_prewarm('stored', 'buffer')");
    assert_eq!(sql("SELECT filler FROM stored WHERE id = 1"), "newer");

    server.run("pgbench", &["-i", "-q", "-s", "1"]);
    server.run("pgbench", &["-T", "3", "-c", "4"]);
    let balances = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)
                       AND (SELECT sum(delta) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)";
    assert_eq!(sql(balances), "t");

    sql("CREATE EXTENSION amcheck");
    server.run("pg_amcheck", &["--heapallindexed", "-d", "postgres"]);

    // A base backup reads many blocks at once, most of which are still in storage.
    let backup = instance.backup_folder();
    server.run("pg_basebackup", &["-D", &backup.display().to_string(), "-c", "fast"]);
    let plain = instance.plain_server(&backup);
    assert_eq!(plain.sql("postgres", balances), "t");
    assert_eq!(plain.sql("postgres", "SELECT count(*) FROM stored"), "60500");
    plain.run("pg_amcheck", &["--all", "--install-missing"]);
}

#[test]
fn databases_are_copied_and_dropped() {
    let instance = Instance::start("databases");
    let server = &instance.server;
    let sql = |text: &str| server.sql("postgres", text);
    sql("CREATE DATABASE by_log TEMPLATE stored_database STRATEGY wal_log");
    sql("CREATE DATABASE by_copy TEMPLATE stored_database STRATEGY file_copy");
    sql("CREATE DATABASE of_template0 TEMPLATE template0 STRATEGY file_copy");
    assert!(instance.controls.listings.load(Ordering::Relaxed) > 2, "no folder was listed");
    for database in ["by_log", "by_copy", "of_template0", "stored_database"] {
        assert_eq!(server.sql(database, "SELECT count(*) > 300 FROM pg_class"), "t", "{database}");
        assert_eq!(server.sql(database, "CREATE TABLE t AS SELECT 7 AS n; SELECT n FROM t"), "7");
    }
    server.sql("by_copy", "CREATE EXTENSION amcheck");
    server.run("pg_amcheck", &["-d", "by_copy"]);
    assert_eq!(
        sql("SELECT pg_database_size('of_template0') BETWEEN 6000000 AND 12000000"),
        "t",
        "the size of a database counts files that are not local"
    );
    for database in ["by_log", "by_copy", "stored_database"] {
        let oid = sql(&format!("SELECT oid FROM pg_database WHERE datname = '{database}'"));
        sql(&format!("DROP DATABASE {database}"));
        assert!(!instance.data().join("base").join(oid).exists(), "{database} left a folder");
    }
}

#[test]
fn a_commit_returns_only_after_it_is_durable_and_is_not_cancelled_meanwhile() {
    let instance = Instance::start("commit");
    let server = &instance.server;
    server.sql("postgres", "CREATE TABLE t (n int); INSERT INTO t VALUES (0)");
    // Cancelling needs no log of its own, but the connection's first look at the catalogues may.
    server.sql("postgres", "SELECT pg_cancel_backend(pg_backend_pid() + 1000000)");

    instance.controls.hold_acknowledgements(true);
    let mut waiting = server.begin_sql("INSERT INTO t VALUES (1) RETURNING pg_backend_pid()");
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.try_wait().unwrap().is_none(), "committed without being durable");

    let cancel =
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO t%'";
    let cancelled = output_within(server.begin_sql(cancel), Duration::from_secs(5));
    assert_eq!(String::from_utf8_lossy(&cancelled.stdout).trim(), "1");
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.try_wait().unwrap().is_none(), "a cancelled commit returned before it was durable");

    instance.controls.hold_acknowledgements(false);
    let released = Instant::now();
    let output = output_within(waiting, Duration::from_secs(5));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(released.elapsed() < Duration::from_secs(2), "released late");
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM t"), "2");
}

#[test]
fn a_fenced_instance_stops_and_says_why() {
    let mut instance = Instance::start("fence");
    instance.server.sql("postgres", "CREATE TABLE t (n int)");
    instance.controls.hold_acknowledgements(true);
    let waiting = instance.server.begin_sql("INSERT INTO t VALUES (1)");
    std::thread::sleep(Duration::from_millis(300));
    instance.controls.fence(42);
    let output = output_within(waiting, Duration::from_secs(10));
    assert!(!output.status.success(), "a fenced instance committed");
    let status = instance.server.wait(Duration::from_secs(10)).expect("postgres should have stopped");
    assert!(!status.success());
    let log = instance.server.log_text();
    assert!(log.contains("borealis: this instance was fenced by a newer writer (epoch 42)"), "{log}");
    assert!(log.contains("PANIC"), "{log}");
}

#[test]
fn a_read_that_storage_cannot_serve_is_an_error_and_the_next_one_works() {
    let instance = Instance::start("refused");
    let server = &instance.server;
    server.sql("postgres", "SELECT count(*) FROM pg_class");
    server.sql("postgres", "SELECT 'stored'::regclass; SELECT pg_relation_size('stored')");
    instance.controls.refuse_reads(true);
    let output = output_within(server.begin_sql("SELECT count(*) FROM stored"), Duration::from_secs(5));
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("Input/output error"), "{text}");
    let log = server.log_text();
    assert!(log.contains("three of six peers are down"), "{log}");
    instance.controls.refuse_reads(false);
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM stored"), "100000");
}

#[test]
fn a_shell_started_by_the_server_is_left_alone_and_a_server_without_a_driver_refuses() {
    let instance = Instance::start("shell");
    let server = &instance.server;
    // The shell and its tools inherit LD_PRELOAD; they see the data directory as it is.
    let listed = server.sql(
        "postgres",
        "CREATE TEMP TABLE o (line text); COPY o FROM PROGRAM 'test -e PG_VERSION && test ! -e global/pg_control && echo fine'; SELECT line FROM o",
    );
    assert_eq!(listed, "fine");

    let library = std::env::current_exe().unwrap().with_file_name("libborealis_shim.so");
    let output = Command::new(harness::binary("postgres"))
        .arg("--version")
        .env("LD_PRELOAD", library)
        .env("BOREALIS_SHM", "/nonexistent")
        .env("BOREALIS_EVENT_FD", "999")
        .output()
        .unwrap();
    assert!(!output.status.success(), "postgres ran without its driver");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("borealis: cannot use the shared memory /nonexistent"), "{text}");
    // Local files exist only for what was touched.
    let base = instance.data().join("base");
    let sparse = fs::read_dir(base)
        .unwrap()
        .flat_map(|database| fs::read_dir(database.unwrap().path()).unwrap())
        .map(|file| file.unwrap().metadata().unwrap())
        .filter(|file| file.size() > file.blocks() * 512)
        .count();
    assert!(sparse > 0, "no file is sparse");
}
