//! What people and machines do wrong: a clear error, and nothing lost.

mod harness;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use harness::TestCluster;
use harness::ledger::Ledger;

#[test]
fn wrong_command_lines_exit_with_two() {
    let cluster = TestCluster::unstarted();
    for words in [
        &["upp"][..],
        &["node", "kill"],
        &["up", "--port", "many"],
        &["up", "--port", "0"],
        &["up", "--protection-groups", "0"],
        &["up", "--pg-set", "nothing"],
    ] {
        let output = cluster.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", harness::text(&output));
    }
}

#[test]
fn a_refused_start_says_why_and_leaves_nothing_behind() {
    let cluster = TestCluster::unstarted();
    let said = cluster.fails(&["status"]);
    assert!(said.contains("no Borealis cluster"), "{said}");

    let taken = TcpListener::bind(("127.0.0.1", cluster.port)).expect("a port");
    let port = cluster.port.to_string();
    let said = cluster.fails(&["up", "--detach", "--port", &port]);
    assert!(said.contains(&port) && said.contains("taken"), "{said}");
    drop(taken);

    let said = cluster.fails(&["up", "--detach", "--port", &port, "--pg-bin", "/usr"]);
    assert!(said.contains("--pg-bin"), "{said}");
    let said = cluster.fails(&["up", "--detach", "--port", &port, "--pg-set", "fsync=off"]);
    assert!(said.contains("fsync=off cannot be used"), "{said}");
    assert!(!cluster.dir().exists(), "a refused start left something behind");

    std::fs::create_dir_all(cluster.dir()).expect("made");
    std::fs::write(cluster.dir().join("thesis.txt"), "precious").expect("written");
    let said = cluster.fails(&["up", "--detach", "--port", &port]);
    assert!(said.contains("not a Borealis cluster"), "{said}");
    std::fs::remove_dir_all(cluster.dir()).expect("removed");
    std::fs::create_dir_all(cluster.dir()).expect("made");
    std::fs::write(cluster.dir().join("cluster.json"), r#"{"format": 99}"#).expect("written");
    let said = cluster.fails(&["up", "--detach", "--port", &port]);
    assert!(said.contains("format 99"), "{said}");
    std::fs::remove_dir_all(cluster.dir()).expect("removed");

    let said = cluster.fails(&["up", "--detach", "--port", &port, "--memory-dir", "/proc"]);
    assert!(said.contains("--memory-dir"), "{said}");
}

#[test]
fn a_lost_catalog_is_made_anew_and_no_store_is_removed() {
    let cluster = TestCluster::start(&["--pg-set", "work_mem=5MB"]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (42)").expect("written");
    let volume = cluster.status()["volume"]["id"].clone();
    drop(client);
    cluster.ok(&["down"]);
    std::fs::remove_file(cluster.dir().join("cluster.json")).expect("removed");

    let said = cluster.fails(&["status"]);
    assert!(said.contains("cluster.json is missing") && said.contains("borealis up"), "{said}");
    cluster.up(&[]);
    assert_eq!(cluster.status()["volume"]["id"], volume);
    let mut client = cluster.connect();
    assert_eq!(client.query_one("SELECT n FROM t", &[]).expect("the row is there").get::<_, i32>(0), 42);
    let setting: String = client.query_one("SHOW work_mem", &[]).expect("shown").get(0);
    assert_eq!(setting, "5MB", "the instance's last configuration has its settings");
    drop(client);

    // As the README says one may, what an instance keeps is deleted, too: the stores alone are left.
    cluster.ok(&["down"]);
    std::fs::remove_file(cluster.dir().join("cluster.json")).expect("removed");
    std::fs::remove_dir_all(cluster.dir().join("instances")).expect("removed");
    cluster.up(&[]);
    assert_eq!(cluster.status()["volume"]["id"], volume);
    let row = cluster.connect().query_one("SELECT n FROM t", &[]).expect("the row is still there");
    assert_eq!(row.get::<_, i32>(0), 42);
    cluster.ok(&["verify"]);
}

#[test]
fn a_running_cluster_is_not_started_again() {
    let cluster = TestCluster::start(&[]);
    let said = cluster.fails(&["up", "--detach"]);
    assert!(said.contains("already running"), "{said}");
    let said = cluster.fails(&["instance", "start"]);
    assert!(said.contains("already running"), "{said}");
    let said = cluster.fails(&["node", "kill", "77"]);
    assert!(said.contains("no node 77"), "{said}");
    let said = cluster.fails(&["az", "kill", "az9"]);
    assert!(said.contains("az9"), "{said}");
    assert!(cluster.connect().query_one("SELECT 1", &[]).is_ok());
}

#[test]
fn a_killed_servers_memory_is_given_back_although_the_next_uses_another_folder() {
    let cluster = TestCluster::start(&[]);
    let memory = harness::memory_directory_of(&cluster.dir());
    cluster.ok(&["instance", "kill"]);
    assert_eq!(harness::memory_folders(&memory), [memory.as_path()]);
    let other = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    std::fs::set_permissions(other.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    cluster.up(&["--memory-dir", other.path().to_str().expect("text")]);
    assert_eq!(harness::memory_folders(&memory), [] as [PathBuf; 0]);
    cluster.ok(&["down"]);
}

#[test]
fn a_bad_wish_is_not_remembered() {
    let cluster = TestCluster::start(&["--pg-set", "work_mem=8MB"]);
    let show = |name: &str| -> String {
        cluster.connect().query_one(&format!("SHOW {name}"), &[]).expect("shown").get(0)
    };
    assert_eq!(show("work_mem"), "8MB");
    cluster.ok(&["down"]);
    let said = cluster.fails(&["up", "--detach", "--pg-set", "shared_bufers=1GB"]);
    assert!(said.contains("shared_bufers"), "{said}");
    cluster.up(&["--pg-set", "work_mem="]);
    assert_eq!(show("work_mem"), "4MB");
    // Nobody promised that the database and the user the probe asks for stay.
    cluster.client_program("psql", &["-c", "CREATE DATABASE other"]);
    cluster.client_program("psql", &["-d", "other", "-c", "DROP DATABASE postgres"]);
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["instance", "start"]);
}

#[test]
fn garbage_on_a_nodes_socket_hurts_nobody() {
    let cluster = TestCluster::start(&[]);
    Ledger::create(&cluster);
    let mut ledger = Ledger::start(&cluster, 1);
    let status = cluster.status();
    for node in status["nodes"].as_array().expect("nodes") {
        let address = node["address"].as_str().expect("an address");
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 4096], &[0; 64], &(1u32 << 30).to_le_bytes()] {
            let mut stream = UnixStream::connect(address).expect("connected");
            stream.set_read_timeout(Some(Duration::from_secs(15))).expect("set");
            // The node may close while we write; both are fine, a hang is not.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 4096, "a stranger was told {} bytes", answer.len());
        }
    }
    let before = ledger.acknowledged();
    cluster.eventually("commits go on", Duration::from_secs(5), || ledger.acknowledged() > before + 10);
    ledger.stop();
    assert_eq!(ledger.failures(), 0);
    ledger.assert_nothing_lost(&cluster);
    let healthy = cluster.status()["nodes"].as_array().expect("nodes").iter().all(|n| n["state"] == "up");
    assert!(healthy, "{}", cluster.logs());
}

#[test]
fn a_node_does_not_start_on_another_nodes_data_or_on_none() {
    let cluster = TestCluster::start(&[]);
    cluster.ok(&["node", "kill", "1", "2"]);
    let store = |node: u16| cluster.dir().join(format!("nodes/{node}/store"));
    std::fs::rename(store(1), cluster.dir().join("aside")).expect("moved");
    let said = cluster.fails(&["node", "start", "1"]);
    assert!(said.contains("lost its data"), "{said}");
    std::fs::rename(store(2), store(1)).expect("moved");
    let said = cluster.fails(&["node", "start", "1"]);
    assert!(said.contains("node 2") || said.contains("another node"), "{said}");
    std::fs::rename(store(1), store(2)).expect("moved");
    std::fs::rename(cluster.dir().join("aside"), store(1)).expect("moved");
    cluster.ok(&["node", "start", "1", "2"]);
    assert!(cluster.connect().batch_execute("CREATE TABLE t ()").is_ok());
}

#[test]
fn a_second_driver_fences_the_first() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").expect("written");
    client.batch_execute("ALTER SYSTEM SET work_mem = '7MB'").expect("set");
    let mut late = cluster.connect();
    // The same volume, another instance: its own directory, memory and port.
    let original = cluster.dir().join("instances/1/instance.json");
    let text = std::fs::read_to_string(&original).expect("read");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let other_port = harness::free_port();
    let other_dir = cluster.dir().join("instances/2");
    std::fs::create_dir_all(&other_dir).expect("made");
    let memory = config["memory_dir"].as_str().expect("a path").to_owned() + "-second";
    config["instance"] = 2.into();
    config["instance_dir"] = other_dir.display().to_string().into();
    config["memory_dir"] = memory.into();
    config["port"] = other_port.into();
    let other_config = other_dir.join("instance.json");
    std::fs::write(&other_config, config.to_string()).expect("written");
    struct KilledAtTheEnd(std::process::Child);
    impl Drop for KilledAtTheEnd {
        fn drop(&mut self) {
            // It may have ended in order already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["internal", "driver", "--config"])
        .arg(&other_config)
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(other_dir.join("driver.log")).expect("a log"))
        .spawn()
        .expect("a second driver");
    let mut second = KilledAtTheEnd(second);
    let connect_second = || {
        postgres::Config::new()
            .host("127.0.0.1")
            .port(other_port)
            .user("postgres")
            .dbname("postgres")
            .connect(postgres::NoTls)
    };
    cluster.eventually("the second instance answers", Duration::from_secs(30), || connect_second().is_ok());
    // The first cannot commit any more, and its server stops with a message that says why.
    let (lost, lost_setting) = std::thread::scope(|scope| {
        let setting = scope.spawn(|| late.batch_execute("ALTER SYSTEM SET work_mem = '9MB'"));
        let lost = client.batch_execute("INSERT INTO t VALUES (2)");
        (lost, setting.join().expect("asked"))
    });
    assert!(lost.is_err(), "the fenced writer committed");
    assert!(lost_setting.is_err(), "the fenced writer's setting was kept");
    let postgres_log = cluster.dir().join("instances/1/postgres.log");
    cluster.eventually("the first server says why it stops", Duration::from_secs(10), || {
        std::fs::read_to_string(&postgres_log).is_ok_and(|log| log.contains("fenced"))
    });
    let first_is_gone = || cluster.status()["instances"][0]["driver_pid"].is_null();
    cluster.eventually("the first driver ends", Duration::from_secs(20), first_is_gone);
    let mut client = connect_second().expect("connected");
    let rows: Vec<i32> =
        client.query("SELECT n FROM t", &[]).expect("read").iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, [1], "what the fenced writer was not told is not there");
    client.batch_execute("INSERT INTO t VALUES (3)").expect("the new writer writes");
    drop(client);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(second.0.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("stopped");
    second.0.wait().expect("ended");
    // Nor is its last setting.
    cluster.ok(&["instance", "start"]);
    let set = cluster.connect().query_one("SHOW work_mem", &[]).expect("shown");
    assert_eq!(set.get::<_, String>(0), "7MB");
}

#[test]
fn one_flipped_byte_is_found_and_named() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client
        .batch_execute("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
        .expect("written");
    drop(client);
    cluster.ok(&["down"]);
    // So little redo is not folded into pages for a long time yet.
    let store = cluster.dir().join("nodes/3/store");
    let store = borealis_store::Store::open(&store, borealis_store::Options::default()).expect("a store");
    assert!(store.materialize(borealis_store::Policy::Now).expect("folded").advanced);
    drop(store);
    cluster.up(&[]);
    cluster.ok(&["verify"]);
    // The page file of one group on node 3, in the middle of what is allocated.
    let pages = cluster.dir().join("nodes/3/store/segments/1");
    let file = largest_file(&pages);
    let length = file.metadata().expect("metadata").len();
    let mut flipped = false;
    for part in 1..200 {
        let offset = length * part / 200;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read");
        if byte[0] != 0 {
            file.write_all_at(&[byte[0] ^ 0x10], offset).expect("written");
            flipped = true;
            break;
        }
    }
    assert!(flipped, "nothing to flip");
    let said = cluster.fails(&["verify"]);
    assert!(said.contains("node 3"), "{said}");
    assert!(said.contains("block") || said.contains("page"), "{said}");
}

fn largest_file(folder: &std::path::Path) -> std::fs::File {
    let largest = std::fs::read_dir(folder)
        .expect("the group's folder")
        .flatten()
        .filter(|entry| entry.path().is_file())
        .max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
        .expect("a file");
    std::fs::File::options().read(true).write(true).open(largest.path()).expect("opened")
}
