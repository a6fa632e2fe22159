//! How long points of a backup stay, and points with a name, which stay until the name is taken away.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use borealis_archive::name::SnapshotName;
use borealis_archive::settings::{NamedSnapshot, Retention};
use borealis_backup::contents::Contents;
use borealis_backup::retention::{self, Settings};
use borealis_types::Lsn;
use clap::{Args, Subcommand};

use super::backup_place::{Place, PlaceArguments, choose_point, now_ms};
use super::times;

const DAY_MS: u64 = 24 * 3600 * 1000;

#[derive(Debug, Args)]
pub struct RetentionArguments {
    /// Where.
    #[command(flatten)]
    place: PlaceArguments,
    /// Keep every point for so many days from now on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    days: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Give a point a name: it can be restored until the name is deleted.
    Create {
        /// 1 to 63 lower-case letters, digits, `-`, `_` and `.`.
        #[arg(value_parser = name)]
        name: SnapshotName,
        /// What the volume was at a time, like '2026-11-27 07:30:00+00', or seconds since 1970. [default: the newest point]
        #[arg(long, value_name = "TIME", value_parser = times::parse, conflicts_with = "to_lsn")]
        to_time: Option<u64>,
        /// What the volume was at a position, like 0/3000148.
        #[arg(long, value_name = "LSN")]
        to_lsn: Option<Lsn>,
        /// Where.
        #[command(flatten)]
        place: PlaceArguments,
    },
    /// Take a name away: the point stays for as long as points without one.
    Delete {
        /// Its name.
        #[arg(value_parser = name)]
        name: SnapshotName,
        /// Where.
        #[command(flatten)]
        place: PlaceArguments,
    },
    /// The names, and the points that have them.
    List {
        /// Where.
        #[command(flatten)]
        place: PlaceArguments,
    },
}

/// A snapshot's name, for the command-line parser.
pub fn name(text: &str) -> Result<SnapshotName, String> {
    SnapshotName::try_from(text.to_owned()).map_err(|error| error.to_string())
}

fn settings(place: &Place) -> anyhow::Result<Settings> {
    Ok(retention::settings(&*place.store, place.volume, &place.sealing)?)
}

/// Days, for a person.
fn days(ms: u64) -> String {
    let days = ms as f64 / DAY_MS as f64;
    if ms.is_multiple_of(DAY_MS) { format!("{days:.0} days") } else { format!("{days:.3} days") }
}

/// Says or changes how long points stay.
pub fn keep(dir: &Path, arguments: &RetentionArguments) -> anyhow::Result<ExitCode> {
    let place = Place::open(dir, &arguments.place)?;
    let mut now = settings(&place)?;
    if let Some(days) = arguments.days {
        let wanted = Retention { window_ms: u64::from(days) * DAY_MS, ..now.retention };
        if wanted != now.retention {
            retention::set_retention(&*place.store, place.volume, &place.sealing, &now, wanted)?;
            now = settings(&place)?;
        }
    }
    println!("every point stays for {}", days(now.retention.window_ms));
    let start = place.window_start()?;
    if start.lsn == Lsn::ZERO {
        println!(
            "nothing is deleted: no list of marks says what was durable when that began; as a rule the backup is younger"
        );
    } else {
        println!(
            "points before {} may be deleted, but for those with a name ({})",
            start.lsn,
            now.named.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What the command says.
pub fn snapshot(dir: &Path, command: &SnapshotCommand) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotCommand::Create { name, to_time, to_lsn, place } => {
            create(&Place::open(dir, place)?, name, *to_time, *to_lsn)
        }
        SnapshotCommand::Delete { name, place } => {
            let place = Place::open(dir, place)?;
            retention::forget_name(&*place.store, place.volume, name)?;
            println!("{name} is no name any more");
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::List { place } => list(&Place::open(dir, place)?),
    }
}

fn create(
    place: &Place,
    name: &SnapshotName,
    to_time: Option<u64>,
    to_lsn: Option<Lsn>,
) -> anyhow::Result<ExitCode> {
    let contents = place.read()?;
    let lsn = choose_point(&contents, to_time, to_lsn)?;
    contents.plan(lsn)?;
    // What is older may be going at this moment.
    let start = place.window_start()?;
    if lsn < start.lsn {
        bail!(
            "{lsn} is older than the {} for which points stay, and may be going already; the first one that can have a name is {}",
            days(start.window.retention.window_ms),
            start.lsn
        );
    }
    let epoch = contents.known.history.newest_epoch();
    let named = NamedSnapshot { name: name.clone(), lsn, epoch, created_ms: now_ms() };
    retention::name_point(&*place.store, place.volume, &place.sealing, &named)?;
    // Somebody may have deleted by a shorter retention meanwhile.
    if let Err(error) = place.read().and_then(|contents| Ok(contents.plan(lsn).map(drop)?)) {
        retention::forget_name(&*place.store, place.volume, name)?;
        return Err(error.context(format!("{lsn} has just gone, and {name} with it")));
    }
    println!("{name} is {lsn}: `borealis restore --snapshot {name}` restores it until the name is deleted");
    Ok(ExitCode::SUCCESS)
}

/// One line for each: its name, its position, when it was given, and whether it can be restored. Exit code 1 if one cannot.
fn list(place: &Place) -> anyhow::Result<ExitCode> {
    let contents = place.read()?;
    let mut all_well = true;
    for named in settings(place)?.named {
        let state =
            contents.plan(named.lsn).map_or_else(|error| error.to_string(), |_| "restorable".to_owned());
        all_well &= state == "restorable";
        println!("{}\t{}\t{}\t{state}", named.name, named.lsn, times::show(named.created_ms));
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The point that has a name.
///
/// # Errors
/// When there is no such name, or the store does not answer.
pub fn point_of(
    store: &dyn borealis_backup::store::ObjectStore,
    contents: &Contents,
    sealing: &borealis_archive::sealing::Sealing,
    name: &SnapshotName,
) -> anyhow::Result<Lsn> {
    let named = retention::settings(store, contents.volume, sealing)?.named;
    let found = named.iter().find(|named| named.name == *name);
    let names = || named.iter().map(|named| named.name.to_string()).collect::<Vec<_>>().join(", ");
    Ok(found.with_context(|| format!("there is no snapshot called {name}; there are: {}", names()))?.lsn)
}
