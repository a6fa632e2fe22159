//! The server's process: what it is given, how it is started, watched and ended.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use borealis_instance::leftovers::POSTMASTER_FILE_BYTES_MAX;
use borealis_instance::server::{ShimConfig, describe_exit};
use borealis_instance::{InstanceError, Server, ServerConfig, untrusted};
use borealis_redo::control_file::ControlFile;
use borealis_shm::path::{SHARED_MEMORY_NAME, WAKE_PIPE_NAME};
use borealis_shm::{Config as ShmConfig, DriverSide};

use super::Supervisor;
use crate::engine::Engine;
use crate::shim_gate::{LogSince, ShimGate};
use crate::shim_library::InstalledShim;

/// How long a server that must end at once may take.
const SERVER_QUIT_MAX: Duration = Duration::from_secs(5);

/// A server that is ended when it goes out of scope, whatever the reason.
pub(super) struct RunningServer {
    pub(super) server: Server,
    memory_directory: PathBuf,
    /// What it shares with the driver, for other clients of it.
    pub(super) shared_memory: PathBuf,
    pub(super) event_descriptor: RawFd,
    pub(super) gate: ShimGate,
    /// Its processes load the shim from it.
    _shim: InstalledShim,
    /// Readable when the server has ended.
    pub(super) end: Option<OwnedFd>,
    /// Readable when a program of `borealis exec` has a request.
    pub(super) wake: File,
    ended: bool,
}

impl RunningServer {
    fn start(
        config: &ServerConfig,
        shim: InstalledShim,
        wake: File,
        memory_directory: &Path,
    ) -> Result<RunningServer, InstanceError> {
        let log = LogSince::now(&config.log_file);
        let server = Server::start(config)?;
        let end = process_descriptor(server.process_id());
        let gate = ShimGate {
            started: server.process_id(),
            program: config.binaries.program("postgres"),
            preload: shim.preload.clone(),
            user: config.user.clone(),
            log,
            silent_since: None,
            other_since: None,
        };
        Ok(RunningServer {
            server,
            memory_directory: memory_directory.to_path_buf(),
            shared_memory: config.shim.shared_memory.clone(),
            event_descriptor: config.shim.event_descriptor,
            gate,
            _shim: shim,
            end,
            wake,
            ended: false,
        })
    }

    /// Empties the pipe that woke the loop; the requests themselves are in the shared memory.
    pub(super) fn drain_wakes(&mut self) {
        let mut bytes = [0; 4096];
        while matches!(self.wake.read(&mut bytes), Ok(length) if length > 0) {}
    }

    /// How it ended, if it has.
    pub(super) fn poll(&mut self) -> Option<String> {
        match self.server.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                self.ended = true;
                Some(describe_exit(status))
            }
            Err(error) => Some(format!("its state is unknown: {error}")),
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if !self.ended {
            self.server.request_immediate_shutdown();
            self.server.wait_or_kill(SERVER_QUIT_MAX);
        }
        // Processes that waited for a lock of one that died never notice that the postmaster is gone.
        borealis_instance::leftovers::clear(&self.memory_directory);
    }
}

/// The pipe that programs which did not inherit the event descriptor wake the driver by. It is open for writing, too, so
/// that it has no end while nobody else writes.
fn wake_pipe(memory_directory: &Path, owner: Option<(u32, u32)>) -> anyhow::Result<File> {
    let path = memory_directory.join(WAKE_PIPE_NAME);
    let action = || format!("cannot make {}", path.display());
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)
        .with_context(action)?;
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let pipe = File::options().read(true).write(true).custom_flags(flags).open(&path).with_context(action)?;
    let is_pipe = pipe.metadata().with_context(action)?.file_type().is_fifo();
    give(&pipe, is_pipe, owner).with_context(action)?;
    Ok(pipe)
}

/// Gives what we have just made in the memory directory to the server's user. The directory is his already: what stands
/// under the name now may be another thing, so it is given by its descriptor, and only if it is ours and what it should be.
fn give(made: &File, is_as_made: bool, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    if !is_as_made || made.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
        return Err(std::io::Error::other("somebody has put another file in its place"));
    }
    owner.map_or(Ok(()), |(user, group)| fchown(made, Some(user), Some(group)))
}

/// A descriptor that becomes readable when the process ends; `None` where the kernel has none, and then its end
/// is noticed a little later.
#[allow(unsafe_code)] // `pidfd_open` has no safe interface here.
fn process_descriptor(process_id: u32) -> Option<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process_id, 0) };
    let descriptor = i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
    // SAFETY: the kernel just made the descriptor for us, and nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Whether the server says in its `postmaster.pid` that it accepts connections.
pub(super) fn accepts_connections(data_directory: &Path) -> bool {
    untrusted::read_text(data_directory, Path::new("postmaster.pid"), POSTMASTER_FILE_BYTES_MAX)
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
}

impl Supervisor {
    pub(super) fn start_server(
        &self,
        engine: &mut Engine,
        control: &ControlFile,
        data_directory: &Path,
    ) -> anyhow::Result<RunningServer> {
        let tuning = &self.config.tuning;
        let shm = DriverSide::create(
            &self.config.memory_dir.join(SHARED_MEMORY_NAME),
            &ShmConfig {
                data_directory: data_directory.to_path_buf(),
                wal_segment_size_bytes: u64::from(control.wal_segment_bytes),
                log_ahead_limit_bytes: tuning.log_ahead_limit_bytes,
                major_version: u32::from(self.config.version.facts().number),
                catalog_version: control.catalog_version,
                spin_count: tuning.spin,
                slot_count: self.slot_count(),
                owner: self.user.switch.then_some((self.user.user_id, self.user.group_id)),
            },
        )?;
        let wake = wake_pipe(
            &self.config.memory_dir,
            self.user.switch.then_some((self.user.user_id, self.user.group_id)),
        )?;
        let installed = self.shim_library.install(&self.config.memory_dir)?;
        let shim = ShimConfig {
            library: installed.preload.clone(),
            shared_memory: shm.path().to_path_buf(),
            event_descriptor: shm.event_fd(),
        };
        engine.attach(shm, data_directory, control.wal_segment_bytes)?;
        let config = ServerConfig {
            binaries: self.binaries.clone(),
            user: self.user.clone(),
            data_directory: data_directory.to_path_buf(),
            socket_directory: self.socket_directory()?,
            port: self.config.port,
            settings: self.settings.clone(),
            shim,
            log_file: self.config.instance_dir.join("postgres.log"),
        };
        Ok(RunningServer::start(&config, installed, wake, &self.config.memory_dir)?)
    }

    /// Where the server's local socket goes: in the memory directory, for the server's user must be able to
    /// write there, and names of sockets must be short.
    fn socket_directory(&self) -> anyhow::Result<PathBuf> {
        let directory = self.config.memory_dir.join("socket");
        let owner = self.user.switch.then_some((self.user.user_id, self.user.group_id));
        let make = || {
            std::fs::create_dir(&directory)?;
            let folder = File::from(untrusted::open_folder(&directory)?);
            give(&folder, true, owner)?;
            // Whatever the umask says.
            folder.set_permissions(Permissions::from_mode(0o755))
        };
        make().with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(directory)
    }

    /// One slot for every process the server can have: its own settings, and room for the rest.
    fn slot_count(&self) -> u32 {
        let setting = |name: &str, default: u32| {
            let own = self.config.settings.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            let value = own.map(|(_, value)| value.as_str()).or_else(|| self.kept.value(name));
            // What is not a plain number may be as large as it likes.
            value.map_or(default, |value| value.trim().parse().unwrap_or(u32::MAX))
        };
        let processes = setting("max_connections", 100)
            .saturating_add(setting("max_worker_processes", 8))
            .saturating_add(setting("autovacuum_max_workers", 3))
            .saturating_add(setting("max_wal_senders", 10));
        processes.saturating_add(64).min(borealis_shm::MAX_SLOTS as u32)
    }
}
