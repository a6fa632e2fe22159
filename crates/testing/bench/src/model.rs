//! What was measured, as `bench.json` holds it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::processes::Usage;

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// A: PostgreSQL as distributed, one copy on this disk.
    Stock,
    /// B: PostgreSQL with five streaming standbys, of which three must have a commit.
    Replicated,
    /// C: PostgreSQL that makes nothing durable.
    Ceiling,
    /// Six storage nodes and one PostgreSQL.
    Borealis,
}

impl System {
    /// The system's name in tables and plots.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            System::Stock => "A stock",
            System::Replicated => "B 1+5 standbys",
            System::Ceiling => "C fsync off",
            System::Borealis => "Borealis",
        }
    }
}

/// A moment or a span of a run, for the plots.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// What was done or happened, as the plot shows it.
    pub label: String,
    /// Seconds since the run's start.
    pub begin_s: f64,
    /// Seconds since the run's start; that of `begin_s` for a moment.
    pub end_s: f64,
}

/// What one transaction cost.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// Transactions of the run.
    pub transactions: u64,
    /// By part of the system, for the whole run.
    pub processes: BTreeMap<String, Usage>,
    /// The most memory that the largest process of a part ever had, in MiB.
    pub peak_memory_mib: BTreeMap<String, f64>,
    /// What the system's own counters rose by during the whole run.
    pub counters: BTreeMap<String, f64>,
}

/// One system, one workload, one situation, one round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The workload's name, as `--only` takes it.
    pub workload: String,
    /// Its variant, such as `8 clients`.
    pub situation: String,
    /// The system that was measured.
    pub system: System,
    /// The round of the workload, counted from 1.
    pub round: u32,
    /// Figures by name; the unit is the name's last word.
    pub values: BTreeMap<String, f64>,
    /// (seconds since the start, transactions per second).
    pub throughput: Vec<(f64, f64)>,
    /// (fraction of all transactions, latency in microseconds at or below which they are).
    pub latencies_us: Vec<(f64, u64)>,
    /// (seconds since the start, 99th percentile in milliseconds of what ended around then).
    pub latency_over_time: Vec<(f64, f64)>,
    /// What was done to the system meanwhile, or what it did.
    pub events: Vec<Event>,
    /// What it cost; `None` where that was not measured.
    pub cost: Option<Cost>,
    /// Why this figure must not be believed: something acknowledged in its round was lost.
    pub invalid: Option<String>,
}

impl Measurement {
    /// A measurement without any figures yet.
    #[must_use]
    pub fn new(workload: &str, situation: &str, system: System, round: u32) -> Measurement {
        Measurement {
            workload: workload.to_owned(),
            situation: situation.to_owned(),
            system,
            round,
            values: BTreeMap::new(),
            throughput: Vec::new(),
            latencies_us: Vec::new(),
            latency_over_time: Vec::new(),
            events: Vec::new(),
            cost: None,
            invalid: None,
        }
    }

    /// Adds a figure.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Measurement {
        self.values.insert(name.to_owned(), value);
        self
    }
}

/// A check that what was acknowledged survived the crash of the instance and of two nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DurabilityCheck {
    /// The workload it ended a round of.
    pub workload: String,
    /// The round it ended, counted from 1.
    pub round: u32,
    /// The nodes that died with the instance.
    pub killed_nodes: Vec<u16>,
    /// Ledger commits acknowledged.
    pub acknowledged: u64,
    /// Transactions of the workload itself that were acknowledged and counted again after the crash.
    pub workload_transactions: Option<u64>,
    /// What was missing; `None` when nothing was.
    pub lost: Option<String>,
}

/// System calls of one part per transaction, seen by `strace`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SystemCalls {
    /// The part of the system that made the calls, such as `driver`.
    pub role: String,
    /// The system that was measured.
    pub system: System,
    /// Calls per transaction, all together.
    pub per_transaction: f64,
    /// The most frequent calls by name, and how many of each a transaction needs.
    pub most_frequent: Vec<(String, f64)>,
}

/// The machine and the programs.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// How many logical processors it has.
    pub processors: usize,
    /// The processors' model, as `/proc/cpuinfo` has it.
    pub processor_model: String,
    /// Memory of the machine in MiB.
    pub memory_mib: u64,
    /// The operating system's kernel.
    pub kernel: String,
    /// File system of the data.
    pub file_system: String,
    /// Median of some `fdatasync` calls after 8 KiB appends, where the data is.
    pub fdatasync_us: f64,
    /// The load average when the run began: above a few tenths, somebody else was at work.
    pub load_average: f64,
    /// What `postgres --version` says.
    pub postgres: String,
    /// This program's version.
    pub borealis: String,
}

/// Under which conditions the figures came about.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Conditions {
    /// The command line as it was given.
    pub command: String,
    /// When it began, in seconds of Unix time.
    pub begin_unix_s: u64,
    /// How long it all took.
    pub elapsed_s: f64,
    /// Rounds of each workload.
    pub rounds: u32,
    /// Seconds of each run of `pgbench`.
    pub seconds: u32,
    /// `pgbench` scale.
    pub scale: u32,
}

/// Everything a run leaves: `bench.json` is this.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The machine it ran on.
    pub machine: Machine,
    /// The settings it ran with.
    pub conditions: Conditions,
    /// Every round of everything.
    pub measurements: Vec<Measurement>,
    /// Every durability check.
    pub durability: Vec<DurabilityCheck>,
    /// System calls, where `strace` is installed.
    pub system_calls: Vec<SystemCalls>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// Workloads that did not come to an end, and why.
    pub failures: Vec<String>,
}

impl Results {
    /// Notes a check; if something was lost, marks every figure of Borealis in that round.
    pub fn record_check(&mut self, check: DurabilityCheck) {
        if let Some(lost) = &check.lost {
            for measurement in &mut self.measurements {
                if measurement.system == System::Borealis
                    && measurement.workload == check.workload
                    && measurement.round == check.round
                {
                    measurement.invalid = Some(lost.clone());
                }
            }
        }
        self.durability.push(check);
    }

    /// Whether anything acknowledged was lost in any round.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.durability.iter().any(|check| check.lost.is_some())
            || self.measurements.iter().any(|measurement| measurement.invalid.is_some())
    }

    /// Figures of one thing, round by round.
    pub fn rounds<'a>(
        &'a self,
        workload: &'a str,
        situation: &'a str,
        system: System,
    ) -> impl Iterator<Item = &'a Measurement> {
        self.measurements.iter().filter(move |measurement| {
            measurement.workload == workload
                && measurement.situation == situation
                && measurement.system == system
        })
    }

    /// Situations of a workload in the order they were measured first.
    #[must_use]
    pub fn situations(&self, workload: &str) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for measurement in self.measurements.iter().filter(|measurement| measurement.workload == workload) {
            if !seen.contains(&measurement.situation) {
                seen.push(measurement.situation.clone());
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(round: u32, lost: Option<&str>) -> DurabilityCheck {
        DurabilityCheck {
            workload: "tpcb".into(),
            round,
            killed_nodes: vec![1, 2],
            acknowledged: 10,
            workload_transactions: None,
            lost: lost.map(str::to_owned),
        }
    }

    #[test]
    fn a_loss_marks_the_figures_of_borealis_in_that_round_only() {
        let mut results = Results::default();
        for round in 1..=2 {
            for system in [System::Stock, System::Borealis] {
                results.measurements.push(Measurement::new("tpcb", "8 clients", system, round));
            }
        }
        results.record_check(check(1, None));
        assert!(!results.is_invalid());
        results.record_check(check(2, Some("3 commits")));
        assert!(results.is_invalid());
        let invalid: Vec<_> = results
            .measurements
            .iter()
            .filter(|m| m.invalid.is_some())
            .map(|m| (m.system, m.round))
            .collect();
        assert_eq!(invalid, [(System::Borealis, 2)]);
    }
}
