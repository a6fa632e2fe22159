//! `borealis redo-check`: the arguments of crate `borealis-redo-check`, and its judgement as an exit code.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use borealis_instance::Binaries;
use borealis_local::Catalog;
use borealis_local::cluster::{Cluster, WRITER};
use borealis_local::driver_socket::ask_driver;
use borealis_local::replication_pass::ReplicationPass;
use borealis_redo_check::{
    CheckError, Files, Memory, Progress, Release, Report, Stream, check_files, check_stream,
};
use borealis_types::{Lsn, ServerVersion};
use clap::{ArgGroup, Args};
use nix::sys::signal::{SigSet, Signal};

use crate::progress::Step;

/// The exit code for a mistake of the caller's, as of any wrong command line.
const EXIT_USAGE: u8 = 2;

/// What the user asked for.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["paths", "connect", "live"])))]
pub struct RedoCheckArguments {
    /// WAL segment files, or folders that have them (pg_wal, an archive, a data directory), of a PostgreSQL 15
    /// that runs with wal_consistency_checking = all.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Begin with the first record at or after this position.
    #[arg(long, value_name = "LSN", conflicts_with_all = ["connect", "live"])]
    start_lsn: Option<Lsn>,
    /// End with the last record that ends at or before this position.
    #[arg(long, value_name = "LSN", conflicts_with_all = ["connect", "live"])]
    end_lsn: Option<Lsn>,
    /// The release that wrote the WAL, like 15.20: redo follows it. [default: that of the server whose data directory
    /// the WAL is in]
    #[arg(long, value_name = "RELEASE", conflicts_with_all = ["connect", "live"])]
    server_version: Option<ServerVersion>,
    /// Follow the log of a running server; anything libpq takes for a connection.
    #[arg(long, value_name = "URL", conflicts_with = "paths")]
    connect: Option<String>,
    /// Follow the log of the cluster in --dir.
    #[arg(long, conflicts_with_all = ["paths", "connect"])]
    live: bool,
    /// Follow until this position was reached. [default: until Ctrl-C]
    #[arg(long, value_name = "LSN", conflicts_with = "paths")]
    until: Option<Lsn>,
    /// Follow for this long. [default: until Ctrl-C]
    #[arg(long, value_name = "N", conflicts_with = "paths")]
    seconds: Option<u64>,
    /// Folder with pg_receivewal. [default: where distributions put version 15]
    #[arg(long, value_name = "DIR", conflicts_with = "paths")]
    pg_bin: Option<PathBuf>,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// List the operations of PostgreSQL 15 of which there was no record, and fail for one that no unit test
    /// covers.
    #[arg(long)]
    require_all_operations: bool,
    /// Pages kept in memory, in MiB; the rest is in a temporary file.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    memory_mib: u32,
    /// Folder for temporary files. [default: TMPDIR, or /tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

/// Checks redo. Exit code 0 when every block is equal, 1 when not, 2 when the WAL is none or has no images.
pub fn redo_check(dir: &Path, arguments: &RedoCheckArguments) -> anyhow::Result<ExitCode> {
    let memory = Memory {
        pages_mib: arguments.memory_mib,
        temp_dir: arguments.temp_dir.clone().unwrap_or_else(std::env::temp_dir),
    };
    let mut step = None;
    let mut show = |progress| match progress {
        Progress::Reading => step = Some(Step::begin("applying every record and comparing every block")),
        Progress::Read => {
            if let Some(step) = step.take() {
                step.done();
            }
        }
        Progress::Note(note) => eprintln!("{note}"),
    };
    let report = if arguments.paths.is_empty() {
        follow(dir, arguments, &memory, &mut show)
    } else {
        let files = Files {
            paths: &arguments.paths,
            server_version: arguments.server_version,
            start: arguments.start_lsn,
            end: arguments.end_lsn,
        };
        check_files(&files, &memory, &mut show)
    };
    match report {
        Ok(report) => finish(&report, arguments),
        Err(CheckError::Mistake(mistake)) => Ok(usage(&mistake)),
        Err(CheckError::Failed(error)) => Err(error),
    }
}

/// Follows a running server: the one that was named, or the writer of the cluster in `dir`.
fn follow(
    dir: &Path,
    arguments: &RedoCheckArguments,
    memory: &Memory,
    show: &mut dyn FnMut(Progress),
) -> Result<Report, CheckError> {
    let mut recorded = None;
    let (url, folder) = match &arguments.connect {
        Some(url) => (url.clone(), arguments.pg_bin.clone()),
        None => {
            let cluster = Cluster::open(dir)?;
            // It leaves its pass in the server's folder.
            Catalog::check_owner(dir).map_err(anyhow::Error::from)?;
            let instance = cluster.instance(WRITER)?;
            recorded = Some(recorded_release(&cluster)?);
            let folder = arguments.pg_bin.clone().unwrap_or_else(|| instance.postgres_bin_dir.clone());
            (Cluster::url(instance), Some(folder))
        }
    };
    let _pass = match &arguments.connect {
        Some(_) => None,
        None => Some(ReplicationPass::take(&Cluster::open(dir)?, WRITER)?),
    };
    let program = |name: &str| match folder.as_ref().map(|folder| folder.join(name)) {
        Some(own) if own.is_file() => Ok(own),
        _ => Binaries::find(arguments.pg_bin.as_deref()).map(|binaries| binaries.program(name)),
    };
    let stop = stop_on_signal()?;
    let stream = Stream {
        url: &url,
        psql: &program("psql").map_err(anyhow::Error::from)?,
        pg_receivewal: &program("pg_receivewal").map_err(anyhow::Error::from)?,
        recorded,
        until: arguments.until,
        duration: arguments.seconds.map(Duration::from_secs),
        stop: &stop,
    };
    check_stream(&stream, memory, show)
}

fn usage(message: &str) -> ExitCode {
    eprintln!("borealis: {message}");
    ExitCode::from(EXIT_USAGE)
}

/// Prints the report and judges.
fn finish(report: &Report, arguments: &RedoCheckArguments) -> anyhow::Result<ExitCode> {
    if report.is_clean() && !report.has_images() {
        return Ok(usage(&format!(
            "none of the {} records has an image to compare with, so nothing could be checked: set \
             wal_consistency_checking = all on the server (a reload is enough; for a Borealis cluster: borealis up \
             --pg-set wal_consistency_checking=all), write some WAL, and check that",
            report.total().records
        )));
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        println!("{}", report.text(arguments.require_all_operations));
    }
    let covered = !arguments.require_all_operations || report.uncovered() == 0;
    Ok(if report.is_clean() && covered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The release that the volume's history has for what the running instance writes.
fn recorded_release(cluster: &Cluster) -> anyhow::Result<Release> {
    let answer =
        ask_driver(&cluster.instance_directory(WRITER)).context("the cluster's instance does not run")?;
    let recorded = answer.get("server_version").and_then(|release| release.as_str());
    let recorded = recorded.context("the cluster's instance has not opened the volume yet")?;
    let source =
        format!("as epoch {} of the volume's history says", answer.get("epoch").unwrap_or(&0.into()));
    Ok(Release::known(recorded.parse()?, source))
}

/// A flag that a signal to stop sets.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before the thread is made, so that both hold them back and only the thread takes them.
    signals.thread_block().context("cannot hold back signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::Builder::new().name("stop-signal".to_owned()).spawn(move || {
        let _ = signals.wait();
        flag.store(true, Ordering::Relaxed);
    })?;
    Ok(stop)
}
