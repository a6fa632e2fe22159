//! Parts of one run of `pgbench`, each measured by the transactions that ended in it.

use super::from_outcome;
use crate::Bench;
use crate::model::{Event, Measurement, System};
use crate::pgbench::{Outcome, Sample};

/// A part of a run: its name, and when it began and ended in microseconds of Unix time.
pub(super) type Stretch = (&'static str, u64, u64);

/// One measurement for all stretches of each name, and one with the timeline.
pub(super) fn record(
    bench: &mut Bench,
    (workload, round): (&str, u32),
    names: &[&str],
    stretches: &[Stretch],
    outcome: &Outcome,
) {
    for &situation in names {
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
        let measurement = from_outcome(Measurement::new(workload, situation, System::Borealis, round), &part);
        let figure = |name: &str| measurement.values.get(name).copied().unwrap_or(f64::NAN);
        let (tps, p50, p99) = (figure("tps"), figure("latency_p50_ms"), figure("latency_p99_ms"));
        bench.say(&format!("{workload}, {situation}: {tps:.0} tps, p50 {p50:.2} ms, p99 {p99:.2} ms"));
        bench.results.measurements.push(measurement);
    }
    let mut timeline = Measurement::new(workload, "timeline", System::Borealis, round);
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
