//! What `status`, `verify` and `node start` say is so, also when parts are gone; and what dies is started again.

mod harness;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{TestCluster, memory_directory_of, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn signal(process: &serde_json::Value, signal: Signal) {
    kill(Pid::from_raw(process.as_i64().expect("a process") as i32), signal).expect("signalled");
}

/// Whether the process runs: what is left of one that ended stays where nobody collects it.
fn runs(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn last_line(said: &str) -> &str {
    said.lines().last().unwrap_or_default()
}

#[test]
fn verify_claims_nothing_of_a_node_that_did_not_answer() {
    let cluster = TestCluster::start(&[]);
    cluster.connect().batch_execute("CREATE TABLE t AS SELECT generate_series(1, 5000) n").expect("made");
    let said = cluster.ok(&["verify"]);
    assert!(last_line(&said).contains("on every node") && said.ends_with(": no difference\n"), "{said}");

    cluster.ok(&["node", "kill", "3"]);
    let output = cluster.run(&["verify"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(last_line(&said).contains("on 5 of 6 nodes"), "{said}");
    assert!(last_line(&said).ends_with("no difference there; NOT COMPARED: node 3"), "{said}");
    assert!(!said.contains("DIFFERENT"), "{said}");
    let output = cluster.run(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["verdict"], "incomplete");
    cluster.ok(&["node", "start", "3"]);
    cluster.ok(&["verify"]);
}

#[test]
fn what_an_interrupted_down_leaves_running_is_not_called_down() {
    let cluster = TestCluster::start(&[]);
    cluster.connect().batch_execute("CREATE TABLE t AS SELECT generate_series(1, 100) n").expect("made");
    let node = cluster.status()["nodes"][3]["pid"].clone();
    // It takes its time.
    signal(&node, Signal::SIGSTOP);
    let mut down = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["down", "--dir"])
        .arg(cluster.dir())
        .stderr(Stdio::null())
        .spawn()
        .expect("the borealis program runs");
    cluster.eventually("the other nodes end", Duration::from_secs(60), || {
        let status = cluster.status();
        let is_down = |id: usize| status["nodes"][id]["state"] == "down";
        [0, 1, 2, 4, 5].into_iter().all(is_down)
    });
    down.kill().expect("killed");
    down.wait().expect("reaped");
    let status = cluster.status();
    assert_eq!((&status["nodes"][3]["state"], &status["nodes"][3]["pid"]), (&"stopping".into(), &node));
    assert_ne!(status["volume"]["state"], "down", "node 4 runs");
    assert_eq!(status["instances"][0]["state"], "down");
    // The next command takes it up: it holds its store.
    signal(&node, Signal::SIGCONT);
    cluster.up(&[]);
    let status = cluster.status();
    assert_eq!((&status["volume"]["state"], &status["nodes"][3]["state"]), (&"up".into(), &"up".into()));
    assert_ne!(status["nodes"][3]["pid"], node);
    let rows: i64 = cluster.connect().query_one("SELECT count(*) FROM t", &[]).expect("asked").get(0);
    assert_eq!(rows, 100);
}

#[test]
fn status_says_what_a_lost_quorum_means_and_what_it_does_not_know() {
    let cluster = TestCluster::start(&[]);
    let status = cluster.status();
    assert_eq!((&status["volume"]["state"], &status["instances"][0]["state"]), (&"up".into(), &"up".into()));
    cluster.ok(&["node", "kill", "2"]);
    let status = cluster.status();
    assert_eq!(status["volume"]["state"], "degraded");
    assert_eq!(status["volume"]["reason"], "node 2 is down");
    assert_eq!(status["instances"][0]["state"], "up");

    cluster.ok(&["az", "kill", "az3"]);
    let status = cluster.status();
    assert_eq!(status["volume"]["state"], "no write quorum");
    assert_eq!(status["instances"][0]["state"], "waiting");
    let said = cluster.ok(&["status"]);
    assert!(said.contains("state  no write quorum: commits wait"), "{said}");
    assert!(!said.contains(" 0/0 "), "nothing is complete to there: {said}");

    cluster.ok(&["instance", "kill"]);
    let status = cluster.status();
    assert!(status["protection_groups"][0]["pgcl"].is_null(), "three nodes cannot know: {status}");
    cluster.ok(&["node", "kill", "1", "3", "4"]);
    let status = cluster.status();
    assert_eq!(status["volume"]["state"], "down");
    assert!(status["volume"]["vdl"].is_null() && status["volume"]["epoch"].is_null(), "{status}");
    let said = cluster.ok(&["status"]);
    assert!(!said.contains("0/0") && said.contains("durable to unknown"), "{said}");
    cluster.ok(&["node", "start"]);
    cluster.ok(&["instance", "start"]);
    assert_eq!(cluster.status()["volume"]["state"], "up");
}

#[test]
fn a_node_that_runs_and_does_not_answer_is_not_called_up() {
    let cluster = TestCluster::start(&[]);
    let node = cluster.status()["nodes"][3]["pid"].clone();
    signal(&node, Signal::SIGSTOP);
    let output = cluster.run(&["node", "start", "4"]);
    let said = text(&output);
    let status = cluster.status();
    signal(&node, Signal::SIGCONT);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("node 4 unresponsive") && !said.contains("node 4 up"), "{said}");
    assert!(said.contains("no answer within") && !said.contains("os error 11"), "{said}");
    assert_eq!(status["nodes"][3]["state"], "unresponsive");
    assert_eq!(status["volume"]["state"], "degraded");
    cluster.ok(&["node", "start", "4"]);
}

#[test]
fn whoever_may_not_ask_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        harness::not_tested("only root can look with the eyes of another user");
        return;
    }
    let cluster = TestCluster::start(&[]);
    let nobody = nix::unistd::User::from_name("nobody").expect("asked").expect("a user nobody");
    let program = cluster.dir().with_file_name("borealis");
    std::fs::copy(env!("CARGO_BIN_EXE_borealis"), &program).expect("copied");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
    // What there is is readable; the driver's socket is its owner's.
    let ask = || {
        let mut command = Command::new(&program);
        command.args(["status", "--json", "--dir"]).arg(cluster.dir()).current_dir("/");
        command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw()).output().expect("it runs")
    };
    let output = ask();
    if !output.status.success() {
        // The directory itself is closed: that is said, too.
        assert!(text(&output).contains("Permission denied"), "{}", text(&output));
        return;
    }
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let instance = &status["instances"][0];
    assert_eq!(instance["state"], "unknown", "{status}");
    assert!(instance["reason"].as_str().expect("a reason").contains("ermission denied"), "{status}");
}

#[test]
fn what_dies_is_started_again_and_what_was_killed_on_purpose_is_not() {
    let cluster = TestCluster::start(&[]);
    let mut client = cluster.connect();
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").expect("written");
    drop(client);
    let before = cluster.status();
    cluster.ok(&["node", "kill", "6"]);
    signal(&before["nodes"][1]["pid"], Signal::SIGKILL);
    signal(&before["instances"][0]["driver_pid"], Signal::SIGKILL);
    cluster.eventually("node and instance are back", Duration::from_secs(40), || {
        let status = cluster.status();
        status["nodes"][1]["state"] == "up" && status["instances"][0]["state"] == "up"
    });
    let status = cluster.status();
    assert_ne!(status["nodes"][1]["pid"], before["nodes"][1]["pid"]);
    let reason = status["nodes"][1]["failure"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("killed") && reason.contains("started again once"), "{reason}");
    let row = cluster.connect().query_one("SELECT n FROM t", &[]).expect("the row is there");
    assert_eq!(row.get::<_, i32>(0), 1);
    assert_eq!(status["nodes"][5]["state"], "down", "it was killed on purpose");
    cluster.ok(&["node", "start", "6"]);

    let supervisor = cluster.status()["supervisor_pid"].as_i64().expect("a supervisor") as i32;
    cluster.ok(&["down"]);
    assert!(!runs(supervisor), "the supervisor was left behind");
    assert!(!cluster.dir().join("supervisor.process").exists());
    std::thread::sleep(Duration::from_secs(2));
    let status = cluster.status();
    assert!(
        status["nodes"].as_array().expect("nodes").iter().all(|node| node["state"] == "down"),
        "{status}"
    );
}

#[test]
fn a_part_that_keeps_dying_is_given_up_with_a_reason() {
    let cluster = TestCluster::start(&[]);
    let store = cluster.dir().join("nodes/2/store");
    let aside = cluster.dir().join("aside");
    let node = cluster.status()["nodes"][1]["pid"].clone();
    std::fs::rename(&store, &aside).expect("moved");
    signal(&node, Signal::SIGKILL);
    cluster.eventually("it is given up", Duration::from_secs(90), || {
        cluster.status()["nodes"][1]["state"] == "failed"
    });
    let reason = cluster.status()["nodes"][1]["failure"].as_str().expect("a reason").to_owned();
    assert!(reason.contains("5 times in a row, and not any more"), "{reason}");
    std::fs::rename(&aside, &store).expect("moved");
    cluster.ok(&["node", "start", "2"]);
    assert_eq!(cluster.status()["nodes"][1]["state"], "up");
}

#[test]
fn a_hangup_reloads_settings_and_stops_nothing() {
    let cluster = TestCluster::unstarted();
    let mut up = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(["up", "--port", &cluster.port.to_string(), "--dir"])
        .arg(cluster.dir())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the borealis program runs");
    cluster.eventually("SQL is answered", Duration::from_secs(120), || cluster.try_connect().is_ok());
    // `up` serves a moment after the first answer; a signal before that is kept for it.
    let file = memory_directory_of(&cluster.dir()).join("data/postgresql.conf");
    let own = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, own + "work_mem = '7MB'\n").expect("written");
    kill(Pid::from_raw(up.id() as i32), Signal::SIGHUP).expect("signalled");
    let shown = || cluster.connect().query_one("SHOW work_mem", &[]).expect("shown").get::<_, String>(0);
    cluster.eventually("the setting is read", Duration::from_secs(20), || shown() == "7MB");
    // Nor does it end the parts, should it reach them.
    let status = cluster.status();
    signal(&status["nodes"][0]["pid"], Signal::SIGHUP);
    signal(&status["instances"][0]["driver_pid"], Signal::SIGHUP);
    std::thread::sleep(Duration::from_secs(2));
    assert!(up.try_wait().expect("asked").is_none(), "a hangup ended `up`");
    let after = cluster.status();
    assert_eq!(after["nodes"][0]["pid"], status["nodes"][0]["pid"]);
    assert_eq!(after["instances"][0]["driver_pid"], status["instances"][0]["driver_pid"]);

    // What dies is started again here, too, without a supervisor of its own.
    cluster.ok(&["node", "start", "1"]);
    let watched = cluster.status();
    assert!(watched["supervisor_pid"].is_null() && watched["unwatched"] == false, "{watched}");
    assert_eq!(watched["serving_pid"], up.id());
    signal(&after["nodes"][4]["pid"], Signal::SIGKILL);
    cluster.eventually("the node is back", Duration::from_secs(20), || {
        let node = &cluster.status()["nodes"][4];
        node["state"] == "up" && node["pid"] != after["nodes"][4]["pid"]
    });
    kill(Pid::from_raw(up.id() as i32), Signal::SIGTERM).expect("told to stop");
    let begin = Instant::now();
    assert!(up.wait().expect("it ends").success(), "a stop that was asked for is a success");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_failed_command_leaves_no_wishes_behind() {
    let cluster = TestCluster::start(&["--pg-set", "work_mem=8MB"]);
    cluster.ok(&["down"]);
    let catalog = || std::fs::read_to_string(cluster.dir().join("cluster.json")).expect("read");
    let before = catalog();
    for wish in [
        ["--pg-user", "nobody-has-this-name"],
        ["--memory-dir", "/proc"],
        ["--pg-set", "archive_mode=on"],
        ["--pg-bin", "/usr"],
        ["--pg-set", "no_such_setting=1"],
    ] {
        if wish[0] == "--pg-user" && !nix::unistd::geteuid().is_root() {
            harness::not_tested("only root can run the server as another user");
            continue;
        }
        cluster.fails(&["up", "--detach", wish[0], wish[1]]);
        assert_eq!(catalog(), before, "{wish:?} was kept");
    }
    cluster.up(&[]);
    let shown: String = cluster.connect().query_one("SHOW work_mem", &[]).expect("shown").get(0);
    assert_eq!(shown, "8MB");
}

#[test]
fn a_failed_or_mistaken_up_leaves_what_ran_before_it() {
    let cluster = TestCluster::start(&[]);
    cluster.ok(&["instance", "kill"]);
    let before = cluster.status();
    let pids = |status: &serde_json::Value| {
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| node["pid"].clone()).collect::<Vec<_>>()
    };
    let said = cluster.fails(&["up", "--detach", "--protection-groups", "9"]);
    assert!(said.contains("cannot be changed to 9"), "{said}");
    let after = cluster.status();
    assert_eq!(after["supervisor_pid"], before["supervisor_pid"], "a mistaken command ended the supervisor");
    cluster.ok(&["node", "kill", "5"]);
    cluster.fails(&["up", "--detach", "--pg-set", "no_such_setting=1"]);
    let after = cluster.status();
    let (mut before, mut left) = (pids(&before), pids(&after));
    assert!(left.remove(4).is_null(), "what the failed command had started runs");
    before.remove(4);
    assert_eq!(left, before, "what ran before was stopped");
    assert!(after["supervisor_pid"].is_i64(), "nobody watches over what was left");
}

#[test]
fn whatever_starts_a_part_sees_to_it_that_somebody_watches() {
    let cluster = TestCluster::start(&[]);
    let kill_supervisor = || {
        let supervisor = cluster.status()["supervisor_pid"].clone();
        signal(&supervisor, Signal::SIGKILL);
        cluster.eventually("it is gone", Duration::from_secs(10), || cluster.status()["unwatched"] == true);
    };
    assert_eq!(cluster.status()["unwatched"], false);
    kill_supervisor();
    let said = cluster.ok(&["status"]);
    assert!(said.contains("nobody starts again what dies; `borealis up --detach` does"), "{said}");
    let said = cluster.fails(&["up", "--detach"]);
    assert!(said.contains("already running"), "{said}");
    assert_eq!(cluster.status()["unwatched"], false, "after up");
    kill_supervisor();
    cluster.ok(&["node", "start", "3"]);
    assert_eq!(cluster.status()["unwatched"], false, "after node start");
    cluster.ok(&["instance", "kill"]);
    kill_supervisor();
    cluster.ok(&["instance", "start"]);
    assert_eq!(cluster.status()["unwatched"], false, "after instance start");
    assert!(!cluster.ok(&["status"]).contains("nobody starts again"));
}

#[test]
fn a_node_that_is_still_starting_is_waited_for() {
    let cluster = TestCluster::start(&[]);
    // As between the start of its process and the moment in which it listens.
    let (socket, aside) = (cluster.dir().join("sockets/4"), cluster.dir().join("sockets/aside"));
    std::fs::rename(&socket, &aside).expect("moved");
    assert_eq!(cluster.status()["nodes"][3]["state"], "starting");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| cluster.run(&["node", "start", "4"]));
        std::thread::sleep(Duration::from_secs(1));
        std::fs::rename(&aside, &socket).expect("moved back");
        let output = start.join().expect("it ran");
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("node 4 up"), "{}", text(&output));
    });
}

#[test]
fn a_moved_clusters_memory_is_given_back() {
    let cluster = TestCluster::start(&[]);
    let memory = memory_directory_of(&cluster.dir());
    // As after a crash: nothing is stopped in order.
    signal(&cluster.status()["supervisor_pid"], Signal::SIGKILL);
    cluster.ok(&["instance", "kill"]);
    cluster.ok(&["node", "kill", "1", "2", "3", "4", "5", "6"]);
    assert!(memory.is_dir());
    let moved = cluster.dir().with_file_name("moved");
    std::fs::rename(cluster.dir(), &moved).expect("moved");
    std::os::unix::fs::symlink(&moved, cluster.dir()).expect("linked");
    cluster.up(&[]);
    assert_ne!(memory_directory_of(&cluster.dir()), memory);
    assert_eq!(harness::memory_folders(&memory), [] as [std::path::PathBuf; 0]);
}
