//! Which release of PostgreSQL wrote the WAL that is checked: redo follows it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use borealis_types::ServerVersion;

use crate::program::{Program, read_start};

/// A release, and how it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Release {
    /// The release that wrote the WAL.
    pub server_version: ServerVersion,
    /// Who says so, as the continuation of a sentence.
    pub source: String,
    /// It is that of the server in whose directory the WAL lies, which may have been upgraded since.
    pub deduced: bool,
}

impl Release {
    /// The release that the user named.
    pub fn told(server_version: ServerVersion) -> Release {
        Release::known(server_version, "as --server-version says".to_owned())
    }

    /// As one says who wrote the WAL.
    pub fn known(server_version: ServerVersion, source: String) -> Release {
        Release { server_version, source, deduced: false }
    }

    /// Of the server that runs, or last ran, in the data directories among `paths`, or around them. WAL files do not
    /// say who wrote them.
    ///
    /// # Errors
    /// When they do not say, or not all the same.
    pub fn of_files(paths: &[PathBuf]) -> anyhow::Result<Release> {
        let mut files = BTreeSet::new();
        for path in paths {
            let Some(options) = options_file(path) else {
                bail!(
                    "WAL does not say which release of PostgreSQL wrote it, and {} is not in a data directory",
                    path.display()
                )
            };
            files.insert(options);
        }
        let mut found: Option<Release> = None;
        for options in files {
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
        let data_directory = options.parent().unwrap_or(Path::new("."));
        let (program, when) = match Program::of_server(data_directory)? {
            Some(running) => (running, "runs"),
            None => (stopped_server(options)?, "last ran"),
        };
        let server_version = program.ask()?;
        let source = format!("as {} says, which {when} there", program.shown.display());
        Ok(Release { server_version, source, deduced: true })
    }
}

/// The program that `postmaster.opts` names, if it is still the one that ran.
fn stopped_server(options: &Path) -> anyhow::Result<Program> {
    let read = read_start(options).and_then(|text| Ok((text, options.metadata()?)));
    let (text, started) = read.with_context(|| format!("cannot read {}", options.display()))?;
    let program = Program::at(Path::new(program_of(&text)))
        .with_context(|| format!("{} names the server", options.display()))?;
    // A server writes the file at each start.
    if program.changed_at() > (started.mtime(), started.mtime_nsec()) {
        bail!(
            "{} is newer than the last start of the server that {} names: an upgrade may have put another release in \
             the place of the one that ran",
            program.shown.display(),
            options.display()
        );
    }
    Ok(program)
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
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

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

    /// A data directory whose server was a script; the result is `pg_wal` in it.
    fn data_directory(folder: &Path, program: &Path, script: &str, mode: u32) -> PathBuf {
        let wal = folder.join("data/pg_wal");
        std::fs::create_dir_all(&wal).unwrap();
        std::fs::write(program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(mode)).unwrap();
        let options = format!("{} \"-D\" \"x\"\n", program.display());
        std::fs::write(folder.join("data/postmaster.opts"), options).unwrap();
        wal
    }

    #[test]
    fn a_program_that_anyone_could_have_put_there_is_not_run() {
        let _turn = crate::program::tests::in_turn();
        let folder = tempfile::tempdir().unwrap();
        let ran = folder.path().join("ran");
        let refused = |program: &Path, mode: u32| {
            let script = format!("touch {}\necho postgres 15.18", ran.display());
            let wal = data_directory(folder.path(), program, &script, mode);
            let error = format!("{:#}", Release::of_files(&[wal]).unwrap_err());
            assert!(error.contains("postmaster.opts names the server"), "{error}");
            assert!(error.contains("not a postgres program that only root or you"), "{error}");
        };
        refused(&folder.path().join("postgres"), 0o777);
        refused(&folder.path().join("something"), 0o755);
        assert!(!ran.exists(), "it was run");
    }

    #[test]
    fn a_program_that_came_after_the_servers_last_start_does_not_speak_for_it() {
        let _turn = crate::program::tests::in_turn();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("postgres");
        let ran = folder.path().join("ran");
        let script = format!("touch {}\necho 'postgres (PostgreSQL) 15.18 (Debian)'", ran.display());
        let wal = data_directory(folder.path(), &program, &script, 0o755);
        let options = folder.path().join("data/postmaster.opts");
        let start_at = |time: SystemTime| {
            std::fs::File::options().write(true).open(&options).unwrap().set_modified(time).unwrap();
        };
        let now = SystemTime::now();
        start_at(now - Duration::from_secs(60));
        // As a package has it: the content is older than the file in its place.
        let file = std::fs::File::options().write(true).open(&program).unwrap();
        file.set_modified(now - Duration::from_secs(1_000_000)).unwrap();
        drop(file);
        let error = Release::of_files(std::slice::from_ref(&wal)).unwrap_err().to_string();
        assert!(error.contains("is newer than the last start of the server"), "{error}");
        assert!(!ran.exists(), "it was run");
        start_at(now + Duration::from_secs(60));
        let release = Release::of_files(&[wal.clone(), wal.join("000000010000000000000001")]).unwrap();
        assert_eq!(release.server_version.to_string(), "15.18");
        assert!(release.deduced && release.source.ends_with("which last ran there"), "{}", release.source);
    }

    #[test]
    fn wal_outside_of_a_data_directory_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = Release::of_files(&[folder.path().to_path_buf()]).unwrap_err().to_string();
        assert!(error.contains("does not say which release"), "{error}");
    }
}
