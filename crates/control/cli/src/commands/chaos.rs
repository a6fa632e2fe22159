//! Hurting a cluster of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use borealis_chaos::Options;
use clap::Args;

/// How to hurt a cluster. The cluster is its own; `--dir` is not used.
#[derive(Debug, Args)]
pub struct ChaosArguments {
    /// For how many seconds faults are inflicted.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// End earlier, when so many processes were killed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    kills: Option<u64>,
    /// What is done follows from it. [default: a random one, which the report names]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Clients that insert, beside half as many that transfer and read.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
    /// Storage nodes.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(6..=384))]
    nodes: u16,
    /// Protection groups.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    groups: u16,
    /// Have the nodes speak TLS.
    #[arg(long)]
    tls: bool,
    /// Delete directories of nodes, too, for the controller to replace them.
    #[arg(long)]
    lose_nodes: bool,
    /// With --lose-nodes: when the controller gives a node up, in seconds.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    replace_after: u64,
    /// Folder for chaos.md and chaos.json.
    #[arg(long, value_name = "DIR", default_value = "./borealis-chaos")]
    out: PathBuf,
    /// Folder for the cluster while it runs.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
    /// Folder on a memory file system, as for `up`. [default: /dev/shm]
    #[arg(long, value_name = "DIR")]
    memory_dir: Option<PathBuf>,
    /// Folder with PostgreSQL's programs. [default: where distributions put version 15]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
}

/// Hurts a cluster. Exit code 1 if anything acknowledged was lost, a snapshot was wrong, or peers differ.
pub fn chaos(arguments: &ChaosArguments) -> anyhow::Result<ExitCode> {
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => {
            u64::from(std::process::id()) ^ u64::from(std::time::UNIX_EPOCH.elapsed()?.subsec_nanos()) << 16
        }
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let report = borealis_chaos::run(&Options {
        seconds: arguments.seconds,
        kills: arguments.kills,
        seed,
        clients: usize::from(arguments.clients),
        nodes: arguments.nodes,
        groups: arguments.groups,
        tls: arguments.tls,
        loses_nodes: arguments.lose_nodes,
        replace_after_seconds: arguments.replace_after,
        out: arguments.out.clone(),
        work_dir: arguments.work_dir.clone(),
        memory_dir: arguments.memory_dir.clone(),
        pg_bin: arguments.pg_bin.clone(),
        borealis: std::env::current_exe().context("cannot find this program's file")?,
        command: format!("borealis {}", words.join(" ")),
    })?;
    print!("{}", report.text());
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
