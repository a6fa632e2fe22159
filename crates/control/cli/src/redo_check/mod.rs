//! `borealis redo-check`: redo in Rust against what PostgreSQL itself says every page must be.
//!
//! A server with `wal_consistency_checking = all` puts into each record the pages as they are after it. Every
//! record is applied to the version before it, and compared, as PostgreSQL's own recovery does.

mod live;
mod output;
mod program;
mod reader;
mod release;
mod segments;
mod spill;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use borealis_instance::Binaries;
use borealis_local::cluster::{Cluster, WRITER};
use borealis_local::status::ask_driver;
use borealis_redo::check::Checker;
use borealis_types::{Lsn, ServerVersion};
use borealis_wal::Record;
use clap::{ArgGroup, Args};
use nix::sys::signal::{SigSet, Signal};

use crate::progress::Step;
use live::Receiver;
use output::Report;
use reader::{Ended, ReadError, RecordReader};
use release::Release;
use segments::{SegmentError, Segments};
use spill::SpillPages;

/// The exit code for a mistake of the caller's, as of any wrong command line.
const EXIT_USAGE: u8 = 2;
/// How often a live stream is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How far behind its last byte a live stream may be read when it ends.
const DRAIN_MAX: Duration = Duration::from_secs(10);

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

/// Why a check could not go on.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot keep pages in a temporary file: {0}; see --temp-dir and --memory-mib")]
    Pages(#[from] io::Error),
}

/// Nobody knows who wrote the WAL.
#[derive(Debug, thiserror::Error)]
#[error("{0}; give the release of the server that wrote it, for example --server-version 15.20")]
struct UnknownRelease(String);

/// The checker and where it began.
struct Check {
    checker: Checker<SpillPages>,
    from: Option<Lsn>,
    to: Lsn,
}

impl Check {
    fn feed(&mut self, record: &Record<'_>) -> Result<(), CheckError> {
        self.from.get_or_insert(record.span.start);
        self.to = record.span.end;
        self.checker.try_feed(record)?;
        Ok(())
    }
}

/// Checks redo. Exit code 0 when every block is equal, 1 when not, 2 when the WAL is none or has no images.
pub fn redo_check(dir: &Path, arguments: &RedoCheckArguments) -> anyhow::Result<ExitCode> {
    let temp_dir = arguments.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
    let frames_max = arguments.memory_mib as usize * ((1 << 20) / borealis_types::PAGE_SIZE);
    let pages = SpillPages::new(&temp_dir, frames_max);
    let mut check = Check { checker: Checker::with_pages(pages), from: None, to: Lsn::ZERO };
    let (release, ended_early) = if arguments.paths.is_empty() {
        follow(dir, arguments, &temp_dir, &mut check)?
    } else {
        // What is no WAL at all is said first.
        let read = Segments::find(&arguments.paths).map_err(anyhow::Error::from).and_then(|segments| {
            let release = match arguments.server_version {
                Some(told) => Release::told(told),
                None => match Release::of_files(&arguments.paths) {
                    Ok(release) => release,
                    Err(error) => return Err(UnknownRelease(format!("{error:#}")).into()),
                },
            };
            let ended_early = read_files(segments, &release, arguments, &mut check)?;
            Ok((release, ended_early))
        });
        match read {
            Ok(read) => read,
            Err(error) if error.is::<UnknownRelease>() => return Ok(usage(&error.to_string())),
            Err(error) => match error.downcast_ref::<SegmentError>() {
                Some(mistake) => return Ok(usage(&mistake.to_string())),
                None => return Err(error),
            },
        }
    };
    let mut report = Report::new(&check.checker, release, check.from.unwrap_or(Lsn::ZERO), check.to);
    report.ended_early = ended_early;
    finish(&report, arguments)
}

fn usage(message: &str) -> ExitCode {
    eprintln!("borealis: {message}");
    ExitCode::from(EXIT_USAGE)
}

/// Prints the report and judges.
fn finish(report: &Report<'_>, arguments: &RedoCheckArguments) -> anyhow::Result<ExitCode> {
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

/// Reads the files; the result is why it ended before the end, if it did.
fn read_files(
    segments: Segments,
    release: &Release,
    arguments: &RedoCheckArguments,
    check: &mut Check,
) -> anyhow::Result<Option<String>> {
    let step = Step::begin("applying every record and comparing every block");
    let mut reader = RecordReader::new(segments, release.server_version, arguments.start_lsn)?;
    let end = arguments.end_lsn.unwrap_or(Lsn(u64::MAX));
    let ended = reader.read::<CheckError>(|record| {
        if record.span.end > end {
            return Ok(ControlFlow::Break(()));
        }
        check.feed(record)?;
        Ok(ControlFlow::Continue(()))
    });
    step.done();
    match ended {
        Ok(Ended::Stopped) => Ok(None),
        Ok(Ended::NoMore(reason)) => {
            eprintln!("the WAL ends at {} ({})", reader.position(), reason.why);
            let wanted = arguments.end_lsn.filter(|wanted| *wanted > reader.position());
            Ok(wanted.map(|wanted| format!("there is no WAL up to {wanted}")))
        }
        // What was compared before is worth showing.
        Err(CheckError::Read(error)) => Ok(Some(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Follows a running server; the result is its release, and why it ended before it was to.
fn follow(
    dir: &Path,
    arguments: &RedoCheckArguments,
    temp_dir: &Path,
    check: &mut Check,
) -> anyhow::Result<(Release, Option<String>)> {
    let mut recorded = None;
    let (url, folder) = match &arguments.connect {
        Some(url) => (url.clone(), arguments.pg_bin.clone()),
        None => {
            let cluster = Cluster::open(dir)?;
            let instance = cluster.instance(WRITER)?;
            recorded = Some(recorded_release(&cluster)?);
            let folder = arguments.pg_bin.clone().unwrap_or_else(|| instance.postgres_bin_dir.clone());
            (Cluster::url(instance), Some(folder))
        }
    };
    let program = |name: &str| match folder.as_ref().map(|folder| folder.join(name)) {
        Some(own) if own.is_file() => Ok(own),
        _ => Binaries::find(arguments.pg_bin.as_deref()).map(|binaries| binaries.program(name)),
    };
    let server = live::ask(&program("psql")?, &url)?;
    if server.checking.is_empty() {
        eprintln!(
            "wal_consistency_checking is off on the server; there is nothing to compare unless sessions set it"
        );
    }
    let release = match recorded {
        Some(recorded) => confirmed_by_server(recorded, server.server_version)?,
        None => Release::known(server.server_version, "as the server says".to_owned()),
    };
    let ended_early =
        follow_log(&server, &release, &program("pg_receivewal")?, &url, arguments, temp_dir, check)?;
    Ok((release, ended_early))
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

/// What the history has, if the server that was asked is of that release: the driver says what it looked at before the
/// server started.
fn confirmed_by_server(recorded: Release, answered: ServerVersion) -> anyhow::Result<Release> {
    ensure!(
        recorded.server_version == answered,
        "the server says that it is PostgreSQL {answered}, but it writes as {}, {}: redo of its WAL would be another \
         release's; restart the instance (borealis instance stop, borealis instance start)",
        recorded.server_version,
        recorded.source
    );
    Ok(recorded)
}

/// Follows the log of the server at `url`; the result is why it ended before it was to.
fn follow_log(
    server: &live::ServerLog,
    release: &Release,
    pg_receivewal: &Path,
    url: &str,
    arguments: &RedoCheckArguments,
    temp_dir: &Path,
    check: &mut Check,
) -> anyhow::Result<Option<String>> {
    let stop = stop_on_signal()?;
    let mut receiver = Receiver::start(pg_receivewal, url, temp_dir)?;
    let stopped = || stop.load(Ordering::Relaxed);
    let Some(segments) = receiver.first_segments(server.position, stopped)? else { return Ok(None) };
    let mut reader = RecordReader::after(segments, release.server_version, server.position);
    eprintln!("following {url} from {}; press Ctrl-C for the report", reader.position());
    let begun = Instant::now();
    let limit = arguments.seconds.map(Duration::from_secs);
    let mut last_passes = None;
    loop {
        receiver.refresh(&mut reader.segments)?;
        let before = reader.position();
        let ended = reader.read::<CheckError>(|record| {
            check.feed(record)?;
            let reached = arguments.until.is_some_and(|until| record.span.end >= until);
            // A long backlog must not keep Ctrl-C waiting.
            let late = last_passes.is_some_and(|since: Instant| since.elapsed() > DRAIN_MAX);
            Ok(if reached || late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        match ended {
            Ok(Ended::Stopped) => return Ok(None),
            Ok(Ended::NoMore(_)) => {}
            // A file was renamed between the look at the folder and opening it, or a page is half written.
            Err(CheckError::Read(ReadError::File { source, .. }))
                if source.kind() == io::ErrorKind::NotFound => {}
            Err(CheckError::Read(error)) => return Ok(Some(error.to_string())),
            Err(error) => return Err(error.into()),
        }
        let position = reader.position();
        receiver.forget_before(&mut reader.segments, position)?;
        if last_passes.is_some() && position == before {
            return Ok(None);
        }
        if stopped() || limit.is_some_and(|limit| begun.elapsed() >= limit) {
            // What was received by then is read to its end.
            last_passes.get_or_insert_with(Instant::now);
            continue;
        }
        if let Some(why) = receiver.ended()? {
            return Ok((!stopped()).then_some(why));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_another_release_than_the_history_says_is_not_followed() {
        let source = "as epoch 3 of the volume's history says".to_owned();
        let recorded = || Release::known("15.18".parse().unwrap(), source.clone());
        assert_eq!(confirmed_by_server(recorded(), recorded().server_version).unwrap(), recorded());
        let error = confirmed_by_server(recorded(), "15.20".parse().unwrap()).unwrap_err().to_string();
        for part in ["PostgreSQL 15.20", "writes as 15.18", "epoch 3"] {
            assert!(error.contains(part), "{part} is missing from: {error}");
        }
    }
}
