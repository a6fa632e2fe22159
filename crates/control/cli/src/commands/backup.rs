//! The backup that the nodes make: where it is kept, what it has, and whether it is whole.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use borealis_archive::verify::Lost;
use borealis_backup::contents::{self, NewestPoint, Reach};
use borealis_backup::key_file;
use borealis_backup::location::Location;
use borealis_instance::OperatingSystemUser;
use borealis_instance::server::closed_to;
use borealis_spec::BackupConfig;
use clap::Subcommand;

use super::backup_place::{Place, PlaceArguments, absolute_url, now_ms};
use super::backup_points::{self, RetentionArguments, SnapshotCommand};
use crate::UpArguments;
use crate::progress::Step;

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// The newest point that can be restored, and what there is.
    Status {
        /// Where.
        #[command(flatten)]
        place: PlaceArguments,
        /// One JSON object on standard output.
        #[arg(long)]
        json: bool,
    },
    /// The points that can be restored, and the snapshots.
    List {
        /// Where.
        #[command(flatten)]
        place: PlaceArguments,
    },
    /// Read everything back, and check every object, every link and every point.
    Verify {
        /// Where.
        #[command(flatten)]
        place: PlaceArguments,
    },
    /// How long points stay.
    Retention(RetentionArguments),
    /// Points with a name, which stay until the name is deleted.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// What `borealis up` is to have the nodes do: what was asked for, else what they did `before`.
///
/// # Errors
/// When the URL or the key will not do, or the nodes' user may not write the folder.
pub fn wished(
    arguments: &UpArguments,
    before: Option<BackupConfig>,
    user: &OperatingSystemUser,
) -> anyhow::Result<Option<BackupConfig>> {
    let Some(text) = &arguments.backup else { return Ok(before) };
    if text == "none" {
        return Ok(None);
    }
    let url = absolute_url(text).context("--backup")?;
    if let Location::Folder(folder) = url.parse::<Location>()? {
        prepare_folder(&folder, user).context("--backup")?;
    }
    let key_file = arguments.backup_key.as_deref().map(std::path::absolute).transpose()?;
    if let Some(file) = &key_file {
        key_file::read(file).context("--backup-key")?;
        let owner = std::fs::metadata(file)?.uid();
        if user.switch && owner != user.user_id {
            bail!("--backup-key: {} must belong to `{}`, who the nodes run as", file.display(), user.name);
        }
    }
    // Not run here: it is the nodes', as their user, and what it asks may be down.
    let key_command = arguments.backup_key_command.clone();
    if key_command.as_ref().is_some_and(|command| command.trim().is_empty()) {
        bail!("--backup-key-command: it is empty");
    }
    Ok(Some(BackupConfig { url, key_file, key_command }))
}

/// What `borealis up` changes of a cluster that is there.
///
/// # Errors
/// As [`wished`].
pub fn change(
    arguments: &UpArguments,
    backup: &mut Option<BackupConfig>,
    user: &OperatingSystemUser,
) -> anyhow::Result<()> {
    let before = backup.clone();
    *backup = wished(arguments, before.clone(), user)?;
    if let (None, Some(config)) = (before, backup) {
        eprintln!(
            "warning: what this cluster has so far is not at {}: nothing can be restored from there until its nodes have uploaded all redo since \
             the volume's beginning, or snapshots of all groups where they have that no more, which takes some minutes; `borealis backup status` says when",
            config.url
        );
    }
    Ok(())
}

/// Makes a folder and those above it. The way to a backup is no secret, and the nodes' user has to go it, whatever the umask says.
fn make_way(folder: &Path) -> anyhow::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        let made = std::fs::create_dir(folder)
            .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o755)));
        made.with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(())
}

/// Makes the folder if it is not there. Started by root, it becomes that of the nodes' user.
fn prepare_folder(folder: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    if !folder.exists() {
        let parent = folder.parent().unwrap_or(Path::new("/"));
        make_way(parent)?;
        let made = std::fs::DirBuilder::new().mode(0o700).create(folder);
        made.with_context(|| format!("cannot create {}", folder.display()))?;
        if user.switch {
            lchown(folder, Some(user.user_id), Some(user.group_id))
                .with_context(|| format!("cannot give {} to `{}`", folder.display(), user.name))?;
        }
    }
    let found = std::fs::metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    if !found.is_dir() {
        bail!("{} is no folder", folder.display());
    }
    if found.uid() != user.user_id {
        bail!("{} must belong to `{}`, who the nodes run as", folder.display(), user.name);
    }
    if let Some(closed) = closed_to(user, folder).filter(|_| user.switch) {
        bail!("`{}`, who the nodes run as, may not enter {}: chmod a+x it", user.name, closed.display());
    }
    Ok(())
}

/// What the command says.
pub fn backup(dir: &Path, command: &BackupCommand) -> anyhow::Result<ExitCode> {
    match command {
        BackupCommand::Status { place, json } => status(&Place::open(dir, place)?, *json),
        BackupCommand::List { place } => list(&Place::open(dir, place)?),
        BackupCommand::Verify { place } => verify(&Place::open(dir, place)?),
        BackupCommand::Retention(arguments) => backup_points::keep(dir, arguments),
        BackupCommand::Snapshot(command) => backup_points::snapshot(dir, command),
    }
}

/// How long ago a time was, for a person.
fn ago(clock_ms: u64) -> String {
    format!("{:.1} s ago", now_ms().saturating_sub(clock_ms) as f64 / 1000.0)
}

/// When the volume had reached it; `None` if no mark says it.
fn reached(newest: &NewestPoint) -> Option<u64> {
    Some(newest.clock_ms).filter(|clock_ms| *clock_ms > 0)
}

/// Exit code 1 if nothing can be restored.
fn status(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let contents = place.read()?;
    let newest = contents.newest();
    let points = contents.restorable();
    let objects = contents.inventory.objects().count();
    let snapshots: usize =
        contents.known.placement.groups().map(|group| contents.inventory.manifests(group).count()).sum();
    if json {
        let object = serde_json::json!({
            "volume": place.volume.to_string(),
            "url": place.location.to_string(),
            "newest_lsn": newest.map(|newest| newest.lsn.to_string()),
            "newest_age_ms": newest.and_then(|newest| reached(&newest)).map(|at_ms| now_ms().saturating_sub(at_ms)),
            "ranges": points.ranges().len(),
            "objects": objects,
            "bytes": contents.bytes(),
            "snapshots": snapshots,
        });
        println!("{}", serde_json::to_string_pretty(&object)?);
    } else {
        println!("volume {} at {}", place.volume, place.location);
        match newest {
            None => println!("no point can be restored"),
            Some(newest) => {
                println!(
                    "newest point that can be restored: {}, reached {}",
                    newest.lsn,
                    reached(&newest).map_or_else(|| "at a time that no mark says".to_owned(), ago)
                );
            }
        }
        println!("{objects} objects, {} bytes, {snapshots} snapshots of groups", contents.bytes());
        // Between named points that are older than the window nothing is kept.
        let start = place.window_start()?.lsn;
        let gaps = points.ranges().iter().skip(1).filter(|range| range.from > start).count();
        if gaps > 0 {
            println!("{gaps} gaps between points that can be restored");
        }
    }
    Ok(if newest.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line for each range of points, then one for each snapshot of a group.
fn list(place: &Place) -> anyhow::Result<ExitCode> {
    let contents = place.read()?;
    for Reach { range, clock_ms } in contents.reach() {
        let times = clock_ms.map(|(first, last)| format!("\t{}\t{}", ago(first), ago(last)));
        println!("{}\t{}{}", range.from, range.through, times.unwrap_or_default());
    }
    for group in contents.known.placement.groups() {
        for manifest in contents.inventory.manifests(group) {
            println!("snapshot of group {group}\t{}", manifest.lsn);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line for each finding, then what was looked at. Exit code 1 if anything is damaged or missing.
fn verify(place: &Place) -> anyhow::Result<ExitCode> {
    let contents = place.read()?;
    let step = Step::begin("reading the backup");
    let report = contents::verify(&*place.store, &contents, &place.sealing, |_| ())?;
    step.done();
    for (name, fault) in &report.faults {
        println!("{}: {fault}", name.key(place.volume));
    }
    let print = |what: &str, lost: &[Lost]| {
        for lost in lost {
            println!("{what}: from {} to {}", lost.range.from, lost.range.through);
        }
    };
    print("cannot be restored because of that", &report.lost);
    let gaps: Vec<Lost> = report.gaps_since(place.window_start()?.lsn).cloned().collect();
    print("cannot be restored, nothing has it", &gaps);
    let last = report.restorable.ranges().last();
    let newest = last.map_or_else(|| "none".to_owned(), |range| range.through.to_string());
    println!(
        "{} objects, {} bytes; {} damaged; {} gaps; newest point that can be restored: {newest}",
        report.objects,
        report.bytes,
        report.faults.len(),
        gaps.len()
    );
    let is_whole = report.faults.is_empty() && gaps.is_empty();
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
