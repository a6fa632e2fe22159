//! The supervisor as a process of its own, for a cluster that nobody serves in the foreground.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;

use super::serving;
use crate::catalog::FILE_NAME;
use crate::cluster::Cluster;
use crate::process::{self, ProcessIdentity};

const PROCESS_NAME: &str = "supervisor.process";
const LOG_NAME: &str = "supervisor.log";
/// Longest wait for it to end; it may be in the middle of starting something.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

fn process_file(directory: &Path) -> PathBuf {
    directory.join(PROCESS_NAME)
}

/// Its process, if it runs.
#[must_use]
pub fn process(directory: &Path) -> Option<ProcessIdentity> {
    process::read_process_file(&process_file(directory))
}

/// Starts it, if it does not run and no `borealis up` serves in the foreground, which does the same. Every command that
/// starts a part does this: what runs is watched.
///
/// # Errors
/// When it cannot be started.
pub fn start(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = cluster.directory();
    if process(directory).is_some() || serving::process(directory).is_some() {
        return Ok(());
    }
    let arguments = ["internal", "supervise"];
    let (file, log) = (directory.join(FILE_NAME), directory.join(LOG_NAME));
    process::spawn_detached(&arguments, &file, &log, &process_file(directory))
        .context("cannot start the supervisor")?;
    Ok(())
}

/// Ends it, and leaves nothing of it but its log.
///
/// # Errors
/// When it does not end even when killed.
pub fn stop(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = cluster.directory();
    if let Some(supervisor) = process(directory) {
        supervisor.signal(Signal::SIGTERM);
        if !supervisor.wait_gone(STOP_TIMEOUT) {
            supervisor.kill_and_wait()?;
        }
    }
    process::remove_process_file(&process_file(directory))?;
    Ok(())
}
