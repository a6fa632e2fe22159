//! Makes a cluster of a backup.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_archive::name::SnapshotName;
use borealis_backup::contents::{self, Contents, Reach};
use borealis_backup::key::KeySource;
use borealis_backup::location::Location;
use borealis_backup::restore::{Progress, check_begun};
use borealis_backup::store;
use borealis_backup::store::cloud::Timeouts;
use borealis_backup::store::retrying::Retrying;
use borealis_instance::OperatingSystemUser;
use borealis_local::Catalog;
use borealis_local::cluster::{
    Cluster, CreateOptions, FromBackup, RestoreOptions, check_fleet, check_machine,
};
use borealis_types::{Lsn, VolumeId};
use clap::Args;

use super::backup_place::{choose_point, only_volume};
use super::times;
use super::up::{DEFAULT_MEMORY_ROOT, DEFAULT_NODES, DEFAULT_PORT};

/// Attempts at each request, and the pauses between them, in milliseconds: somebody is waiting.
const ATTEMPTS: u32 = 6;
const PAUSES_MS: (u64, u64) = (200, 10_000);
/// How often a line on a terminal is written again.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// Where the backup is: a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
    #[arg(long, value_name = "URL", value_parser = super::backup_place::location)]
    from: Location,
    /// Restore what the volume was at a time, like '2026-11-27 07:30:00+00' or seconds since 1970. [default: the newest point]
    #[arg(long, value_name = "TIME", value_parser = times::parse, conflicts_with = "to_lsn")]
    to_time: Option<u64>,
    /// Restore every record that ends at or before a position, like 0/3000148.
    #[arg(long, value_name = "LSN")]
    to_lsn: Option<Lsn>,
    /// Restore the point that has this name (`borealis backup snapshot create`).
    #[arg(long, value_name = "NAME", value_parser = super::backup_points::name, conflicts_with_all = ["to_time", "to_lsn"])]
    snapshot: Option<SnapshotName>,
    /// Restore nothing; say which points can be reached.
    #[arg(long, conflicts_with_all = ["to_time", "to_lsn", "snapshot"])]
    list: bool,
    /// With --list: one JSON object on standard output.
    #[arg(long, requires = "list")]
    json: bool,
    /// The volume, where backups of several are; 32 hexadecimal digits.
    #[arg(long, value_name = "ID", value_parser = super::backup_place::volume)]
    volume: Option<VolumeId>,
    /// The key that the backup is encrypted with: a file that nobody else may read.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The command that prints that key, run by `sh -c`.
    #[arg(long, value_name = "COMMAND", conflicts_with = "key_file")]
    key_command: Option<String>,
    /// TCP port of the new cluster's database on 127.0.0.1. [default: 5432]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Storage nodes of the new cluster. [default: 6]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(6..=384))]
    nodes: Option<u16>,
    /// Folder with `postgres`. [default: where distributions put version 15]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// System user that runs PostgreSQL when started by root. [default: postgres]
    #[arg(long, value_name = "NAME")]
    pg_user: Option<String>,
    /// Folder on a memory file system that holds WAL in flight and cached pages. [default: /dev/shm]
    #[arg(long, value_name = "DIR")]
    memory_dir: Option<PathBuf>,
    /// Have the nodes of the new cluster speak TLS on 127.0.0.1.
    #[arg(long)]
    tls: bool,
}

/// Restores, or lists what can be.
pub fn restore(dir: &Path, arguments: &RestoreArguments) -> anyhow::Result<ExitCode> {
    let key = KeySource::of(arguments.key_file.as_deref(), arguments.key_command.as_deref())?;
    let sealing = key.sealing(&|| true)?;
    let wait = |ms| std::thread::sleep(Duration::from_millis(ms));
    let objects = store::open(&arguments.from, Timeouts::default(), None)?;
    let objects = Retrying::new(objects, ATTEMPTS, PAUSES_MS, u64::from(std::process::id()), wait);
    let volume = match arguments.volume {
        Some(volume) => volume,
        None => only_volume(&arguments.from, &objects)?,
    };
    let contents = contents::read(&objects, volume, &sealing)
        .with_context(|| format!("no backup of volume {volume} can be read at {}", arguments.from))?;
    super::backup_place::warn_of_damage(&contents);
    if arguments.list {
        return list(&contents, arguments.json);
    }
    let point = match &arguments.snapshot {
        Some(name) => super::backup_points::point_of(&objects, &contents, &sealing, name)?,
        None => choose_point(&contents, arguments.to_time, arguments.to_lsn)?,
    };
    // Before anything is made.
    check_begun(&contents, point)?;
    contents.plan(point)?;
    make(dir, arguments, &FromBackup { objects: &objects, sealing: &sealing, contents: &contents, point })
}

/// Says what can be reached.
fn list(contents: &Contents, json: bool) -> anyhow::Result<ExitCode> {
    let reach = contents.reach();
    if json {
        let ranges: Vec<serde_json::Value> = reach.iter().map(range_json).collect();
        let report = serde_json::json!({ "volume": contents.volume.to_string(), "points": ranges });
        println!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("volume {}, PostgreSQL {}", contents.volume, contents.facts.version);
    for Reach { range, clock_ms } in &reach {
        let times = clock_ms.map_or_else(
            || "no time is known".to_owned(),
            |(first, last)| format!("{} to {}", times::show(first), times::show(last)),
        );
        println!("{times}  ({} to {})", range.from, range.through);
    }
    if reach.is_empty() {
        println!("no point can be restored");
    }
    Ok(ExitCode::SUCCESS)
}

fn range_json(reach: &Reach) -> serde_json::Value {
    serde_json::json!({
        "from_lsn": reach.range.from.to_string(),
        "to_lsn": reach.range.through.to_string(),
        "from_time": reach.clock_ms.map(|(first, _)| times::show(first)),
        "to_time": reach.clock_ms.map(|(_, last)| times::show(last)),
    })
}

/// Makes the cluster.
fn make(dir: &Path, arguments: &RestoreArguments, from: &FromBackup<'_>) -> anyhow::Result<ExitCode> {
    let nodes = arguments.nodes.unwrap_or(DEFAULT_NODES);
    check_fleet(nodes, from.contents.facts.placement)?;
    let user = OperatingSystemUser::choose(arguments.pg_user.as_deref())?;
    let memory_root = arguments.memory_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_MEMORY_ROOT));
    check_machine(dir, &memory_root, &user)?;
    if !Catalog::is_fresh(dir)? {
        bail!("{} is not empty; restore into a folder that is not there yet (--dir)", dir.display());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = Catalog::lock(dir)?;
    if !Catalog::is_fresh(dir)? {
        bail!("another command has just made a cluster in {}; choose another --dir", dir.display());
    }
    let create = CreateOptions {
        nodes,
        protection_groups: from.contents.facts.placement,
        port: arguments.port.unwrap_or(DEFAULT_PORT),
        postgres_bin_dir: arguments.pg_bin.clone(),
        postgres_user: arguments.pg_user.clone(),
        memory_root,
        tls: arguments.tls,
        cache_limit_bytes: None,
        metrics_port: None,
        backup: None,
        settings: BTreeMap::new(),
        // Never the place that it came from: `up --backup` gives it one of its own.
    };
    let mut shown = Shown::begin();
    let made = Cluster::restore(dir, &RestoreOptions { create }, from, &mut |progress| shown.show(progress));
    shown.end();
    let (_, restored) = made?;
    drop(lock);
    for (object, fault) in &restored.passed_over {
        eprintln!("borealis: warning: a damaged object was not needed: {object} {fault}");
    }
    let seconds = shown.begin.elapsed().as_secs_f64();
    let mib = restored.bytes as f64 / f64::from(1 << 20);
    eprintln!("read {mib:.1} MiB of the backup in {seconds:.1} s ({:.1} MiB/s)", mib / seconds.max(0.001));
    println!("the volume ends at {}; start it with `borealis up --dir {}`", restored.end, dir.display());
    Ok(ExitCode::SUCCESS)
}

/// One line on a terminal with how far a restore is.
struct Shown {
    begin: Instant,
    last: Option<Instant>,
    is_terminal: bool,
}

impl Shown {
    fn begin() -> Shown {
        Shown { begin: Instant::now(), last: None, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, progress: Progress) {
        if !self.is_terminal || self.last.is_some_and(|last| last.elapsed() < SHOWN_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let seconds = self.begin.elapsed().as_secs_f64().max(0.001);
        eprint!(
            "\rrestoring: {:.0} of {:.0} MiB, {:.1} MiB/s, at {}   ",
            mib(progress.bytes),
            mib(progress.total_bytes),
            mib(progress.bytes) / seconds,
            progress.at
        );
        // A line that is not shown is no reason to fail.
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.last.is_some() {
            eprintln!();
        }
    }
}
