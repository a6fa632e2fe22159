//! Strangers and hostile callers: who may speak to a node, and what it costs the others.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // One thread becomes another user.

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use borealis_hostile::Options;
use borealis_spec::Endpoint;
use borealis_types::{NodeId, VolumeId};
use harness::{TestCluster, not_tested, say};

/// Each node with its process and its socket.
fn nodes(cluster: &TestCluster) -> Vec<(NodeId, u64, PathBuf)> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().expect("nodes").iter();
    nodes
        .map(|node| {
            let id = NodeId(node["id"].as_u64().expect("a number") as u16);
            let address = PathBuf::from(node["address"].as_str().expect("a path"));
            (id, node["pid"].as_u64().expect("it runs"), address)
        })
        .collect()
}

/// A line of `/proc/PID/status`, without its name.
fn process_status(process: u64, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
    line.trim_start_matches(':').trim().to_owned()
}

fn hostile(cluster: &TestCluster, seconds: u64, seed: u64) -> Options {
    let volume = cluster.status()["volume"]["id"].as_str().expect("an identity").to_owned();
    Options {
        volume: VolumeId(u128::from_str_radix(&volume, 16).expect("hexadecimal")),
        nodes: nodes(cluster).into_iter().map(|(node, _, path)| (node, Endpoint::Unix(path))).collect(),
        members: Vec::new(),
        strangers: Vec::new(),
        duration: Duration::from_secs(seconds),
        seed,
        threads: 6,
    }
}

#[test]
fn a_hostile_client_hurts_nobody() {
    const MEMORY_LIMIT_KIB: u64 = 512 << 10;
    let seconds =
        std::env::var("BOREALIS_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let cluster = TestCluster::start(&[]);
    cluster.client_program("pgbench", &["-i", "-q", "-s", "2"]);
    let before = nodes(&cluster);
    let duration = (seconds + 3).to_string();
    let pgbench = cluster
        .client_command("pgbench", &["-n", "-M", "prepared", "-c", "4", "-T", &duration])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("pgbench starts");
    let report = borealis_hostile::run(&hostile(&cluster, seconds, 1));
    let output = pgbench.wait_with_output().expect("pgbench ends");
    let text = String::from_utf8_lossy(&output.stdout);
    say(&format!("{report}{text}"));
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), cluster.logs());
    assert!(text.contains("number of failed transactions: 0"), "{text}");
    assert_eq!(report.outcomes.len(), 20, "an attack was never tried:\n{report}");
    assert_eq!(nodes(&cluster), before, "a node was started again:\n{}", cluster.logs());
    for (node, process, _) in before {
        let peak = process_status(process, "VmHWM");
        say(&format!("node {node}: at most {peak}"));
        let peak_kib: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
        assert!(peak_kib < MEMORY_LIMIT_KIB, "node {node} took {peak}");
        let log = fs::read_to_string(cluster.dir().join(format!("nodes/{node}/node.log"))).expect("its log");
        assert!(!log.contains("panicked") && !log.contains("is broken"), "{log}");
    }
    assert_eq!(cluster.status()["volume"]["epoch"], 1, "somebody was promised an epoch");
    cluster.ok(&["verify"]);
    // Nothing that was sent stands in the way of the next start.
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
    cluster
        .connect()
        .execute("UPDATE pgbench_accounts SET abalance = 0 WHERE aid = 1", &[])
        .expect("written");
}

/// Runs something in a thread that belongs to the user `nobody`, and nothing else of the process does.
fn as_nobody<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let nobody = nix::unistd::User::from_name("nobody").expect("asked").expect("a user nobody").uid.as_raw();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the bare system call changes this thread alone, which ends with the closure.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
            assert_eq!(changed, 0);
            body()
        });
        thread.join().expect("it does not panic")
    })
}

#[test]
fn a_process_of_another_user_is_not_answered() {
    if !nix::unistd::geteuid().is_root() {
        not_tested("another user's calls: only root can become another user");
        return;
    }
    let cluster = TestCluster::start(&[]);
    let (_, _, socket) = nodes(&cluster).remove(0);
    let refused = as_nobody(|| UnixStream::connect(&socket).expect_err("the folder is closed"));
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    // Somebody opens every door that there is.
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("opened");
    mode(&cluster.dir(), 0o755);
    mode(socket.parent().expect("a folder"), 0o755);
    mode(&socket, 0o777);
    let answer = as_nobody(|| {
        let mut stream = UnixStream::connect(&socket).expect("the doors are open");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let _ = stream.write_all(&[7; 100]);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(
            ended.is_ok() || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
        answer
    });
    assert!(answer.is_empty(), "a stranger was told {answer:?}");
    let status = cluster.status();
    assert_eq!(status["nodes"][0]["metrics"]["strangers_refused"], 1, "{}", status["nodes"][0]);
}

/// All files and folders below a folder.
fn everything_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        // One that is gone again, such as a file that is being replaced, is nobody's any more.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            everything_below(&path, found);
        }
        found.push(path);
    }
}

/// The sockets that a process has open and that listen on TCP, by their inodes.
fn tcp_listeners(process: u64) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("the process runs");
    let own: Vec<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let tables = ["tcp", "tcp6"]
        .map(|table| fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default());
    let fields = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Field 4 is the state, 0A is LISTEN; field 10 is the inode.
    let listening = fields.filter(|fields| fields.get(3) == Some(&"0A"));
    listening
        .filter_map(|fields| Some((*fields.get(9)?).to_owned()))
        .filter(|inode| own.contains(inode))
        .collect()
}

#[test]
fn files_are_their_owners_alone_and_nodes_listen_on_no_port() {
    let cluster = TestCluster::start(&[]);
    let is_root = nix::unistd::geteuid().is_root();
    let server_user = nix::unistd::User::from_name("postgres").expect("asked").map(|user| user.uid.as_raw());
    let expected_user =
        if is_root { server_user.expect("a user postgres") } else { nix::unistd::geteuid().as_raw() };
    for (node, process, socket) in nodes(&cluster) {
        let users = process_status(process, "Uid");
        let users: Vec<u32> = users.split_whitespace().map(|user| user.parse().expect("a number")).collect();
        assert_eq!(users, [expected_user; 4], "node {node}");
        assert_eq!(tcp_listeners(process), Vec::<String>::new(), "node {node} listens on TCP");
        assert!(fs::metadata(&socket).expect("there").file_type().is_socket());
        let store = cluster.dir().join(format!("nodes/{node}/store"));
        assert_eq!(fs::metadata(store).expect("there").uid(), expected_user);
    }
    let mut all = Vec::new();
    everything_below(&cluster.dir(), &mut all);
    assert!(all.len() > 50, "{} files", all.len());
    for path in all {
        let mode = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.mode() & 0o777);
        // A node's own folder is passed through by its user; nobody gets as far as that but by way of the node.
        let allowed =
            if is_root && path.parent() == Some(&cluster.dir().join("nodes")) { 0o711 } else { 0o700 };
        assert_eq!(mode & !allowed, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn a_place_that_only_root_reaches_and_a_long_path_will_do() {
    let cluster = TestCluster::unstarted();
    let parent = cluster.dir().parent().expect("a folder").join("d".repeat(60));
    let dir = parent.join("e".repeat(60));
    fs::create_dir_all(&dir).expect("made");
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o700)).expect("closed");
    // The fixture ends and removes what is in the cluster's usual place.
    std::os::unix::fs::symlink(&dir, cluster.dir()).expect("linked");
    cluster.up(&[]);
    let path = nodes(&cluster).remove(0).2;
    assert!(path.as_os_str().len() > 107 && path.starts_with(&dir), "{}", path.display());
    cluster.connect().batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").expect("written");
    cluster.ok(&["node", "kill", "1", "2"]);
    cluster.ok(&["node", "start"]);
    cluster.ok(&["verify"]);
    // A cluster that was moved is found where it is.
    cluster.ok(&["down"]);
    let moved = parent.with_file_name("moved");
    fs::rename(&dir, &moved).expect("moved");
    fs::remove_file(cluster.dir()).expect("unlinked");
    std::os::unix::fs::symlink(&moved, cluster.dir()).expect("linked");
    cluster.up(&[]);
    let count: i64 = cluster.connect().query_one("SELECT count(*) FROM t", &[]).expect("read").get(0);
    assert_eq!(count, 1);
    cluster.ok(&["down"]);
}

#[test]
fn a_store_of_a_third_user_is_not_touched() {
    if !nix::unistd::geteuid().is_root() {
        not_tested("another user's store: only root can give one away");
        return;
    }
    let cluster = TestCluster::start(&[]);
    cluster.ok(&["node", "kill", "3"]);
    let store = cluster.dir().join("nodes/3/store");
    let given = Command::new("chown").args(["-R", "nobody"]).arg(&store).status().expect("chown runs");
    assert!(given.success());
    let said = cluster.fails(&["node", "start", "3"]);
    assert!(said.contains("belongs to user") && said.contains("chown -R postgres"), "{said}");
    // What root restored is given to the node's user again.
    let given = Command::new("chown").args(["-R", "root"]).arg(&store).status().expect("chown runs");
    assert!(given.success());
    cluster.ok(&["node", "start", "3"]);
}
