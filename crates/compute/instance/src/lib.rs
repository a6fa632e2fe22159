//! One PostgreSQL instance: importing a fresh `initdb`, writing a data directory, running the server.
//!
//! Invariant: nothing here is durable. Everything it writes lies in the instance's memory directory and can be
//! deleted at any time; what must survive is redo, and went through the driver. The exception is [`export`], which writes
//! where a person asked for it.

pub mod binaries;
pub mod confinement;
pub mod data_directory;
pub mod directory_plan;
pub mod export;
pub mod import;
pub mod kept_files;
pub mod leftovers;
mod libraries;
pub mod log_files;
pub mod memory_directory;
mod program_file;
pub mod server;
pub mod settings;
mod settings_file;
pub mod statistics;
pub mod untrusted;

use std::path::{Path, PathBuf};

use borealis_types::{PostgresVersion, ServerVersion};

pub use binaries::{Binaries, OperatingSystemUser};
pub use directory_plan::{Contents, SynthesizedCheckpoint};
pub use export::Export;
pub use import::{Import, ImportedRecord};
pub use kept_files::KeptFiles;
pub use program_file::ProgramFile;
pub use server::{Server, ServerConfig};
pub use settings::{RefusedSetting, Settings};

/// Why an instance cannot be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// A file or folder could not be read, written or made.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried, as in "cannot write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The memory file system has not enough room.
    #[error(
        "the memory file system of {path} has {available_mib} MiB free, {needed_mib} MiB are needed for WAL in \
         flight and cached pages; free some, enlarge it (as root: mount -o remount,size=2G {mount_point}; a container: \
         start it with --shm-size=2g), or choose another with --memory-dir"
    )]
    MemoryFileSystemFull {
        /// The memory directory.
        path: PathBuf,
        /// Where that file system is mounted.
        mount_point: PathBuf,
        /// What is free there now.
        available_mib: u64,
        /// The least that is needed to start.
        needed_mib: u64,
    },
    /// The server's user cannot get there.
    #[error(
        "the user `{user}`, as whom PostgreSQL runs, may not enter {folder}, so the server could not use {path}; allow \
         it (chmod a+x {folder}), or choose another place with --memory-dir"
    )]
    NotReachable {
        /// The system user whose permission is missing.
        user: String,
        /// The folder that cannot be entered.
        folder: PathBuf,
        /// The path below it that the server needs.
        path: PathBuf,
    },
    /// The directory is not on a memory file system.
    #[error("{0} is not on a memory file system (tmpfs); choose one, such as /dev/shm, with --memory-dir")]
    NotMemory(PathBuf),
    /// No PostgreSQL is installed where it is looked for.
    #[error(
        "no PostgreSQL server was found in {looked_in}; install it (on Debian: apt-get install postgresql-{newest}) \
         or name its folder of programs with --pg-bin",
        newest = PostgresVersion::NEWEST
    )]
    PostgresMissing {
        /// Where it was looked for.
        looked_in: String,
    },
    /// A version Borealis does not know.
    #[error(
        "{program} is {found}; this version of Borealis supports PostgreSQL {supported} only. Install that beside it \
         (Debian 12 has it: apt-get install postgresql-{newest}), or name the folder of its programs with --pg-bin",
        supported = PostgresVersion::supported(),
        newest = PostgresVersion::NEWEST
    )]
    PostgresVersion {
        /// The program that was asked for its version.
        program: PathBuf,
        /// What it answered.
        found: String,
    },
    /// The process does not run what was asked for its release.
    #[error(
        "{program} said that it is PostgreSQL {server_version}, and the server that was started from it runs {running}, \
         another file: it was replaced meanwhile, or is a script; name the folder of the real programs with --pg-bin"
    )]
    PostgresReplaced {
        /// The program that was asked for its version.
        program: PathBuf,
        /// What it answered.
        server_version: ServerVersion,
        /// The file that the process runs.
        running: String,
    },
    /// The system user does not exist.
    #[error(
        "there is no system user `{0}` to run PostgreSQL as (it refuses to run as root); name one with --pg-user"
    )]
    NoUser(String),
    /// The system user has a number only.
    #[error(
        "user {0} has no name: PostgreSQL's initdb refuses to run for a user without an entry in /etc/passwd. Add one (in \
         a container: echo 'postgres:x:{0}:{0}::/tmp:/bin/sh' >> /etc/passwd when the image is made), or run as another user"
    )]
    UserWithoutName(u32),
    /// A program of PostgreSQL failed.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// The program that was run.
        program: PathBuf,
        /// Its exit code, or the signal that ended it.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// What `initdb` or the volume holds is not as expected.
    #[error("{0}")]
    Unexpected(String),
    /// A setting that would break what Borealis promises.
    #[error(transparent)]
    Setting(#[from] RefusedSetting),
}

/// For `map_err`: names the action and the path.
pub(crate) fn on(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> InstanceError {
    let path = path.to_path_buf();
    move |source| InstanceError::File { action, path, source }
}
