//! Which PostgreSQL runs, and as whom.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use borealis_types::{PostgresVersion, ServerVersion};
use nix::unistd::{Gid, Uid, User};

use crate::InstanceError;
use crate::program_file::ProgramFile;

/// An installation of PostgreSQL that was asked for its release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `postgres`, `initdb` and `psql`.
    pub folder: PathBuf,
    /// The release that `postgres --version` names.
    pub server_version: ServerVersion,
    /// The file of `postgres` that said so.
    pub postgres_file: ProgramFile,
    /// What `postgres --version` prints.
    pub version_text: String,
}

/// Below this folder Debian has one for each major version.
const DEBIAN_FOLDER: &str = "/usr/lib/postgresql";

/// Where Linux distributions put the versions that Borealis knows, the newest first, and where PostgreSQL's own build
/// installs whichever it is.
fn usual_folders() -> impl Iterator<Item = PathBuf> {
    PostgresVersion::ALL
        .into_iter()
        .rev()
        .flat_map(|version| [format!("{DEBIAN_FOLDER}/{version}/bin"), format!("/usr/pgsql-{version}/bin")])
        .chain(["/usr/local/pgsql/bin".to_owned()])
        .map(PathBuf::from)
}

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
        let candidates: Vec<PathBuf> = usual_folders()
            .chain(std::env::split_paths(&path))
            .chain(folders_of_other_versions(Path::new(DEBIAN_FOLDER)))
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
            looked_in: format!(
                "{} or on the PATH",
                usual_folders().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
            ),
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
        let looked_at = || ProgramFile::at(&program).map_err(crate::on("cannot look at", &program));
        let mut postgres_file = looked_at()?;
        loop {
            let output = Command::new(&program)
                .arg("--version")
                .output()
                .map_err(crate::on("cannot run", &program))?;
            let version_text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let now = looked_at()?;
            if now != postgres_file {
                // Replaced while it was asked: nobody knows which one answered. An upgrade does it once.
                postgres_file = now;
                continue;
            }
            return match server_version(&version_text) {
                Some(server_version) => {
                    Ok(Some(Binaries { folder, server_version, postgres_file, version_text }))
                }
                None => Err(InstanceError::PostgresVersion { program, found: version_text }),
            };
        }
    }

    /// Whether a server that was just started is the one that was asked for its release: `running` is the file that its
    /// process executes and `path` where that is, as its shim reported.
    ///
    /// # Errors
    /// [`InstanceError::PostgresReplaced`] when it is another file of perhaps another release, whose redo may differ.
    pub fn check_running(
        &self,
        running: ProgramFile,
        path: &Path,
        user: &OperatingSystemUser,
    ) -> Result<(), InstanceError> {
        if running == self.postgres_file {
            return Ok(());
        }
        // A script may stand before the program. Then that is asked, as the user that runs it anyway: the report comes
        // from there.
        if ProgramFile::at(path).is_ok_and(|now| now == running)
            && release_of(path, user) == Some(self.server_version)
            && ProgramFile::at(path).is_ok_and(|now| now == running)
        {
            return Ok(());
        }
        Err(InstanceError::PostgresReplaced {
            program: self.program("postgres"),
            server_version: self.server_version,
            running: path.display().to_string(),
        })
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

/// The release that a program says it is, run as this user.
fn release_of(program: &Path, user: &OperatingSystemUser) -> Option<ServerVersion> {
    let mut command = Command::new(program);
    command.arg("--version").current_dir("/");
    if user.switch {
        command.uid(user.user_id).gid(user.group_id);
    }
    server_version(&String::from_utf8_lossy(&command.output().ok()?.stdout))
}

/// The release in `postgres (PostgreSQL) 15.18 (Debian …)`. Test versions such as `15beta1` are none.
#[must_use]
pub fn server_version(text: &str) -> Option<ServerVersion> {
    text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?.parse().ok()
}

/// The system user PostgreSQL runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatingSystemUser {
    /// Its name in `/etc/passwd`.
    pub name: String,
    /// Its user id; never zero.
    pub user_id: u32,
    /// Its main group's id.
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

    #[test]
    fn a_server_that_runs_another_file_than_the_one_asked_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("temporary folder");
        let install = |script: &str| {
            for name in ["postgres.new", "initdb"] {
                let path = folder.path().join(name);
                std::fs::write(&path, script).expect("script");
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
            }
            std::fs::rename(folder.path().join("postgres.new"), folder.path().join("postgres"))
                .expect("moved");
        };
        install("#!/bin/sh\necho 'postgres (PostgreSQL) 15.18'\n");
        let binaries = Binaries::find(Some(folder.path())).expect("a release of 15");
        assert_eq!(binaries.server_version.to_string(), "15.18");
        let Ok(user) = OperatingSystemUser::choose(None) else { return };
        let script = folder.path().join("postgres");
        let check =
            |path: &Path| binaries.check_running(ProgramFile::at(path).expect("it is there"), path, &user);
        assert!(check(&script).is_ok());
        let error = check(Path::new("/bin/sleep")).expect_err("it runs sleep").to_string();
        for part in ["15.18", "sleep", "another file", "--pg-bin"] {
            assert!(error.contains(part), "{part} is missing from: {error}");
        }
        // What a script becomes is another file, and of the same release.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
        let behind = |release: &str| {
            let path = folder.path().join(release);
            std::fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {release}'\n"))
                .expect("script");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
            check(&path)
        };
        assert!(behind("15.18").is_ok() && behind("15.20").is_err());
        // The next start asks anew.
        install("#!/bin/sh\necho 'postgres (PostgreSQL) 15.20'\n");
        let again = Binaries::find(Some(folder.path())).expect("a release of 15");
        assert_eq!(again.server_version.to_string(), "15.20");
    }
}
