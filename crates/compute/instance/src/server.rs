//! The `postgres` process.
#![allow(unsafe_code)] // `pre_exec` and the two calls in it, and `getxattr`; see the reasons there.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
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
    /// The installation whose `postgres` is started.
    pub binaries: Binaries,
    /// The system user that the server runs as.
    pub user: OperatingSystemUser,
    /// Its data directory, in the memory directory.
    pub data_directory: PathBuf,
    /// Where its local socket goes; without one if the socket's name would be longer than the kernel allows.
    pub socket_directory: PathBuf,
    /// The TCP port it listens on, on 127.0.0.1 only.
    pub port: u16,
    /// What the user sets besides, already checked.
    pub settings: Settings,
    /// The shim, without which no server is started.
    pub shim: ShimConfig,
    /// Where its log goes (appended).
    pub log_file: PathBuf,
}

/// What the shim inside the server needs to find its driver.
#[derive(Debug, Clone)]
pub struct ShimConfig {
    /// What goes into `LD_PRELOAD`.
    pub library: PathBuf,
    /// The file of the memory that driver and shim share.
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
            .arg(format!("unix_socket_directories={}", socket_directories(&config.socket_directory)))
            .current_dir(&config.data_directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_again)
            // Its own process group: Ctrl-C on the terminal reaches the driver, which stops it in order.
            .process_group(0);
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGOPTIONS"] {
            command.env_remove(name);
        }
        command
            .env("LD_PRELOAD", &config.shim.library)
            .env("BOREALIS_SHM", &config.shim.shared_memory)
            .env("BOREALIS_EVENT_FD", config.shim.event_descriptor.to_string());
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

    /// The process id of the postmaster, which has a group of its own.
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

/// The value of `unix_socket_directories`: the folder in double quotes, for the setting is a list
/// (`SplitDirectoriesString`). Empty, for no socket, if its name would be longer than the kernel allows (`sun_path`):
/// everybody can connect over TCP.
fn socket_directories(folder: &Path) -> String {
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let longest_name = "/.s.PGSQL.65535";
    if folder.as_os_str().len() + longest_name.len() > SOCKET_PATH_BYTES_MAX {
        return String::new();
    }
    format!("\"{}\"", folder.display().to_string().replace('"', "\"\""))
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

/// Whether the system user can reach and read a file, by its mode and its owner.
#[must_use]
pub fn readable_by(user: &OperatingSystemUser, path: &Path) -> bool {
    let folder = path.parent().unwrap_or(Path::new("/"));
    closed_to(user, folder).is_none() && allows(user, path, 0o400)
}

/// The first folder on the way to `folder`, itself included, that the user may not enter; `None` if all let them in.
/// One that does not exist lets nobody in.
#[must_use]
pub fn closed_to(user: &OperatingSystemUser, folder: &Path) -> Option<PathBuf> {
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let mut folders: Vec<&Path> = real.ancestors().collect();
    folders.reverse();
    folders.into_iter().find(|folder| !allows(user, folder, 0o100)).map(Path::to_path_buf)
}

/// Whether a file's mode allows it to the user; `owner_bit` is the owner's bit of what is asked for.
fn allows(user: &OperatingSystemUser, path: &Path, owner_bit: u32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.metadata() else { return false };
    let bit = match () {
        () if metadata.uid() == user.user_id => owner_bit,
        () if metadata.gid() == user.group_id => owner_bit >> 3,
        () => owner_bit >> 6,
    };
    // An access control list may allow what the mode does not; then the server will say so itself.
    metadata.mode() & bit != 0 || has_attribute(path, c"system.posix_acl_access")
}

/// Whether a file has this extended attribute.
#[must_use]
pub fn has_attribute(path: &Path, name: &CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both names are C strings; without a buffer only the length is returned.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_folder_is_quoted_or_left_out() {
        assert_eq!(socket_directories(Path::new("/dev/shm/a, \"b\"")), "\"/dev/shm/a, \"\"b\"\"\"");
        assert_eq!(socket_directories(&Path::new("/dev/shm").join("x".repeat(100))), "");
    }

    #[test]
    fn a_closed_folder_on_the_way_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("closed/inner");
        std::fs::create_dir_all(&inner).expect("made");
        std::fs::write(inner.join("file"), "x").expect("written");
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
        };
        mode(folder.path(), 0o755);
        mode(&inner, 0o755);
        // Somebody who owns none of it.
        let user = OperatingSystemUser {
            name: "other".into(),
            user_id: 4_000_000,
            group_id: 4_000_000,
            switch: true,
        };
        mode(&folder.path().join("closed"), 0o755);
        assert_eq!(closed_to(&user, &inner), None);
        assert!(readable_by(&user, &inner.join("file")));
        mode(&inner.join("file"), 0o600);
        assert!(!readable_by(&user, &inner.join("file")));
        mode(&folder.path().join("closed"), 0o700);
        let closed = folder.path().join("closed").canonicalize().expect("there");
        assert_eq!(closed_to(&user, &inner), Some(closed));
        assert!(!readable_by(&user, &inner.join("file")));
    }
}
