//! Running `pgbench`, and reading what it says.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

/// What the clients do.
#[derive(Clone, Debug)]
pub enum Script {
    /// `pgbench`'s own, modelled on TPC-B.
    TpcB,
    /// `pgbench -S`: one row by its key.
    ReadOnly,
    /// Script files with their weights.
    Files(Vec<(PathBuf, u32)>),
}

/// One run of `pgbench`: who does what for how long.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server's port on 127.0.0.1.
    pub port: u16,
    /// Concurrent connections.
    pub clients: u32,
    /// Duration in seconds.
    pub seconds: u32,
    /// The script that each client repeats.
    pub script: Script,
    /// Share of transactions whose latency is written down, above 0 and at most 1.
    pub sampling_rate: f64,
    /// Settings of its sessions, as `PGOPTIONS` takes them; may be empty.
    pub session_options: &'static str,
}

/// A transaction that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// When, in microseconds of Unix time.
    pub end_us: u64,
    /// Its latency in microseconds.
    pub latency_us: u64,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Transactions per second, without the time to connect.
    pub tps: f64,
    /// Transactions that ended well.
    pub transactions: u64,
    /// Transactions that failed.
    pub failed: u64,
    /// Mean latency in milliseconds, as `pgbench` says.
    pub latency_average_ms: f64,
    /// Second by second: (seconds since the start, transactions per second).
    pub progress: Vec<(f64, f64)>,
    /// Latencies of the sampled transactions, in the order they ended.
    pub samples: Vec<Sample>,
    /// Start, in microseconds of Unix time.
    pub begin_us: u64,
}

/// Microseconds of Unix time.
#[must_use]
pub fn now_us() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// A run under way. Dropping it kills `pgbench`.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    logs: tempfile::TempDir,
    begin_us: u64,
}

impl Load {
    /// Starts the run. `program` is `pgbench`.
    ///
    /// # Errors
    /// When the program or a folder for its logs cannot be made.
    pub fn start(&self, program: &Path) -> anyhow::Result<Running> {
        let logs = tempfile::Builder::new().prefix("borealis-bench-log-").tempdir()?;
        let mut command = Command::new(program);
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-n", "-M", "prepared", "-P", "1", "-l"]);
        command.args(["-p", &self.port.to_string(), "-T", &self.seconds.to_string()]);
        command.args(["-c", &self.clients.to_string(), "-j", &self.clients.min(2).to_string()]);
        if self.sampling_rate < 1.0 {
            command.arg(format!("--sampling-rate={}", self.sampling_rate));
        }
        match &self.script {
            Script::TpcB => {}
            Script::ReadOnly => {
                command.arg("-S");
            }
            Script::Files(files) => {
                for (file, weight) in files {
                    let mut argument = OsString::from(file);
                    argument.push(format!("@{weight}"));
                    command.arg("-f").arg(argument);
                }
            }
        }
        let begin_us = now_us();
        let child = command
            .arg("postgres")
            .env("PGOPTIONS", self.session_options)
            .current_dir(logs.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Running { child: Some(child), logs, begin_us })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// As [`Load::start`] and [`Running::finish`].
    pub fn run(&self, program: &Path) -> anyhow::Result<Outcome> {
        self.start(program)?.finish()
    }
}

impl Running {
    /// Ends the run early, and returns what it had seen by then; its log lacks what was not written out yet.
    ///
    /// # Errors
    /// When it cannot be ended or waited for.
    pub fn end_now(mut self) -> anyhow::Result<Outcome> {
        if let Some(child) = &mut self.child {
            child.kill().context("cannot end pgbench")?;
        }
        self.finish_after_crash()
    }

    /// Waits for the end of a run that must succeed.
    ///
    /// # Errors
    /// When it failed, or said what is not understood.
    pub fn finish(mut self) -> anyhow::Result<Outcome> {
        let output = self.wait()?;
        if !output.status.success() {
            bail!("pgbench failed ({}):\n{}", output.status, tail(&output));
        }
        self.outcome(&output)
    }

    /// Waits for the end of a run whose server was killed, and returns what it had seen by then.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn finish_after_crash(mut self) -> anyhow::Result<Outcome> {
        let output = self.wait()?;
        let progress = parse_progress(&String::from_utf8_lossy(&output.stderr));
        let samples = read_logs(self.logs.path())?;
        Ok(Outcome { progress, samples, begin_us: self.begin_us, ..Outcome::default() })
    }

    fn wait(&mut self) -> anyhow::Result<Output> {
        let child = self.child.take().context("this run was waited for")?;
        child.wait_with_output().context("cannot wait for pgbench")
    }

    fn outcome(&self, output: &Output) -> anyhow::Result<Outcome> {
        let mut outcome = parse_summary(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("pgbench said what is not understood:\n{}", tail(output)))?;
        outcome.progress = parse_progress(&String::from_utf8_lossy(&output.stderr));
        outcome.samples = read_logs(self.logs.path())?;
        outcome.begin_us = self.begin_us;
        Ok(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended; then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn tail(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// The lines after a run: `tps = 4641.1 (…)`, `number of transactions actually processed: 12`, and so on.
fn parse_summary(text: &str) -> Option<Outcome> {
    let after = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label))?;
        line.trim_start().split([' ', '/']).next()?.parse::<f64>().ok()
    };
    let transactions = after("number of transactions actually processed:")? as u64;
    // After a run in which nothing ended, it leaves out the rest.
    let unless_none = |value: Option<f64>| if transactions == 0 { Some(value.unwrap_or(0.0)) } else { value };
    Some(Outcome {
        tps: unless_none(after("tps ="))?,
        transactions,
        failed: after("number of failed transactions:").unwrap_or(0.0) as u64,
        latency_average_ms: unless_none(after("latency average ="))?,
        ..Outcome::default()
    })
}

/// Lines like `progress: 1.0 s, 455.0 tps, lat 2.2 ms stddev 0.5, 0 failed`.
fn parse_progress(text: &str) -> Vec<(f64, f64)> {
    let parse = |line: &str| {
        let mut parts = line.strip_prefix("progress: ")?.split(", ");
        let seconds = parts.next()?.strip_suffix(" s")?.parse().ok()?;
        let tps = parts.next()?.strip_suffix(" tps")?.parse().ok()?;
        Some((seconds, tps))
    };
    text.lines().filter_map(parse).collect()
}

/// One line of a log: `client transaction latency_us script epoch_s epoch_us`. Failed and skipped transactions have a
/// word in place of their latency and are left out.
fn parse_log_line(line: &str) -> Option<Sample> {
    let mut parts = line.split(' ');
    let latency_us = parts.nth(2)?.parse().ok()?;
    let seconds: u64 = parts.nth(1)?.parse().ok()?;
    let micros: u64 = parts.next()?.parse().ok()?;
    let end_us = seconds.checked_mul(1_000_000)?.checked_add(micros)?;
    Some(Sample { end_us, latency_us })
}

fn read_logs(folder: &Path) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for entry in std::fs::read_dir(folder).context("cannot list pgbench's logs")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pgbench_log.") {
            let text = std::fs::read_to_string(entry.path()).context("cannot read pgbench's log")?;
            samples.extend(text.lines().filter_map(parse_log_line));
        }
    }
    samples.sort_unstable_by_key(|sample| sample.end_us);
    Ok(samples)
}

/// What `pgbench -i` says its steps took.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Initialization {
    /// Generating rows here and loading them with `COPY`.
    pub copy_seconds: f64,
    /// `VACUUM ANALYZE`.
    pub vacuum_seconds: f64,
    /// Building the three primary keys.
    pub index_seconds: f64,
    /// Writing the pages afterwards.
    pub settle_seconds: f64,
}

/// Creates `pgbench`'s tables.
///
/// # Errors
/// When the program fails or says what is not understood.
pub fn initialize(program: &Path, port: u16, scale: u32) -> anyhow::Result<Initialization> {
    let output = Command::new(program)
        .args(["-h", "127.0.0.1", "-U", "postgres", "-i", "-q"])
        .args(["-p", &port.to_string(), "-s", &scale.to_string(), "postgres"])
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!("pgbench -i failed ({}):\n{}", output.status, tail(&output));
    }
    parse_initialization(&String::from_utf8_lossy(&output.stderr))
        .with_context(|| format!("pgbench -i said what is not understood:\n{}", tail(&output)))
}

/// `done in 3.4 s (drop tables 0.0 s, create tables 0.0 s, client-side generate 2.3 s, vacuum 0.3 s, primary keys
/// 0.8 s).`
fn parse_initialization(text: &str) -> Option<Initialization> {
    let line = text.lines().rev().find(|line| line.starts_with("done in "))?;
    let step = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.trim_start().split(' ').next()?.parse().ok()
    };
    Some(Initialization {
        copy_seconds: step("client-side generate")?,
        vacuum_seconds: step("vacuum")?,
        index_seconds: step("primary keys")?,
        settle_seconds: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read() {
        let text = "pgbench (15.18 (Debian 15.18-0+deb12u1))\ntransaction type: <builtin: TPC-B (sort of)>\n\
            scaling factor: 5\nquery mode: prepared\nnumber of clients: 8\nnumber of threads: 2\n\
            maximum number of tries: 1\nduration: 3 s\nnumber of transactions actually processed: 3012\n\
            number of failed transactions: 2 (0.066%)\nlatency average = 7.940 ms\nlatency stddev = 6.1 ms\n\
            initial connection time = 21.5 ms\ntps = 1007.564 (without initial connection time)\n";
        let outcome = parse_summary(text).unwrap();
        assert_eq!((outcome.tps, outcome.transactions, outcome.failed), (1007.564, 3012, 2));
        assert_eq!(outcome.latency_average_ms, 7.94);
        let nothing =
            "number of transactions actually processed: 0\nnumber of failed transactions: 0 (NaN%)\n";
        assert_eq!(parse_summary(nothing).unwrap().tps, 0.0);
        assert!(parse_summary("number of transactions actually processed: 5\n").is_none());
        assert!(parse_summary("pgbench: error: connection refused").is_none());
    }

    #[test]
    fn progress_is_read() {
        let text = "pgbench (15.18)\nprogress: 1.0 s, 455.5 tps, lat 2.193 ms stddev 0.562, 0 failed\n\
            progress: 2.0 s, 0.0 tps, lat 0.000 ms stddev 0.000, 0 failed\nprogress: nonsense\n";
        assert_eq!(parse_progress(text), [(1.0, 455.5), (2.0, 0.0)]);
    }

    #[test]
    fn log_lines_are_read_and_failures_left_out() {
        let sample = Sample { end_us: 1_700_000_000_000_123, latency_us: 2193 };
        assert_eq!(parse_log_line("0 199 2193 0 1700000000 123"), Some(sample));
        assert_eq!(parse_log_line("0 199 failed 0 1700000000 123"), None);
        assert_eq!(parse_log_line("0 199 2193 0"), None);
        assert_eq!(parse_log_line(""), None);
    }

    #[test]
    fn the_steps_of_an_initialization_are_read() {
        let text = "dropping old tables...\ndone in 3.45 s (drop tables 0.00 s, create tables 0.01 s, \
            client-side generate 2.30 s, vacuum 0.31 s, primary keys 0.83 s).\n";
        let steps = Initialization {
            copy_seconds: 2.3,
            vacuum_seconds: 0.31,
            index_seconds: 0.83,
            settle_seconds: 0.0,
        };
        assert_eq!(parse_initialization(text), Some(steps));
        assert_eq!(parse_initialization("pgbench: error"), None);
    }
}
