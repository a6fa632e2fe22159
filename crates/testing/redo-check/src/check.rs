//! The two checks: of segment files, and of a running server's log.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use borealis_redo::check::Checker;
use borealis_types::{Lsn, PAGE_SIZE, RecordSpan, ServerVersion, invariant};
use borealis_wal::Record;

use crate::live::{self, Receiver};
use crate::reader::{Ended, ReadError, RecordReader};
use crate::release::Release;
use crate::report::Report;
use crate::segments::{SegmentError, Segments};
use crate::spill::SpillPages;

/// How often a live stream is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How far behind its last byte a live stream may be read when it ends.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Where pages are kept between records.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Pages kept in memory, in MiB; the rest is in a temporary file.
    pub pages_mib: u32,
    /// Folder for that file, and for the log received from a server.
    pub temp_dir: PathBuf,
}

/// WAL in files, and which part of it to check.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// Segment files, or folders that have them.
    pub paths: &'a [PathBuf],
    /// The release that wrote them; `None` for that of the server whose data directory they are in.
    pub server_version: Option<ServerVersion>,
    /// Begin with the first record at or after this position; `None` for the first there is.
    pub start: Option<Lsn>,
    /// End with the last record that ends at or before this position; `None` for the last there is.
    pub end: Option<Lsn>,
}

/// The log of a running server.
#[derive(Clone, Debug)]
pub struct Stream<'a> {
    /// Anything libpq takes for a connection.
    pub url: &'a str,
    /// The program of PostgreSQL that asks the server.
    pub psql: &'a Path,
    /// The program of PostgreSQL that receives its log.
    pub pg_receivewal: &'a Path,
    /// The release that a history has for what the server writes; `None` to take what the server says.
    pub recorded: Option<Release>,
    /// Follow until this position was reached.
    pub until: Option<Lsn>,
    /// Follow for this long; `None` until `stop` is set.
    pub duration: Option<Duration>,
    /// Once it is set, what was received by then is read to its end.
    pub stop: &'a AtomicBool,
}

/// What a person who waits wants to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Files are being read; there is no more to say until that is done.
    Reading,
    /// They were read, or reading them failed.
    Read,
    /// A line for whoever waits.
    Note(String),
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// What was asked for cannot be checked: it is no WAL of this version, or nobody knows who wrote it.
    #[error("{0}")]
    Mistake(String),
    /// A file, a program or the server failed.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Why applying and comparing could not go on.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot keep pages in a temporary file: {0}; see --temp-dir and --memory-mib")]
    Pages(#[from] io::Error),
}

/// The checker, and what it was fed.
struct Check {
    checker: Checker<SpillPages>,
    from: Option<Lsn>,
    to: Lsn,
}

impl Check {
    fn new(memory: &Memory) -> Check {
        let frames_max = memory.pages_mib as usize * ((1 << 20) / PAGE_SIZE);
        let pages = SpillPages::new(&memory.temp_dir, frames_max);
        Check { checker: Checker::with_pages(pages), from: None, to: Lsn::ZERO }
    }

    fn feed(&mut self, record: &Record<'_>) -> Result<(), FeedError> {
        self.advance(record.span);
        self.checker.try_feed(record)?;
        Ok(())
    }

    /// Notes how far the log was checked. Redo is only right if every record comes after the one before it.
    fn advance(&mut self, span: RecordSpan) {
        invariant!(
            "records-are-checked-in-order",
            self.to <= span.start && span.start < span.end,
            "a record from {} to {} after {}",
            span.start,
            span.end,
            self.to
        );
        self.from.get_or_insert(span.start);
        self.to = span.end;
    }

    fn report(&self, release: Release, ended_early: Option<String>) -> Report {
        Report {
            release,
            from: self.from.unwrap_or(Lsn::ZERO),
            to: self.to,
            tallies: self.checker.tallies().clone(),
            problems: self.checker.problems().to_vec(),
            ended_early,
        }
    }
}

/// Checks WAL in files.
///
/// # Errors
/// See [`CheckError`]. Damage and gaps are no error: they stand in the report, with what was compared before them.
pub fn check_files(
    files: &Files<'_>,
    memory: &Memory,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, CheckError> {
    // What is no WAL at all is said first.
    let segments = Segments::find(files.paths).map_err(|error: SegmentError| mistake(&error.to_string()))?;
    let release = match files.server_version {
        Some(told) => Release::told(told),
        None => Release::of_files(files.paths).map_err(|error| {
            mistake(&format!(
                "{error:#}; give the release of the server that wrote it, for example --server-version 15.20"
            ))
        })?,
    };
    let mut check = Check::new(memory);
    let ended_early = read_files(segments, &release, files, &mut check, progress)?;
    Ok(check.report(release, ended_early))
}

fn mistake(message: &str) -> CheckError {
    CheckError::Mistake(message.to_owned())
}

/// Reads the files; the result is why it ended before the end, if it did.
fn read_files(
    segments: Segments,
    release: &Release,
    files: &Files<'_>,
    check: &mut Check,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Option<String>> {
    progress(Progress::Reading);
    let mut reader = RecordReader::new(segments, release.server_version, files.start)?;
    let end = files.end.unwrap_or(Lsn(u64::MAX));
    let ended = reader.read::<FeedError>(|record| {
        if record.span.end > end {
            return Ok(ControlFlow::Break(()));
        }
        check.feed(record)?;
        Ok(ControlFlow::Continue(()))
    });
    progress(Progress::Read);
    match ended {
        Ok(Ended::Stopped) => Ok(None),
        Ok(Ended::NoMore(reason)) => {
            progress(Progress::Note(format!("the WAL ends at {} ({})", reader.position(), reason.why)));
            let wanted = files.end.filter(|wanted| *wanted > reader.position());
            Ok(wanted.map(|wanted| format!("there is no WAL up to {wanted}")))
        }
        // What was compared before is worth showing.
        Err(FeedError::Read(error)) => Ok(Some(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Follows the log of a running server, and checks it as it comes.
///
/// # Errors
/// See [`CheckError`]. What ends the stream early is no error: it stands in the report.
pub fn check_stream(
    stream: &Stream<'_>,
    memory: &Memory,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, CheckError> {
    let server = live::ask(stream.psql, stream.url)?;
    if server.checking.is_empty() {
        progress(Progress::Note(
            "wal_consistency_checking is off on the server; there is nothing to compare unless sessions set it"
                .to_owned(),
        ));
    }
    let release = match &stream.recorded {
        Some(recorded) => confirmed_by_server(recorded.clone(), server.server_version)?,
        None => Release::known(server.server_version, "as the server says".to_owned()),
    };
    let mut check = Check::new(memory);
    let ended_early = follow(stream, server.position, &release, memory, &mut check, progress)?;
    Ok(check.report(release, ended_early))
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

/// Follows the log from `position`; the result is why it ended before it was to.
fn follow(
    stream: &Stream<'_>,
    position: Lsn,
    release: &Release,
    memory: &Memory,
    check: &mut Check,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Option<String>> {
    let mut receiver = Receiver::start(stream.pg_receivewal, stream.url, &memory.temp_dir)?;
    let stopped = || stream.stop.load(Ordering::Relaxed);
    let Some(segments) = receiver.first_segments(position, stopped)? else { return Ok(None) };
    let mut reader = RecordReader::after(segments, release.server_version, position);
    progress(Progress::Note(format!(
        "following {} from {}; press Ctrl-C for the report",
        stream.url,
        reader.position()
    )));
    let begun = Instant::now();
    let mut last_passes = None;
    loop {
        receiver.refresh(&mut reader.segments)?;
        let before = reader.position();
        let ended = reader.read::<FeedError>(|record| {
            check.feed(record)?;
            let reached = stream.until.is_some_and(|until| record.span.end >= until);
            // A long backlog must not keep Ctrl-C waiting.
            let late = last_passes.is_some_and(|since: Instant| since.elapsed() > DRAIN_MAX);
            Ok(if reached || late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        match ended {
            Ok(Ended::Stopped) => return Ok(None),
            Ok(Ended::NoMore(_)) => {}
            // A file was renamed between the look at the folder and opening it, or a page is half written.
            Err(FeedError::Read(ReadError::File { source, .. }))
                if source.kind() == io::ErrorKind::NotFound => {}
            Err(FeedError::Read(error)) => return Ok(Some(error.to_string())),
            Err(error) => return Err(error.into()),
        }
        let position = reader.position();
        receiver.forget_before(&mut reader.segments, position)?;
        if last_passes.is_some() && position == before {
            return Ok(None);
        }
        if stopped() || stream.duration.is_some_and(|limit| begun.elapsed() >= limit) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant records-are-checked-in-order is broken")]
    fn a_record_that_comes_again_is_noticed() {
        let memory = Memory { pages_mib: 1, temp_dir: std::env::temp_dir() };
        let mut check = Check::new(&memory);
        let span = RecordSpan { start: Lsn(0x100), end: Lsn(0x180) };
        check.advance(span);
        check.advance(RecordSpan { start: Lsn(0x180), end: Lsn(0x200) });
        check.advance(span);
    }

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
