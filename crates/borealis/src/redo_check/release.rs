//! Which release of PostgreSQL wrote the WAL that is checked: redo follows it.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_instance::Binaries;
use borealis_types::ServerVersion;

/// `postmaster.opts` is one line with the server's command line.
const OPTIONS_BYTES_MAX: u64 = 64 << 10;

/// A release, and how it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Release {
    /// The release that wrote the WAL.
    pub server_version: ServerVersion,
    /// Who says so.
    pub source: String,
}

impl Release {
    /// As the user says.
    pub fn told(server_version: ServerVersion) -> Release {
        Release { server_version, source: "as --server-version says".to_owned() }
    }

    /// Of the server that last ran in the data directories among `paths`, or around them. WAL files do not say who
    /// wrote them.
    ///
    /// # Errors
    /// When they do not say, or not all the same.
    pub fn of_files(paths: &[PathBuf]) -> anyhow::Result<Release> {
        let mut found: Option<Release> = None;
        for path in paths {
            let Some(options) = options_file(path) else {
                bail!(
                    "WAL does not say which release of PostgreSQL wrote it, and {} is not in a data directory",
                    path.display()
                )
            };
            let release = Release::of_options(&options)?;
            match &found {
                Some(before) if before.server_version != release.server_version => {
                    bail!("{} and {} differ", before.source, release.source)
                }
                _ => found = Some(release),
            }
        }
        found.context("no WAL was named")
    }

    fn of_options(options: &Path) -> anyhow::Result<Release> {
        let mut text = String::new();
        std::fs::File::open(options)
            .and_then(|file| file.take(OPTIONS_BYTES_MAX).read_to_string(&mut text))
            .with_context(|| format!("cannot read {}", options.display()))?;
        let program = PathBuf::from(program_of(&text));
        // It is about to be run, and a data directory may come from anywhere.
        let trusted = program.is_absolute()
            && program.file_name().is_some_and(|name| name == "postgres")
            && program.metadata().is_ok_and(|file| {
                let ours = [0, nix::unistd::geteuid().as_raw()].contains(&file.uid());
                ours && file.mode() & 0o022 == 0
            });
        if !trusted {
            bail!(
                "{} names {} as the server, which is not a postgres program of root's or yours on this machine",
                options.display(),
                program.display()
            );
        }
        let folder = program.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let binaries = Binaries::find(Some(&folder))?;
        let source = format!("as {} says, which last ran there", binaries.program("postgres").display());
        Ok(Release { server_version: binaries.server_version, source })
    }
}

/// The file that names the program of the server to which a path with WAL belongs.
fn options_file(path: &Path) -> Option<PathBuf> {
    // A data directory, its pg_wal, or a file in that.
    let folders = path.ancestors().take(3);
    folders.map(|folder| folder.join("postmaster.opts")).find(|options| options.is_file())
}

/// The first word of `postmaster.opts`, which `CreateOptsFile` (`src/backend/postmaster/postmaster.c`) writes without
/// quotes; what follows is quoted.
fn program_of(options: &str) -> &str {
    let line = options.lines().next().unwrap_or_default();
    line.split_once(" \"").map_or(line, |(program, _)| program).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_stands_before_the_quoted_arguments() {
        assert_eq!(
            program_of("/usr/lib/postgresql/15/bin/postgres \"-D\" \"/data\"\n"),
            "/usr/lib/postgresql/15/bin/postgres"
        );
        assert_eq!(
            program_of("/opt/my postgres/bin/postgres \"-D\" \"/a b\"\n"),
            "/opt/my postgres/bin/postgres"
        );
        assert_eq!(program_of("/bin/postgres\n"), "/bin/postgres");
        assert_eq!(program_of(""), "");
    }

    #[test]
    fn a_program_that_anyone_could_have_put_there_is_not_run() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let ran = folder.path().join("ran");
        let wal = folder.path().join("data/pg_wal");
        std::fs::create_dir_all(&wal).unwrap();
        let refused = |program: &Path, mode: u32| {
            std::fs::write(program, format!("#!/bin/sh\ntouch {}\necho postgres 15.18\n", ran.display()))
                .unwrap();
            std::fs::set_permissions(program, std::fs::Permissions::from_mode(mode)).unwrap();
            let options = format!("{} \"-D\" \"x\"\n", program.display());
            std::fs::write(folder.path().join("data/postmaster.opts"), options).unwrap();
            let error = Release::of_files(std::slice::from_ref(&wal)).unwrap_err().to_string();
            assert!(error.contains("not a postgres program of root's or yours"), "{error}");
        };
        refused(&folder.path().join("postgres"), 0o777);
        refused(&folder.path().join("something"), 0o755);
        assert!(!ran.exists(), "it was run");
    }

    #[test]
    fn wal_outside_of_a_data_directory_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = Release::of_files(&[folder.path().to_path_buf()]).unwrap_err().to_string();
        assert!(error.contains("does not say which release"), "{error}");
    }
}
