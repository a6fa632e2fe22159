//! Writes what an ordinary PostgreSQL starts from: nobody is locked in.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_client::point::HeldPoint;
use borealis_instance::export::exported_forks;
use borealis_instance::server::closed_to;
use borealis_instance::{Contents, Export, InstanceError, OperatingSystemUser, Settings, kept_files};
use borealis_local::cluster::{Cluster, WRITER};
use borealis_types::{BlockKey, Fork, MetaKey, PageKey, PostgresVersion, RelationFork, SlruKind};
use clap::Subcommand;

use super::export_wal::{self, WalArguments};

/// Pages asked for at a time.
const PAGES_PER_STEP: u32 = 128;
/// How often a line on a terminal is written again.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Write all of the volume, as of now, as a data directory that a stock `postgres` starts from, without Borealis.
    Base {
        /// A folder that is not there yet, or empty.
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// System user that is to own it, when root exports. [default: the instance's]
        #[arg(long, value_name = "NAME")]
        pg_user: Option<String>,
    },
    /// Write the log as PostgreSQL's own files, from the backup.
    Wal(WalArguments),
}

/// Exports.
pub fn export(dir: &Path, command: &ExportCommand) -> anyhow::Result<ExitCode> {
    match command {
        ExportCommand::Base { to, pg_user } => export_base(dir, to, pg_user.as_deref()),
        ExportCommand::Wal(arguments) => export_wal::export(dir, arguments),
    }
}

/// The server, if one runs, goes on; everything is as of one durable point.
fn export_base(dir: &Path, to: &Path, pg_user: Option<&str>) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(dir)?;
    let instance = cluster.instance(WRITER)?;
    let user = OperatingSystemUser::choose(pg_user.or(instance.postgres_user.as_deref()))?;
    let target = cluster.verification_target();
    let mut point = HeldPoint::hold(&target)?;
    if point.has_more() && cluster.driver_process(WRITER).is_none() {
        bail!(
            "the instance was killed, and nodes have records after {} of which nobody knows whether they were acknowledged; `borealis \
             instance start` finds out, then export",
            point.last().end
        );
    }
    let mut contents = contents(cluster.catalog.postgres_version, point.values()?)?;
    let chosen = Settings::check(instance.settings.clone())?;
    // A server without Borealis may load any library.
    for left_out in kept_files::admit(&mut contents.values, &chosen, |_| Ok(())).left_out {
        eprintln!("borealis: {left_out}");
    }
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now_seconds = since_1970.as_secs().cast_signed();
    let last = point.last();
    let mut export = Export::begin(to, &user, &contents, last, now_seconds, &instance.settings)?;
    let mut shown = Shown::begin();
    write_pages(&mut point, &mut export, &mut shown).with_context(|| unfinished(to))?;
    let path = export.finish().with_context(|| unfinished(to))?;
    shown.end();
    if user.switch
        && let Some(closed) = closed_to(&user, &path)
        && closed != path
    {
        eprintln!(
            "the user `{}` may not enter {}: allow it, or move the folder",
            user.name,
            closed.display()
        );
    }
    println!("{} is the volume as of {}; start it with:", path.display(), last.end);
    println!("{} -D {}", instance.postgres_bin_dir.join("postgres").display(), path.display());
    Ok(ExitCode::SUCCESS)
}

fn unfinished(to: &Path) -> String {
    format!("the export is not whole, and no server starts from it; remove {} and export again", to.display())
}

/// What a data directory is planned from.
fn contents(version: PostgresVersion, values: Vec<(MetaKey, Vec<u8>)>) -> anyhow::Result<Contents> {
    let (mut counters, mut template, mut others) = (None, None, Vec::new());
    for (key, value) in values {
        match key {
            MetaKey::Counters => counters = Some(value),
            MetaKey::ControlFileTemplate => template = Some(value),
            key => others.push((key, value)),
        }
    }
    let (Some(counters), Some(template)) = (counters, template) else {
        bail!("the volume has no database yet: its first start did not get to an end; run `borealis up`");
    };
    Ok(Contents::decode(version, &counters, template, others)?)
}

fn write_pages(point: &mut HeldPoint<'_>, export: &mut Export<'_>, shown: &mut Shown) -> anyhow::Result<()> {
    for kind in SlruKind::ALL {
        let pages = point.slru_pages(kind)?;
        export.make_slru(kind, &pages)?;
        for some in pages.chunks(PAGES_PER_STEP as usize) {
            let keys: Vec<PageKey> = some.iter().map(|&page| PageKey::Slru { kind, page }).collect();
            for (&number, page) in some.iter().zip(point.pages(&keys)?) {
                let Some(page) = page else {
                    bail!("{} page {number} is listed and not there", kind.folder())
                };
                export.write_slru(kind, number, &page)?;
            }
        }
    }
    let forks: BTreeMap<RelationFork, u32> = point.forks()?;
    let exported = exported_forks(&forks);
    shown.total_blocks = exported.iter().map(|(_, _, blocks)| u64::from(*blocks)).sum();
    export.require_room(shown.total_blocks)?;
    for (fork, source, blocks) in exported {
        export.make_fork(fork, blocks)?;
        let mut first = 0;
        while first < blocks {
            let end = first.saturating_add(PAGES_PER_STEP).min(blocks);
            let key = |block| PageKey::Block(BlockKey { relation_fork: source, block });
            let keys: Vec<PageKey> = (first..end).map(key).collect();
            for (block, page) in (first..end).zip(point.pages(&keys)?) {
                if page.is_none() && source.fork == Fork::Init {
                    bail!("the init fork of relation {} has no block {block}", source.locator.relation);
                }
                // Of other forks a block that was never written reads as zeros.
                page.map_or(Ok::<(), InstanceError>(()), |page| export.write_block(fork, block, &page))?;
            }
            shown.show(u64::from(end - first));
            first = end;
        }
    }
    Ok(())
}

/// One line on a terminal with how far an export is.
struct Shown {
    begin: Instant,
    last: Option<Instant>,
    blocks: u64,
    total_blocks: u64,
    is_terminal: bool,
}

impl Shown {
    fn begin() -> Shown {
        let is_terminal = std::io::stderr().is_terminal();
        Shown { begin: Instant::now(), last: None, blocks: 0, total_blocks: 0, is_terminal }
    }

    fn show(&mut self, blocks: u64) {
        self.blocks += blocks;
        if !self.is_terminal || self.last.is_some_and(|last| last.elapsed() < SHOWN_EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        let mib = |blocks: u64| blocks as f64 / 128.0;
        let seconds = self.begin.elapsed().as_secs_f64().max(0.001);
        let (done, total) = (mib(self.blocks), mib(self.total_blocks));
        eprint!("\rexporting: {done:.0} of {total:.0} MiB, {:.1} MiB/s   ", done / seconds);
        // A line that is not shown is no reason to fail.
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.last.is_some() {
            eprintln!();
        }
        let mib = self.blocks as f64 / 128.0;
        eprintln!("wrote {mib:.1} MiB in {:.1} s", self.begin.elapsed().as_secs_f64());
    }
}
