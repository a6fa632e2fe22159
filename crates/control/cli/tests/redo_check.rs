//! `borealis redo-check` on the WAL of a stock server: what is right, what was made wrong, and what cannot be checked.
//!
//! `BOREALIS_TEST_PG_BIN` names the folder with the server's programs, if not the installed ones.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use borealis_types::{Lsn, ServerVersion};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};

/// Where distributions put PostgreSQL 15's programs.
const INSTALLED_PG_BIN: &str = "/usr/lib/postgresql/15/bin";
const SEGMENT_BYTES: usize = 16 << 20;

const WORKLOAD: &str = "
create table t (i int primary key, b text, a int[], p point);
create index on t using hash (b);
create index on t using gin (a);
create index on t using gist (p);
create index on t using spgist (p);
create index on t using brin (i) with (pages_per_range = 1);
insert into t select i, 'value ' || i, array[i, i % 10], point(i, i % 7) from generate_series(1, 2000) i;
update t set b = b || '!' where i % 3 = 0;
delete from t where i % 5 = 0;
vacuum t;
select nextval(s) from (select 't_s'::regclass s) s;
";

/// The folder of the server's programs.
fn pg_bin() -> PathBuf {
    std::env::var_os("BOREALIS_TEST_PG_BIN").unwrap_or_else(|| INSTALLED_PG_BIN.into()).into()
}

/// A stock server in a temporary folder, ended with the test.
struct Stock {
    folder: tempfile::TempDir,
}

impl Stock {
    fn start(settings: &str) -> Stock {
        let folder = tempfile::Builder::new().prefix("borealis-test-").tempdir().expect("temporary folder");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
            nix::unistd::chown(folder.path(), Some(user.uid), Some(user.gid)).expect("given");
        }
        let stock = Stock { folder };
        let data = stock.data();
        let data = data.to_str().expect("a name");
        stock.run("initdb", &["--no-sync", "-A", "trust", "-U", "postgres", "--no-instructions", "-D", data]);
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(stock.data().join("postgresql.conf"))
            .expect("a configuration");
        writeln!(
            file,
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nautovacuum = off\n\
             wal_level = replica\nshared_buffers = 16MB\ndynamic_shared_memory_type = mmap\n{settings}",
            stock.folder.path().display()
        )
        .expect("written");
        let log = stock.folder.path().join("log");
        stock.run("pg_ctl", &["-D", data, "-w", "-s", "-l", log.to_str().expect("a name"), "start"]);
        // Not with `eprintln`, which is shown for failed tests only.
        let _ = writeln!(std::io::stderr(), "PostgreSQL {} from {}", stock.release(), pg_bin().display());
        stock
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn wal(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    fn command(&self, program: &str) -> Command {
        let program = pg_bin().join(program);
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path()).env("PGHOST", self.folder.path()).env("PGUSER", "postgres");
        command.env("PGDATABASE", "postgres");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().expect("the program runs");
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn sql(&self, script: &str) -> String {
        self.run("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", script])
    }

    fn work(&self) {
        self.sql("create sequence t_s");
        for statement in WORKLOAD.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            self.sql(statement);
        }
    }

    /// Like `15.18`.
    fn release(&self) -> String {
        let number = self.sql("select current_setting('server_version_num')").parse().expect("a number");
        ServerVersion::new(number).expect("a release of 15").to_string()
    }

    fn stop(&self) {
        self.run("pg_ctl", &["-D", self.data().to_str().expect("a name"), "-w", "-s", "-m", "fast", "stop"]);
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl")
            .arg("-D")
            .arg(self.data())
            .args(["-w", "-s", "-m", "immediate", "stop"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn redo_check(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_borealis"))
        .arg("redo-check")
        .args(arguments)
        .output()
        .expect("the borealis program runs")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// Changes one byte of a tuple's data in the image of a heap block, and makes the record's checksum right again.
/// The position of the record.
fn corrupt_an_image(segment: &Path, start: Lsn) -> Lsn {
    let mut bytes = std::fs::read(segment).expect("a segment");
    let segment_start = Lsn(start.0 - start.0 % SEGMENT_BYTES as u64);
    let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, start, Lsn::ZERO);
    let window = WalWindow { start: segment_start, bytes: &bytes };
    let (at, length, image_in_record) = loop {
        let Next::Record(record) = decoder.next(&window).expect("a stream") else { panic!("no such record") };
        let offset = (record.span.start.0 - segment_start.0) as usize;
        // On one page, so that its bytes stand in one piece in the file.
        let in_place = bytes.get(offset..offset + record.bytes.len()) == Some(record.bytes);
        let image = record.blocks.first().and_then(|block| block.image).filter(|image| !image.apply);
        // An insertion on a page that earlier records made known: not the first, which has nothing to compare.
        if let Some(image) = image
            && in_place
            && record.resource_manager.name() == "Heap"
            && record.blocks[0].key.relation_fork.locator.relation >= 16384
            && record.info & 0xF0 == 0
        {
            let image_at = image.bytes.as_ptr() as usize - record.bytes.as_ptr() as usize;
            break (record.span.start, record.bytes.len(), image_at + image.bytes.len() - 1);
        }
    };
    let offset = (at.0 - segment_start.0) as usize;
    bytes[offset + image_in_record] ^= 0x40;
    let record = &bytes[offset..offset + length];
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
    bytes[offset + 20..offset + 24].copy_from_slice(&checksum.to_le_bytes());
    let file = std::fs::OpenOptions::new().write(true).open(segment).expect("a segment");
    file.write_all_at(&bytes, 0).expect("written");
    at
}

#[test]
fn a_stock_servers_wal_is_right_and_a_forged_image_is_found() {
    let server =
        Stock::start("wal_consistency_checking = 'all'\nfull_page_writes = off\nmax_wal_size = 10GB");
    server.work();
    // Small records for the forgery, in a segment of their own.
    server.sql("create table small (a int, b int)");
    server.sql("select pg_switch_wal()");
    let begin: Lsn = server.sql("select pg_current_wal_insert_lsn()").parse().expect("a position");
    server.sql("insert into small values (1, 1)");
    server.sql("insert into small values (2, 2)");
    let end: Lsn = server.sql("select pg_current_wal_insert_lsn()").parse().expect("a position");
    let wal = server.wal();
    let wal = wal.to_str().expect("a name");

    let output = redo_check(&[wal]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let table = text(&output);
    for words in [["Heap", "INSERT"], ["Btree", "INSERT_LEAF"], ["Hash", "INSERT"], ["BRIN", "CREATE_INDEX"]]
    {
        let line = table.lines().find(|line| line.split_whitespace().take(2).eq(words));
        assert!(line.is_some(), "{words:?} is missing from\n{table}");
    }
    assert!(table.contains("0 differences, 0 skipped, 0 failed"), "{table}");
    let release = server.release();
    assert!(table.contains(&format!("redo of PostgreSQL {release}, as ")), "{table}");
    assert!(table.contains("postgres says, which runs there"), "{table}");
    // What the running server itself is counts, whatever its files name by now.
    let options = server.data().join("postmaster.opts");
    let named = std::fs::read(&options).expect("the server wrote it");
    std::fs::write(&options, "/nowhere/postgres \"-D\" \"x\"\n").expect("written");
    let output = redo_check(&[wal]);
    assert!(text(&output).contains("postgres says, which runs there"), "{}", text(&output));
    std::fs::write(&options, named).expect("written");

    let output = redo_check(&["--json", "--memory-mib", "1", wal]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = json(&output);
    assert_eq!(report["clean"], true);
    assert_eq!(report["server_version"], release.as_str());
    assert!(report["total"]["compared"].as_u64().is_some_and(|compared| compared > 1000), "{report}");
    let output = redo_check(&["--require-all-operations", wal]);
    assert_eq!(output.status.code(), Some(1), "a short workload does not write everything");
    assert!(text(&output).contains("not seen: "), "{}", text(&output));

    // The stop writes more; it is not looked at.
    server.stop();
    let (from, to) = (begin.to_string(), end.to_string());
    let part = ["--json", "--start-lsn", &from, "--end-lsn", &to, wal];
    let output = redo_check(&part);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    let records = report["total"]["records"].as_u64().expect("a number");
    assert!((4..50).contains(&records), "{report}");

    let number = begin.0 / SEGMENT_BYTES as u64;
    let segment = server.wal().join(format!("0000000100000000{number:08X}"));
    let at = corrupt_an_image(&segment, begin);
    let output = redo_check(&["--json", wal]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report = json(&output);
    assert_eq!(report["total"]["different"], 1, "{report}");
    let problem = &report["problems"][0];
    assert_eq!(problem["record"], format!("{at} Heap/INSERT"));
    assert_eq!(problem["field"], "item 1, tuple data");
    assert_eq!((&problem["offset"], &problem["different_bytes"]), (&8191.into(), &1.into()));
    let output = redo_check(&[wal]);
    assert!(text(&output).contains(&format!("{at} Heap/INSERT")), "{}", text(&output));
}

#[test]
fn the_redo_of_another_release_is_found_to_differ() {
    let server =
        Stock::start("wal_consistency_checking = 'all'\nfull_page_writes = off\nmax_wal_size = 10GB");
    server.sql("create table t (p point) with (autovacuum_enabled = off)");
    server.sql("create index on t using gist (p)");
    server.sql("insert into t select point(i, i % 7) from generate_series(1, 1000) i");
    // Vacuum removes tuples from the index's leaves, which releases mark differently.
    server.sql("delete from t where p[0] < 500");
    server.sql("vacuum t");
    let wal = server.wal();
    let wal = wal.to_str().expect("a name");
    let different = |server_version: &str| {
        let report = json(&redo_check(&["--json", "--server-version", server_version, wal]));
        report["total"]["different"].as_u64().expect("a number")
    };
    assert_eq!(different(&server.release()), 0);
    let furthest = ["15.0".to_owned(), ServerVersion::NEWEST_TESTED.to_string()];
    assert!(
        furthest.iter().any(|other| different(other) > 0),
        "one of them is on the other side of the change"
    );
}

#[test]
fn wal_without_images_is_a_mistake_of_the_callers() {
    let server = Stock::start("");
    server.work();
    server.stop();
    let data = server.data();
    let output = redo_check(&[data.to_str().expect("a name")]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("wal_consistency_checking = all"), "{}", text(&output));
}

#[test]
fn wal_away_from_its_server_needs_to_be_told_the_release() {
    let server = Stock::start("wal_consistency_checking = 'all'");
    server.sql("create table t as select generate_series(1, 1000) i");
    server.stop();
    let archive = tempfile::tempdir().expect("temporary folder");
    let segment = "000000010000000000000001";
    std::fs::copy(server.wal().join(segment), archive.path().join(segment)).expect("copied");
    let archive = archive.path().to_str().expect("a name");
    let output = redo_check(&[archive]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for part in ["does not say which release", "--server-version"] {
        assert!(text(&output).contains(part), "{}", text(&output));
    }
    let output = redo_check(&["--server-version", "15.20", archive]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains("redo of PostgreSQL 15.20, as --server-version says"),
        "{}",
        text(&output)
    );
    // Where the server was, the program that it was speaks for it, but not one that came later.
    let wal = server.wal();
    let wal = wal.to_str().expect("a name");
    let output = redo_check(&[wal]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("postgres says, which last ran there"), "{}", text(&output));
    let options = std::fs::File::options().write(true).open(server.data().join("postmaster.opts"));
    options.expect("the server wrote it").set_modified(std::time::UNIX_EPOCH).expect("the time is set");
    let output = redo_check(&[wal]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for part in ["is newer than the last start", "--server-version"] {
        assert!(text(&output).contains(part), "{}", text(&output));
    }
}

#[test]
fn what_is_no_wal_is_a_mistake_of_the_callers() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("0000000100000000000000AA");
    std::fs::write(&file, "the quick brown fox jumps over the lazy dog").expect("written");
    let file = file.to_str().expect("a name");
    let folder = folder.path().to_str().expect("a name");
    for (arguments, said) in [
        (&[file][..], "not a WAL segment file"),
        (&[folder], "not a WAL segment file"),
        (&["/nowhere/at/all"], "/nowhere/at/all"),
        (&[], "required"),
        (&["--live", file], "cannot be used with"),
        (&["--start-lsn", "many", file], "--start-lsn"),
        (&["--server-version", "14.9", file], "not a release of PostgreSQL 15"),
        (&["--live", "--server-version", "15.20"], "cannot be used with"),
        (&["--connect", "postgresql:///", "--start-lsn", "0/1"], "--start-lsn"),
    ] {
        let output = redo_check(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(said), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn a_running_servers_stream_is_followed() {
    let server = Stock::start("wal_consistency_checking = 'all'");
    server.sql("create table t (i int)");
    let url = format!("postgresql:///postgres?user=postgres&host={}", server.folder.path().display());
    let follower = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["redo-check", "--json", "--seconds", "4", "--connect", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the borealis program runs");
    for _ in 0..20 {
        server.sql("insert into t select generate_series(1, 100)");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    server.sql("select pg_switch_wal()");
    server.sql("insert into t select generate_series(1, 100)");
    let output = follower.wait_with_output().expect("it ends by itself");
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["server_version"], server.release().as_str());
    let compared = report["total"]["compared"].as_u64().expect("a number");
    assert!(compared > 1500, "{report}");
}
