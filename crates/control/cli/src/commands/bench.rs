//! The benchmark.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use borealis_bench::{Options, Verdict};
use clap::Args;

/// How to run the benchmark. Its clusters are its own; `--dir` is not used.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Short runs at a small scale, all within five minutes.
    #[arg(long)]
    quick: bool,
    /// Only these workloads, separated by commas.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = borealis_bench::WORKLOADS)]
    only: Vec<String>,
    /// Rounds of each workload. [default: 3, or 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Seconds of each run of pgbench. [default: 10, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Scale of pgbench's tables. [default: 50, or 4 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2000))]
    scale: Option<u32>,
    /// Folder for bench.json and report.html.
    #[arg(long, value_name = "DIR", default_value = "./borealis-bench")]
    out: PathBuf,
    /// Folder for the databases while it runs; its disk is what is measured.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
    /// Folder on a memory file system, as for `up`. [default: /dev/shm]
    #[arg(long, value_name = "DIR")]
    memory_dir: Option<PathBuf>,
    /// Folder with PostgreSQL's programs. [default: where distributions put version 15]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

/// Runs the benchmark. Exit code 1 if anything acknowledged was lost, or a workload did not come to its end.
pub fn bench(arguments: &BenchArguments) -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let verdict = borealis_bench::run(&Options {
        quick: arguments.quick,
        only: arguments.only.clone(),
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        scale: arguments.scale,
        out: arguments.out.clone(),
        work_dir: arguments.work_dir.clone(),
        memory_dir: arguments.memory_dir.clone(),
        pg_bin: arguments.pg_bin.clone(),
        borealis: std::env::current_exe().context("cannot find this program's file")?,
        command: format!("borealis {}", words.join(" ")),
    })?;
    match verdict {
        Verdict::Valid => return Ok(ExitCode::SUCCESS),
        Verdict::Invalid => eprintln!("borealis: INVALID: something acknowledged was lost"),
        Verdict::Incomplete => eprintln!("borealis: some workloads did not come to their end"),
    }
    Ok(ExitCode::FAILURE)
}
