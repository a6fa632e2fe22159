//! `psql` connected to the writer.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Context;
use borealis_local::cluster::{Cluster, WRITER};

/// Replaces this process by `psql`.
pub fn psql(dir: &Path, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(dir)?;
    let instance = cluster.instance(WRITER)?;
    let own = instance.postgres_bin_dir.join("psql");
    let program = if own.is_file() { own } else { "psql".into() };
    let error = Command::new(&program)
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
        .arg(instance.port.to_string())
        .args(arguments)
        // The database's name is an environment default, so that an argument can override it.
        .env("PGDATABASE", "postgres")
        .exec();
    Err(error).with_context(|| {
        format!("cannot run {}; install the PostgreSQL client (postgresql-client)", program.display())
    })
}
