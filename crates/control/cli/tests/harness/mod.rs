//! A real cluster for a test: six node processes, a driver and a stock `postgres`, below a temporary folder.
//! Everything is stopped and removed when the fixture is dropped, also when the test fails.
#![allow(dead_code)] // Each test file uses its part.
#![allow(unsafe_code)] // What happens between fork and exec, in `place`.

pub mod ledger;
pub mod place;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Where distributions put PostgreSQL 15's programs.
const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Says something in the tests' output, also when the test passes (which hides what `eprintln` writes).
pub fn say(what: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{what}").expect("standard error is open");
}

/// Says that something was passed over, and why.
pub fn not_tested(why: &str) {
    say(&format!("NOT TESTED: {why}"));
}

/// Says, once for each test program, which PostgreSQL it runs on.
fn say_release() {
    static SAID: std::sync::Once = std::sync::Once::new();
    SAID.call_once(|| {
        let output = Command::new(Path::new(POSTGRES_BIN).join("postgres")).arg("--version").output();
        say(String::from_utf8_lossy(&output.expect("PostgreSQL is installed").stdout).trim());
    });
}

pub struct TestCluster {
    folder: tempfile::TempDir,
    pub port: u16,
}

impl TestCluster {
    /// A new cluster, up and answering.
    pub fn start(extra: &[&str]) -> TestCluster {
        let cluster = TestCluster::unstarted();
        cluster.up(extra);
        cluster
    }

    /// A folder and a port, nothing running.
    pub fn unstarted() -> TestCluster {
        say_release();
        let folder = tempfile::Builder::new().prefix("borealis-test-").tempdir().expect("temporary folder");
        // The server's user must be able to reach its socket folder and temporary files.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let port = free_port();
        TestCluster { folder, port }
    }

    /// Nodes that are away are waited for, unless `extra` says something else: most tests are about what they miss.
    pub fn up(&self, extra: &[&str]) {
        let port = self.port.to_string();
        let mut arguments = vec!["up", "--detach", "--port", &port];
        if !extra.contains(&"--replace-after") {
            arguments.extend(["--replace-after", "0"]);
        }
        arguments.extend(extra);
        let output = self.run(&arguments);
        assert!(output.status.success(), "up failed:\n{}\n{}", text(&output), self.logs());
        let url = format!("postgresql://postgres@127.0.0.1:{}/postgres", self.port);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(printed.lines().last(), Some(url.as_str()), "the last line is the connection URL");
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// A folder outside the cluster's that the server's user owns.
    pub fn postgres_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).expect("made");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
            nix::unistd::chown(&folder, Some(user.uid), Some(user.gid)).expect("given");
        }
        folder
    }

    /// Runs `borealis` with these words and `--dir`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_borealis"))
            .args(arguments)
            .arg("--dir")
            .arg(self.dir())
            .output()
            .expect("the borealis program runs")
    }

    /// Runs `borealis` and expects success.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?} failed:\n{}\n{}", text(&output), self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `borealis`, expects exit code 1 and returns what it said.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} should have failed:\n{}", text(&output));
        text(&output)
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).expect("status is JSON")
    }

    pub fn connect(&self) -> postgres::Client {
        self.try_connect().unwrap_or_else(|error| panic!("cannot connect: {error}\n{}", self.logs()))
    }

    pub fn try_connect(&self) -> Result<postgres::Client, postgres::Error> {
        postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(5))
            .connect(postgres::NoTls)
    }

    /// Runs one of PostgreSQL's programs against the writer and expects success.
    pub fn client_program(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.client_command(program, arguments).output().expect("the program runs");
        assert!(output.status.success(), "{program} {arguments:?}:\n{}\n{}", text(&output), self.logs());
        text(&output)
    }

    pub fn client_command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(POSTGRES_BIN).join(program));
        command
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.port.to_string()])
            .args(arguments)
            .env("PGDATABASE", "postgres");
        command
    }

    /// The ends of every log, for a failed test.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        let mut folders = vec![self.dir()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "log")
                    && path.file_name().is_some_and(|name| {
                        ["node.log", "driver.log", "postgres.log"].iter().any(|known| name == *known)
                    })
                {
                    let content = std::fs::read(&path).unwrap_or_default();
                    let content = String::from_utf8_lossy(&content).into_owned();
                    let lines: Vec<&str> = content.lines().collect();
                    let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                    all += &format!("--- {}\n{tail}\n", path.display());
                }
            }
        }
        all
    }

    /// Waits until `condition` holds.
    pub fn eventually(&self, what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + timeout;
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: not within {timeout:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// TPC-B's own check: every balance is the sum of what was added to it.
    pub fn assert_balances_agree(&self) {
        let mut client = self.connect();
        let row = client
            .query_one(
                "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches), \
                 (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
                &[],
            )
            .expect("the sums can be read");
        let sums: [i64; 4] = std::array::from_fn(|column| row.get(column));
        assert!(sums.iter().all(|sum| *sum == sums[0]), "balances differ: {sums:?}");
    }

    /// Heap and indexes agree, in every database.
    pub fn assert_amcheck_clean(&self) {
        self.client_program("pg_amcheck", &["--install-missing", "--heapallindexed", "--all"]);
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whatever failed, they may say why; and they are gone afterwards.
            eprintln!("{}", self.logs());
        }
        if std::thread::panicking() && std::env::var_os("BOREALIS_KEEP").is_some() {
            eprintln!("left for inspection: {}", self.dir().display());
            return;
        }
        if !self.dir().join("cluster.json").exists() {
            return;
        }
        let output = self.run(&["down"]);
        if std::thread::panicking() {
            return;
        }
        assert!(output.status.success(), "down failed:\n{}", text(&output));
        if self.dir().join("instances/1/instance.json").exists() {
            let memory = memory_directory_of(&self.dir());
            assert_eq!(memory_folders(&memory), [] as [PathBuf; 0], "memory was left behind");
        }
    }
}

/// The memory directory of a cluster's instance.
pub fn memory_directory_of(cluster: &Path) -> PathBuf {
    let config = std::fs::read_to_string(cluster.join("instances/1/instance.json")).expect("a configuration");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    PathBuf::from(config["memory_dir"].as_str().expect("a path"))
}

/// An instance's memory directory, and those of earlier starts beside it.
pub fn memory_folders(memory: &Path) -> Vec<PathBuf> {
    let name = memory.file_name().expect("a name").to_str().expect("text");
    let entries = std::fs::read_dir(memory.parent().expect("a folder")).into_iter().flatten().flatten();
    let earlier = format!("{name}.removed-");
    let is_ours = |entry: &str| entry == name || entry.starts_with(&earlier);
    entries.filter(|entry| is_ours(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

pub fn text(output: &Output) -> String {
    format!(
        "exit {:?}\n{}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}
