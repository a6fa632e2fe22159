//! The log of a running server, through PostgreSQL's own `pg_receivewal`.
//!
//! It speaks the replication protocol, which a stock server and an instance of Borealis answer alike; the latter only to
//! the holder of a pass (`borealis_local::replication_pass`), for its log is not whole. Segment files appear in a temporary
//! folder, are read while they grow, and go when they have been read.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use borealis_types::{Lsn, ServerVersion};

use crate::segments::{SegmentName, Segments, read_header};

/// How long the first bytes may take.
const FIRST_BYTES_MAX: Duration = Duration::from_secs(30);
/// How much of what `pg_receivewal` says is shown.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// What a server says about its log.
pub struct ServerLog {
    /// The release that the server says it is.
    pub server_version: ServerVersion,
    /// The end of its last record.
    pub position: Lsn,
    /// `wal_consistency_checking`, as a new session has it.
    pub checking: String,
}

/// Asks the server at `url`.
///
/// The position matters: the file it is in may have nothing before it. An instance of Borealis starts in the
/// middle of a segment, without what came before.
pub fn ask(psql: &Path, url: &str) -> anyhow::Result<ServerLog> {
    let question = "select current_setting('server_version_num'), pg_current_wal_insert_lsn(), \
                    current_setting('wal_consistency_checking')";
    let output = Command::new(psql)
        .args(["--no-psqlrc", "--no-password", "--no-align", "--tuples-only", "--field-separator= "])
        .args(["--command", question, "--dbname", url])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", psql.display()))?;
    if !output.status.success() {
        bail!("cannot ask the server: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    // The last word is empty when nothing is checked.
    let mut words = answer.trim_end_matches('\n').splitn(3, ' ');
    let mut word = || words.next().unwrap_or_default();
    let (number, position, checking) = (word(), word(), word());
    let number = number.parse().with_context(|| format!("the server's version is {number:?}"))?;
    let server_version = ServerVersion::new(number)?;
    let position = position.parse().with_context(|| format!("the server's position is {position:?}"))?;
    Ok(ServerLog { server_version, position, checking: checking.to_owned() })
}

/// A running `pg_receivewal` and its folder.
pub struct Receiver {
    child: Child,
    folder: tempfile::TempDir,
}

impl Receiver {
    /// Starts receiving from the server at `url`, into a new folder below `folder`.
    pub fn start(program: &Path, url: &str, folder: &Path) -> anyhow::Result<Receiver> {
        let folder = tempfile::Builder::new()
            .prefix("borealis-redo-check-")
            .tempdir_in(folder)
            .with_context(|| format!("cannot make a folder in {}", folder.display()))?;
        let child = Command::new(program)
            .arg("--no-loop")
            .arg("--no-password")
            .arg("--dbname")
            .arg(url)
            .arg("--directory")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Receiver { child, folder })
    }

    /// Waits for the segment file with `position`; `None` if `stop` says so before.
    pub fn first_segments(
        &mut self,
        position: Lsn,
        mut stop: impl FnMut() -> bool,
    ) -> anyhow::Result<Option<Segments>> {
        let begun = std::time::Instant::now();
        loop {
            for (name, path) in self.names()? {
                // A file that was just made is empty, or renamed while it is looked at.
                let Ok(Some(header)) = read_header(&path) else { continue };
                let mut segments = Segments {
                    segment_bytes: header.segment_bytes,
                    system_identifier: header.system_identifier,
                    files: std::collections::BTreeMap::new(),
                };
                if name.start(header.segment_bytes) == Some(header.start) {
                    self.refresh(&mut segments)?;
                    if segments.files.contains_key(&segments.number_of(position)) {
                        return Ok(Some(segments));
                    }
                }
            }
            if let Some(why) = self.ended()? {
                bail!("the server's log cannot be received: {why}");
            }
            if stop() {
                return Ok(None);
            }
            if begun.elapsed() > FIRST_BYTES_MAX {
                bail!("the server sent no log for {} s", FIRST_BYTES_MAX.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes up what files there are now.
    pub fn refresh(&self, segments: &mut Segments) -> anyhow::Result<()> {
        let mut names = self.names()?;
        // A whole file after its partial self: a rename while the folder is read can show both.
        names.sort_by_key(|(name, _)| !name.partial);
        segments.files.clear();
        for (name, path) in names {
            if let Some(start) = name.start(segments.segment_bytes) {
                segments.files.insert(segments.number_of(start), path);
            }
        }
        Ok(())
    }

    /// Removes whole files before the one with `position`. A file that still has its partial name has not been
    /// renamed yet, and `pg_receivewal` would miss it.
    pub fn forget_before(&self, segments: &mut Segments, position: Lsn) -> anyhow::Result<()> {
        let kept = segments.files.split_off(&segments.number_of(position));
        let gone = std::mem::replace(&mut segments.files, kept).into_values();
        for path in gone.filter(|path| path.extension().is_none()) {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Why it ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<String>> {
        let Some(status) = self.child.try_wait().context("cannot ask for pg_receivewal's state")? else {
            return Ok(None);
        };
        let mut message = String::new();
        if let Some(errors) = &mut self.child.stderr {
            // Whatever can be read of it helps.
            let _ = errors.take(MESSAGE_BYTES_MAX).read_to_string(&mut message);
        }
        Ok(Some(format!("pg_receivewal ended with {status}: {}", message.trim())))
    }

    fn names(&self) -> anyhow::Result<Vec<(SegmentName, PathBuf)>> {
        let folder = self.folder.path();
        let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            if let Some(name) = entry.file_name().to_str().and_then(SegmentName::parse) {
                names.push((name, entry.path()));
            }
        }
        Ok(names)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It only writes to our folder, which goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
