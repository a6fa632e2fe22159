//! The `postgres` process.
#![allow(unsafe_code)] // `pre_exec` and the two calls in it; see the reasons there.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Binaries, InstanceError, OperatingSystemUser, Settings, on};

/// How a server is started.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Which PostgreSQL.
    pub binaries: Binaries,
    /// As whom.
    pub user: OperatingSystemUser,
    /// Its data directory, in the memory directory.
    pub data_directory: PathBuf,
    /// Where its local socket goes.
    pub socket_directory: PathBuf,
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// The user's settings.
    pub settings: Settings,
    /// The shim library; `None` runs the server on plain files.
    pub shim: Option<ShimConfig>,
    /// Where its log goes (appended).
    pub log_file: PathBuf,
}

/// What the shim inside the server needs to find its driver.
#[derive(Debug, Clone)]
pub struct ShimConfig {
    /// The shared library.
    pub library: PathBuf,
    /// The shared memory file.
    pub shared_memory: PathBuf,
    /// The event descriptor that wakes the driver; inherited, so it must not be close-on-exec.
    pub event_descriptor: i32,
}

/// A running server. Dropping it does not stop it; the kernel does when the driver dies.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts the server; it answers SQL a little later.
    ///
    /// Must be called from a thread that lives as long as the server should: the kernel stops the server when
    /// the thread that started it ends.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started.
    pub fn start(config: &ServerConfig) -> Result<Server, InstanceError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&config.log_file)
            .map_err(on("cannot open", &config.log_file))?;
        let log_again = log.try_clone().map_err(on("cannot open", &config.log_file))?;
        let program = config.binaries.program("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(&config.data_directory)
            .args(config.settings.arguments())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={}", config.port), "-c"])
            .arg(format!("unix_socket_directories={}", config.socket_directory.display()))
            .current_dir(&config.data_directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_again)
            // Its own process group: Ctrl-C on the terminal reaches the driver, which stops it in order.
            .process_group(0);
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGOPTIONS", "LD_PRELOAD"] {
            command.env_remove(name);
        }
        if let Some(shim) = &config.shim {
            command
                .env("LD_PRELOAD", &shim.library)
                .env("BOREALIS_SHM", &shim.shared_memory)
                .env("BOREALIS_EVENT_FD", shim.event_descriptor.to_string());
        }
        if config.user.switch {
            // `Command::groups` is not stable; `uid` alone drops the supplementary groups of root.
            command.uid(config.user.user_id).gid(config.user.group_id);
        }
        let parent = nix::unistd::getpid();
        // SAFETY: the closure runs in the forked child before exec and makes only async-signal-safe calls
        // (prctl, getppid); it allocates nothing.
        unsafe {
            command.pre_exec(move || {
                // The driver is the only thing that can make a commit durable: when it dies, an immediate
                // shutdown (SIGQUIT) is the right end for the server. Set after the change of user, which
                // would clear it.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                if libc::getppid() != parent.as_raw() {
                    return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(on("cannot start", &program))?;
        Ok(Server { child })
    }

    /// The postmaster's process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Asks for a fast shutdown: sessions are ended, a last checkpoint is written.
    pub fn request_fast_shutdown(&self) {
        self.signal(Signal::SIGINT);
    }

    /// Ends the server at once, as after a crash.
    pub fn request_immediate_shutdown(&self) {
        self.signal(Signal::SIGQUIT);
    }

    /// Waits for the end until `deadline`, then kills.
    pub fn wait_or_kill(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(_) => break,
            }
        }
        self.signal(Signal::SIGKILL);
        self.child.wait().ok()
    }

    fn signal(&self, signal: Signal) {
        // It may have ended already, and that is what is wanted.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }
}

/// Says in words how a process ended.
#[must_use]
pub fn describe_exit(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Whether the system user can reach and read a file: every folder above it may be entered, and it may be
/// read, by permission bits for others or because the user owns it.
#[must_use]
pub fn readable_by(user: &OperatingSystemUser, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(path) = path.canonicalize() else { return false };
    let allowed = |path: &Path, owner_bit: u32| {
        let Ok(metadata) = path.metadata() else { return false };
        let mode = metadata.mode();
        let bit = match () {
            () if metadata.uid() == user.user_id => owner_bit,
            () if metadata.gid() == user.group_id => owner_bit >> 3,
            () => owner_bit >> 6,
        };
        mode & bit != 0
    };
    allowed(&path, 0o400) && path.ancestors().skip(1).all(|folder| allowed(folder, 0o100))
}
