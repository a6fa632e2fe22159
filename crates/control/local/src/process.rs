//! Detached processes and the files that name them.
#![allow(unsafe_code)] // `pre_exec`; see the reason there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use borealis_types::invariant;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process of the cluster: its id, and when it started, so that another process that got the same id later
/// is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The number it has while it runs.
    pub process_id: u32,
    start_ticks: u64,
}

impl ProcessIdentity {
    /// The identity of a running process.
    #[must_use]
    pub fn of(process_id: u32) -> Option<ProcessIdentity> {
        Some(ProcessIdentity { process_id, start_ticks: start_ticks(process_id)? })
    }

    /// Whether the process that was recorded still runs, and not another with its number.
    #[must_use]
    pub fn is_alive(self) -> bool {
        start_ticks(self.process_id) == Some(self.start_ticks)
    }

    /// Whether it is about to be gone: killed, and not yet rid of its files and locks.
    fn is_ending(self) -> bool {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.process_id)).unwrap_or_default();
        self.is_alive() && (is_exiting_in(&read("stat")) || is_killed_in(&read("status")))
    }

    /// Sends a signal if it still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end between the two calls, and that is no error.
            let _ = kill(pid(self.process_id), signal);
        }
    }

    /// Waits until it is gone.
    #[must_use]
    pub fn wait_gone(self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel has not ended it after ten seconds.
    pub fn kill_and_wait(self) -> io::Result<()> {
        self.signal(Signal::SIGKILL);
        if self.wait_gone(Duration::from_secs(10)) {
            return Ok(());
        }
        Err(io::Error::other(format!("process {} does not end", self.process_id)))
    }
}

/// A process's number for a system call, where zero and less stand for whole groups of processes.
fn pid(process_id: u32) -> Pid {
    let number = i32::try_from(process_id).unwrap_or(-1);
    invariant!("signal-goes-to-one-process", number > 0, "process {process_id}");
    Pid::from_raw(number)
}

/// When the process started, in clock ticks since boot. `None` if there is no such process or it has ended and
/// only its entry is left.
fn start_ticks(process_id: u32) -> Option<u64> {
    start_ticks_in(&fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?)
}

/// Field 22 of `/proc/<pid>/stat` (see proc(5)), unless field 3, the state, says that the process has ended.
///
/// A killed process's first thread may be a zombie while others still run to their end, and hold its files and
/// locks open: field 20 counts them all.
fn start_ticks_in(stat: &str) -> Option<u64> {
    let mut fields = fields_in(stat)?.skip(17);
    let threads: u64 = fields.next()?.parse().ok()?;
    let state = state_in(stat)?;
    if state == "X" || (state == "Z" && threads <= 1) {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

/// Whether `/proc/<pid>/stat` says that the process's first thread is on its way out: a zombie, or `PF_EXITING` among
/// its flags (field 9).
fn is_exiting_in(stat: &str) -> bool {
    const EXITING: u32 = 0x4;
    let flags = fields_in(stat).and_then(|mut fields| fields.nth(6)?.parse::<u32>().ok());
    state_in(stat) == Some("Z") || flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Whether `/proc/<pid>/status` says that SIGKILL is on its way to the process, which cannot do anything about it: a
/// thread that waits for the disk gets it later.
fn is_killed_in(status: &str) -> bool {
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    let killed = 1 << (Signal::SIGKILL as u32 - 1);
    status.lines().filter_map(pending).any(|mask| mask & killed != 0)
}

fn state_in(stat: &str) -> Option<&str> {
    fields_in(stat)?.next()
}

/// Field 3 and those after it.
fn fields_in(stat: &str) -> Option<impl Iterator<Item = &str>> {
    // The second field is the program's name in parentheses and may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace())
}

/// Longest wait for a process that was killed to be rid of its files.
const ENDING_MAX: Duration = Duration::from_secs(10);

/// Reads a process file; `None` if there is none, or its process no longer runs. Waits for one that was killed a moment
/// ago: whoever asks may start another in its place, which needs what it still holds.
#[must_use]
pub fn read_process_file(path: &Path) -> Option<ProcessIdentity> {
    let text = fs::read_to_string(path).ok()?;
    let (process_id, start_ticks) = text.trim().split_once(' ')?;
    let identity =
        ProcessIdentity { process_id: process_id.parse().ok()?, start_ticks: start_ticks.parse().ok()? };
    let runs = if identity.is_ending() { !identity.wait_gone(ENDING_MAX) } else { identity.is_alive() };
    runs.then_some(identity)
}

/// The process number in a process file, whether or not it still runs.
#[must_use]
pub fn recorded_process_id(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.split_once(' ')?.0.parse().ok()
}

/// Whether a process file is there and this user may not read it, so that nothing is known of its process.
#[must_use]
pub fn is_closed_to_us(path: &Path) -> bool {
    File::open(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Removes a process file: nobody wants its process to run any more, and nobody is to start it again.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_process_file(path: &Path) -> io::Result<()> {
    or_none(fs::remove_file(path))
}

/// Where a process stays on record that nobody wants to run any more, until it has ended.
fn stopping_file(process_file: &Path) -> PathBuf {
    process_file.with_extension("stopping")
}

/// Before a process is ended: nobody is to start it again, and whoever asks is told that it is still there. What is on
/// record already stays if there is no process file.
///
/// # Errors
/// When the record cannot be made.
pub fn begin_stopping(process_file: &Path) -> io::Result<()> {
    or_none(fs::rename(process_file, stopping_file(process_file)))
}

/// The process that is being stopped and has not ended, also when the command that was stopping it was interrupted.
#[must_use]
pub fn read_stopping(process_file: &Path) -> Option<ProcessIdentity> {
    read_process_file(&stopping_file(process_file))
}

/// After a process has ended that was being stopped.
///
/// # Errors
/// When the record cannot be removed.
pub fn end_stopping(process_file: &Path) -> io::Result<()> {
    remove_process_file(&stopping_file(process_file))
}

/// Success also where there was no file.
fn or_none(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes the calling process into its process file. Only makes system calls and allocates nothing, as a process
/// between fork and exec has to.
fn record_self(file: BorrowedFd<'_>) -> io::Result<()> {
    use std::io::Write;
    let stat = nix::fcntl::open(
        c"/proc/self/stat",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    let mut text = [0; 1024];
    let length = nix::unistd::read(&stat, &mut text)?;
    let ticks = str::from_utf8(&text[..length]).ok().and_then(start_ticks_in);
    let ticks = ticks.ok_or(io::ErrorKind::InvalidData)?;
    let mut line = [0; 64];
    let mut rest = &mut line[..];
    writeln!(rest, "{} {ticks}", nix::unistd::getpid())?;
    let written = 64 - rest.len();
    nix::unistd::write(file, &line[..written])?;
    Ok(())
}

/// Writes the calling process into a process file.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn record_own(path: &Path) -> io::Result<()> {
    record_self(File::create(path)?.as_fd())
}

/// Starts this program again in the background, in a session of its own, with output to `log_file`.
///
/// It is in `process_file` before it does anything: one that is started and not recorded, because who started it was
/// killed at that moment, would keep its folder, and no command would find it.
///
/// # Errors
/// When a file cannot be opened or the process not be started.
pub fn spawn_detached(
    arguments: &[&str],
    config: &Path,
    log_file: &Path,
    process_file: &Path,
) -> io::Result<ProcessIdentity> {
    let log = File::options().create(true).append(true).open(log_file)?;
    let process_file = File::create(process_file)?;
    let mut command = Command::new(own_program()?);
    command
        .args(arguments)
        .arg("--config")
        .arg(config)
        .current_dir("/")
        // PostgreSQL would tell our service manager that it is ready, and stopping, itself.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: setsid, sigprocmask, open, read and write are async-signal-safe and the closure does nothing else.
    unsafe {
        command.pre_exec(move || {
            record_self(process_file.as_fd())?;
            nix::unistd::setsid()?;
            // The caller may hold back Ctrl-C for itself; the new process must hear its own signals.
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    ProcessIdentity::of(child.id()).ok_or_else(|| io::Error::other("it ended at once"))
}

/// Runs this program again and waits for its end.
///
/// # Errors
/// When it cannot be started or fails; the message is what it said.
pub fn run_to_end(arguments: &[&str], config: &Path) -> io::Result<()> {
    let mut command = Command::new(own_program()?);
    let output = command.args(arguments).arg("--config").arg(config).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(reason_in(&said).unwrap_or_else(|| output.status.to_string())))
}

/// Why this program failed, by what it wrote to its standard error: its last sentence, or else all of it (a panic has
/// several lines). `None` if it wrote nothing.
fn reason_in(said: &str) -> Option<String> {
    let said = said.trim_end();
    let sentence = said.lines().rev().find_map(|line| line.strip_prefix("borealis: "));
    Some(sentence.unwrap_or(said)).filter(|reason| !reason.is_empty()).map(str::to_owned)
}

/// This program's file; after an upgrade or a build has replaced it, the new one.
///
/// # Errors
/// When the system does not say.
pub fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe().map(|program| still_there(program, Path::exists))
}

/// The path without what Linux adds to it once the file is another one.
fn still_there(program: PathBuf, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let stripped = program.as_os_str().as_bytes().strip_suffix(b" (deleted)").map(OsStr::from_bytes);
    match stripped.map(Path::new) {
        Some(replaced) if !exists(&program) && exists(replaced) => replaced.to_path_buf(),
        _ => program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_the_programs_own_words() {
        let reason = |said| reason_in(said).unwrap_or_default();
        assert_eq!(reason("INFO opened\nborealis: the disk is full\n"), "the disk is full");
        assert_eq!(reason("thread main panicked\nat 3:1\n"), "thread main panicked\nat 3:1");
        assert_eq!(reason_in("\n"), None);
    }

    #[test]
    fn a_program_that_was_replaced_is_found() {
        let found = |told: &str, there: &str| still_there(told.into(), |path| path == Path::new(there));
        assert_eq!(found("/usr/bin/b", "/usr/bin/b"), Path::new("/usr/bin/b"));
        assert_eq!(found("/usr/bin/b (deleted)", "/usr/bin/b"), Path::new("/usr/bin/b"));
        assert_eq!(found("/usr/bin/b (deleted)", "/usr/bin/b (deleted)"), Path::new("/usr/bin/b (deleted)"));
        assert_eq!(found("/usr/bin/b (deleted)", "/"), Path::new("/usr/bin/b (deleted)"), "it was removed");
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let stat = |state: &str, threads: u32| {
            format!(
                "71 (a) Z 9 (b)) {state} 1 71 71 0 -1 4 5 6 7 8 9 10 11 12 20 0 {threads} 0 4321 99 100\n"
            )
        };
        assert_eq!(start_ticks_in(&stat("S", 1)), Some(4321));
        assert_eq!(start_ticks_in(&stat("Z", 3)), Some(4321), "two threads still hold its files open");
        assert_eq!(start_ticks_in(&stat("Z", 1)), None);
        assert_eq!(start_ticks_in(&stat("X", 1)), None);
        assert_eq!(start_ticks_in("71 (cut"), None);
    }

    #[test]
    fn a_killed_process_is_known_before_its_first_thread_has_ended() {
        let stat = |state: &str, flags: u32| format!("71 (a) b) {state} 1 71 71 0 -1 {flags} 5 6 7 8\n");
        assert!(is_exiting_in(&stat("Z", 0)) && is_exiting_in(&stat("R", 0x0040_0004)));
        assert!(!is_exiting_in(&stat("S", 0x0040_0000)) && !is_exiting_in("71 (cut"));
        let status =
            |own: &str, shared: &str| format!("Name:\ta\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\tff\n");
        let (none, kill, terminate) = ("0000000000000000", "0000000000000100", "0000000000004000");
        assert!(is_killed_in(&status(none, kill)) && is_killed_in(&status(kill, none)));
        assert!(!is_killed_in(&status(none, terminate)) && !is_killed_in(""));
    }

    #[test]
    fn a_process_is_recognized_until_it_ends() {
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep");
        let identity = ProcessIdentity::of(child.id()).expect("running");
        let directory = tempfile::tempdir().expect("temporary folder");
        let file = directory.path().join("process");
        let recorded = format!("{} {}\n", identity.process_id, identity.start_ticks);
        fs::write(&file, recorded).expect("written");
        assert_eq!(read_process_file(&file), Some(identity));
        identity.kill_and_wait().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(read_process_file(&file), None);
    }

    #[test]
    fn a_process_that_is_being_stopped_is_on_record_until_it_has_ended() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let path = directory.path().join("process");
        begin_stopping(&path).expect("there is nothing to stop");
        assert_eq!(read_stopping(&path), None);
        record_own(&path).expect("recorded");
        let own = ProcessIdentity::of(std::process::id());
        // As when the command that does it is interrupted, and given again.
        for _ in 0..2 {
            begin_stopping(&path).expect("on record");
            assert_eq!(
                (read_process_file(&path), read_stopping(&path)),
                (None, own),
                "nobody starts it again"
            );
        }
        end_stopping(&path).expect("forgotten");
        assert_eq!(read_stopping(&path), None);
        end_stopping(&path).expect("already");
    }

    #[test]
    fn a_process_records_itself_as_others_would() {
        let directory = tempfile::tempdir().expect("temporary folder");
        let path = directory.path().join("process");
        record_self(File::create(&path).expect("made").as_fd()).expect("recorded");
        assert_eq!(read_process_file(&path), ProcessIdentity::of(std::process::id()));
    }

    #[test]
    #[should_panic(expected = "invariant signal-goes-to-one-process is broken: process 0")]
    fn the_own_process_group_is_no_process() {
        assert_eq!(pid(71).as_raw(), 71);
        pid(0);
    }

    #[test]
    #[should_panic(expected = "invariant signal-goes-to-one-process is broken")]
    fn every_process_there_is_is_no_process() {
        pid(u32::MAX);
    }

    #[test]
    fn a_process_id_used_again_is_another_process() {
        let own = ProcessIdentity::of(std::process::id()).expect("running");
        let other = ProcessIdentity { start_ticks: own.start_ticks + 1, ..own };
        assert!(own.is_alive() && !other.is_alive());
    }
}
