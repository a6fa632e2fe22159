//! No server without its shim: who has reported, and why one has not.
//!
//! A server without its shim does not find its control file ([`borealis_shm::path::control_file`]) and ends by itself.
//! Neither PostgreSQL nor the loader says more about it than a line in the server's log, so the cause is looked for
//! here. The opposite mistake would be as bad: a server that was killed before it could load anything is no server
//! without its shim, and is started again. So there has to be evidence.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use borealis_instance::{OperatingSystemUser, confinement, server};
use borealis_shm::{BUILD_FINGERPRINT, ShimReport};
use borealis_types::invariant;

/// A server that would run without the shim at every further start, too.
#[derive(Debug, thiserror::Error)]
pub enum ShimFault {
    /// It had none, and ended for want of its control file.
    #[error("postgres was started without the Borealis shim and ended ({how}): {cause}. Its log is {log}")]
    Missing {
        /// The server's exit code or signal, in words.
        how: String,
        /// What took the shim away.
        cause: String,
        /// The server's log file, for the reader of the message.
        log: PathBuf,
    },
    /// It loaded another one, which refused to go on.
    #[error(
        "postgres loaded a Borealis shim of another build, {found:016x} instead of {BUILD_FINGERPRINT:016x}, and was \
         ended: something puts another library in the place of the one that belongs to this program"
    )]
    OtherBuild {
        /// What the shim said of itself.
        found: u64,
    },
    /// The shim is at work, but in a process that the driver did not start, and which would not end with it.
    #[error(
        "the Borealis shim was loaded in process {reported}, not in the one that was started ({started}), and both were \
         ended: {program} must become postgres by `exec`, not start it as its child"
    )]
    OtherProcess {
        /// The process in which the shim reported.
        reported: u32,
        /// The process that the driver started.
        started: u32,
        /// The program that was started.
        program: PathBuf,
    },
}

/// What is known of a server that was started.
#[derive(Debug)]
pub(crate) struct ShimGate {
    /// The process that was started.
    pub started: u32,
    /// The file that was executed; a script may stand before the real server.
    pub program: PathBuf,
    /// The value of `LD_PRELOAD` that the server was given.
    pub preload: PathBuf,
    /// The system user that runs the server.
    pub user: OperatingSystemUser,
    /// The server's log since it was started.
    pub log: LogSince,
    /// Since when it is a `postgres` whose shim has not reported.
    pub silent_since: Option<Instant>,
    /// Another process whose shim reported, and since when.
    pub other_since: Option<(u32, Instant)>,
}

/// How long a `postgres` may take to report its shim, which the loader calls before the program itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the shim that reported is this build's, in the process that was started.
pub(crate) fn is_loaded(report: Option<&ShimReport>, started: u32) -> bool {
    report.is_some_and(|report| report.process_id == started && report.fingerprint == BUILD_FINGERPRINT)
}

/// Whoever is about to serve the server that was started has seen its shim report.
///
/// # Panics
/// If it has not: a server without its shim would be told of commits that nothing keeps.
pub(crate) fn require_loaded(report: Option<&ShimReport>, started: u32) {
    invariant!("served-only-with-its-shim", is_loaded(report, started), "process {started}, and {report:?}");
}

impl ShimGate {
    /// The fault of a running server, or `None` while it may still report its shim. It is certain once another build's
    /// shim reported, once the process has run for [`PATIENCE`] without a report, or once it accepts connections.
    pub fn fault_of_running(
        &mut self,
        report: Option<ShimReport>,
        accepts_connections: bool,
        now: Instant,
    ) -> Option<ShimFault> {
        if let Some(fault) = self.fault_of(report.as_ref()) {
            return Some(fault);
        }
        let is_certain =
            |since: Instant| accepts_connections || now.saturating_duration_since(since) > PATIENCE;
        let Some(report) = report else {
            if self.silent_since.is_none() && is_postgres(self.started) {
                self.silent_since = Some(now);
            }
            return self.silent_since.filter(|since| is_certain(*since)).map(|_| self.fault_of_silent());
        };
        // A script may ask a `postgres` for its version before it becomes one.
        if !is_postgres(report.process_id) {
            self.other_since = None;
            return None;
        }
        let same = self.other_since.filter(|(process_id, _)| *process_id == report.process_id);
        let (_, since) = *self.other_since.insert(same.unwrap_or((report.process_id, now)));
        if is_certain(since) { self.fault_of_settled(Some(report)) } else { None }
    }

    /// Another build's shim is wrong at once.
    fn fault_of(&self, report: Option<&ShimReport>) -> Option<ShimFault> {
        match report {
            Some(ShimReport { fingerprint, .. }) if *fingerprint != BUILD_FINGERPRINT => {
                Some(ShimFault::OtherBuild { found: *fingerprint })
            }
            _ => None,
        }
    }

    /// What is wrong with a report that will not be followed by a better one.
    fn fault_of_settled(&self, report: Option<ShimReport>) -> Option<ShimFault> {
        let report = report.filter(|report| !is_loaded(Some(report), self.started))?;
        Some(self.fault_of(Some(&report)).unwrap_or_else(|| self.other_process(report.process_id)))
    }

    fn other_process(&self, reported: u32) -> ShimFault {
        invariant!("blamed-process-is-another", reported != self.started, "process {reported} was started");
        ShimFault::OtherProcess { reported, started: self.started, program: self.program.clone() }
    }

    /// What is wrong with a server that ended without a report of its own, if there is evidence that it had no shim.
    pub fn fault_of_ended(&self, report: Option<ShimReport>, how: &str) -> Option<ShimFault> {
        // Another process that has ended, too, proves nothing: a script that was killed after it had asked a `postgres`
        // for its version, and before it became one, may well become one at the next start.
        let report =
            report.filter(|report| self.fault_of(Some(report)).is_some() || is_postgres(report.process_id));
        if let Some(fault) = self.fault_of_settled(report) {
            return Some(fault);
        }
        let log = self.log.text();
        let proof = self.loaders_word(&log).or_else(|| self.of_the_binary());
        // The path stands in every translation of the message.
        let missed_control_file = log.contains("global/pg_control");
        (proof.is_some() || missed_control_file).then(|| self.missing(proof, how))
    }

    /// What is wrong with a process that has been a `postgres` for long enough to have loaded the shim: it happens
    /// before the program's first own instruction.
    fn fault_of_silent(&self) -> ShimFault {
        let proof = self.loaders_word(&self.log.text()).or_else(|| self.of_the_binary());
        self.missing(proof, "the driver ended it")
    }

    fn missing(&self, proof: Option<String>, how: &str) -> ShimFault {
        let cause = proof.or_else(|| self.of_the_script()).unwrap_or_else(|| {
            let hint = confinement::of_this_process().map_or(String::new(), |what| format!(" ({what})"));
            format!(
                "nothing says why. Check that {} loads {} and hands its environment on{hint}",
                self.program.display(),
                self.preload.display()
            )
        });
        ShimFault::Missing { how: how.to_owned(), cause, log: self.log.path.clone() }
    }

    /// The dynamic loader's line in the log, and what it means.
    fn loaders_word(&self, log: &str) -> Option<String> {
        let line = log.lines().find(|line| line.contains("from LD_PRELOAD cannot be preloaded"))?;
        let reason = line.rsplit_once("preloaded (").map_or(line, |(_, reason)| reason);
        // Which may be another one than was asked for, if a script between put it there.
        let object = line.split_once("object '").and_then(|(_, rest)| rest.split_once("' from LD_PRELOAD"));
        let object = object.map_or(self.preload.as_path(), |(object, _)| Path::new(object));
        let mut policy = String::new();
        let meaning = if reason.contains("failed to map segment") {
            if let Some(confinement) = confinement::of_this_process() {
                policy = format!(" ({confinement})");
            }
            "the file system it lies on is mounted noexec, a security policy forbids it, or there is no memory left for it"
        } else if reason.contains("wrong ELF class") || reason.contains("invalid ELF header") {
            "it is not a library for this processor"
        } else if !server::readable_by(&self.user, object) {
            "the server's user may not read it"
        } else {
            "see the reason in brackets"
        };
        Some(format!("the loader could not load it: {meaning}{policy}. It said: {}", line.trim()))
    }

    /// Why the loader ignores `LD_PRELOAD` for this program: set-user-id or set-group-id, file capabilities or static
    /// linking. `None` if it does not.
    fn of_the_binary(&self) -> Option<String> {
        let program = self.program.display();
        let metadata = fs::metadata(&self.program).ok()?;
        if metadata.mode() & 0o6000 != 0 {
            return Some(format!(
                "{program} is set-user-id or set-group-id, and for such programs the loader ignores LD_PRELOAD. Take the \
                 bit away (chmod ug-s), or name another installation with --pg-bin"
            ));
        }
        if server::has_attribute(&self.program, c"security.capability") {
            return Some(format!(
                "{program} has file capabilities, and for such programs the loader ignores LD_PRELOAD. Take them away \
                 (setcap -r), or name another installation with --pg-bin"
            ));
        }
        let bytes = fs::read(&self.program).ok()?;
        (is_static(&bytes) == Some(true)).then(|| {
            format!("{program} is linked statically and loads no libraries; name another installation with --pg-bin")
        })
    }

    /// What a script between the driver and the server may have done.
    fn of_the_script(&self) -> Option<String> {
        let mut start = [0; 2];
        File::open(&self.program).and_then(|mut file| file.read_exact(&mut start)).ok()?;
        (&start == b"#!").then(|| {
            format!(
                "{} is a script, which must hand LD_PRELOAD, BOREALIS_SHM and BOREALIS_EVENT_FD on and end with `exec`; or \
                 name the folder of the real program with --pg-bin",
                self.program.display()
            )
        })
    }
}

/// Whether the process runs a program called `postgres`, and is no script on the way to it (which is called by its
/// shell's name). By its command line, which everybody may look at.
fn is_postgres(process_id: u32) -> bool {
    let line = fs::read(format!("/proc/{process_id}/cmdline")).unwrap_or_default();
    let name = line.split(|&byte| byte == 0).next().unwrap_or_default();
    // PostgreSQL changes it to what the process does: `postgres: checkpointer`.
    name.rsplit(|&byte| byte == b'/').next().is_some_and(|name| name.starts_with(b"postgres"))
}

/// A log file, and where it ended at some moment.
#[derive(Debug)]
pub(crate) struct LogSince {
    path: PathBuf,
    from: u64,
}

impl LogSince {
    pub fn now(path: &Path) -> LogSince {
        LogSince { path: path.to_path_buf(), from: path.metadata().map_or(0, |metadata| metadata.len()) }
    }

    /// What has come since, the beginning of it.
    fn text(&self) -> String {
        const BYTES_MAX: u64 = 64 << 10;
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.path) {
            let read = file
                .seek(SeekFrom::Start(self.from))
                .and_then(|_| file.take(BYTES_MAX).read_to_end(&mut bytes));
            if let Err(error) = read {
                tracing::debug!(%error, "the server's log cannot be read");
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Whether a 64-bit little-endian ELF program has no interpreter (`PT_INTERP`, `elf.h`); `None` if it is none.
fn is_static(bytes: &[u8]) -> Option<bool> {
    const PROGRAM_HEADER_BYTES: usize = 56;
    const INTERPRETER: u32 = 3;
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let count = usize::from(u16::from_le_bytes(bytes.get(56..58)?.try_into().ok()?));
    let mut kinds =
        bytes.get(table..)?.chunks_exact(PROGRAM_HEADER_BYTES).take(count).map(|header| &header[..4]);
    Some(!kinds.any(|kind| kind == INTERPRETER.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A server that was started from `program` and then wrote `log`.
    fn gate(folder: &Path, program: &Path, log: &str) -> ShimGate {
        let path = folder.join("log");
        fs::write(&path, "global/pg_control of an earlier start\n").expect("written");
        let since = LogSince::now(&path);
        fs::write(&path, format!("global/pg_control of an earlier start\n{log}")).expect("written");
        ShimGate {
            started: 7,
            program: program.to_path_buf(),
            preload: PathBuf::from("/nonexistent/shim.so"),
            user: OperatingSystemUser {
                name: "nobody".into(),
                user_id: 65534,
                group_id: 65534,
                switch: true,
            },
            log: since,
            silent_since: None,
            other_since: None,
        }
    }

    fn reported(process_id: u32, fingerprint: u64) -> ShimReport {
        ShimReport { process_id, fingerprint, program_identity: [0; 5], program_path: PathBuf::new() }
    }

    const NO_CONTROL_FILE: &str = "postgres: kann \"/m/data/global/pg_control\" nicht finden\n";

    fn cause(program: &Path, log: &str) -> Option<String> {
        let folder = tempfile::tempdir().expect("a folder");
        gate(folder.path(), program, log).fault_of_ended(None, "exit code 2").map(|fault| fault.to_string())
    }

    #[test]
    fn the_loaders_line_is_found_and_explained() {
        let said = |reason: &str| {
            let line = format!(
                "x\nERROR: ld.so: object '/a b/shim.so' from LD_PRELOAD cannot be preloaded ({reason}): ignored.\ny"
            );
            cause(Path::new("/bin/true"), &line).expect("a fault")
        };
        assert!(said("failed to map segment from shared object").contains("noexec"));
        assert!(said("wrong ELF class: ELFCLASS32").contains("processor"));
        assert!(said("cannot open shared object file").contains("may not read it"));
    }

    #[test]
    fn a_server_that_ended_for_another_reason_is_not_blamed_on_the_shim() {
        assert_eq!(cause(Path::new("/bin/true"), ""), None, "killed before it could load anything");
        assert_eq!(cause(Path::new("/bin/true"), "cannot mount the huge pages\n"), None);
        assert!(
            cause(Path::new("/bin/true"), NO_CONTROL_FILE).is_some_and(|text| text.contains("exit code 2"))
        );
    }

    #[test]
    fn only_this_builds_shim_in_the_server_itself_counts() {
        let report = |process_id, fingerprint| Some(reported(process_id, fingerprint));
        let folder = tempfile::tempdir().expect("a folder");
        let gate = gate(folder.path(), Path::new("/bin/true"), "");
        assert!(is_loaded(report(7, BUILD_FINGERPRINT).as_ref(), 7));
        assert!(!is_loaded(report(8, BUILD_FINGERPRINT).as_ref(), 7) && !is_loaded(None, 7));
        assert!(!is_loaded(report(7, !BUILD_FINGERPRINT).as_ref(), 7));
        assert!(
            gate.fault_of(report(8, BUILD_FINGERPRINT).as_ref()).is_none(),
            "a script may ask for the version first"
        );
        assert!(matches!(gate.fault_of(report(7, 1).as_ref()), Some(ShimFault::OtherBuild { found: 1 })));
        let settled = gate.fault_of_settled(report(8, BUILD_FINGERPRINT));
        assert!(matches!(settled, Some(ShimFault::OtherProcess { reported: 8, started: 7, .. })));
        assert!(
            gate.fault_of_settled(report(7, BUILD_FINGERPRINT)).is_none()
                && gate.fault_of_settled(None).is_none()
        );
    }

    #[test]
    #[should_panic(expected = "invariant served-only-with-its-shim is broken: process 7")]
    fn a_server_whose_shim_is_in_another_process_is_not_served() {
        require_loaded(Some(&reported(7, BUILD_FINGERPRINT)), 7);
        require_loaded(Some(&reported(8, BUILD_FINGERPRINT)), 7);
    }

    #[test]
    #[should_panic(expected = "invariant blamed-process-is-another is broken")]
    fn the_server_itself_is_not_blamed_for_being_another() {
        let folder = tempfile::tempdir().expect("a folder");
        gate(folder.path(), Path::new("/bin/true"), "").other_process(7);
    }

    /// A `sleep` that is called `postgres`.
    fn start_postgres(program: &Path) -> std::process::Child {
        let child = std::process::Command::new(program).arg("60").spawn().expect("started");
        let begin = Instant::now();
        while !is_postgres(child.id()) {
            assert!(begin.elapsed() < PATIENCE, "it does not become what it was started as");
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    #[test]
    fn a_script_that_was_killed_after_it_asked_for_the_version_is_not_blamed() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("postgres");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut child = start_postgres(&program);
        let gate = gate(folder.path(), &program, "");
        let process_id = child.id();
        let fault = |fingerprint| gate.fault_of_ended(Some(reported(process_id, fingerprint)), "signal 9");
        let blamed = fault(BUILD_FINGERPRINT);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(matches!(blamed, Some(ShimFault::OtherProcess { .. })), "it still ran");
        assert!(fault(BUILD_FINGERPRINT).is_none(), "it only asked for the version");
        assert!(matches!(fault(1), Some(ShimFault::OtherBuild { found: 1 })), "that is wrong at any time");
    }

    #[test]
    fn a_running_server_is_given_time_before_it_is_called_shimless() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("postgres");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut child = start_postgres(&program);
        let child_id = child.id();
        let begin = Instant::now();
        let later = begin + 2 * PATIENCE;
        let mut silent = gate(folder.path(), &program, "");
        assert!(silent.fault_of_running(None, false, begin).is_none(), "process 7 is no postgres");
        silent.started = child.id();
        assert!(silent.fault_of_running(None, false, begin).is_none());
        assert!(silent.fault_of_running(None, false, begin + PATIENCE / 2).is_none());
        assert!(matches!(silent.fault_of_running(None, false, later), Some(ShimFault::Missing { .. })));
        assert!(matches!(silent.fault_of_running(None, true, begin), Some(ShimFault::Missing { .. })));

        let report = || Some(reported(child_id, BUILD_FINGERPRINT));
        let mut parent = gate(folder.path(), &program, "");
        assert!(parent.fault_of_running(report(), false, begin).is_none());
        assert!(matches!(
            parent.fault_of_running(report(), false, later),
            Some(ShimFault::OtherProcess { .. })
        ));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(parent.fault_of_running(report(), true, later).is_none(), "it only asked for the version");
    }

    #[test]
    fn the_programs_own_nature_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("postgres");
        let cause = |bytes: &[u8], mode: u32| {
            fs::write(&program, bytes).expect("written");
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).expect("mode");
            cause(&program, NO_CONTROL_FILE).expect("a fault")
        };
        assert!(cause(b"#!/bin/sh\n", 0o755).contains("is a script"));
        assert!(cause(b"anything", 0o4755).contains("set-user-id"));
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[32] = 64;
        elf[56] = 1;
        elf.extend([1; 56]);
        assert!(cause(&elf, 0o755).contains("statically"));
        elf[64..68].copy_from_slice(&[3, 0, 0, 0]);
        assert!(cause(&elf, 0o755).contains("nothing says why"));
        assert_eq!(is_static(&elf[..63]), None);
        assert_eq!(is_static(&fs::read("/proc/self/exe").expect("this program")), Some(false));
    }
}
