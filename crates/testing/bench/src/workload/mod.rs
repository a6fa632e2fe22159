//! The workloads. Each sets up its own systems, so that one that fails does not spoil another.

mod backup;
mod bulk;
mod faults;
mod mixed;
mod pages;
mod read_only;
mod recovery;
mod repair;
mod stretches;
mod sustained;
mod tpcb;

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::durability::{self, Appended};
use crate::model::{Cost, Measurement, System};
use crate::pgbench::{Load, Outcome, Sample, Script};
use crate::processes::{Meter, ended_children_cpu_us, peak_memory_mib as peak_memory_mib_of};
use crate::server::Server;
use crate::statistics::{distribution, percentile};
use crate::{Bench, pgbench};

/// Tables and indexes that TPC-B reads at random.
const PGBENCH_RELATIONS: [&str; 2] = ["pgbench_accounts", "pgbench_accounts_pkey"];
/// Latencies are written down for this share of all transactions, so that writing them costs little.
const SAMPLING_RATE: f64 = 0.25;

/// Runs the workload of this name.
///
/// # Errors
/// When it cannot be carried through. What was measured until then is in the results.
pub fn run(bench: &mut Bench, name: &str) -> anyhow::Result<()> {
    match name {
        "bulk" => bulk::run(bench),
        "tpcb" => tpcb::run(bench),
        "sustained" => sustained::run(bench),
        "readonly" => read_only::run(bench),
        "mixed" => mixed::run(bench),
        "pages" => pages::run(bench),
        "faults" => faults::run(bench),
        "recovery" => recovery::run(bench),
        "backup" => backup::run(bench),
        "repair" => repair::run(bench),
        _ => bail!("there is no workload `{name}`"),
    }
}

/// Starts these systems, new and empty.
fn start(bench: &Bench, workload: &str, systems: &[System]) -> anyhow::Result<Vec<Server>> {
    let mut servers = Vec::new();
    for &system in systems {
        bench.say(&format!("setting up {}", system.name()));
        servers.push(bench.environment.start(system, &format!("{workload}-{}", servers.len()))?);
    }
    Ok(servers)
}

/// The places of `count` systems in the order of a round: each begins as often as any other.
fn rotated(count: usize, round: u32) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| (place + round as usize) % count)
}

/// Everything that `pgbench` said, as a measurement.
fn from_outcome(measurement: Measurement, outcome: &Outcome) -> Measurement {
    let mut latencies: Vec<u64> = outcome.samples.iter().map(|sample| sample.latency_us).collect();
    latencies.sort_unstable();
    let at = |fraction| percentile(&latencies, fraction).map_or(f64::NAN, |us| us as f64 / 1000.0);
    let mut measurement = measurement
        .with("tps", outcome.tps)
        .with("failed_transactions", outcome.failed as f64)
        .with("latency_average_ms", outcome.latency_average_ms);
    for (name, fraction) in [("latency_p50_ms", 0.5), ("latency_p99_ms", 0.99)] {
        if at(fraction).is_finite() {
            measurement = measurement.with(name, at(fraction));
        }
    }
    measurement.throughput.clone_from(&outcome.progress);
    measurement.latency_over_time = latency_over_time(&outcome.samples, outcome.begin_us);
    measurement.latencies_us = distribution(latencies);
    measurement
}

/// The 99th percentile of each quarter of a second: (its middle in seconds, milliseconds).
fn latency_over_time(samples: &[Sample], begin_us: u64) -> Vec<(f64, f64)> {
    const WINDOW_US: u64 = 250_000;
    let window = |sample: &Sample| sample.end_us.saturating_sub(begin_us) / WINDOW_US;
    samples
        .chunk_by(|a, b| window(a) == window(b))
        .filter_map(|chunk| {
            let mut latencies: Vec<u64> = chunk.iter().map(|sample| sample.latency_us).collect();
            latencies.sort_unstable();
            let middle_s = (window(chunk.first()?) as f64 + 0.5) * WINDOW_US as f64 / 1e6;
            Some((middle_s, percentile(&latencies, 0.99)? as f64 / 1000.0))
        })
        .collect()
}

/// Gauges among the counters: what they rose by says nothing of a transaction.
fn is_gauge(name: &str) -> bool {
    ["_us", "resident_bytes", "cache_bytes", "retained_bytes", "limit_bytes", "connections"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// Runs a load on a server, and measures what it cost.
fn measure(
    bench: &mut Bench,
    server: &Server,
    load: &Load,
    (workload, situation, round): (&str, &str, u32),
) -> anyhow::Result<Outcome> {
    let before = server.counters()?;
    let parts = server.parts()?;
    let meter = Meter::start(parts.clone());
    let clients_before = ended_children_cpu_us();
    let outcome = load.run(&bench.program("pgbench"))?;
    let clients_us = ended_children_cpu_us() - clients_before;
    let mut processes: std::collections::BTreeMap<_, _> =
        meter.stop().into_iter().map(|(role, usage)| (role.to_owned(), usage)).collect();
    processes.entry("pgbench".to_owned()).or_default().cpu_us = clients_us;
    let mut peak_memory_mib = std::collections::BTreeMap::new();
    for (role, process) in parts {
        let highest: &mut f64 = peak_memory_mib.entry(role.to_owned()).or_default();
        *highest = highest.max(peak_memory_mib_of(process).unwrap_or(0.0));
    }
    let mut counters = server.counters()?;
    counters.retain(|name, value| {
        *value -= before.get(name).copied().unwrap_or(0.0);
        *value > 0.0 && !is_gauge(name)
    });
    let measurement = Measurement::new(workload, situation, server.system(), round);
    let mut measurement = from_outcome(measurement, &outcome);
    measurement.cost =
        Some(Cost { transactions: outcome.transactions, processes, peak_memory_mib, counters });
    bench.say(&format!("{workload}, {situation}: {} {:.0} tps", server.system().name(), outcome.tps));
    bench.results.measurements.push(measurement);
    Ok(outcome)
}

/// A load of `clients` for the planned time.
fn load(bench: &Bench, server: &Server, clients: u32, script: Script) -> Load {
    Load {
        port: server.port(),
        clients,
        seconds: bench.plan.seconds,
        script,
        sampling_rate: SAMPLING_RATE,
        session_options: "",
    }
}

/// Loads `pgbench`'s tables and lets the server settle.
fn initialize(bench: &Bench, server: &Server, scale: u32) -> anyhow::Result<pgbench::Initialization> {
    let mut steps = pgbench::initialize(&bench.program("pgbench"), server.port(), scale)?;
    // Pages that are still to be written would be written while another system is measured.
    let begin = Instant::now();
    server.connect()?.query("CHECKPOINT")?;
    if let Server::Borealis(cluster) = server {
        cluster.fold()?;
    }
    steps.settle_seconds = begin.elapsed().as_secs_f64();
    Ok(steps)
}

/// Ends a round: is everything there that Borealis acknowledged? Returns whether the cluster can be used further.
fn end_round(
    bench: &mut Bench,
    server: &Server,
    (workload, round): (&str, u32),
    appended: Option<Appended>,
) -> anyhow::Result<bool> {
    let Server::Borealis(cluster) = server else { return Ok(true) };
    let check = durability::check(cluster, workload, round, appended)?;
    let kept = check.lost.is_none();
    match &check.lost {
        None => bench.say(&format!(
            "round {round}: instance and nodes {:?} killed; all {} ledger commits are there",
            check.killed_nodes, check.acknowledged
        )),
        Some(lost) => bench.say(&format!("round {round} is INVALID, acknowledged commits were lost: {lost}")),
    }
    bench.results.record_check(check);
    Ok(kept)
}

/// Lets a load run without measuring it: the first seconds pay for what later ones find done. Returns how many
/// transactions were acknowledged.
fn warm_up(bench: &Bench, server: &Server, script: Script) -> anyhow::Result<u64> {
    let seconds = if bench.plan.quick { 1 } else { 3 };
    let load = Load { seconds, ..load(bench, server, 8, script) };
    let outcome = load.run(&bench.program("pgbench"))?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(outcome.transactions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_comes_first_once() {
        let firsts: Vec<_> = (0..4).map(|round| rotated(4, round).next().unwrap()).collect();
        assert_eq!(firsts, [0, 1, 2, 3]);
        let mut all: Vec<_> = rotated(4, 2).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }

    #[test]
    fn an_outcome_becomes_figures_and_curves() {
        let samples = (0..1000)
            .map(|number| Sample { end_us: 1_000_000 + number * 1000, latency_us: 1000 + number })
            .collect();
        let outcome = Outcome { tps: 500.0, begin_us: 1_000_000, samples, ..Outcome::default() };
        let measurement = from_outcome(Measurement::new("tpcb", "8 clients", System::Stock, 1), &outcome);
        assert_eq!(measurement.values["latency_p50_ms"], 1.499);
        assert_eq!(measurement.values["latency_p99_ms"], 1.989);
        let windows: Vec<f64> = measurement.latency_over_time.iter().map(|(at, _)| *at).collect();
        assert_eq!(windows, [0.125, 0.375, 0.625, 0.875]);
        let empty = from_outcome(Measurement::new("x", "y", System::Stock, 1), &Outcome::default());
        assert!(!empty.values.contains_key("latency_p50_ms"));
    }
}
