//! A stock PostgreSQL in a temporary folder, and its files as pages.
//!
//! The server's programs are looked for where Debian puts them, or in the folder that `BOREALIS_TEST_PG_BIN` names.
//! A release unpacked beside the installed one will do: PostgreSQL finds its other files from where its programs
//! are. Each cluster says on standard error which release it is.

#![allow(dead_code)] // Each test binary uses its own part of it.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::disallowed_macros,
    reason = "starts a real server and reads its files"
)]
#![allow(clippy::unwrap_used)] // All of it is test code.

mod page_owner;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use borealis_redo::check::Checker;
use borealis_redo::consistency::compare_pages;
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, BlockKey, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Lsn, PAGE_SIZE,
    PageBytes, PageKey, RelationFork, RelationLocator, SLRU_PAGES_PER_SEGMENT, ServerVersion, SlruKind,
};
use borealis_wal::ResourceManager;
use borealis_wal::layout::FIRST_NORMAL_OID;
use borealis_wal::stream::{Next, RecordDecoder, WalWindow};

use page_owner::resource_manager_of;

/// A folder with the server's programs.
pub const PG_BIN_VARIABLE: &str = "BOREALIS_TEST_PG_BIN";
/// The same of a second release, for tests of both on one cluster.
pub const OTHER_PG_BIN_VARIABLE: &str = "BOREALIS_TEST_OTHER_PG_BIN";
/// Where Debian puts them.
const INSTALLED_PG_BIN: &str = "/usr/lib/postgresql/15/bin";

/// The programs of one release.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
    /// What `postgres --version` says.
    pub release: ServerVersion,
}

impl Programs {
    /// Those in this folder.
    pub fn in_folder(folder: PathBuf) -> Programs {
        let text = run(Command::new(folder.join("postgres")).arg("--version"));
        // `postgres (PostgreSQL) 15.18 (Debian …)`
        let release = text.split_whitespace().nth(2).and_then(|word| word.parse().ok());
        let release = release.unwrap_or_else(|| panic!("{} is {text}", folder.display()));
        Programs { folder, release }
    }

    /// Those that [`PG_BIN_VARIABLE`] names, or else the installed ones.
    pub fn to_test() -> Programs {
        let folder = std::env::var_os(PG_BIN_VARIABLE).unwrap_or_else(|| INSTALLED_PG_BIN.into());
        Programs::in_folder(folder.into())
    }
}

/// A cluster that exists for one test.
pub struct Cluster {
    folder: tempfile::TempDir,
    programs: Programs,
    running: bool,
}

impl Cluster {
    /// Runs `initdb`; the server is not started.
    pub fn create(settings: &str) -> Cluster {
        Cluster::create_with(&[], settings)
    }

    /// As [`Self::create`], with more arguments for `initdb`.
    pub fn create_with(arguments: &[&str], settings: &str) -> Cluster {
        let folder = tempfile::Builder::new().prefix("borealis-redo-").tempdir().unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres:postgres").arg(folder.path()));
        }
        let programs = Programs::to_test();
        // Not with `eprintln`, which is shown for failed tests only.
        let _ = writeln!(io::stderr(), "PostgreSQL {} from {}", programs.release, programs.folder.display());
        let cluster = Cluster { folder, programs, running: false };
        let data = cluster.data_text();
        let always = ["--no-sync", "--auth=trust", "--username=postgres", "--no-instructions", "-D", &data];
        cluster.run("initdb", always.iter().chain(arguments));
        let mut configuration =
            fs::OpenOptions::new().append(true).open(cluster.data().join("postgresql.conf")).unwrap();
        writeln!(
            configuration,
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nautovacuum = off\n\
             wal_level = replica\nwal_consistency_checking = 'all'\nmax_wal_size = 100GB\nwal_keep_size = 100GB\n\
             checkpoint_timeout = 1h\nmax_prepared_transactions = 10\nshared_buffers = 64MB\n\
             dynamic_shared_memory_type = mmap\n{settings}",
            cluster.folder.path().display()
        )
        .unwrap();
        cluster
    }

    /// The release of its server.
    pub fn release(&self) -> ServerVersion {
        self.programs.release
    }

    /// Goes on with another release's programs. The server must not be running.
    pub fn use_programs(&mut self, programs: &Programs) {
        assert!(!self.running);
        self.programs = programs.clone();
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn data_text(&self) -> String {
        self.data().to_str().unwrap().to_owned()
    }

    /// A command that runs one of PostgreSQL's programs as somebody it does not refuse.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.folder.join(program);
        let mut command = if is_root() {
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

    /// Runs one of PostgreSQL's programs and returns what it printed.
    pub fn run(&self, program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
        run(self.command(program).args(arguments))
    }

    /// As [`Self::run`], for a program that ends with an error even when all is well.
    pub fn output_of_any_status(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the server.
    pub fn start(&mut self) {
        let log = self.folder.path().join("log");
        self.running = true;
        self.run("pg_ctl", ["-D", &self.data_text(), "-w", "-s", "-l", log.to_str().unwrap(), "start"]);
    }

    /// Stops the server cleanly: every page is then in its file.
    pub fn stop(&mut self) {
        self.run("pg_ctl", ["-D", &self.data_text(), "-w", "-s", "-m", "fast", "stop"]);
        self.running = false;
    }

    /// Stops the server as a crash would.
    pub fn crash(&mut self) {
        self.run("pg_ctl", ["-D", &self.data_text(), "-w", "-s", "-m", "immediate", "stop"]);
        self.running = false;
    }

    /// Runs a script in `database`; the first error is the test's.
    pub fn sql(&self, database: &str, script: &str) {
        let mut child = self.start_sql(database);
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        finish(child, script);
    }

    /// A `psql` that reads its script from standard input.
    pub fn start_sql(&self, database: &str) -> Child {
        self.command("psql")
            .args(["-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", "-d", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A position from `pg_controldata`.
    pub fn control_lsn(&self, label: &str) -> Lsn {
        let text = self.run("pg_controldata", [self.data()]);
        let line = text.lines().find(|line| line.starts_with(label)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// The WAL segment files, in order, as (position of the first byte, path).
    pub fn wal_files(&self) -> Vec<(Lsn, PathBuf)> {
        let mut files: Vec<_> = fs::read_dir(self.data().join("pg_wal"))
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name()?.to_str()?;
                (name.len() == 24).then_some(())?;
                let high = u64::from_str_radix(&name[8..16], 16).ok()?;
                let low = u64::from_str_radix(&name[16..], 16).ok()?;
                let segment_bytes = path.metadata().unwrap().len();
                Some((Lsn((high << 32) + low * segment_bytes), path))
            })
            .collect();
        files.sort();
        files
    }

    /// Every relation file: fork, segment file number, path.
    fn relation_files(&self) -> Vec<(RelationFork, u32, PathBuf)> {
        let mut databases = vec![(self.data().join("global"), GLOBAL_TABLESPACE, 0)];
        for (name, folder) in files(&self.data().join("base")) {
            databases.extend(name.parse().ok().map(|database| (folder, DEFAULT_TABLESPACE, database)));
        }
        for (tablespace, folder) in files(&self.data().join("pg_tblspc")) {
            for (_, version_folder) in files(&folder) {
                for (database, folder) in files(&version_folder) {
                    databases.push((folder, tablespace.parse().unwrap(), database.parse().unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        for (folder, tablespace, database) in databases {
            for (name, path) in files(&folder) {
                if let Some((fork, relation, segment)) = parse_relation_file(&name) {
                    let locator = RelationLocator { tablespace, database, relation };
                    found.push((RelationFork { locator, fork }, segment, path));
                }
            }
        }
        found
    }

    /// The relations that have this fork.
    fn forks_of(&self, fork: Fork) -> BTreeSet<RelationFork> {
        let files = self.relation_files();
        files
            .into_iter()
            .map(|(relation_fork, ..)| relation_fork)
            .filter(|found| found.fork == fork)
            .collect()
    }

    /// All of the WAL that is there: the position of its first byte, and its bytes.
    pub fn wal_bytes(&self) -> (Lsn, Vec<u8>) {
        let (mut start, mut bytes) = (Lsn::ZERO, Vec::new());
        for (position, path) in self.wal_files() {
            if bytes.is_empty() {
                start = position;
            }
            // Contiguous from the first file on; recycled files are named ahead of what is written.
            if position.0 == start.0 + bytes.len() as u64 {
                bytes.extend_from_slice(&fs::read(path).unwrap());
            }
        }
        (start, bytes)
    }

    /// The folder that has everything of the cluster, and is gone after the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the server the owner of a file or folder that the test made.
    pub fn give_to_server(&self, path: &Path) {
        if is_root() {
            run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(path));
        }
    }

    /// Every page in the relation and transaction status files.
    pub fn pages(&self) -> Vec<(PageKey, Box<PageBytes>)> {
        let mut pages = Vec::new();
        for (relation_fork, segment, path) in self.relation_files() {
            for (index, bytes) in read_pages(&path) {
                let block = segment * BLOCKS_PER_SEGMENT_FILE + index;
                pages.push((PageKey::Block(BlockKey { relation_fork, block }), bytes));
            }
        }
        for kind in SlruKind::ALL {
            for (name, path) in files(&self.data().join(kind.folder())) {
                if let Ok(segment) = u32::from_str_radix(&name, 16) {
                    for (index, bytes) in read_pages(&path) {
                        let page = segment * SLRU_PAGES_PER_SEGMENT + index;
                        pages.push((PageKey::Slru { kind, page }, bytes));
                    }
                }
            }
        }
        pages
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running {
            let _ = self
                .command("pg_ctl")
                .args(["-D", &self.data_text(), "-w", "-s", "-m", "immediate", "stop"])
                .status();
        }
    }
}

fn is_root() -> bool {
    // The owner of our own process folder is who we are; no system call wrapper needed.
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for a `psql`; an error is the test's.
pub fn finish(child: Child, script: &str) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script}\nfailed: {}", String::from_utf8_lossy(&output.stderr));
}

fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.path())
        })
        .collect()
}

/// `16384`, `16384_vm`, `16384.1`: fork, relation, segment file number.
fn parse_relation_file(name: &str) -> Option<(Fork, u32, u32)> {
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (relation, suffix) = match name.find('_') {
        Some(at) => name.split_at(at),
        None => (name, ""),
    };
    let fork = Fork::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    Some((fork, relation.parse().ok()?, segment))
}

fn read_pages(path: &Path) -> Vec<(u32, Box<PageBytes>)> {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len() % PAGE_SIZE, 0, "{} is not whole pages", path.display());
    bytes
        .chunks_exact(PAGE_SIZE)
        .enumerate()
        .map(|(index, chunk)| (index as u32, Box::new(chunk.try_into().unwrap())))
        .collect()
}

/// Compares what redo has made of every page with the files of the stopped server, both ways. Returns how
/// many pages were compared and what is wrong.
pub fn compare_with_files(checker: &Checker, cluster: &Cluster) -> (usize, Vec<String>) {
    let files: BTreeMap<PageKey, Box<PageBytes>> = cluster.pages().into_iter().collect();
    let unlogged = cluster.forks_of(Fork::Init);
    let zeros = [0; PAGE_SIZE];
    let (mut compared, mut wrong) = (0, Vec::new());
    let mut compare =
        |key: &PageKey, expected: &PageBytes, actual: &PageBytes, changed_by: Option<ResourceManager>| {
            compared += 1;
            match key {
                PageKey::Slru { .. } => {
                    if let Some(at) = (0..PAGE_SIZE).find(|at| expected[*at] != actual[*at]) {
                        wrong.push(format!(
                            "{key}: byte {at} is {:#04x} after redo, {:#04x} in the file",
                            actual[at], expected[at]
                        ));
                    }
                }
                PageKey::Block(block) if block.relation_fork.fork == Fork::VisibilityMap => {
                    // What the oracle of every record hides: the map itself. `CREATE DATABASE` logs map pages as
                    // if their map were unused space, so there redo (PostgreSQL's too) knows of fewer bits.
                    let lost = block.relation_fork.locator.database >= FIRST_NORMAL_OID;
                    let wrong_at = |at: &usize| match (expected[*at], actual[*at]) {
                        (expected, actual) if lost => actual & !expected != 0,
                        (expected, actual) => actual != expected,
                    };
                    if let Some(at) = (24..PAGE_SIZE).find(wrong_at) {
                        wrong.push(format!(
                            "{key}: map byte {} is {:#04x} after redo, {:#04x} in the file",
                            at - 24,
                            actual[at],
                            expected[at]
                        ));
                    }
                }
                PageKey::Block(block) => {
                    let resource_manager = changed_by
                        .filter(|by| !matches!(by, ResourceManager::Storage | ResourceManager::Borealis))
                        .or_else(|| resource_manager_of(expected))
                        .unwrap_or(ResourceManager::Heap);
                    match compare_pages(resource_manager, *block, expected, actual) {
                        Ok(None) => {}
                        Ok(Some(mismatch)) => wrong.push(format!("{resource_manager:?}: {mismatch}")),
                        Err(message) => wrong.push(message),
                    }
                }
            }
        };
    // Neither logged at all, nor logged exactly.
    let is_left_out = |key: &PageKey, page: &PageBytes| match key {
        PageKey::Slru { .. } => false,
        PageKey::Block(block) => match block.relation_fork.fork {
            // A hint that is mostly not logged.
            Fork::FreeSpaceMap => true,
            Fork::Init => false,
            // A sequence logs ahead of what it hands out. A relation with an init fork is unlogged.
            Fork::Main | Fork::VisibilityMap => {
                let init = RelationFork { fork: Fork::Init, ..block.relation_fork };
                resource_manager_of(page) == Some(ResourceManager::Sequence) || unlogged.contains(&init)
            }
        },
    };
    for (key, actual, changed_by) in checker.changed_pages() {
        if !is_left_out(key, actual) {
            compare(key, files.get(key).map_or(&zeros, |page| page), actual, changed_by);
        }
    }
    for (key, expected) in &files {
        if checker.page(key).is_none() && **expected != zeros && !is_left_out(key, expected) {
            compare(key, expected, &zeros, None);
        }
    }
    (compared, wrong)
}

/// A checker that knows every page the stopped cluster has.
pub fn seeded_checker(cluster: &Cluster) -> Checker {
    let mut checker = Checker::of_whole_cluster();
    for (key, page) in cluster.pages() {
        checker.seed_page(key, &page);
    }
    checker
}

/// Feeds every record of the cluster's WAL from `start` on, all written by its release, and returns how many there
/// were.
pub fn replay(cluster: &Cluster, start: Lsn, checker: &mut Checker) -> u64 {
    replay_in_turn(cluster, start, &[(Lsn(u64::MAX), cluster.release())], checker)
}

/// As [`replay`], of WAL that releases have written in turn, each the records that begin before a position.
pub fn replay_in_turn(
    cluster: &Cluster,
    start: Lsn,
    turns: &[(Lsn, ServerVersion)],
    checker: &mut Checker,
) -> u64 {
    let (wal_start, bytes) = cluster.wal_bytes();
    let wal = WalWindow { start: wal_start, bytes: &bytes };
    let mut decoder = RecordDecoder::new(cluster.release(), start, Lsn::ZERO);
    let mut records = 0;
    while let Next::Record(mut record) = decoder.next(&wal).unwrap() {
        record.server_version = turns.iter().find(|(end, _)| record.span.start < *end).unwrap().1;
        checker.feed(&record);
        records += 1;
    }
    records
}

/// Fails the test, with the table and the first problems, unless every record's effects are known, redo
/// succeeded everywhere, and every page compared is equal.
pub fn assert_no_problem(checker: &Checker) {
    let mut message = String::new();
    for problem in checker.problems().iter().take(20) {
        message += &format!("{problem}\n");
    }
    assert!(message.is_empty(), "{checker}\n{message}");
    for ((resource_manager, operation), tally) in checker.tallies() {
        assert_eq!(tally.problems(), 0, "{resource_manager:?} {operation}");
    }
}
