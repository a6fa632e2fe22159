//! Stock PostgreSQL under the shim, with a driver made of a folder.
//!
//! A cluster is made once with plain PostgreSQL, and its relation and transaction-status files are moved to a
//! "storage" folder. Each [`Instance`] copies what is left to a memory file system and runs there, while a
//! thread answers requests from the storage folder and acknowledges the log after a delay.

mod fake_driver;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use borealis_shm::{Config, DriverSide, InstanceState};

use fake_driver::FakeDriver;

const CATALOG_VERSION: u32 = 202_209_061;
const SETTINGS: &str = "\
listen_addresses = ''
fsync = on
wal_sync_method = fdatasync
full_page_writes = off
wal_init_zero = off
wal_recycle = off
restart_after_crash = off
shared_buffers = 2MB
dynamic_shared_memory_type = mmap
max_wal_size = 64MB
log_min_messages = warning
";

/// A program of PostgreSQL 15.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("BOREALIS_POSTGRES_BIN").unwrap_or("/usr/lib/postgresql/15/bin".into());
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "{} is missing; set BOREALIS_POSTGRES_BIN", path.display());
    path
}

/// User and group to run PostgreSQL as: it refuses to run as root.
fn server_user() -> Option<(u32, u32)> {
    // SAFETY: the call has no precondition.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    // SAFETY: the name is a C string, and the result is used before any other call could overwrite it.
    let (user, group) = unsafe {
        let entry = libc::getpwnam(c"postgres".as_ptr());
        assert!(!entry.is_null(), "running as root needs a user named postgres for the server");
        ((*entry).pw_uid, (*entry).pw_gid)
    };
    Some((user, group))
}

/// A server-side program, as the server's user.
fn server_command(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

fn give_to_server(path: &Path) {
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

fn checked(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn copy_tree(source: &Path, target: &Path) {
    fs::create_dir(target).unwrap();
    fs::set_permissions(target, fs::metadata(source).unwrap().permissions()).unwrap();
    give_to_server(target);
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let to = target.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
            give_to_server(&to);
        }
    }
}

/// What every instance starts from. Kept until the test program ends.
struct Template {
    /// The data directory without relations and transaction status.
    data: PathBuf,
    /// The relation and transaction-status files, as the driver serves them.
    storage: PathBuf,
}

fn is_relation_file(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_digit())
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let root = PathBuf::from(format!("/dev/shm/borealis-shim-test-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        give_to_server(&root);
        let path = |name: &str| root.join(name);
        let data = path("template");
        checked(server_command("initdb").args(["-A", "trust", "-U", "postgres", "-N", "-D"]).arg(&data));
        fs::write(data.join("postgresql.conf"), SETTINGS).unwrap();
        // What the instances find in storage.
        let server = Server::start(&data, &path("template.log"), &[]);
        server.sql(
            "postgres",
            "CREATE TABLE stored (id int PRIMARY KEY, filler text);
             INSERT INTO stored SELECT i, repeat('x', 100) FROM generate_series(1, 100000) i;
             CREATE INDEX stored_hash ON stored USING hash (id);
             CREATE UNLOGGED TABLE stored_unlogged (id int PRIMARY KEY);
             INSERT INTO stored_unlogged SELECT generate_series(1, 1000);",
        );
        server.sql("postgres", "VACUUM (FREEZE) stored");
        server.sql("postgres", "CREATE DATABASE stored_database");
        server.stop("fast");

        let storage = path("storage");
        for folder in ["base", "global", "pg_xact", "pg_multixact/offsets", "pg_multixact/members"] {
            move_files(&data.join(folder), &storage.join(folder));
        }
        Template { data, storage }
    })
}

/// Moves relation files and status files, and only those, also of sub-folders.
fn move_files(source: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            move_files(&entry.path(), &target.join(name));
        } else if is_relation_file(&name) {
            fs::rename(entry.path(), target.join(name)).unwrap();
        }
    }
}

/// Removes the template's folder when the test program ends, however it ends in an orderly way.
#[used]
#[unsafe(link_section = ".fini_array")]
static CLEAN_UP: extern "C" fn() = clean_up;

extern "C" fn clean_up() {
    let _ = fs::remove_dir_all(format!("/dev/shm/borealis-shim-test-{}", std::process::id()));
}

/// A `postgres` that is ended when this is dropped.
pub struct Server {
    process: Child,
    sockets: PathBuf,
    log: PathBuf,
}

impl Server {
    fn start(data: &Path, log: &Path, environment: &[(&str, std::ffi::OsString)]) -> Server {
        let file = fs::File::create(log).unwrap();
        let mut command = server_command("postgres");
        let sockets = data.with_extension("sockets");
        fs::create_dir(&sockets).unwrap();
        give_to_server(&sockets);
        command.arg("-D").arg(data).arg("-k").arg(&sockets);
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        for (name, value) in environment {
            command.env(name, value);
        }
        let process = command.spawn().unwrap();
        let mut server = Server { process, sockets, log: log.to_owned() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !server.client("psql").args(["-c", "SELECT 1"]).output().unwrap().status.success() {
            let ended = server.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no start: {}", server.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A client program, connected as superuser.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command.env("PGHOST", &self.sockets).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.client(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}{}\nserver log:\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_text()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs statements; what the last one returns, without decoration.
    pub fn sql(&self, database: &str, text: &str) -> String {
        let result =
            self.run("psql", &["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", text]);
        result.trim_end().to_owned()
    }

    /// Starts statements in the background.
    pub fn begin_sql(&self, text: &str) -> Child {
        self.client("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the process is a child that has not been waited for, so the number is its own.
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    fn stop(mut self, mode: &str) {
        self.signal(if mode == "fast" { libc::SIGINT } else { libc::SIGQUIT });
        let status = self.wait(Duration::from_secs(20));
        assert!(status.is_some_and(|status| status.success()), "{mode} stop: {}", self.log_text());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.signal(libc::SIGQUIT);
            if self.wait(Duration::from_secs(10)).is_none() {
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
    }
}

/// What the test tells its driver thread.
#[derive(Default)]
pub struct Controls {
    stop: AtomicBool,
    hold_acknowledgements: AtomicBool,
    fence_epoch: AtomicU64,
    refuse_reads: AtomicBool,
    pub blocks_served: AtomicU64,
    pub prefetches: AtomicU64,
    pub listings: AtomicU64,
    attached_pid: AtomicU64,
}

impl Controls {
    pub fn hold_acknowledgements(&self, hold: bool) {
        self.hold_acknowledgements.store(hold, Ordering::SeqCst);
    }

    pub fn refuse_reads(&self, refuse: bool) {
        self.refuse_reads.store(refuse, Ordering::SeqCst);
    }

    pub fn fence(&self, epoch: u64) {
        self.fence_epoch.store(epoch, Ordering::SeqCst);
    }
}

/// PostgreSQL under the shim and its driver.
pub struct Instance {
    pub server: Server,
    pub controls: Arc<Controls>,
    driver: Option<JoinHandle<()>>,
    root: PathBuf,
}

impl Instance {
    pub fn start(name: &str) -> Instance {
        let template = template();
        let root = template.data.with_file_name(name);
        fs::create_dir(&root).unwrap();
        give_to_server(&root);
        let data = root.join("data");
        copy_tree(&template.data, &data);
        fs::rename(data.join("global/pg_control"), borealis_shm::path::control_file(&data)).unwrap();
        borealis_shm::probe_memory_file_system(&data).unwrap();

        let config = Config {
            data_directory: data.clone(),
            wal_segment_size_bytes: 16 << 20,
            log_ahead_limit_bytes: 1 << 20,
            major_version: 15,
            catalog_version: CATALOG_VERSION,
            spin_count: 0,
            slot_count: 64,
            owner: server_user(),
        };
        let shm = DriverSide::create(&root.join("shm"), &config).unwrap();
        shm.set_state(InstanceState::Running, "");
        let [memory, event] = shm.environment();
        let environment = [("LD_PRELOAD", library(&root).into_os_string()), memory, event];
        let controls = Arc::new(Controls::default());
        let mut driver = FakeDriver {
            shm,
            storage: template.storage.clone(),
            controls: controls.clone(),
            unacknowledged: VecDeque::new(),
            seen_sequence: 0,
        };
        let driver = std::thread::spawn(move || driver.run());
        let server = Server::start(&data, &root.join("log"), &environment);
        let attached = controls.attached_pid.load(Ordering::SeqCst);
        assert_eq!(attached, u64::from(server.pid()), "the shim is not active in postgres");
        Instance { server, controls, driver: Some(driver), root }
    }

    /// A folder of this test's own.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir(&path).unwrap();
        give_to_server(&path);
        path
    }

    /// A folder for a base backup, and the pass to make one: it is whole here, because this server's log begins where its
    /// files do.
    pub fn backup_folder(&self) -> PathBuf {
        let pass = self.root.join(borealis_shm::path::REPLICATION_PASS_NAME);
        fs::write(pass, std::process::id().to_string()).unwrap();
        self.folder("backup")
    }

    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Tries to start PostgreSQL without the shim on the data directory, as a server whose shim the loader could not load;
    /// what it says.
    pub fn start_without_shim(&self) -> String {
        fs::rename(self.data().join("postmaster.pid"), self.root.join("postmaster.pid")).unwrap();
        // Should it start after all, it is not waited for.
        let mut command = Command::new("timeout");
        command.arg("10").arg(binary("postgres")).arg("-D").arg(self.data());
        if let Some((user, group)) = server_user() {
            command.uid(user).gid(group);
        }
        let output = command.output().unwrap();
        fs::rename(self.root.join("postmaster.pid"), self.data().join("postmaster.pid")).unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Starts plain PostgreSQL, without the shim, on a copy.
    pub fn plain_server(&self, data: &Path) -> Server {
        if let Some((user, group)) = server_user() {
            let owner = format!("{user}:{group}");
            checked(Command::new("chown").arg("-R").arg(owner).arg(data));
        }
        fs::set_permissions(data, fs::Permissions::from_mode(0o700)).unwrap();
        Server::start(data, &self.root.join("plain.log"), &[])
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // PostgreSQL first: it would take a driver that went away for a failure.
        self.server.signal(libc::SIGQUIT);
        self.server.wait(Duration::from_secs(10));
        self.controls.stop.store(true, Ordering::SeqCst);
        if let Some(driver) = self.driver.take() {
            let result = driver.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
        if std::thread::panicking() {
            eprintln!("server log:\n{}", self.server.log_text());
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A copy of the library under test, which stands beside this test program: the server's user may be kept from there.
fn library(folder: &Path) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let built = program.with_file_name("libborealis_shim.so");
    assert!(built.exists(), "{} was not built", built.display());
    let copy = folder.join("shim.so");
    fs::copy(built, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

/// The output of a program that must have ended by now.
pub fn output_within(mut child: Child, limit: Duration) -> Output {
    let deadline = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "still running after {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}
