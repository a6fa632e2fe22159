//! The benchmark: stock PostgreSQL, PostgreSQL with standbys, the ceiling without durability, and Borealis, on one
//! machine, in alternation, with a check that what Borealis acknowledged is kept.
//!
//! [`run`] does it all. It prints tables to standard output, progress to standard error, and writes `bench.json`,
//! `tables.md` and `report.html`.

mod durability;
mod ledger;
mod machine;
mod model;
mod pgbench;
mod processes;
mod report;
mod server;
mod statistics;
mod strace;
mod targets;
mod workload;
mod workload_names;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use borealis_instance::{Binaries, OperatingSystemUser};

use model::{Conditions, Results};
use server::Environment;

/// Workloads in the order they run, as `--only` names them.
pub const WORKLOADS: [&str; 10] =
    ["bulk", "tpcb", "sustained", "readonly", "mixed", "pages", "faults", "recovery", "backup", "repair"];

/// What the user asked for; `None` leaves a choice to the plan.
#[derive(Clone, Debug)]
pub struct Options {
    /// Short runs at a small scale, all within five minutes.
    pub quick: bool,
    /// Workloads to run; all if empty.
    pub only: Vec<String>,
    /// Rounds of each workload.
    pub rounds: Option<u32>,
    /// Seconds of each run of `pgbench`.
    pub seconds: Option<u32>,
    /// `pgbench` scale.
    pub scale: Option<u32>,
    /// Where `bench.json`, `tables.md` and `report.html` go.
    pub out: PathBuf,
    /// Where databases go while it runs: a disk like the one that matters.
    pub work_dir: PathBuf,
    /// Where Borealis keeps WAL in flight and cached pages; its default if `None`.
    pub memory_dir: Option<PathBuf>,
    /// Folder with PostgreSQL's programs.
    pub pg_bin: Option<PathBuf>,
    /// The `borealis` program.
    pub borealis: PathBuf,
    /// The command line, for the report.
    pub command: String,
}

/// How much of everything, after defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub quick: bool,
    pub rounds: u32,
    pub seconds: u32,
    pub scale: u32,
}

impl Plan {
    fn of(options: &Options) -> Plan {
        let (rounds, seconds, scale) = if options.quick { (1, 3, 4) } else { (3, 10, 50) };
        Plan {
            quick: options.quick,
            rounds: options.rounds.unwrap_or(rounds).max(1),
            seconds: options.seconds.unwrap_or(seconds).max(1),
            scale: options.scale.unwrap_or(scale).max(1),
        }
    }
}

/// What the workloads share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub plan: Plan,
    pub environment: Environment,
    pub results: Results,
    begin: Instant,
}

impl Bench {
    /// Says what happens now.
    pub fn say(&self, what: &str) {
        eprintln!("[{:>5.0} s] {what}", self.begin.elapsed().as_secs_f64());
    }

    /// One of PostgreSQL's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.environment.binaries.program(name)
    }
}

/// Whether the figures can be believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Everything ran, and everything acknowledged was kept.
    Valid,
    /// Something acknowledged was lost.
    Invalid,
    /// Some workload did not come to its end.
    Incomplete,
}

/// Runs the benchmark.
///
/// # Errors
/// When it cannot begin, or the reports cannot be written. A workload that fails is part of the report.
pub fn run(options: &Options) -> anyhow::Result<Verdict> {
    for name in &options.only {
        anyhow::ensure!(
            WORKLOADS.contains(&name.as_str()),
            "there is no workload `{name}`; there are {}",
            WORKLOADS.join(", ")
        );
    }
    borealis_testbed::cleanup::on_interrupt()?;
    let binaries = Binaries::find(options.pg_bin.as_deref())?;
    let user = OperatingSystemUser::choose(None)?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot create {}", options.out.display()))?;
    std::fs::create_dir_all(&options.work_dir)
        .with_context(|| format!("cannot create {}", options.work_dir.display()))?;
    let folder = tempfile::Builder::new()
        .prefix("borealis-bench-")
        .tempdir_in(&options.work_dir)
        .with_context(|| format!("cannot create a folder in {}", options.work_dir.display()))?;
    borealis_testbed::cleanup::add(borealis_testbed::cleanup::Item::Folder(folder.path().to_owned()));
    open_to_the_server(folder.path())?;
    let plan = Plan::of(options);
    let environment = Environment {
        binaries,
        user,
        borealis: options.borealis.clone(),
        folder: folder.path().to_owned(),
        memory_dir: options.memory_dir.clone(),
    };
    let machine = machine::describe(&environment)?;
    let conditions = Conditions {
        command: options.command.clone(),
        begin_unix_s: pgbench::now_us() / 1_000_000,
        elapsed_s: 0.0,
        rounds: plan.rounds,
        seconds: plan.seconds,
        scale: plan.scale,
    };
    let results = Results { machine, conditions, ..Results::default() };
    let mut bench = Bench { plan, environment, results, begin: Instant::now() };
    bench.results.notes.extend(machine::notes(&bench.results.machine));
    for name in WORKLOADS {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            bench.say(&format!("workload {name}"));
            if let Err(error) = workload::run(&mut bench, name) {
                eprintln!("workload {name} did not come to its end: {error:#}");
                bench.results.failures.push(format!("{name}: {error:#}"));
            }
            // What is finished is kept, whatever becomes of the rest.
            bench.results.conditions.elapsed_s = bench.begin.elapsed().as_secs_f64();
            report::write(&bench.results, &options.out)?;
        }
    }
    print!("{}", report::text(&bench.results));
    eprintln!("written: {0}/bench.json and {0}/report.html", options.out.display());
    borealis_testbed::cleanup::remove(&borealis_testbed::cleanup::Item::Folder(folder.path().to_owned()));
    Ok(if bench.results.is_invalid() {
        Verdict::Invalid
    } else if bench.results.failures.is_empty() {
        Verdict::Valid
    } else {
        Verdict::Incomplete
    })
}

/// The server's user must be able to reach its files.
fn open_to_the_server(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).context("cannot open the folder")
}
