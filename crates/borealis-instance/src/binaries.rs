//! Which PostgreSQL runs, and as whom.

use std::path::{Path, PathBuf};
use std::process::Command;

use borealis_types::PostgresVersion;
use nix::unistd::{Gid, Uid, User};

use crate::InstanceError;

/// A PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `postgres`, `initdb` and `psql`.
    pub folder: PathBuf,
    /// Its major version.
    pub version: PostgresVersion,
    /// What `postgres --version` prints.
    pub version_text: String,
}

/// Where Linux distributions put PostgreSQL 15.
const USUAL_FOLDERS: &[&str] = &["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/usr/local/pgsql/bin"];

impl Binaries {
    /// Finds an installation: in `folder` if given, else where distributions put it, else on the `PATH`.
    ///
    /// # Errors
    /// When there is none, or it is of a version that is not supported.
    pub fn find(folder: Option<&Path>) -> Result<Binaries, InstanceError> {
        if let Some(folder) = folder {
            return Self::at(folder)?
                .ok_or_else(|| InstanceError::PostgresMissing { looked_in: folder.display().to_string() });
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> = USUAL_FOLDERS
            .iter()
            .map(PathBuf::from)
            .chain(std::env::split_paths(&path))
            .chain(folders_of_other_versions(Path::new("/usr/lib/postgresql")))
            .collect();
        let mut unsupported = None;
        for candidate in &candidates {
            match Self::at(candidate) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => unsupported = Some(error),
            }
        }
        Err(unsupported.unwrap_or_else(|| InstanceError::PostgresMissing {
            looked_in: format!("{} or on the PATH", USUAL_FOLDERS.join(", ")),
        }))
    }

    fn at(folder: &Path) -> Result<Option<Binaries>, InstanceError> {
        let program = folder.join("postgres");
        if !program.is_file() || !folder.join("initdb").is_file() {
            return Ok(None);
        }
        // Resolve links: `initdb` looks for its share folder relative to where it really is.
        let program = program.canonicalize().unwrap_or(program);
        let folder = program.parent().map_or_else(|| folder.to_path_buf(), Path::to_path_buf);
        let output =
            Command::new(&program).arg("--version").output().map_err(crate::on("cannot run", &program))?;
        let version_text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match major_version(&version_text) {
            Some(15) => Ok(Some(Binaries { folder, version: PostgresVersion::V15, version_text })),
            _ => Err(InstanceError::PostgresVersion { program, found: version_text }),
        }
    }

    /// One of the installation's programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Where Debian puts whatever versions there are: one that is not supported is named in the error, since "there is no
/// PostgreSQL" would be wrong.
fn folders_of_other_versions(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian …)`.
fn major_version(text: &str) -> Option<u32> {
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The system user PostgreSQL runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatingSystemUser {
    /// Its name.
    pub name: String,
    /// Its number.
    pub user_id: u32,
    /// Its main group.
    pub group_id: u32,
    /// Whether the process must change to it (we run as root).
    pub switch: bool,
}

impl OperatingSystemUser {
    /// Checks that the user has a name, without which `initdb` does not run. A server does.
    ///
    /// # Errors
    /// When it has none.
    pub fn require_name(&self) -> Result<(), InstanceError> {
        match User::from_uid(Uid::from_raw(self.user_id)) {
            Ok(None) => Err(InstanceError::UserWithoutName(self.user_id)),
            _ => Ok(()),
        }
    }

    /// Whom to run as: the current user, or `wanted` (by default `postgres`) if that is root.
    ///
    /// # Errors
    /// When the user does not exist.
    pub fn choose(wanted: Option<&str>) -> Result<OperatingSystemUser, InstanceError> {
        let current = Uid::effective();
        if !current.is_root() {
            let name = User::from_uid(current).ok().flatten().map_or_else(|| current.to_string(), |u| u.name);
            return Ok(OperatingSystemUser {
                name,
                user_id: current.as_raw(),
                group_id: Gid::effective().as_raw(),
                switch: false,
            });
        }
        let name = wanted.unwrap_or("postgres");
        match User::from_name(name) {
            Ok(Some(user)) if !user.uid.is_root() => Ok(OperatingSystemUser {
                name: name.to_owned(),
                user_id: user.uid.as_raw(),
                group_id: user.gid.as_raw(),
                switch: true,
            }),
            _ => Err(InstanceError::NoUser(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_every_vendors_text() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 16beta1"), Some(16));
        assert_eq!(major_version("something else"), None);
    }

    #[test]
    fn a_folder_without_postgres_says_what_to_do() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let error = Binaries::find(Some(folder.path())).expect_err("empty folder");
        assert!(error.to_string().contains("--pg-bin"), "{error}");
    }

    #[test]
    fn every_version_below_debians_folder_is_looked_at() {
        let root = tempfile::tempdir().expect("temporary folder");
        for version in ["17", "15"] {
            std::fs::create_dir_all(root.path().join(version).join("bin")).expect("folder");
        }
        let expected: Vec<PathBuf> = ["15/bin", "17/bin"].iter().map(|path| root.path().join(path)).collect();
        assert_eq!(folders_of_other_versions(root.path()), expected);
        assert!(folders_of_other_versions(&root.path().join("absent")).is_empty());
    }

    #[test]
    fn another_version_is_refused_by_name() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("temporary folder");
        for name in ["postgres", "initdb"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 14.2'\n").expect("script");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        }
        let error = Binaries::find(Some(folder.path())).expect_err("version 14");
        assert!(error.to_string().contains("14.2"), "{error}");
        assert!(error.to_string().contains("PostgreSQL 15"), "what is supported: {error}");
    }
}
