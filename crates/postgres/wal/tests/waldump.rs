//! The log of a real server, decoded here and by PostgreSQL's own `pg_waldump`: every record must agree.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "runs a real server and its pg_waldump"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use borealis_types::{Fork, Lsn, PAGE_SIZE, PageKey, PostgresVersion, RecordSpan, ServerVersion, SlruKind};
use borealis_wal::encode::{RecordBuilder, lay_out, shutdown_checkpoint};
use borealis_wal::layout::CheckPointRecord;
use borealis_wal::layout::wal_page::BACKUP_REMOVABLE;
use borealis_wal::page::{PageHeader, WAL_PAGE_BYTES, WalLayout};
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};
use borealis_wal::{Effect, ImageCompression, Record, ResourceManager, effects, highest_xid, xid_precedes};

const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// A page flag that nothing here writes.
const REMOVABLE: u8 = BACKUP_REMOVABLE as u8;

/// A server of its own, with its data and its socket in a temporary folder.
struct Server {
    binaries: PathBuf,
    folder: tempfile::TempDir,
}

impl Server {
    fn create() -> Server {
        let binaries = std::env::var_os("BOREALIS_POSTGRES_BIN")
            .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let server = Server { binaries, folder };
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(server.folder.path()));
        }
        server.run("initdb", &["--no-sync", "--username=postgres", "--auth=trust", "-D", &server.data()]);
        let settings = "listen_addresses=''\nfsync=off\nwal_keep_size=2GB\nmax_wal_size=2GB\n\
                        max_prepared_transactions=5\nallow_in_place_tablespaces=on\nautovacuum=off\n";
        let path = server.folder.path().join("data/postgresql.auto.conf");
        fs::write(path, settings).expect("settings can be written");
        server.start();
        server
    }

    fn start(&self) {
        let socket = format!("-k {}", self.folder.path().display());
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-l", &self.log(), "-o", &socket, "start"]);
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn log(&self) -> String {
        self.folder.path().join("log").display().to_string()
    }

    fn command(&self, program: &str) -> Command {
        let program = self.binaries.join(program);
        let mut command;
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        } else {
            command = Command::new(program);
        }
        command.current_dir(self.folder.path()).env("PGHOST", self.folder.path()).env("PGUSER", "postgres");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        run(self.command(program).args(arguments));
    }

    fn sql(&self, statements: &str) {
        let path = self.folder.path().join("statements.sql");
        fs::write(&path, statements).expect("statements can be written");
        let path = path.display().to_string();
        self.run("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", &path]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.command("pg_ctl").args(["-D", &self.data(), "-m", "immediate", "stop"]).output();
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout.trim_ascii() == b"0"
}

fn run(command: &mut Command) {
    // Files, not pipes: a server started here inherits them and would keep a pipe open.
    let errors = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let status = command
        .stdout(std::process::Stdio::null())
        .stderr(errors.reopen().expect("the file is there"))
        .status()
        .expect("the program runs");
    let text = fs::read_to_string(errors.path()).unwrap_or_default();
    assert!(status.success(), "{command:?} failed: {text}");
}

/// Makes the server write records of as many kinds as plain SQL can.
fn work(server: &Server) {
    let mut statements = String::from(
        "CREATE TABLE t (id int PRIMARY KEY, v text, p point, a int[]) WITH (fillfactor=70);
         INSERT INTO t SELECT i, repeat('x', i % 300), point(i, -i), ARRAY[i % 50, i % 7]
           FROM generate_series(1, 4000) i;
         CREATE INDEX t_hash ON t USING hash (v); CREATE INDEX t_gin ON t USING gin (a);
         CREATE INDEX t_gist ON t USING gist (p); CREATE INDEX t_spgist ON t USING spgist (p);
         CREATE INDEX t_brin ON t USING brin (id) WITH (pages_per_range=2, autosummarize=off);
         VACUUM (FREEZE) t;
         UPDATE t SET v = v || 'y' WHERE id % 3 = 0;
         UPDATE t SET a = a || id WHERE id % 5 = 0;
         VACUUM (FREEZE) t;
         SELECT count(*) FROM (SELECT * FROM t WHERE id % 40 = 1 FOR UPDATE) l;
         VACUUM t;
         DELETE FROM t WHERE id > 1000; VACUUM t; SELECT brin_summarize_new_values('t_brin');
         INSERT INTO t SELECT i, i::text FROM generate_series(5001, 5600) i;
         INSERT INTO t VALUES (5001, 'again') ON CONFLICT (id) DO UPDATE SET v = excluded.v;
         COPY t (id, v) TO '/dev/null';
         BEGIN; SAVEPOINT a; INSERT INTO t VALUES (9001); RELEASE a; SAVEPOINT b;
           INSERT INTO t VALUES (9002); ROLLBACK TO b; COMMIT;
         BEGIN; SELECT count(*) FROM (SELECT * FROM t WHERE id < 20 FOR KEY SHARE) l; SAVEPOINT s;
           UPDATE t SET v = 'locked' WHERE id < 20; COMMIT;
         BEGIN; INSERT INTO t VALUES (9100); SAVEPOINT s; INSERT INTO t VALUES (9101);
           PREPARE TRANSACTION 'one';
         BEGIN; INSERT INTO t VALUES (9200); PREPARE TRANSACTION 'two';
         COMMIT PREPARED 'one'; ROLLBACK PREPARED 'two';
         CREATE SEQUENCE q; SELECT nextval('q') FROM generate_series(1, 100);
         CREATE TABLE gone AS SELECT * FROM t; DROP TABLE gone;
         BEGIN; CREATE TABLE never AS SELECT * FROM t; ROLLBACK;
         CREATE UNLOGGED TABLE u (id int PRIMARY KEY); INSERT INTO u SELECT generate_series(1, 100);
         CREATE TABLE big (id int, v text); INSERT INTO big SELECT i, repeat(md5(i::text), 200)
           FROM generate_series(1, 300) i; TRUNCATE big;
         CLUSTER t USING t_pkey; VACUUM FULL pg_class; REINDEX TABLE t;
         CREATE TABLESPACE s LOCATION ''; ALTER TABLE t SET TABLESPACE s;
         ALTER TABLE t SET TABLESPACE pg_default;
         DROP TABLESPACE s;
         CREATE DATABASE d1 STRATEGY wal_log; CREATE DATABASE d2 STRATEGY file_copy;
         DROP DATABASE d1; DROP DATABASE d2;
         SELECT pg_logical_emit_message(true, 'p', 'm'); SELECT pg_create_restore_point('r');
         SELECT pg_switch_wal();\n",
    );
    for method in ["pglz", "lz4", "zstd"] {
        statements += &format!(
            "SET wal_compression='{method}'; CHECKPOINT; UPDATE t SET v = v || 'z'; VACUUM (FREEZE) t;\n"
        );
    }
    statements += "SET wal_consistency_checking='all'; UPDATE t SET v = 'c' WHERE id % 7 = 0; VACUUM t;\n";
    server.sql(&statements);
    server.run("pgbench", &["-i", "-s", "1", "-q", "postgres"]);
    server.run("pgbench", &["-c", "4", "-t", "100", "-n", "postgres"]);
    server.run("pg_ctl", &["-D", &server.data(), "-w", "-m", "fast", "stop"]);
}

/// What both decoders say about a record.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    resource_manager: String,
    total_bytes: usize,
    xid: u32,
    start: Lsn,
    previous: Lsn,
    /// Id, relation, fork, block, and whether there is an image to restore, one to compare with, or none.
    blocks: Vec<(u8, String, String, u32, &'static str)>,
}

fn line_of(record: &Record<'_>) -> Line {
    let blocks = record.blocks.iter().map(|block| {
        let fork = match block.key.relation_fork.fork {
            Fork::Main => "main",
            Fork::FreeSpaceMap => "fsm",
            Fork::VisibilityMap => "vm",
            Fork::Init => "init",
        };
        let image =
            block.image.map_or("", |image| if image.apply { "FPW" } else { "FPW for WAL verification" });
        (block.id, block.key.relation_fork.locator.to_string(), fork.to_owned(), block.key.block, image)
    });
    Line {
        resource_manager: record.resource_manager.name().to_owned(),
        total_bytes: record.bytes.len(),
        xid: record.xid,
        start: record.span.start,
        previous: record.previous_start,
        blocks: blocks.collect(),
    }
}

/// Reads one line that `pg_waldump` printed.
fn parse_line(text: &str) -> Line {
    let after = |mark: &str| text.split_once(mark).unwrap_or_else(|| panic!("no {mark} in {text}")).1.trim();
    let word = |mark: &str| after(mark).split([' ', ',']).next().expect("a word follows").to_owned();
    let lengths = after("len (rec/tot):");
    let total = lengths.split_once('/').expect("two lengths").1.trim().split(',').next().expect("a length");
    let mut blocks = Vec::new();
    for block in text.split("blkref #").skip(1) {
        let (id, rest) = block.split_once(": rel ").expect("a relation");
        let mut words = rest.split_whitespace();
        let relation = words.next().expect("a locator").to_owned();
        let mut fork = "main".to_owned();
        let mut word = words.next();
        if word == Some("fork") {
            fork = words.next().expect("a fork").to_owned();
            word = words.next();
        }
        assert_eq!(word, Some("blk"), "{text}");
        let number = words.next().expect("a block number").trim_end_matches(',');
        let image = match rest {
            _ if rest.contains("FPW for WAL verification") => "FPW for WAL verification",
            _ if rest.contains("FPW") => "FPW",
            _ => "",
        };
        blocks.push((
            id.parse().expect("a block id"),
            relation,
            fork,
            number.parse().expect("a block number"),
            image,
        ));
    }
    Line {
        resource_manager: word("rmgr:"),
        total_bytes: total.parse().expect("a length"),
        xid: word("tx:").parse().expect("a transaction id"),
        start: word("lsn:").parse().expect("a position"),
        previous: word("prev ").parse().expect("a position"),
        blocks,
    }
}

/// All segment files in one piece.
fn read_log(folder: &Path) -> (Lsn, Vec<u8>, Vec<String>) {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("pg_wal is there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .filter(|name| name.len() == 24)
        .collect();
    names.sort();
    let number = |digits: &str| u64::from_str_radix(digits, 16).expect("a hexadecimal number");
    let first = (number(&names[0][8..16]) << 32) | (number(&names[0][16..24]) * SEGMENT_BYTES);
    let mut bytes = Vec::new();
    for name in &names {
        bytes.extend(fs::read(folder.join(name)).expect("a segment can be read"));
    }
    (Lsn(first), bytes, names)
}

/// What was met on the way, to know that the test tests something.
#[derive(Default)]
struct Seen {
    resource_managers: BTreeSet<&'static str>,
    effects: BTreeSet<&'static str>,
    compressions: BTreeSet<&'static str>,
}

fn look_at(record: &Record<'_>, seen: &mut Seen) {
    let mut out = Vec::new();
    effects(record, &mut out).unwrap_or_else(|error| panic!("effects of {record:?}: {error}"));
    seen.resource_managers.insert(record.resource_manager.name());
    for effect in &out {
        let listed = |key: &PageKey| record.blocks.iter().any(|block| PageKey::Block(block.key) == *key);
        seen.effects.insert(match effect {
            Effect::Page(key) if listed(key) => "listed page",
            Effect::Page(PageKey::Block(block)) => {
                match (record.resource_manager, block.relation_fork.fork) {
                    (ResourceManager::Heap | ResourceManager::Heap2, Fork::VisibilityMap) => {
                        "cleared map page"
                    }
                    (ResourceManager::Storage, Fork::VisibilityMap) => "truncated map page",
                    (ResourceManager::Storage, Fork::FreeSpaceMap) => "truncated free space page",
                    _ => panic!("{effect:?} of {record:?}"),
                }
            }
            Effect::Page(PageKey::Slru { kind: SlruKind::Transactions, .. }) => "transaction page",
            Effect::Page(PageKey::Slru { .. }) => "multixact page",
            Effect::CreateRelation(_) => "create",
            Effect::TruncateRelation { .. } => "truncate",
            Effect::DropRelation(_) => "drop",
            Effect::CopyDatabase { .. } => "copy database",
            Effect::DropDatabase(_) => "drop database",
            Effect::TruncateSlru { .. } => "truncate status",
            Effect::Meta(_) => "meta",
        });
    }
    for image in record.blocks.iter().filter_map(|block| block.image) {
        seen.compressions.insert(match image.compression {
            ImageCompression::None => "none",
            ImageCompression::Pglz => "pglz",
            ImageCompression::Lz4 => "lz4",
            ImageCompression::Zstd => "zstd",
        });
        let mut page = [0xAA; PAGE_SIZE];
        image.restore(&mut page).unwrap_or_else(|error| panic!("image of {record:?}: {error}"));
        let field = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        let (lower, upper, special, size_and_version) = (field(12), field(14), field(16), field(18));
        let plausible = lower <= upper && upper <= special && special <= 8192 && size_and_version == 8192 | 4;
        assert!(plausible || page == [0; PAGE_SIZE], "a restored page of {record:?} has no page header");
    }
}

/// Takes the record apart, puts it together again and lays it out; each time the same bytes must come out.
fn check_encoding(record: &Record<'_>, at: Lsn, layout: &WalLayout, log: &WalWindow<'_>) {
    let mut builder = RecordBuilder::new(record.resource_manager, record.info)
        .xid(record.xid)
        .previous_start(record.previous_start)
        .origin(record.origin)
        .top_level_xid(record.top_level_xid)
        .main_data(record.main_data);
    for block in &record.blocks {
        builder = builder.block(*block);
    }
    assert!(builder.finish() == record.bytes, "{record:?} is encoded differently");

    let (span, mut bytes) = lay_out(layout, record.bytes, at);
    let offset = (at.0 - log.start.0) as usize;
    let mut real = log.bytes[offset..offset + bytes.len()].to_vec();
    let mut page = at.0.next_multiple_of(WAL_PAGE_BYTES) - at.0;
    while (page as usize) < bytes.len() {
        // One flag is a hint for archivers, and says nothing about the page.
        real[page as usize + 2] &= !REMOVABLE;
        bytes[page as usize + 2] &= !REMOVABLE;
        page += WAL_PAGE_BYTES;
    }
    assert!(real == bytes, "{record:?} is laid out differently");
    let is_switch = record.resource_manager == ResourceManager::Xlog && record.operation() == 0x40;
    assert!(span == record.span || is_switch, "{record:?} laid out is {span:?}");
}

/// Removes the server's whole log and gives it back nothing but its last shutdown checkpoint, written here.
/// `pg_waldump` must find it, and the server must start from it and go on writing.
fn restart_from_own_checkpoint(server: &Server, layout: &WalLayout, before: RecordSpan, last: &[u8]) {
    let checkpoint = {
        let span = RecordSpan { start: before.end, end: before.end };
        let record = Record::parse(ServerVersion::NEWEST_TESTED, span, last).expect("a good record");
        CheckPointRecord::parse(&record).expect("the last record is a checkpoint")
    };
    let written = shutdown_checkpoint(layout, before, checkpoint);
    assert!(written.record == last, "the server's own checkpoint has other bytes");

    let folder = server.folder.path().join("data/pg_wal");
    let segment = written.span.start.0 / SEGMENT_BYTES;
    let name = format!("00000001{:08X}{:08X}", segment / 256, segment % 256);
    let mut file = vec![0; SEGMENT_BYTES as usize];
    for (page, bytes) in &written.pages {
        let offset = (page.0 % SEGMENT_BYTES) as usize;
        file[offset..offset + bytes.len()].copy_from_slice(&bytes[..]);
    }
    for entry in fs::read_dir(&folder).expect("pg_wal is there") {
        let entry = entry.expect("an entry");
        if entry.file_name() != name.as_str() && entry.file_type().expect("a type").is_file() {
            fs::remove_file(entry.path()).expect("a segment file can be removed");
        }
    }
    fs::write(folder.join(&name), file).expect("the segment file can be written");

    let start = written.span.start.to_string();
    let output = server
        .command("pg_waldump")
        .arg("-p")
        .arg(&folder)
        .args(["-n", "1", "-s", &start, &name])
        .output()
        .expect("pg_waldump runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("CHECKPOINT_SHUTDOWN redo"), "{output:?}");

    server.start();
    server.sql("INSERT INTO t VALUES (77777);");
    server.run("pg_ctl", &["-D", &server.data(), "-w", "-m", "fast", "stop"]);
    let (first, bytes, _) = read_log(&folder);
    let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, before.end, before.start)
        .with_system_identifier(layout.system_identifier);
    let mut records = Vec::new();
    let source = WalWindow { start: first, bytes: &bytes };
    while let Next::Record(record) = decoder.next(&source).expect("a good log") {
        records.push((record.resource_manager, record.previous_start));
    }
    assert_eq!(records[0], (ResourceManager::Xlog, before.start));
    assert_eq!(records[1].1, written.span.start, "the server goes on after the checkpoint");
    assert!(records.iter().any(|(resource_manager, _)| *resource_manager == ResourceManager::Heap));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one walk over the log that counts what it saw, then the counts")]
fn every_record_of_a_real_server_agrees_with_pg_waldump() {
    let server = Server::create();
    work(&server);
    let folder = server.folder.path().join("data/pg_wal");
    let (first, bytes, names) = read_log(&folder);

    let output = server
        .command("pg_waldump")
        .arg("-p")
        .arg(&folder)
        .args([&names[0], &names[names.len() - 1]])
        .output()
        .expect("pg_waldump runs");
    let dump = String::from_utf8_lossy(&output.stdout);
    let mut expected = dump.lines().filter(|line| line.starts_with("rmgr:"));

    let mut decoder = RecordDecoder::new(ServerVersion::NEWEST_TESTED, first, Lsn::ZERO);
    let source = WalWindow { start: first, bytes: &bytes };
    decoder.skip_continuation(&source).expect("a good log").expect("a whole first page");
    let mut seen = Seen::default();
    let mut records = 0;
    let header = PageHeader::decode(&bytes).expect("a whole page");
    let layout = WalLayout {
        version: PostgresVersion::V15,
        timeline: header.timeline,
        system_identifier: header.long.expect("the first page of a file").system_identifier,
        segment_bytes: WalLayout::DEFAULT_SEGMENT_BYTES,
    };
    let mut before = RecordSpan::NONE;
    let mut last_bytes = Vec::new();
    let mut last = RecordSpan { start: Lsn::ZERO, end: decoder.position() };
    let mut highest: Option<u32> = None;
    while let Next::Record(record) = decoder.next(&source).expect("a good log") {
        let at = last.end;
        let text = expected.next().unwrap_or_else(|| panic!("pg_waldump does not know {record:?}"));
        assert_eq!(line_of(&record), parse_line(text), "{text}");
        assert!(at <= record.span.start && record.span.start < record.span.end);
        look_at(&record, &mut seen);
        check_encoding(&record, at, &layout, &source);
        if let Some(xid) = highest_xid(&record)
            && highest.is_none_or(|known| xid_precedes(known, xid))
        {
            highest = Some(xid);
        }
        before = last;
        last = record.span;
        last_bytes.clear();
        last_bytes.extend_from_slice(record.bytes);
        records += 1;
    }
    assert_eq!(expected.next(), None, "decoding stopped early, after {records} records");
    assert!(records > 20_000, "only {records} records");

    for name in [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "LogicalMessage",
    ] {
        // The first status pages are made while the cluster is, and may be in a removed segment file.
        assert!(seen.resource_managers.contains(name) || name == "CLOG", "no record of {name}");
    }
    for name in [
        "listed page",
        "cleared map page",
        "truncated map page",
        "truncated free space page",
        "transaction page",
        "multixact page",
        "create",
        "truncate",
        "drop",
        "copy database",
        "drop database",
        "meta",
    ] {
        assert!(seen.effects.contains(name), "no record with the effect: {name}");
    }
    assert_eq!(seen.compressions.len(), 4, "not every kind of image: {:?}", seen.compressions);
    assert!(highest.is_some_and(|xid| xid > 1000), "the newest transaction is {highest:?}");
    restart_from_own_checkpoint(&server, &layout, before, &last_bytes);
}
