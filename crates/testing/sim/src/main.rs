//! Runs many simulated histories and says what they covered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use borealis_sim::{Coverage, Defect, Options, run};
use clap::Parser;

/// Simulates the quorum protocol under faults.
#[derive(Parser, Debug)]
struct Arguments {
    /// How many histories to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// How many threads run them.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Start no further history after this many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let started = Instant::now();
    let next = AtomicU64::new(arguments.first_seed);
    let end = arguments.first_seed.saturating_add(arguments.seeds);
    let failed = AtomicBool::new(false);
    let total = Mutex::new(Coverage::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                let mut coverage = Coverage::default();
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = arguments.seconds.is_some_and(|limit| started.elapsed().as_secs() >= limit);
                    if seed >= end || late {
                        break;
                    }
                    let result =
                        catch_unwind(AssertUnwindSafe(|| run(Options { seed, defect: Defect::None })));
                    match result {
                        Ok(Ok(report)) => coverage.merge(&report.coverage),
                        Ok(Err(violation)) => {
                            eprintln!("seed {seed}, {} ms: {}", violation.at_ms, violation.what);
                            failed.store(true, Ordering::Relaxed);
                        }
                        Err(_) => {
                            eprintln!("seed {seed}: an assertion failed");
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                }
                total.lock().unwrap_or_else(PoisonError::into_inner).merge(&coverage);
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (what, times) in total.iter() {
        println!("{times:>12}  {what}");
    }
    println!("{:>12.1}  runs per second", total.get("runs") as f64 / seconds);
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
