//! Watching over a cluster that runs: what dies is started again, and a signal stops everything or passes on new settings.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use borealis_local::cluster::{Cluster, WRITER};
use borealis_local::driver_socket::ask_driver;
use borealis_local::process::ProcessIdentity;
use borealis_local::supervision::{Supervisor, controlling};
use borealis_types::NodeId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::notify::ServiceManager;
use crate::progress::Step;

/// How often the parts are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The signals that `borealis up` takes itself; to be held back before any thread is made.
pub fn own_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Waits for Ctrl-C, then stops everything. Ends by itself when another command has stopped everything; an
/// instance alone may end and start again.
pub fn serve(cluster: &Cluster, signals: SigSet) -> anyhow::Result<ExitCode> {
    let manager = ServiceManager::from_environment();
    let serving = format!("serving {}", Cluster::url(cluster.instance(WRITER)?));
    manager.ready(&serving);
    say("press Ctrl-C to stop");
    let mut supervisor = Supervisor::new(cluster.directory());
    let wishes = wishes(signals)?;
    let mut instance_ran = true;
    loop {
        match wishes.recv_timeout(LOOK_INTERVAL) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(Signal::SIGHUP) => {
                reload(cluster);
                continue;
            }
            Ok(_) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                manager.stopping();
                stop(cluster)?;
                return Ok(ExitCode::SUCCESS);
            }
        }
        for event in supervisor.look() {
            say(&event);
            manager.status(&event);
        }
        if !cluster.anything_is_wanted() && !cluster.anything_runs() {
            say("everything was stopped");
            controlling::stop(cluster)?;
            return Ok(ExitCode::SUCCESS);
        }
        if supervisor.nothing_is_left() {
            stop(cluster)?;
            bail!("every part of the cluster has died; `borealis up` starts it again. The reasons are above");
        }
        let instance_runs = cluster.driver_process(WRITER).is_some();
        if instance_ran && !instance_runs {
            let log = cluster.instance_directory(WRITER).join("driver.log");
            say(&format!(
                "the instance ended; the storage nodes go on. {} ends with:\n{}",
                log.display(),
                borealis_local::log::log_tail(&log)
            ));
            manager.status("the instance ended; the storage nodes go on");
        }
        if !instance_ran && instance_runs {
            say("the instance was started again");
            manager.status(&serving);
        }
        instance_ran = instance_runs;
    }
}

/// Stops the controller, then PostgreSQL, then the nodes that its last redo goes to.
pub fn stop(cluster: &Cluster) -> anyhow::Result<()> {
    controlling::stop(cluster)?;
    // It may have added nodes.
    let cluster = &Cluster::open(cluster.directory())?;
    let nodes: Vec<NodeId> = cluster.catalog.nodes.iter().map(|node| node.id).collect();
    stop_parts(cluster, &nodes)
}

/// Stops PostgreSQL, then these nodes.
pub fn stop_parts(cluster: &Cluster, nodes: &[NodeId]) -> anyhow::Result<()> {
    let step = Step::begin("stopping PostgreSQL");
    cluster.stop_instance(WRITER)?;
    step.done();
    let step = Step::begin("stopping the storage nodes");
    cluster.stop_nodes(nodes)?;
    step.done();
    Ok(())
}

/// A thread that takes the signals; the last one that arrives is a wish to stop.
fn wishes(signals: SigSet) -> anyhow::Result<mpsc::Receiver<Signal>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a person sends the signals, and the receiver takes them at once"
    )]
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(signal).is_err() || signal != Signal::SIGHUP {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// Has PostgreSQL read its configuration files again. The terminal may have gone, which is no reason to stop.
fn reload(cluster: &Cluster) {
    let said = ask_driver(&cluster.instance_directory(WRITER)).unwrap_or_default();
    let postmaster = said["postgres_pid"].as_u64().and_then(|process| u32::try_from(process).ok());
    match postmaster.and_then(ProcessIdentity::of) {
        Some(postmaster) => {
            postmaster.signal(Signal::SIGHUP);
            say("SIGHUP: PostgreSQL reads its configuration files again");
        }
        None => say("SIGHUP: PostgreSQL does not run, nothing to reload"),
    }
}

/// Tells a person, if one is there: `up` may have lost its terminal long ago.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The supervisor of a cluster that nobody serves in the foreground. Ends when it is told to, or when its cluster is gone.
pub fn supervise(catalog: &Path) -> anyhow::Result<ExitCode> {
    let directory = catalog.parent().context("the catalog's file is in a folder")?;
    let mut signals = own_signals();
    signals.remove(Signal::SIGHUP);
    signals.thread_block().context("cannot hold back signals")?;
    let signals =
        SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("cannot make a signal descriptor")?;
    let mut supervisor = Supervisor::new(directory);
    let interval = PollTimeout::try_from(LOOK_INTERVAL).context("the interval is short")?;
    while catalog.is_file() {
        for event in supervisor.look() {
            say(&event);
        }
        let mut descriptors = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, interval).is_ok_and(|ready| ready > 0) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
