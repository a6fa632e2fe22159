//! Runs any program with the server's view of its files.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use borealis_driver::shim_library;
use borealis_instance::OperatingSystemUser;
use borealis_instance::server::readable_by;
use borealis_local::Catalog;
use borealis_local::cluster::{Cluster, WRITER};
use borealis_local::driver_socket;

/// Replaces this process by the program, as the server's user, in the data directory.
pub fn exec(dir: &Path, words: &[OsString]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = words.split_first().context("which program is to be run?")?;
    let cluster = Cluster::open(dir)?;
    // The program may write, and what it leaves in the server's folder would be closed to the server.
    Catalog::check_owner(dir)?;
    let instance = cluster.instance(WRITER)?;
    if !driver_socket::server_runs(&cluster.instance_directory(WRITER)) {
        bail!(
            "instance {WRITER} does not run, and its files exist only while it does; `borealis instance start` first"
        );
    }
    let memory = cluster.memory_directory(instance);
    let data = memory.join("data");
    let user = OperatingSystemUser::choose(instance.postgres_user.as_deref())?;
    let mut command = Command::new(found(program, &instance.postgres_bin_dir));
    command
        .args(arguments)
        .current_dir(&data)
        .env("PGDATA", &data)
        .env("LD_PRELOAD", library(&cluster, &memory, &user)?)
        .env(borealis_shm::ENVIRONMENT_SHM, memory.join(borealis_shm::path::SHARED_MEMORY_NAME))
        .env(borealis_shm::ENVIRONMENT_VIEW, "1");
    if user.switch {
        // `Command::uid` drops the supplementary groups of root.
        command.uid(user.user_id).gid(user.group_id);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {} as {}", program.display(), user.name))
}

/// A program of the server's own installation, if it has one of this name; else what the search path has.
fn found(program: &OsString, folder: &Path) -> PathBuf {
    let own = folder.join(program);
    let is_name = Path::new(program).components().count() == 1;
    if is_name && own.is_file() { own } else { PathBuf::from(program) }
}

/// The server's own copy of the shim, or the installed one where the memory folder does not allow programs.
fn library(cluster: &Cluster, memory: &Path, user: &OperatingSystemUser) -> anyhow::Result<PathBuf> {
    let copy = memory.join(shim_library::FILE_NAME);
    if copy.is_file() {
        return Ok(copy);
    }
    let installed = cluster.shim_library()?;
    if !readable_by(user, &installed) {
        bail!(
            "the user `{}` may not read {}, and programs cannot be loaded from {}; allow the one or the other",
            user.name,
            installed.display(),
            memory.display()
        );
    }
    Ok(installed)
}
