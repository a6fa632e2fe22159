//! The node as a process: signals, exit codes, and being killed.
//!
//! Run without arguments it is the test; with `node FILE` it is a storage node.

// A step that fails should stop the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use borealis_client::{NodeClient, Timeouts};
use borealis_spec::NodeConfig;
use borealis_types::{EpochHistory, EpochOpening, Lsn, RecordSpan, ServerVersion, VolumeEpoch, WriterId};
use borealis_wire::Caller;
use common::{Cluster, VOLUME};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, file] = &arguments[..]
        && word == "node"
    {
        let run = borealis_node::config::load(Path::new(file)).and_then(borealis_node::run);
        return match run {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    a_node_process_keeps_its_promises_through_every_kind_of_end();
    println!("test a_node_process_keeps_its_promises_through_every_kind_of_end ... ok");
    ExitCode::SUCCESS
}

fn save(config: &NodeConfig) {
    std::fs::write(config.file(), serde_json::to_vec(config).unwrap()).unwrap();
}

fn spawn(config: &NodeConfig) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .arg("node")
        .arg(config.file())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn connect(config: &NodeConfig) -> NodeClient {
    connect_as(config, Caller::Client)
}

fn connect_as(config: &NodeConfig, caller: Caller) -> NodeClient {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match NodeClient::connect(&config.listen, VOLUME, config.node, caller, Timeouts::default()) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "the node does not serve: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Waits for the process to end; returns its exit code (`None` if a signal ended it) and what it said.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn a_node_process_keeps_its_promises_through_every_kind_of_end() {
    let cluster = Cluster::create(1);
    let mut config = cluster.configs[0].clone();
    config.detached = true;
    save(&config);
    let (epoch, writer) = (VolumeEpoch(1), WriterId(9));
    let mut history = EpochHistory::default();
    history.push(EpochOpening {
        epoch,
        last: RecordSpan::NONE,
        server_version: ServerVersion::NEWEST_TESTED,
    });

    let child = spawn(&config);
    connect_as(&config, Caller::Recovery).fence(epoch, writer).unwrap();
    signal(&child, Signal::SIGKILL);
    assert_eq!(ended(child).0, None);

    let child = spawn(&config);
    let mut client = connect_as(&config, Caller::Recovery);
    assert_eq!(client.welcome()[0].promised_epoch, epoch, "the promise must outlive the process");
    client.install(epoch, writer, &history, &[]).unwrap();
    // A second process on the same folder is turned away and does no harm.
    let (code, said) = ended(spawn(&config));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("in use"), "{said}");
    // Started in the background: the terminal's interrupt is not for it.
    signal(&child, Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client.status().unwrap().process_id, child.id());
    let stop_begin = Instant::now();
    signal(&child, Signal::SIGTERM);
    let (code, said) = ended(child);
    assert_eq!(code, Some(0), "{said}");
    assert!(stop_begin.elapsed() < Duration::from_secs(3), "the stop took {:?}", stop_begin.elapsed());

    config.detached = false;
    save(&config);
    let child = spawn(&config);
    let mut client = connect(&config);
    let summaries = client.summaries().unwrap();
    assert_eq!(summaries[0].history, history);
    assert_eq!(summaries[0].segment_complete_lsn, Lsn::ZERO);
    signal(&child, Signal::SIGINT);
    assert_eq!(ended(child).0, Some(0));
}
