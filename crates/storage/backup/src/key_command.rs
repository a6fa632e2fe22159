//! The command that prints the key that a backup's objects are encrypted with: a client of a key service, for instance.
//!
//! It is run by `sh -c`, in the environment of who runs it, and prints what a key file has. What it prints is bounded and never shown; what it
//! says on standard error is, for only it knows why there is no key.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use borealis_archive::sealing::{KeyFileError, SealingKey};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::key_file::FILE_BYTES_MAX;

/// How long a command may take.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Of what it says on standard error, the first bytes.
const SAID_BYTES_MAX: usize = 1000;
/// How often somebody looks whether it has ended, or is to be ended: a pipe says nothing of either.
const LOOK_EVERY_MS: u16 = 20;

/// Why a command gives no key. It never shows what the command printed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be run.
    #[error("cannot run the key command `{command}`: {error}")]
    Unstarted {
        /// The command.
        command: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// It did not succeed.
    #[error("the key command `{command}` failed, {status}{said}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard error.
        said: Said,
    },
    /// It did not end in time.
    #[error("the key command `{command}` had not ended after {} seconds and was killed{said}", timeout.as_secs())]
    Slow {
        /// The command.
        command: String,
        /// How long it had.
        timeout: Duration,
        /// What it said on standard error.
        said: Said,
    },
    /// Nobody waits for its key any more.
    #[error("the key command `{command}` was killed, for nobody waits for it any more")]
    Unwanted {
        /// The command.
        command: String,
    },
    /// It printed something else.
    #[error("the key command `{command}` printed no key: {error}{said}")]
    NoKey {
        /// The command.
        command: String,
        /// What a key has.
        error: KeyFileError,
        /// What it said on standard error.
        said: Said,
    },
}

/// As many hexadecimal digits in a row may be a part of a key.
const DIGITS_SECRET: usize = 32;

/// What a command said on standard error, on one line, without what may be the key: some say what they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    fn of(bytes: &[u8]) -> Said {
        let text = String::from_utf8_lossy(bytes);
        // Where it was cut there may be the beginning of a key.
        let is_cut = bytes.len() >= SAID_BYTES_MAX;
        let text =
            if is_cut { text.rsplit_once(char::is_whitespace).map_or("", |(whole, _)| whole) } else { &text };
        let words = text.split(|c: char| c.is_whitespace() || c.is_control());
        let is_secret = |word: &str| {
            let mut runs = word.split(|c: char| !c.is_ascii_hexdigit());
            runs.any(|run| run.len() >= DIGITS_SECRET)
        };
        let shown =
            words.filter(|word| !word.is_empty()).map(|word| if is_secret(word) { "…" } else { word });
        Said(shown.collect::<Vec<_>>().join(" "))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { f.write_str("; it said nothing") } else { write!(f, "; it said: {}", self.0) }
    }
}

/// Runs a command and takes the key that it prints. It is killed, with all that it started, after `timeout`, or once `is_wanted` says no.
///
/// # Errors
/// When it does not succeed in time, or prints no key.
pub fn read(
    command: &str,
    timeout: Duration,
    is_wanted: &dyn Fn() -> bool,
) -> Result<SealingKey, CommandError> {
    let unstarted = |error| CommandError::Unstarted { command: command.to_owned(), error };
    // A process group of its own: a shell that is killed leaves what it started.
    let child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut running = Running(Some(child.map_err(unstarted)?));
    let deadline = Instant::now() + timeout;
    let (mut printed, mut said) = (Vec::new(), Vec::new());
    let goes_on = || is_wanted() && Instant::now() < deadline;
    let has_ended = running.follow(&mut printed, &mut said, &goes_on).map_err(unstarted)?;
    let status = running.end().map_err(unstarted)?;
    let (command, said) = (command.to_owned(), Said::of(&said));
    if !has_ended {
        return Err(if is_wanted() {
            CommandError::Slow { command, timeout, said }
        } else {
            CommandError::Unwanted { command }
        });
    }
    if !status.success() {
        return Err(CommandError::Failed { command, status, said });
    }
    let whole = Some(printed.as_slice()).filter(|printed| printed.len() as u64 <= FILE_BYTES_MAX);
    let text = whole.and_then(|printed| std::str::from_utf8(printed).ok()).ok_or(KeyFileError);
    let key = text.and_then(SealingKey::of_text);
    key.map_err(|error| CommandError::NoKey { command, error, said })
}

/// A command that is killed with all that it started when nobody looks after it any more; `None` once it was.
struct Running(Option<Child>);

impl Running {
    /// Takes what it writes until it has ended; false if it is to be followed no longer. One byte more than a key has is kept, so that too much is
    /// noticed; the rest is thrown away.
    fn follow(
        &mut self,
        printed: &mut Vec<u8>,
        said: &mut Vec<u8>,
        goes_on: &dyn Fn() -> bool,
    ) -> std::io::Result<bool> {
        let child = self.0.as_mut().expect("it was not ended yet");
        let process = process(child);
        let mut output = child.stdout.take().expect("it is piped");
        let mut errors = child.stderr.take().expect("it is piped");
        for pipe in [output.as_fd(), errors.as_fd()] {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let printed_max = usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX).saturating_add(1);
        let (mut output_is_open, mut errors_are_open) = (true, true);
        while goes_on() {
            // It may write and end between two looks: ask first, then read what there is. Its number stays its own until `end`.
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let has_ended = waitid(Id::Pid(process), look)? != WaitStatus::StillAlive;
            output_is_open = output_is_open && take(&mut output, printed, printed_max)?;
            errors_are_open = errors_are_open && take(&mut errors, said, SAID_BYTES_MAX)?;
            // Something that it left in the background may hold the pipes.
            if has_ended {
                return Ok(true);
            }
            let open = [(output_is_open, output.as_fd()), (errors_are_open, errors.as_fd())];
            let open = open.into_iter().filter(|(is_open, _)| *is_open);
            let mut pipes: Vec<_> = open.map(|(_, pipe)| PollFd::new(pipe, PollFlags::POLLIN)).collect();
            match poll(&mut pipes, LOOK_EVERY_MS) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Kills what still runs of it. The status is the command's own if it had ended.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        let mut child = self.0.take().expect("it is ended once");
        // The group has the child's number, which nobody else gets before it was waited for.
        let killed = killpg(process(&child), Signal::SIGKILL);
        let status = child.wait()?;
        killed.map(|()| status).map_err(std::io::Error::from)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.is_some() {
            // Something went wrong already, and that is said.
            let _ = self.end();
        }
    }
}

fn process(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process's number is a positive i32"))
}

/// Reads what there is now, and keeps it up to `most` bytes in all; false at the end.
fn take(pipe: &mut impl Read, kept: &mut Vec<u8>, most: usize) -> std::io::Result<bool> {
    let mut part = [0; 1024];
    loop {
        match pipe.read(&mut part) {
            Ok(0) => return Ok(false),
            Ok(count) => kept.extend(part[..count].iter().take(most.saturating_sub(kept.len()))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";

    fn run(command: &str) -> Result<SealingKey, String> {
        read(command, Duration::from_secs(5), &|| true).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_that_prints_a_key_gives_one() {
        assert!(run(&format!("echo {KEY}")).is_ok());
        assert!(run(&format!("echo welcome >&2; sleep 0.1; printf %s {KEY}")).is_ok());
        // What it leaves in the background keeps nobody waiting, and is not left.
        let begin = Instant::now();
        assert!(run(&format!("sleep 4 & echo {KEY}")).is_ok());
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_word_that_was_cut_is_not_shown() {
        let said = format!("{} 0f0f0f0f", "x ".repeat(SAID_BYTES_MAX / 2));
        assert!(!Said::of(&said.as_bytes()[..SAID_BYTES_MAX]).to_string().contains("0f"));
        let cut = "0f".repeat(10);
        let said = format!("{}{cut}", "x ".repeat((SAID_BYTES_MAX - cut.len()) / 2));
        assert!(!Said::of(said.as_bytes()).to_string().contains("0f"), "{said}");
        assert!(Said::of(b"no such key").to_string().ends_with("no such key"));
    }

    #[test]
    fn a_command_that_fails_says_why_and_shows_no_key() {
        let error = run(&format!("echo {KEY}; printf 'no\\npermission' >&2; exit 3")).unwrap_err();
        assert!(error.contains("exit status: 3") && error.contains("it said: no permission"), "{error}");
        // A shell that says what it runs.
        let error = run(&format!("KEY={KEY}; set -x; echo $KEY; exit 3")).unwrap_err();
        assert!(error.contains("it said: + echo …"), "{error}");
        let error = run("exit 4").unwrap_err();
        assert!(error.contains("exit status: 4; it said nothing"), "{error}");
        let error = run("borealis-there-is-no-such-program").unwrap_err();
        assert!(error.contains("not found"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_not_shown() {
        for printed in ["hush", "", &format!("hush{KEY}"), &format!("{KEY}0")] {
            let error = run(&format!("printf %s '{printed}' | cat")).unwrap_err();
            assert!(error.contains("printed no key") && error.contains("64 hexadecimal digits"), "{error}");
            assert!(!error.replace(&format!("printf %s '{printed}'"), "").contains("hush"), "{error}");
        }
        // More than a key, more than a pipe holds: it is thrown away, and the command ends.
        let error = run(&format!("printf %s {KEY}; head -c 1000000 /dev/zero | tr '\\0' ' '; echo x"));
        assert!(error.unwrap_err().contains("printed no key"));
        let error = run("head -c 1000000 /dev/zero | tr '\\0' 'z' >&2; exit 1").unwrap_err();
        assert!(error.len() < SAID_BYTES_MAX + 200, "{}", error.len());
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let (begin, number) = (Instant::now(), folder.path().join("number"));
        let command = format!("sleep 1000 & echo $! > {}; echo why >&2; wait", number.display());
        let error = read(&command, Duration::from_millis(600), &|| true).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        assert!(
            matches!(error, CommandError::Slow { .. }) && error.to_string().contains("it said: why"),
            "{error}"
        );
        let number = std::fs::read_to_string(number).unwrap();
        let stat = format!("/proc/{}/stat", number.trim());
        // Whoever adopts it may take a moment to bury it.
        let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        while lives() {
            assert!(begin.elapsed() < Duration::from_secs(10), "it still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_command_that_nobody_waits_for_is_killed_at_once() {
        let begin = Instant::now();
        let is_wanted = || begin.elapsed() < Duration::from_millis(200);
        let error = read("sleep 1000", TIMEOUT, &is_wanted).unwrap_err();
        assert!(matches!(error, CommandError::Unwanted { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    }
}
