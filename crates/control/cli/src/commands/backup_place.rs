//! Where a backup is, as commands are told it, and opening it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use borealis_archive::sealing::Sealing;
use borealis_backup::contents::{self, Contents, TimeError, volumes};
use borealis_backup::key::KeySource;
use borealis_backup::location::Location;
use borealis_backup::retention::{self, Start};
use borealis_backup::store::cloud::Timeouts;
use borealis_backup::store::{self, ObjectStore};
use borealis_local::cluster::Cluster;
use borealis_spec::BackupConfig;
use borealis_types::{Lsn, VolumeId};
use clap::Args;

use super::times;

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
pub fn absolute_url(text: &str) -> anyhow::Result<String> {
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

/// A backup that was opened.
pub struct Place {
    pub location: Location,
    pub store: Box<dyn ObjectStore>,
    pub sealing: Sealing,
    pub volume: VolumeId,
}

impl Place {
    pub fn open(dir: &Path, arguments: &PlaceArguments) -> anyhow::Result<Place> {
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
        let store = store::open(&location, Timeouts::default(), None)?;
        let key = KeySource::of(config.key_file.as_deref(), config.key_command.as_deref())?;
        let sealing = key.sealing(&|| true)?;
        let volume = match volume.or(arguments.volume) {
            Some(volume) => volume,
            None => only_volume(&location, &*store)?,
        };
        Ok(Place { location, store, sealing, volume })
    }

    /// From when on points stay.
    pub fn window_start(&self) -> anyhow::Result<Start> {
        Ok(retention::window_start(&*self.store, self.volume, &self.sealing, now_ms())?)
    }

    pub fn read(&self) -> anyhow::Result<Contents> {
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

/// What was asked for: a position, a time, or else the newest point.
pub fn choose_point(contents: &Contents, to_time: Option<u64>, to_lsn: Option<Lsn>) -> anyhow::Result<Lsn> {
    if let Some(lsn) = to_lsn {
        return Ok(lsn);
    }
    if let Some(clock_ms) = to_time {
        return contents.point_at(clock_ms).map_err(|error| match error {
            TimeError::NotThen { clock_ms, first_ms, last_ms } => anyhow::anyhow!(
                "the backup does not reach {}; it knows what the volume was from {} to {}",
                times::show(clock_ms),
                times::show(first_ms),
                times::show(last_ms)
            ),
            other => anyhow::Error::new(other).context("choose a position with --to-lsn"),
        });
    }
    let newest = contents.newest().context("no point of this backup can be restored")?;
    Ok(newest.lsn)
}

/// The time, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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
