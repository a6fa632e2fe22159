//! What processes used, from `/proc` (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Between looks at context switches, which a process takes along when it ends.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// Linux counts processor time for programs in hundredths of a second on every architecture it runs on today.
const TICK_US: f64 = 10_000.0;

/// Part of a system, for the table of costs.
pub type Role = &'static str;

/// What one part used.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in microseconds, in the process and in the kernel for it.
    pub cpu_us: f64,
    /// Context switches, wanted and not. What a process did in its last quarter of a second may be missing.
    pub switches: f64,
}

/// The processor ticks of a process (all its threads), and of its children that were waited for.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    // The name is in parentheses and may contain anything; the state follows the last one.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<u64> =
        rest.split_ascii_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    // Fields 14 to 17, when the process number is field 1 and the state, skipped above, field 3.
    let [user, system, child_user, child_system] = *fields.get(10..14)? else { return None };
    Some((user + system, child_user + child_system))
}

fn parse_switches(status: &str) -> u64 {
    status
        .lines()
        .filter_map(|line| line.split_once("ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum()
}

fn stat(process: u32) -> Option<(u64, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// Processor time of this program's children that ended, in microseconds.
#[must_use]
pub fn ended_children_cpu_us() -> f64 {
    stat(std::process::id()).map_or(0.0, |(_, children)| children as f64 * TICK_US)
}

/// The most resident memory that a process ever had, in MiB; what it shares with others included.
#[must_use]
pub fn peak_memory_mib(process: u32) -> Option<f64> {
    parse_peak_memory_mib(&fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

fn parse_peak_memory_mib(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

/// Direct children of a process.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|process: &u32| {
            let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
            fields.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()) == Some(parent)
        })
        .collect()
}

/// Waits until none of these processes runs any more. They are nobody's children here, so nobody else waits for them.
///
/// # Errors
/// When one is still there after `longest`.
pub fn wait_until_gone(processes: &[u32], longest: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + longest;
    for process in processes {
        while runs(*process) {
            anyhow::ensure!(Instant::now() < deadline, "process {process} was killed and is still there");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Whether a process exists and has not ended: one that has ended may still have to be collected by its parent.
fn runs(process: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    text.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// A part's direct children that are no parts themselves: the server is a child of the driver, and is counted once.
fn children_of_its_own(parts: &[(Role, u32)], process: u32) -> Vec<u32> {
    let mut found = children(process);
    found.retain(|child| parts.iter().all(|(_, part)| part != child));
    found
}

fn switches_by_thread(role: Role, process: u32, into: &mut BTreeMap<(Role, u32), u64>) {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return };
    for thread in threads.flatten() {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        if let Some(number) = thread.file_name().to_str().and_then(|name| name.parse().ok()) {
            into.insert((role, number), parse_switches(&status));
        }
    }
}

/// Measures parts of a system from [`Meter::start`] to [`Meter::stop`].
#[derive(Debug)]
pub struct Meter {
    parts: Vec<(Role, u32)>,
    first_cpu: BTreeMap<Role, f64>,
    stop: Arc<AtomicBool>,
    sampler: JoinHandle<BTreeMap<Role, f64>>,
}

/// Processor time by role: each part, its children, and the children it had.
fn cpu_by_role(parts: &[(Role, u32)]) -> BTreeMap<Role, f64> {
    let mut sums = BTreeMap::new();
    for &(role, process) in parts {
        let (own, ended) = stat(process).unwrap_or_default();
        let live: u64 = children_of_its_own(parts, process)
            .into_iter()
            .filter_map(stat)
            .map(|(own, ended)| own + ended)
            .sum();
        *sums.entry(role).or_insert(0.0) += (own + ended + live) as f64 * TICK_US;
    }
    sums
}

impl Meter {
    /// Begins with these processes; the children of each count for it.
    #[must_use]
    pub fn start(parts: Vec<(Role, u32)>) -> Meter {
        let stop = Arc::new(AtomicBool::new(false));
        let first_cpu = cpu_by_role(&parts);
        let (watched, stopped) = (parts.clone(), stop.clone());
        let sampler = std::thread::spawn(move || sample_switches(&watched, &stopped));
        Meter { parts, first_cpu, stop, sampler }
    }

    /// Ends, and says what each role used.
    #[must_use]
    pub fn stop(self) -> BTreeMap<Role, Usage> {
        self.stop.store(true, Ordering::Relaxed);
        let switches = self.sampler.join().expect("the sampler does not panic");
        // Sessions that just ended are still being waited for by their postmaster.
        std::thread::sleep(Duration::from_millis(50));
        let mut usage: BTreeMap<Role, Usage> = BTreeMap::new();
        for (role, cpu_us) in cpu_by_role(&self.parts) {
            let before = self.first_cpu.get(role).copied().unwrap_or(0.0);
            usage.entry(role).or_default().cpu_us = (cpu_us - before).max(0.0);
        }
        for (role, count) in switches {
            usage.entry(role).or_default().switches = count;
        }
        usage
    }
}

fn sample_switches(parts: &[(Role, u32)], stop: &AtomicBool) -> BTreeMap<Role, f64> {
    let look = |into: &mut BTreeMap<(Role, u32), u64>| {
        for &(role, process) in parts {
            switches_by_thread(role, process, into);
            for child in children_of_its_own(parts, process) {
                switches_by_thread(role, child, into);
            }
        }
    };
    let mut first = BTreeMap::new();
    look(&mut first);
    let mut last = first.clone();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(SAMPLE_INTERVAL);
        look(&mut last);
    }
    let mut sums = BTreeMap::new();
    for ((role, thread), count) in last {
        let before = first.get(&(role, thread)).copied().unwrap_or(0);
        *sums.entry(role).or_insert(0.0) += count.saturating_sub(before) as f64;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_waited_for_and_one_that_runs_is_named() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().expect("started");
        let running = wait_until_gone(&[sleeper.id()], Duration::from_millis(20));
        assert!(running.expect_err("it runs").to_string().contains(&sleeper.id().to_string()));
        sleeper.kill().expect("killed");
        // It is not collected yet.
        wait_until_gone(&[sleeper.id()], Duration::from_secs(10)).expect("it has ended");
        sleeper.wait().expect("collected");
    }

    #[test]
    fn a_stat_line_with_a_strange_name_is_read() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 1 0 5 0 0";
        assert_eq!(parse_stat(text), Some((33, 77)));
        assert_eq!(parse_stat("42 (a) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        assert_eq!(
            parse_switches("Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"),
            15
        );
        assert_eq!(parse_switches(""), 0);
    }

    #[test]
    fn a_part_is_not_counted_for_its_parent_too() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("started");
        let own = std::process::id();
        assert!(children_of_its_own(&[("driver", own)], own).contains(&child.id()));
        assert!(
            !children_of_its_own(&[("driver", own), ("postgres", child.id())], own).contains(&child.id())
        );
        child.kill().expect("ended");
        child.wait().expect("ended");
    }

    #[test]
    fn peak_memory_is_read() {
        assert_eq!(parse_peak_memory_mib("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"), Some(2.0));
        assert_eq!(parse_peak_memory_mib("Name:\tkthread\n"), None);
        assert!(peak_memory_mib(std::process::id()) > Some(0.5));
    }

    #[test]
    fn work_of_this_process_is_seen() {
        let meter = Meter::start(vec![("self", std::process::id())]);
        let mut sum = 0u64;
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(200) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        std::thread::sleep(Duration::from_millis(300));
        let usage = meter.stop();
        assert!(usage["self"].cpu_us >= 30_000.0, "{usage:?}");
        assert!(usage["self"].switches > 0.0, "{usage:?}");
    }
}
