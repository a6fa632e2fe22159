//! Which release of PostgreSQL the next server is, asked anew at each start: a package upgrade may replace the
//! program under a running driver, and redo follows the release that really writes.

use borealis_instance::Binaries;
use borealis_types::ServerVersion;

use crate::config::DriverConfig;

/// The installation as it is now.
///
/// # Errors
/// When there is none, or it is of another major version than the volume.
pub fn look(config: &DriverConfig) -> anyhow::Result<Binaries> {
    let binaries = Binaries::find(Some(&config.postgres_bin_dir))?;
    let (found, volume) = (binaries.server_version, config.version);
    anyhow::ensure!(
        found.major() == volume,
        "{} is PostgreSQL {found}, and the volume was made by another major version",
        binaries.folder.display()
    );
    if let Some(warning) = warning(found) {
        tracing::warn!("{warning}");
    }
    Ok(binaries)
}

/// What a user should know before relying on this release, if anything.
#[must_use]
pub fn warning(server_version: ServerVersion) -> Option<String> {
    let beyond = if server_version.is_older_than_tested() {
        format!("older than {}, the oldest", ServerVersion::OLDEST_TESTED)
    } else if server_version.is_newer_than_tested() {
        format!("newer than {}, the newest", ServerVersion::NEWEST_TESTED)
    } else {
        return None;
    };
    Some(format!(
        "PostgreSQL {server_version} is {beyond} release this Borealis was tested with: its redo may differ in a way \
         the storage nodes do not know. Set wal_consistency_checking=all and run `borealis redo-check --live` under \
         your workload, or install a tested release"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_release_older_or_newer_than_tested_is_warned_of() {
        let release = |number| ServerVersion::new(number).expect("a release");
        let oldest = ServerVersion::OLDEST_TESTED.server_version_num();
        let newest = ServerVersion::NEWEST_TESTED.server_version_num();
        for number in oldest..=newest {
            assert_eq!(warning(release(number)), None);
        }
        for (number, tested, side) in
            [(150_000, oldest, "older"), (oldest - 1, oldest, "older"), (newest + 1, newest, "newer")]
        {
            let text = warning(release(number)).expect("a warning");
            for part in [
                format!("PostgreSQL {} is {side} than {},", release(number), release(tested)),
                "redo-check".to_owned(),
            ] {
                assert!(text.contains(&part), "{part} is missing from: {text}");
            }
        }
    }
}
