//! Hurts a cluster of its own for a while, and tells whether anything acknowledged was lost.
//!
//! Two loads run meanwhile. The [ledger] knows every commit that was acknowledged to it; the [accounts] know what any snapshot
//! must show. What is done when is decided by a seed ([`plan`]) and by what state the cluster is in. At the end everything is
//! let get well, both loads are looked through, and `borealis verify` compares the peers.

pub mod accounts;
pub mod cluster;
mod disk;
pub mod inflict;
pub mod ledger;
pub mod picture;
pub mod plan;
pub mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use borealis_testbed::cleanup::{self, Item};

use accounts::Accounts;
use cluster::Cluster;
use inflict::Inflicted;
use ledger::{Counts, Ledger};
use picture::{Picture, Shown};
use plan::{Choice, Fault};
use report::Report;

/// How long a cluster may take to get well after the last fault.
const HEALED_WITHIN: Duration = Duration::from_secs(180);
/// How long nothing is done so that everything gets whole, before something is destroyed.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(20);

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Faults are inflicted for so long.
    pub seconds: u64,
    /// Or until so many processes were killed, if that is earlier.
    pub kills: Option<u64>,
    /// What is done follows from it.
    pub seed: u64,
    /// Clients of the ledger, and transfers and readers of the accounts.
    pub clients: usize,
    /// Storage nodes.
    pub nodes: u16,
    /// Protection groups.
    pub groups: u16,
    /// Nodes speak TLS.
    pub tls: bool,
    /// Whether directories of nodes are deleted, for the controller to replace them.
    pub loses_nodes: bool,
    /// When the controller gives a node up.
    pub replace_after_seconds: u64,
    /// Where the report goes.
    pub out: PathBuf,
    /// Where the cluster goes while it runs.
    pub work_dir: PathBuf,
    /// Where the instance keeps WAL in flight and cached pages; the default if `None`.
    pub memory_dir: Option<PathBuf>,
    /// Folder with PostgreSQL's programs; the default if `None`.
    pub pg_bin: Option<PathBuf>,
    /// The `borealis` program.
    pub borealis: PathBuf,
    /// The command line, for the report.
    pub command: String,
}

/// Does it all. The report is saved; its violations say whether something is wrong. The cluster's directory stays if so.
///
/// # Errors
/// When the cluster cannot be made or does not answer any more.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    cleanup::on_interrupt()?;
    let folder = tempfile::Builder::new()
        .prefix("borealis-chaos-")
        .tempdir_in(&options.work_dir)
        .with_context(|| format!("cannot make a folder in {}", options.work_dir.display()))?;
    cleanup::add(Item::Folder(folder.path().to_owned()));
    let cluster = Cluster::start(options, &folder.path().join("cluster"))?;
    let mut picture = Picture::new();
    let outcome = hurt(options, &cluster, &mut picture);
    let is_well = outcome.as_ref().is_ok_and(|report| report.violations.is_empty());
    if let Ok(report) = &outcome {
        report.save(&options.out)?;
    }
    if is_well {
        cluster.end()?;
    } else {
        let _ = cluster.command(&["down"]);
        eprintln!("borealis: what is left of the cluster is in {}", folder.path().display());
        cleanup::remove(&Item::Folder(folder.path().to_owned()));
        let _ = folder.keep();
    }
    outcome
}

/// The run itself, until everything was looked through.
fn hurt(options: &Options, cluster: &Cluster, picture: &mut Picture) -> anyhow::Result<Report> {
    let counts: Arc<Counts> = Arc::default();
    let mut ledger = Ledger::start(cluster.port, options.clients, &counts)?;
    let mut accounts = Accounts::start(cluster.port, options.clients.div_ceil(2), options.seed, &counts)?;
    let mut report = Report { command: options.command.clone(), seed: options.seed, ..Report::default() };
    let mut inflicted = Inflicted::new(options.seed);
    let begin = Instant::now();
    storm(options, cluster, picture, (&mut inflicted, &mut report), &counts, &accounts)?;
    report.seconds = begin.elapsed().as_secs_f64();

    picture.say("no more faults: everything gets well");
    let quiet = Instant::now();
    inflicted.end_due(cluster, true);
    while inflicted.is_lasting() {
        // Some is looked at again, and that takes its time.
        std::thread::sleep(inflict::FULL_DISK_LOOK);
        inflicted.end_due(cluster, true);
    }
    report.started_by_command += cluster.heal(HEALED_WITHIN)?;
    report.healed_after_seconds = quiet.elapsed().as_secs_f64();
    accounts.stop();
    report.violations.extend(ledger.missing()?);
    report.violations.extend(counts.violation());
    if let Err(error) = compare(cluster, inflicted.damaged_pages > 0) {
        report.violations.push(format!("{error:#}"));
    }
    report.damaged_pages = inflicted.damaged_pages;
    report.kills = inflicted.kills;
    report.faults = inflicted.by_kind;
    report.lost_directories = inflicted.lost_directories;
    report.acknowledged = counts.acknowledged.load(Ordering::Relaxed);
    report.found_after_break = counts.found_after_break.load(Ordering::Relaxed);
    report.broken_connections = counts.broken.load(Ordering::Relaxed);
    report.snapshots = accounts.snapshots();
    Ok(report)
}

/// Has all peers compared. Where pages were damaged the first comparison finds those that nobody has read, and its own word does not count:
/// they have to be healed by then.
fn compare(cluster: &Cluster, was_damaged: bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let compared = cluster.command(&["verify"]).map(drop);
        let is_damaged = was_damaged && cluster.look()?.is_damaged();
        let is_late = begin.elapsed() > HEALED_WITHIN;
        match compared {
            Ok(()) if !is_damaged => return Ok(()),
            Err(error) if !was_damaged || is_late => return Err(error),
            _ if is_late => anyhow::bail!("pages are still damaged after {} s", HEALED_WITHIN.as_secs()),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// One fault after the other, until it is enough or something is wrong.
fn storm(
    options: &Options,
    cluster: &Cluster,
    picture: &mut Picture,
    (inflicted, report): (&mut Inflicted, &mut Report),
    counts: &Counts,
    accounts: &Accounts,
) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut next = Instant::now();
    let mut shown = Shown::default();
    let mut waiting: Option<(Fault, Instant)> = None;
    while Instant::now() < end && options.kills.is_none_or(|kills| inflicted.kills < kills) {
        inflicted.end_due(cluster, false);
        if Instant::now() >= next {
            let seen = cluster.look()?;
            (shown.nodes, shown.instance) = (seen.letters(), seen.instance_is_up());
            report.started_by_command += cluster.start_what_was_given_up(&seen);
            let situation = seen.situation(options.loses_nodes);
            let chosen = match waiting.take() {
                Some((fault, _)) if situation.is_whole => Some(Choice::Now(fault)),
                Some((fault, until)) if Instant::now() < until => {
                    waiting = Some((fault, until));
                    None
                }
                _ => plan::next_fault(&mut random, &situation),
            };
            match chosen {
                Some(Choice::Now(fault)) if inflicted.inflict(cluster, &seen, &fault)? => {
                    picture.say(&format!("{}: {fault:?}", fault.kind()));
                }
                Some(Choice::OnceWhole(fault)) => waiting = Some((fault, Instant::now() + WHOLE_WITHIN)),
                _ => {}
            }
            next = Instant::now() + plan::pause(&mut random);
        }
        if picture.is_due() {
            let longest = Duration::from_micros(counts.longest_us.swap(0, Ordering::Relaxed));
            report.longest_commit_ms = report.longest_commit_ms.max(longest.as_secs_f64() * 1e3);
            shown.kills = inflicted.kills;
            shown.acknowledged = counts.acknowledged.load(Ordering::Relaxed);
            (shown.snapshots, shown.longest) = (accounts.snapshots(), longest);
            picture.draw(&shown);
        }
        if counts.violation().is_some() {
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}
