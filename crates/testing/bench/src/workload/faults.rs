//! Latency while storage nodes are slow or dead, against the same run's healthy stretches.
//!
//! A slow node is one that is stopped (SIGSTOP) for 100 ms, goes on for 5 ms, and so on: nearly everything sent to it
//! waits for up to 100 ms. The fault is in the process, so it needs no right to change the network and delays
//! replies, acknowledgements and the node's own gossip alike.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{end_round, from_outcome, initialize, load, start, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::model::{Event, Measurement, System};
use crate::pgbench::{Load, Outcome, Sample, Script, now_us};
use crate::server::{Borealis, Server};
use crate::workload_names::FAULTS;
use borealis_testbed::cleanup::{self, Item};

const NAME: &str = "faults";
const CLIENTS: u32 = 8;
const STOPPED: Duration = Duration::from_millis(100);
const RUNNING: Duration = Duration::from_millis(5);
/// After a change, before its effect is measured: the moment of a death is not the time after it.
const SETTLE: Duration = Duration::from_millis(500);

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let servers = start(bench, NAME, &[System::Borealis])?;
    let [server] = &servers[..] else { return Ok(()) };
    let Server::Borealis(cluster) = server else { return Ok(()) };
    initialize(bench, server, bench.plan.scale)?;
    server.warm(&super::PGBENCH_RELATIONS)?;
    let mut acknowledged = warm_up(bench, server, Script::TpcB)?;
    let stretch = Duration::from_secs(u64::from(bench.plan.seconds));
    for round in 1..=bench.plan.rounds {
        // Ended by hand after the last stretch; this is only its upper bound.
        let seconds = bench.plan.seconds * 8 + 150;
        let load = Load { seconds, sampling_rate: 1.0, ..load(bench, server, CLIENTS, Script::TpcB) };
        let running = load.start(&bench.program("pgbench"))?;
        std::thread::sleep(SETTLE);
        let stretches = inflict(bench, cluster, round, stretch)?;
        let outcome = running.end_now()?;
        acknowledged += outcome.samples.len() as u64;
        record(bench, round, &stretches, &outcome);
        if !end_round(
            bench,
            server,
            (NAME, round),
            Some(Appended { table: "pgbench_history", acknowledged }),
        )? {
            return Ok(());
        }
        if round < bench.plan.rounds {
            server.warm(&super::PGBENCH_RELATIONS)?;
            acknowledged += warm_up(bench, server, Script::TpcB)?;
        }
    }
    Ok(())
}

/// A part of the run: its name, and when it began and ended in microseconds of Unix time.
type Stretch = (&'static str, u64, u64);

/// Inflicts one fault after the other, with healthy stretches between them.
fn inflict(bench: &Bench, cluster: &Borealis, round: u32, stretch: Duration) -> anyhow::Result<Vec<Stretch>> {
    let mut stretches = Vec::new();
    let mut during = |name: &'static str| {
        std::thread::sleep(SETTLE);
        let begin = now_us();
        std::thread::sleep(stretch);
        stretches.push((name, begin, now_us()));
    };
    let nodes = cluster.nodes()?;
    let (slow, process) = nodes[round as usize % nodes.len()];
    during("healthy");

    bench.say(&format!("node {slow} is slow"));
    with_slow(process, || during(FAULTS[0]));
    cluster.wait_until_whole()?;
    during("healthy");

    bench.say("nodes 2 and 5 are dead");
    cluster.command(&["node", "kill", "2", "5"])?;
    during(FAULTS[1]);
    cluster.command(&["node", "start", "2", "5"])?;
    cluster.wait_until_whole()?;
    during("healthy");

    bench.say("az3 is dead");
    cluster.command(&["az", "kill", "az3"])?;
    during(FAULTS[2]);
    cluster.command(&["az", "start", "az3"])?;
    cluster.wait_until_whole()?;
    Ok(stretches)
}

/// Does something while a process is stopped most of the time.
fn with_slow(process: u32, during: impl FnOnce()) {
    let done = AtomicBool::new(false);
    cleanup::add(Item::Frozen(process));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                cleanup::signal(process, Signal::SIGSTOP);
                std::thread::sleep(STOPPED);
                cleanup::signal(process, Signal::SIGCONT);
                std::thread::sleep(RUNNING);
            }
        });
        during();
        done.store(true, Ordering::Relaxed);
    });
    cleanup::remove(&Item::Frozen(process));
}

/// One measurement for all healthy stretches, one for each fault, and one with the timeline.
fn record(bench: &mut Bench, round: u32, stretches: &[Stretch], outcome: &Outcome) {
    for situation in ["healthy"].into_iter().chain(FAULTS) {
        let parts: Vec<&Stretch> = stretches.iter().filter(|(name, ..)| *name == situation).collect();
        let within =
            |sample: &&Sample| parts.iter().any(|(_, begin, end)| (*begin..*end).contains(&sample.end_us));
        let samples: Vec<Sample> = outcome.samples.iter().filter(within).copied().collect();
        let elapsed_s: f64 = parts.iter().map(|(_, begin, end)| (end - begin) as f64 / 1e6).sum();
        let sum_us: u64 = samples.iter().map(|sample| sample.latency_us).sum();
        let part = Outcome {
            tps: samples.len() as f64 / elapsed_s,
            latency_average_ms: sum_us as f64 / 1000.0 / samples.len().max(1) as f64,
            begin_us: outcome.begin_us,
            samples,
            ..Outcome::default()
        };
        let measurement = from_outcome(Measurement::new(NAME, situation, System::Borealis, round), &part);
        let figure = |name: &str| measurement.values.get(name).copied().unwrap_or(f64::NAN);
        let (tps, p50, p99) = (figure("tps"), figure("latency_p50_ms"), figure("latency_p99_ms"));
        bench.say(&format!("faults, {situation}: {tps:.0} tps, p50 {p50:.2} ms, p99 {p99:.2} ms"));
        bench.results.measurements.push(measurement);
    }
    let mut timeline = Measurement::new(NAME, "timeline", System::Borealis, round);
    timeline.throughput.clone_from(&outcome.progress);
    timeline.latency_over_time = super::latency_over_time(&outcome.samples, outcome.begin_us);
    let since_begin = |at: u64| at.saturating_sub(outcome.begin_us) as f64 / 1e6;
    timeline.events = stretches
        .iter()
        .filter(|(name, ..)| *name != "healthy")
        .map(|(name, begin, end)| Event {
            label: (*name).to_owned(),
            begin_s: since_begin(*begin),
            end_s: since_begin(*end),
        })
        .collect();
    bench.results.measurements.push(timeline);
}
