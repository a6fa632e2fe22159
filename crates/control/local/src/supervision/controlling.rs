//! The controller of a cluster as a process: it watches over who has the data, as the supervisor does over processes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;

use super::{Ended, Restarts};
use crate::catalog::FILE_NAME;
use crate::cluster::Cluster;
use crate::node_user;
use crate::process::{self, ProcessIdentity};

const FOLDER_NAME: &str = "controller";
const PROCESS_NAME: &str = "process";
pub(super) const LOG_NAME: &str = "controller.log";
/// Longest wait for it to end; it may be in the middle of starting something.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The controller's own folder: its log, and its certificate if nodes speak TLS.
#[must_use]
pub fn folder(directory: &Path) -> PathBuf {
    directory.join(FOLDER_NAME)
}

fn process_file(directory: &Path) -> PathBuf {
    folder(directory).join(PROCESS_NAME)
}

/// Its process, if it runs.
#[must_use]
pub fn process(directory: &Path) -> Option<ProcessIdentity> {
    process::read_process_file(&process_file(directory))
}

/// The process number that it has, or had before it died.
pub(super) fn last_process(directory: &Path) -> Option<u32> {
    process::recorded_process_id(&process_file(directory))
}

/// Starts it, if it does not run. Every command that starts a part does this.
///
/// # Errors
/// When it cannot be started.
pub fn start(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = cluster.directory();
    if process(directory).is_some() {
        return Ok(());
    }
    node_user::private_folder(&folder(directory), None)?;
    Restarts::clear(&folder(directory))?;
    spawn(cluster)
}

/// Starts it without asking whether it runs.
pub(super) fn spawn(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = cluster.directory();
    let folder = folder(directory);
    node_user::private_folder(&folder, None)?;
    cluster.issue_for_controller(&folder)?;
    Ended::clear(&folder)?;
    let (file, log) = (directory.join(FILE_NAME), folder.join(LOG_NAME));
    process::spawn_detached(&["internal", "controller"], &file, &log, &process_file(directory))
        .context("cannot start the controller")?;
    Ok(())
}

/// Ends it, and leaves nothing of it but its log.
///
/// # Errors
/// When it does not end even when killed.
pub fn stop(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = cluster.directory();
    let running = process(directory);
    // First, so that nobody starts it again.
    process::remove_process_file(&process_file(directory))?;
    if let Some(controller) = running {
        controller.signal(Signal::SIGTERM);
        if !controller.wait_gone(STOP_TIMEOUT) {
            controller.kill_and_wait()?;
        }
    }
    Ok(())
}
