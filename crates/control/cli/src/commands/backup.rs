//! The backup that the nodes make: where it is kept, what it has, and whether it is whole.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use borealis_archive::sealing::Sealing;
use borealis_archive::verify::Lost;
use borealis_backup::contents::{self, Contents, NewestPoint, Reach, volumes};
use borealis_backup::key::KeySource;
use borealis_backup::key_file;
use borealis_backup::location::Location;
use borealis_backup::retention::{self, Start};
use borealis_backup::store::cloud::Timeouts;
use borealis_backup::store::{self, ObjectStore};
use borealis_instance::OperatingSystemUser;
use borealis_instance::server::closed_to;
use borealis_local::cluster::Cluster;
use borealis_spec::BackupConfig;
use borealis_types::VolumeId;
use clap::{Args, Subcommand};

use super::backup_points::{RetentionArguments, SnapshotCommand};
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

#[derive(Debug, Args)]
pub struct PlaceArguments {
    /// Where the backup is kept. [default: that of the cluster in DIR]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// The file with the key that it is encrypted with.
    #[arg(long, value_name = "FILE", requires = "from")]
    key_file: Option<PathBuf>,
    /// The command that prints that key, run by `sh -c`.
    #[arg(long, value_name = "COMMAND", requires = "from", conflicts_with = "key_file")]
    key_command: Option<String>,
    /// The volume, if the place has several. [default: that of the cluster in DIR, or the only one]
    #[arg(long, value_name = "ID", requires = "from", value_parser = volume)]
    volume: Option<VolumeId>,
}

/// A URL as it is kept: a folder may be written as a path, from here.
fn absolute_url(text: &str) -> anyhow::Result<String> {
    if text.contains("://") {
        return Ok(text.parse::<Location>()?.to_string());
    }
    let folder = std::path::absolute(text).context("cannot find out where this is")?;
    let folder = folder.to_str().with_context(|| format!("the name of {} is not UTF-8", folder.display()))?;
    Ok(format!("file://{folder}").parse::<Location>()?.to_string())
}

/// Where a backup is, for the command-line parser: a URL, or a folder as a path.
pub fn location(text: &str) -> Result<Location, String> {
    absolute_url(text).and_then(|url| Ok(url.parse()?)).map_err(|error| format!("{error:#}"))
}

/// A volume's number, for the command-line parser.
pub fn volume(text: &str) -> Result<VolumeId, String> {
    let plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = plain.then(|| u128::from_str_radix(text, 16).ok()).flatten();
    number.map(VolumeId).ok_or_else(|| format!("`{text}` is not a volume of 32 hexadecimal digits"))
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

/// A backup that was opened.
pub(super) struct Place {
    location: Location,
    pub(super) store: Box<dyn ObjectStore>,
    pub(super) sealing: Sealing,
    pub(super) volume: VolumeId,
}

impl Place {
    pub(super) fn open(dir: &Path, arguments: &PlaceArguments) -> anyhow::Result<Place> {
        let cluster = || Cluster::open(dir).context("without --from it is the cluster's own backup");
        let (config, volume) = match &arguments.from {
            Some(text) => {
                let (key_file, key_command) = (arguments.key_file.clone(), arguments.key_command.clone());
                (BackupConfig { url: absolute_url(text)?, key_file, key_command }, None)
            }
            None => {
                let cluster = cluster()?;
                let config = cluster.catalog.backup.clone().with_context(|| {
                    format!(
                        "the cluster in {} has no backup; `borealis up --backup URL` begins one",
                        dir.display()
                    )
                })?;
                (config, Some(cluster.catalog.volume_id()))
            }
        };
        let location: Location = config.url.parse()?;
        let store = store::open(&location, Timeouts::default())?;
        let key = KeySource::of(config.key_file.as_deref(), config.key_command.as_deref())?;
        let sealing = key.sealing(&|| true)?;
        let volume = match volume.or(arguments.volume) {
            Some(volume) => volume,
            None => only_volume(&location, &*store)?,
        };
        Ok(Place { location, store, sealing, volume })
    }

    /// From when on points stay.
    pub(super) fn window_start(&self) -> anyhow::Result<Start> {
        Ok(retention::window_start(&*self.store, self.volume, &self.sealing, now_ms())?)
    }

    pub(super) fn read(&self) -> anyhow::Result<Contents> {
        let contents = contents::read(&*self.store, self.volume, &self.sealing);
        let contents = contents.with_context(|| {
            format!("no backup of volume {} can be read at {}", self.volume, self.location)
        })?;
        warn_of_damage(&contents);
        Ok(contents)
    }
}

/// Names what cannot be read of a backup that can.
pub fn warn_of_damage(contents: &Contents) {
    for (name, fault) in &contents.damaged {
        eprintln!("borealis: warning: {} {fault}", name.key(contents.volume));
    }
}

/// The volume that is backed up there, if it is one.
///
/// # Errors
/// When there are none or several, or the store does not answer.
pub fn only_volume(location: &Location, store: &dyn ObjectStore) -> anyhow::Result<VolumeId> {
    let found = volumes(store)?;
    match found[..] {
        [volume] => Ok(volume),
        [] => bail!("there is no backup at {location}"),
        _ => {
            let names: Vec<String> = found.iter().map(VolumeId::to_string).collect();
            bail!("{location} has backups of several volumes, choose one with --volume: {}", names.join(", "))
        }
    }
}

/// What the command says.
pub fn backup(dir: &Path, command: &BackupCommand) -> anyhow::Result<ExitCode> {
    match command {
        BackupCommand::Status { place, json } => status(&Place::open(dir, place)?, *json),
        BackupCommand::List { place } => list(&Place::open(dir, place)?),
        BackupCommand::Verify { place } => verify(&Place::open(dir, place)?),
        BackupCommand::Retention(arguments) => super::backup_points::keep(dir, arguments),
        BackupCommand::Snapshot(command) => super::backup_points::snapshot(dir, command),
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_kept_by_its_whole_path() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute_url("some/folder").unwrap(), format!("file://{}/some/folder", here.display()));
        assert_eq!(absolute_url("file:///some/folder").unwrap(), "file:///some/folder");
        assert_eq!(absolute_url("s3://bucket/x").unwrap(), "s3://bucket/x");
        assert_eq!(location("kept").unwrap().to_string(), format!("file://{}/kept", here.display()));
        assert!(absolute_url("file://some/folder").is_err() && absolute_url("ftp://host").is_err());
    }
}
