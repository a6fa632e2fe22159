//! System calls per transaction, if `strace` is installed. A traced process is several times slower, so this is a run
//! of its own whose speed says nothing.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::pgbench::{Sample, now_us};
use crate::processes;

/// How long each part is traced.
const SECONDS: u32 = 2;
/// How many kinds of calls are named.
const NAMED: usize = 6;

/// Whether it can be used.
#[must_use]
pub fn is_installed() -> bool {
    let version = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Calls of some processes in a stretch of time.
#[derive(Clone, Debug)]
pub struct Trace {
    /// (call, count), the most frequent first.
    calls: Vec<(String, u64)>,
    begin_us: u64,
    end_us: u64,
}

/// Counts the calls of processes and their children for two seconds.
///
/// # Errors
/// When `strace` does not start or says nothing that is understood (it may not be allowed to trace).
pub fn trace(processes: &[u32], folder: &Path) -> anyhow::Result<Trace> {
    let output = folder.join("strace");
    let mut command = Command::new("timeout");
    // Not SIGINT, which the whole program holds back (see `cleanup`); the second signal is for a strace that hangs.
    command
        .args(["-s", "QUIT", "-k", "5", &SECONDS.to_string(), "strace", "-c", "-f", "-q", "-o"])
        .arg(&output);
    for process in processes {
        command.arg("-p").arg(process.to_string());
        for child in processes::children(*process) {
            command.arg("-p").arg(child.to_string());
        }
    }
    let begin_us = now_us();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    let end_us = now_us();
    let text = std::fs::read_to_string(&output)?;
    std::fs::remove_file(&output)?;
    let calls = parse(&text);
    anyhow::ensure!(!calls.is_empty(), "strace saw nothing");
    Ok(Trace { calls, begin_us, end_us })
}

impl Trace {
    /// Calls per transaction, all together and the most frequent ones. `None` if no transaction ended meanwhile.
    #[must_use]
    pub fn per_transaction(&self, samples: &[Sample]) -> Option<(f64, Vec<(String, f64)>)> {
        let ended =
            samples.iter().filter(|s| (self.begin_us..self.end_us).contains(&s.end_us)).count() as f64;
        if ended == 0.0 {
            return None;
        }
        let all: u64 = self.calls.iter().map(|(_, count)| count).sum();
        let named = self.calls.iter().take(NAMED);
        Some((all as f64 / ended, named.map(|(name, count)| (name.clone(), *count as f64 / ended)).collect()))
    }
}

/// Lines like ` 12.30    0.001234          1      1234        12 read`; the column of errors may be empty.
fn parse(text: &str) -> Vec<(String, u64)> {
    let parse_line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = *fields.last()?;
        fields.first()?.parse::<f64>().ok()?;
        (fields.len() >= 5 && name != "total").then_some(())?;
        Some((name.to_owned(), fields[3].parse().ok()?))
    };
    let mut calls: Vec<(String, u64)> = text.lines().filter_map(parse_line).collect();
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.006000           6      1000         5 read
 40.00    0.004000           2      2000           write
------ ----------- ----------- --------- --------- ----------------
100.00    0.010000           3      3000         5 total
";

    #[test]
    fn calls_are_counted_by_name() {
        assert_eq!(parse(OUTPUT), [("write".to_owned(), 2000), ("read".to_owned(), 1000)]);
        assert!(parse("strace: attach: ptrace: Operation not permitted").is_empty());
    }

    #[test]
    fn only_transactions_that_ended_meanwhile_count() {
        let trace = Trace { calls: parse(OUTPUT), begin_us: 100, end_us: 200 };
        let samples: Vec<Sample> = [50, 100, 199, 200].map(|end_us| Sample { end_us, latency_us: 1 }).into();
        let (all, named) = trace.per_transaction(&samples).unwrap();
        assert_eq!(all, 1500.0);
        assert_eq!(named[0], ("write".to_owned(), 1000.0));
        assert_eq!(trace.per_transaction(&[]), None);
    }
}
