//! Which PostgreSQL runs, and as whom.

use std::path::{Path, PathBuf};
use std::process::Command;

use borealis_types::ServerVersion;
use nix::unistd::{Gid, Uid, User};

use crate::InstanceError;

/// A PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `postgres`, `initdb` and `psql`.
    pub folder: PathBuf,
    /// Its release.
    pub server_version: ServerVersion,
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
        let candidates: Vec<PathBuf> =
            USUAL_FOLDERS.iter().map(PathBuf::from).chain(std::env::split_paths(&path)).collect();
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
        match server_version(&version_text) {
            Some(server_version) => Ok(Some(Binaries { folder, server_version, version_text })),
            None => Err(InstanceError::PostgresVersion { program, found: version_text }),
        }
    }

    /// One of the installation's programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The release in `postgres (PostgreSQL) 15.18 (Debian …)`. Test versions such as `15beta1` are none.
fn server_version(text: &str) -> Option<ServerVersion> {
    text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?.parse().ok()
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
    fn the_release_is_read_from_every_vendors_text() {
        let release = ServerVersion::new(150_018).ok();
        assert_eq!(server_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), release);
        assert_eq!(server_version("postgres (PostgreSQL) 15.18"), release);
        assert_eq!(server_version("postgres (PostgreSQL) 15beta1"), None);
        assert_eq!(server_version("postgres (PostgreSQL) 16.2"), None);
        assert_eq!(server_version("something else"), None);
    }

    #[test]
    fn a_folder_without_postgres_says_what_to_do() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let error = Binaries::find(Some(folder.path())).expect_err("empty folder");
        assert!(error.to_string().contains("--pg-bin"), "{error}");
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
    }
}
