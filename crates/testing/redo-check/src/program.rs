//! Programs that are asked for their release. Which one is read from a data directory, which may come from anywhere: so
//! only what nobody but root and the caller can have put there is run.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use borealis_instance::binaries;
use borealis_types::{PostgresVersion, ServerVersion};

/// The folder's own right that only the owner of a file may replace it there.
const STICKY: u32 = 0o1000;
/// Rights of group and others to write.
const WRITABLE: u32 = 0o022;
/// What Linux appends to the name of a file that was removed or replaced.
const DELETED: &str = " (deleted)";
/// `postmaster.opts` is one line with the server's command line, `postmaster.pid` a few short ones.
const START_BYTES_MAX: u64 = 64 << 10;

/// A `postgres` that may be run.
#[derive(Debug)]
pub struct Program {
    /// The program's path, as messages show it.
    pub shown: PathBuf,
    /// The path that is executed, which may be that of an open descriptor.
    path: PathBuf,
    /// The file's metadata when it was found trustworthy.
    file: Metadata,
    /// Of a process's own program, which may have no name any more: `path` leads to it while it is open.
    _open: Option<File>,
}

impl Program {
    /// The program that stands at `named`, links followed.
    ///
    /// # Errors
    /// When there is none to be trusted.
    pub fn at(named: &Path) -> anyhow::Result<Program> {
        ensure!(named.is_absolute(), "{} is not a full path", named.display());
        let path = named.canonicalize().with_context(|| format!("cannot find {}", named.display()))?;
        let folders: Vec<&Path> = path.ancestors().skip(1).collect();
        // From the top: whether a folder can be exchanged is said by those above it.
        for folder in folders.into_iter().rev() {
            let metadata =
                folder.symlink_metadata().with_context(|| format!("cannot look at {}", folder.display()))?;
            let kept = metadata.mode() & WRITABLE == 0 || metadata.mode() & STICKY != 0;
            ensure!(
                is_ours(&metadata) && kept,
                "{} is in {}, where others than root and you can put files",
                path.display(),
                folder.display()
            );
        }
        let file = path.symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        check_file(&path, &file)?;
        Ok(Program { shown: path.clone(), path, file, _open: None })
    }

    /// The program of the server that runs in the data directory, whatever stands in its place now; `None` when none
    /// runs.
    ///
    /// # Errors
    /// When one runs and cannot be looked at, or is not to be trusted.
    pub fn of_server(data_directory: &Path) -> anyhow::Result<Option<Program>> {
        let process_file = data_directory.join("postmaster.pid");
        let text = match read_start(&process_file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", process_file.display()));
            }
        };
        // Of a server for a single user the number is negative; nobody else looks in then.
        let number = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
        let Some(process_id) = number.map(i32::unsigned_abs) else { return Ok(None) };
        let process = PathBuf::from(format!("/proc/{process_id}"));
        let looked = |error: io::Error| match error.kind() {
            // It has ended; the file is what a crash leaves behind.
            ErrorKind::NotFound => Ok(None),
            _ => Err(error).with_context(|| {
                format!("cannot look at process {process_id}, which {} names", process_file.display())
            }),
        };
        // Every server process works in its data directory; another one has the number of one that crashed.
        let works_in = match process.join("cwd").metadata() {
            Ok(folder) => folder,
            Err(error) => return looked(error),
        };
        let own = data_directory
            .metadata()
            .with_context(|| format!("cannot look at {}", data_directory.display()))?;
        if (works_in.dev(), works_in.ino()) != (own.dev(), own.ino()) {
            return Ok(None);
        }
        let link = process.join("exe");
        let (name, open) = match link.read_link().and_then(|name| Ok((name, File::open(&link)?))) {
            Ok(program) => program,
            Err(error) => return looked(error),
        };
        let name = name.to_string_lossy();
        let shown = PathBuf::from(name.strip_suffix(DELETED).unwrap_or(&name));
        let file = open.metadata().with_context(|| format!("cannot look at {}", shown.display()))?;
        check_file(&shown, &file)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
        Ok(Some(Program { shown, path, file, _open: Some(open) }))
    }

    /// When the file came to where it stands, or was changed: a package manager, which keeps the time of its content,
    /// cannot choose this one.
    pub fn changed_at(&self) -> (i64, i64) {
        (self.file.ctime(), self.file.ctime_nsec())
    }

    /// Runs it for its release.
    ///
    /// # Errors
    /// When it does not say one that Borealis knows, or is replaced meanwhile.
    pub fn ask(&self) -> anyhow::Result<ServerVersion> {
        let output = Command::new(&self.path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.shown.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let text = text.lines().next().unwrap_or_default().trim();
        let now = self.path.metadata().with_context(|| format!("cannot look at {}", self.shown.display()))?;
        ensure!(
            (now.dev(), now.ino(), now.mtime(), now.mtime_nsec())
                == (self.file.dev(), self.file.ino(), self.file.mtime(), self.file.mtime_nsec()),
            "{} was replaced while it was asked for its release",
            self.shown.display()
        );
        match binaries::server_version(text) {
            Some(server_version) => Ok(server_version),
            None => bail!(
                "{} is not a PostgreSQL {}: it says {text:?}",
                self.shown.display(),
                PostgresVersion::supported()
            ),
        }
    }
}

/// A small file's text; of a large one the beginning.
pub(crate) fn read_start(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(START_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether it belongs to root or the caller.
fn is_ours(file: &Metadata) -> bool {
    [0, nix::unistd::geteuid().as_raw()].contains(&file.uid())
}

fn check_file(path: &Path, file: &Metadata) -> anyhow::Result<()> {
    let named = path.file_name().is_some_and(|name| name == "postgres");
    ensure!(
        named && file.is_file() && is_ours(file) && file.mode() & WRITABLE == 0,
        "{} is not a postgres program that only root or you can have put there",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Child;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Tests that write a program and run it do so in turn: a child that another one is just starting has the file open
    /// for writing, and then it cannot be run.
    pub(crate) fn in_turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process that is ended with the test.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn script(path: &Path, text: &str) {
        fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn links_are_followed_before_anything_is_checked() {
        let _turn = in_turn();
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        script(&open.join("postgres"), "echo 'postgres (PostgreSQL) 15.18'");
        std::os::unix::fs::symlink(open.join("postgres"), folder.path().join("postgres")).unwrap();
        let named = folder.path().join("postgres");
        assert_eq!(Program::at(&named).unwrap().ask().unwrap().to_string(), "15.18");
        for mode in [0o777, 0o775] {
            fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            let error = Program::at(&named).unwrap_err().to_string();
            assert!(error.contains("others than root and you can put files"), "{error}");
        }
        // As /tmp is: a file there is safe from all but its owner.
        fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(Program::at(&named).unwrap().ask().unwrap().to_string(), "15.18");
        // The name counts that the file really has.
        script(&open.join("other"), "echo 'postgres (PostgreSQL) 15.18'");
        fs::remove_file(&named).unwrap();
        std::os::unix::fs::symlink(open.join("other"), &named).unwrap();
        assert!(Program::at(&named).unwrap_err().to_string().contains("not a postgres program"));
        assert!(Program::at(Path::new("postgres")).is_err());
    }

    #[test]
    fn a_program_replaced_while_it_is_asked_has_not_answered() {
        let _turn = in_turn();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres");
        script(&folder.path().join("new"), "echo 'postgres (PostgreSQL) 15.20'");
        script(&path, "mv \"${0%/*}/new\" \"$0\"\necho 'postgres (PostgreSQL) 15.18'");
        let error = Program::at(&path).unwrap().ask().unwrap_err().to_string();
        assert!(error.contains("was replaced while it was asked"), "{error}");
        assert_eq!(Program::at(&path).unwrap().ask().unwrap().to_string(), "15.20");
        script(&path, "echo 'postgres (PostgreSQL) 16.1'");
        assert!(Program::at(&path).unwrap().ask().unwrap_err().to_string().contains("16.1"));
    }

    #[test]
    fn the_process_that_runs_is_asked_and_not_what_took_its_place() {
        let _turn = in_turn();
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let program = folder.path().join("postgres");
        fs::copy("/bin/sleep", &program).unwrap();
        assert!(Program::of_server(&data).unwrap().is_none(), "no process is named");
        let start = |folder: &Path| {
            Running(Command::new(&program).arg("60").current_dir(folder).spawn().expect("started"))
        };
        let name = |process_id: u32| {
            fs::write(data.join("postmaster.pid"), format!("{process_id}\n{}\n", data.display())).unwrap();
        };
        // Another process that got the number of a server that crashed.
        let elsewhere = start(folder.path());
        name(elsewhere.0.id());
        assert!(Program::of_server(&data).unwrap().is_none(), "it works in another folder");

        let mut server = start(&data);
        name(server.0.id());
        script(&folder.path().join("new"), "echo 'postgres (PostgreSQL) 15.20'");
        fs::rename(folder.path().join("new"), &program).unwrap();
        let running = Program::of_server(&data).unwrap().expect("it runs");
        assert_eq!(running.shown, program);
        let error = running.ask().unwrap_err().to_string();
        assert!(error.contains("coreutils") && !error.contains("15.20"), "{error}");

        server.0.kill().unwrap();
        server.0.wait().unwrap();
        assert!(Program::of_server(&data).unwrap().is_none(), "it has ended");
    }

    #[test]
    fn a_process_of_a_program_that_anyone_could_have_made_is_not_asked() {
        let _turn = in_turn();
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("postgres", 0o777), ("other", 0o755)] {
            let program = folder.path().join(name);
            fs::copy("/bin/sleep", &program).unwrap();
            fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
            let process =
                Running(Command::new(&program).arg("60").current_dir(folder.path()).spawn().unwrap());
            fs::write(folder.path().join("postmaster.pid"), format!("{}\n", process.0.id())).unwrap();
            let error = Program::of_server(folder.path()).unwrap_err().to_string();
            assert!(error.contains("not a postgres program"), "{name}: {error}");
        }
    }
}
