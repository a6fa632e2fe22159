//! The life of an instance: recover the volume, make a data directory, run the server, and again when it ends.

use std::fs::{File, TryLockError};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use borealis_instance::confinement;
use borealis_instance::data_directory;
use borealis_instance::import::run_initdb;
use borealis_instance::memory_directory;

use borealis_instance::server::{ShimConfig, describe_exit};
use borealis_instance::{
    Binaries, Import, InstanceError, OperatingSystemUser, ProgramFile, Server, ServerConfig, Settings,
};
use borealis_redo::control_file::ControlFile;
use borealis_shm::path::control_file;
use borealis_shm::{Config as ShmConfig, DriverSide, probe_memory_file_system};
use borealis_types::{META_GROUP, RecordSpan, VolumeEpoch, WriterId};
use borealis_wal::EffectError;
use borealis_wal::layout::FIRST_NORMAL_XID;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::config::DriverConfig;
use crate::contents;
use crate::control::{self, Counters, GroupStatus, MemberStatus, Shared, StartPhases, Status};
use crate::engine::{Engine, EngineError};
use crate::evict::{Evictor, default_limit_bytes};
use crate::recover::{self, RecoverError};
use crate::release;
use crate::shim_gate::{LogSince, ShimFault, ShimGate};
use crate::shim_library::{InstalledShim, ShimLibrary};

/// The process's exit code when a newer writer took the volume over. Starting again at once would take it back.
pub const EXIT_FENCED: u8 = 3;

/// How long `postgres` may take to accept connections.
const SERVER_START_MAX: Duration = Duration::from_secs(60);
/// How long a clean shutdown may take.
const SERVER_STOP_MAX: Duration = Duration::from_secs(60);
/// How long a server that must end at once may take.
const SERVER_QUIT_MAX: Duration = Duration::from_secs(5);
/// How often the server and the signals are looked at without a sign of them: while the server starts, and then.
const LOOK_INTERVAL_STARTING: Duration = Duration::from_millis(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// After a server that ran this long the next one is started without delay.
const SETTLED: Duration = Duration::from_secs(30);

/// How the driver ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A newer writer took over. See [`EXIT_FENCED`].
    #[error(
        "this instance was fenced by a newer writer (epoch {0}); it ended, nothing acknowledged was lost. Start \
         it again only if the other one has ended"
    )]
    Fenced(VolumeEpoch),
    /// The server writes what cannot be stored, and would again.
    #[error("the instance was stopped: {0}")]
    Refused(EffectError),
    /// The server ran without its shim, or with another one, and would again.
    #[error(transparent)]
    Shim(#[from] ShimFault),
    /// The server failed again and again.
    #[error("the instance failed {0} times in a row, the last time because: {1}")]
    KeepsFailing(u32, String),
}

/// How one run of the server ended.
enum Ended {
    /// As it was told to.
    Stopped,
    /// It has to be started again, and why.
    Failed(String),
}

/// Runs the instance until it is told to stop by a signal (`SIGTERM`, `SIGINT`) or over its socket.
///
/// # Errors
/// When the instance cannot be started, keeps failing, or a newer writer took the volume over
/// ([`DriverError::Fenced`]).
pub fn run(config: DriverConfig) -> anyhow::Result<()> {
    config.validate()?;
    // Before any thread is made, so that every thread inherits it and the signals reach only the descriptor.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot make a signal descriptor")?;

    std::fs::create_dir_all(&config.instance_dir)
        .with_context(|| format!("cannot create {}", config.instance_dir.display()))?;
    let _lock = lock_instance(&config.instance_dir)?;
    let binaries = Binaries::find(Some(&config.postgres_bin_dir))?;
    let user = OperatingSystemUser::choose(config.postgres_user.as_deref())?;
    let settings = Settings::check(config.settings.clone())?;
    settings.check_libraries(&binaries)?;
    let shim_library = ShimLibrary::load(&config.shim_library)?;
    let shared = Arc::new(Shared::default());
    shared.update(|status| {
        status.state = "starting";
        status.driver_pid = std::process::id();
    });
    let socket = config.instance_dir.join("driver.sock");
    control::listen(&socket, shared.clone())
        .with_context(|| format!("cannot listen on {}", socket.display()))?;

    let mut supervisor = Supervisor {
        config: Arc::new(config),
        binaries,
        user,
        settings,
        shim_library,
        shared,
        signals,
        writer: new_writer()?,
        has_served: false,
    };
    let result = supervisor.run_until_stopped();
    // The socket goes with the process that answers on it.
    let _ = std::fs::remove_file(&socket);
    result
}

/// One driver for an instance: a second one would only fence the first, and be fenced by it.
fn lock_instance(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("driver.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("the instance in {} runs already; stop it first", directory.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// A number that no other writer has.
fn new_writer() -> anyhow::Result<WriterId> {
    use std::io::Read;
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random bytes")?;
    // Zero means that nobody knows which writer.
    Ok(WriterId(u64::from_le_bytes(bytes) | 1))
}

struct Supervisor {
    config: Arc<DriverConfig>,
    binaries: Binaries,
    user: OperatingSystemUser,
    settings: Settings,
    shim_library: ShimLibrary,
    shared: Arc<Shared>,
    signals: SignalFd,
    writer: WriterId,
    /// The server accepted connections since this was looked at last.
    has_served: bool,
}

/// A server that is ended when it goes out of scope, whatever the reason.
struct RunningServer {
    server: Server,
    memory_directory: PathBuf,
    /// What it shares with the driver, for other clients of it.
    shared_memory: PathBuf,
    event_descriptor: RawFd,
    gate: ShimGate,
    /// Its processes load the shim from it.
    _shim: InstalledShim,
    /// Readable when the server has ended.
    end: Option<OwnedFd>,
    ended: bool,
}

impl RunningServer {
    fn start(
        config: &ServerConfig,
        shim: InstalledShim,
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
            ended: false,
        })
    }

    /// How it ended, if it has.
    fn poll(&mut self) -> Option<String> {
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

impl Supervisor {
    fn run_until_stopped(&mut self) -> anyhow::Result<()> {
        let mut failures = 0;
        let mut pause = Duration::from_millis(50);
        loop {
            let begun = Instant::now();
            let ended = self.run_once();
            let failure = match ended {
                Ok(Ended::Stopped) => {
                    memory_directory::remove(&self.config.memory_dir)?;
                    return Ok(());
                }
                Ok(Ended::Failed(why)) => why,
                Err(error) if matches!(error.downcast_ref(), Some(DriverError::Shim(_))) => {
                    self.shared.update(|status| {
                        status.state = "refused";
                        status.last_failure = Some(error.to_string());
                    });
                    return Err(error);
                }
                Err(error) => match error.downcast_ref::<EngineError>() {
                    Some(EngineError::Fenced(epoch)) => {
                        let epoch = *epoch;
                        self.shared.update(|status| status.state = "fenced");
                        return Err(DriverError::Fenced(epoch).into());
                    }
                    // A restart would only bring the next such record.
                    Some(EngineError::Effect(refused @ EffectError::Custom { .. })) => {
                        let refused = refused.clone();
                        self.shared.update(|status| {
                            status.state = "refused";
                            status.last_failure = Some(refused.to_string());
                        });
                        return Err(DriverError::Refused(refused).into());
                    }
                    // What stopped the stream was never shipped, so after a recovery it is not there.
                    Some(_) => explained(&error),
                    None => match error.downcast_ref::<RecoverError>() {
                        Some(RecoverError::TakenOver(epoch)) => {
                            return Err(DriverError::Fenced(*epoch).into());
                        }
                        _ => return Err(error),
                    },
                },
            };
            if begun.elapsed() >= SETTLED {
                pause = Duration::from_millis(50);
            }
            // One that served was no failed start: whatever ended it, its users want it back.
            if std::mem::take(&mut self.has_served) {
                failures = 0;
            }
            failures += 1;
            tracing::error!("the instance has to be started again: {failure}");
            if failures > self.config.tuning.restarts_max {
                return Err(DriverError::KeepsFailing(failures, failure).into());
            }
            self.shared.update(|status| {
                status.restarts += 1;
                status.last_failure = Some(failure);
                status.state = "recovering";
                status.postgres_pid = None;
            });
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(5));
            if self.stop_wanted() {
                return Ok(());
            }
        }
    }

    /// Whether a signal or a command asked for the end.
    fn stop_wanted(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            tracing::info!(signal = signal.ssi_signo, "stopping");
            self.shared.want_stop();
        }
        self.shared.stop_wanted()
    }

    /// From recovery to the server's end.
    fn run_once(&mut self) -> anyhow::Result<Ended> {
        let begun = Instant::now();
        let mut phases = StartPhases::default();
        self.binaries = match release::look(&self.config) {
            Ok(binaries) => binaries,
            // Perhaps in the middle of a package upgrade.
            Err(error) => return Ok(Ended::Failed(format!("{error:#}"))),
        };
        let server_version = self.binaries.server_version;
        self.shared.update(|status| {
            status.state = "recovering";
            status.server_version = Some(server_version);
            status.warnings = release::warning(server_version).into_iter().collect();
        });
        borealis_instance::leftovers::clear(&self.config.memory_dir);
        let memory_bytes =
            memory_directory::prepare(&self.config.memory_dir, &self.user, memory_directory::NEEDED_MIB)?;
        probe_memory_file_system(&self.config.memory_dir)?;

        let recovered = recover::recover(&self.config, self.writer, server_version)?;
        phases.connect_ms = ms(recovered.phases.connect);
        phases.protocol_ms = ms(recovered.phases.protocol);
        let outcome = recovered.outcome;
        tracing::info!(
            epoch = outcome.promise.epoch.0,
            %server_version,
            vdl = %outcome.durable.end,
            connect_ms = phases.connect_ms,
            protocol_ms = phases.protocol_ms,
            "the volume is open for writing"
        );
        let members = recover::quorum_sets(&self.config)?;
        let mut engine = Engine::new(self.config.clone(), outcome.clone(), members, FIRST_NORMAL_XID)?;
        engine.watch(self.signals.as_raw_fd())?;
        let waker = Arc::new(engine.waker()?);
        self.shared.set_waker(Some(waker));

        if outcome.durable == RecordSpan::NONE {
            let import_begun = Instant::now();
            self.shared.update(|status| status.state = "importing");
            if !self.import(&mut engine)? {
                return Ok(Ended::Stopped);
            }
            phases.import_ms = ms(import_begun.elapsed());
        }

        let directory_begun = Instant::now();
        let durable = engine.shipper().durable();
        let tail = engine.shipper().tracker().durable_point(META_GROUP).group_tail;
        let contents = contents::read(&self.config, engine.shipper().epoch(), durable.end, tail)?;
        engine.set_next_xid((contents.counters.next_full_xid & 0xFFFF_FFFF) as u32);
        let control = ControlFile::decode(&contents.control_file_template)
            .context("the volume's control file template")?;
        let data_directory = self.config.memory_dir.join("data");
        let checkpoint = data_directory::write(
            &data_directory,
            &control_file(&data_directory),
            &self.user,
            &contents,
            durable,
        )?;
        phases.directory_ms = ms(directory_begun.elapsed());

        let checkpoint_begun = Instant::now();
        engine.ship(checkpoint.span, &checkpoint.bytes)?;
        if !self.wait_durable(&mut engine)? {
            return Ok(Ended::Stopped);
        }
        phases.checkpoint_ms = ms(checkpoint_begun.elapsed());

        let server_begun = Instant::now();
        let mut server = self.start_server(&mut engine, &control, &data_directory)?;
        engine.expect_server(server.server.process_id());
        if let Some(end) = &server.end {
            engine.watch(end.as_raw_fd())?;
        }
        let limit_bytes =
            self.config.tuning.cache_limit_bytes.unwrap_or_else(|| default_limit_bytes(memory_bytes));
        let evictor =
            Evictor::start(&data_directory, &server.shared_memory, server.event_descriptor, limit_bytes)?;
        let starts = Starts { begun, server_begun, phases };
        let ended = self.serve(&mut engine, &mut server, &evictor, &data_directory, starts);
        // It may wait for an answer that would never come.
        engine.detach();
        ended
    }

    /// Ships a fresh `initdb`. `false` when the driver was told to stop before all of it was durable: the volume
    /// is then only partly filled, and opening it again fails for want of the values that are shipped last.
    fn import(&mut self, engine: &mut Engine) -> anyhow::Result<bool> {
        let directory = self.config.memory_dir.join("initdb");
        run_initdb(&self.binaries, &self.user, &directory)?;
        let import = Import::read(self.config.version, &directory)?;
        let ahead_max = self.config.tuning.shipped_ahead_bytes;
        let mut records = 0u64;
        import.for_each_record(|record| -> anyhow::Result<()> {
            engine.ship(record.span, &record.bytes)?;
            records += 1;
            // Nodes work while the rest is read; memory stays bounded.
            while engine.shipper().tracker().log_ahead_bytes() >= ahead_max {
                engine.turn(Duration::from_millis(20))?;
            }
            if records.is_multiple_of(16) {
                engine.turn(Duration::ZERO)?;
            }
            Ok(())
        })?;
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
        self.wait_durable(engine)
    }

    /// Turns the loop until everything shipped is durable; `false` when told to stop before.
    fn wait_durable(&mut self, engine: &mut Engine) -> anyhow::Result<bool> {
        while !engine.shipper().all_durable() {
            engine.turn(Duration::from_millis(100))?;
            if self.stop_wanted() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn start_server(
        &self,
        engine: &mut Engine,
        control: &ControlFile,
        data_directory: &Path,
    ) -> anyhow::Result<RunningServer> {
        let tuning = &self.config.tuning;
        let shm = DriverSide::create(
            &self.config.memory_dir.join("shm"),
            &ShmConfig {
                data_directory: data_directory.to_path_buf(),
                wal_segment_size_bytes: u64::from(control.wal_segment_bytes),
                log_ahead_limit_bytes: tuning.log_ahead_limit_bytes,
                major_version: 15,
                catalog_version: control.catalog_version,
                spin_count: tuning.spin,
                slot_count: self.slot_count(),
                owner: self.user.switch.then_some((self.user.user_id, self.user.group_id)),
            },
        )?;
        let installed = self.shim_library.install(&self.config.memory_dir)?;
        let shim = ShimConfig {
            library: installed.preload.clone(),
            shared_memory: shm.path().to_path_buf(),
            event_descriptor: shm.event_fd(),
        };
        engine.attach(shm, &data_directory.join("pg_wal"), control.wal_segment_bytes)?;
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
        Ok(RunningServer::start(&config, installed, &self.config.memory_dir)?)
    }

    /// Where the server's local socket goes: in the memory directory, for the server's user must be able to
    /// write there, and names of sockets must be short.
    fn socket_directory(&self) -> anyhow::Result<PathBuf> {
        let directory = self.config.memory_dir.join("socket");
        std::fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        if self.user.switch {
            std::os::unix::fs::chown(&directory, Some(self.user.user_id), Some(self.user.group_id))?;
        }
        Ok(directory)
    }

    /// One slot for every process the server can have: its own settings, and room for the rest.
    fn slot_count(&self) -> u32 {
        let setting = |name: &str, default: u32| {
            let value = self.config.settings.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            value.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(default)
        };
        let processes = setting("max_connections", 100)
            .saturating_add(setting("max_worker_processes", 8))
            .saturating_add(setting("autovacuum_max_workers", 3))
            .saturating_add(setting("max_wal_senders", 10));
        processes.saturating_add(64).min(borealis_shm::MAX_SLOTS as u32)
    }

    /// Serves until the server ends, by order or not.
    fn serve(
        &mut self,
        engine: &mut Engine,
        server: &mut RunningServer,
        evictor: &Evictor,
        data_directory: &Path,
        mut starts: Starts,
    ) -> anyhow::Result<Ended> {
        let mut ready = false;
        let mut stopping = None;
        let mut last_shown = Instant::now();
        let mut last_looked = Instant::now();
        loop {
            let look_interval = if ready { LOOK_INTERVAL } else { LOOK_INTERVAL_STARTING };
            engine.turn(if ready { Duration::from_millis(250) } else { look_interval })?;
            if !engine.is_serving() && engine.has_shim() {
                // Only now is it certain which program the process has become: a script may stand before it.
                if let Some(report) = engine.shim_report()
                    && let Err(replaced) = self.binaries.check_running(
                        ProgramFile::reported(report.program_identity),
                        &report.program_path,
                        &self.user,
                    )
                {
                    return Ok(Ended::Failed(replaced.to_string()));
                }
                engine.serve_server();
                continue;
            }
            // Most turns are about redo. What follows is looked at when something said so, and now and then.
            if !engine.take_watched() && last_looked.elapsed() < look_interval {
                continue;
            }
            last_looked = Instant::now();
            if let Some(how) = server.poll() {
                // What it wrote last may still have to be shipped.
                if stopping.is_some() {
                    return self.finish(engine);
                }
                if !engine.has_shim()
                    && let Some(fault) = server.gate.fault_of_ended(engine.shim_report(), &how)
                {
                    return Err(DriverError::from(fault).into());
                }
                return Ok(Ended::Failed(format!(
                    "postgres ended by itself ({how}); see {}",
                    self.config.instance_dir.join("postgres.log").display()
                )));
            }
            if stopping.is_none() && self.stop_wanted() {
                server.server.request_fast_shutdown();
                stopping = Some(Instant::now());
                self.shared.update(|status| status.state = "stopping");
            }
            if stopping.is_some_and(|since| since.elapsed() > SERVER_STOP_MAX) {
                tracing::warn!("postgres did not shut down in time and is ended");
                return Ok(Ended::Stopped);
            }
            if !engine.has_shim() {
                let accepts = accepts_connections(data_directory);
                if let Some(fault) =
                    server.gate.fault_of_running(engine.shim_report(), accepts, Instant::now())
                {
                    return Err(DriverError::from(fault).into());
                }
            }
            if !ready && engine.is_serving() && accepts_connections(data_directory) {
                ready = true;
                self.has_served = true;
                starts.phases.server_ms = ms(starts.server_begun.elapsed());
                let total = starts.begun.elapsed();
                tracing::info!(
                    port = self.config.port,
                    total_ms = ms(total),
                    "the instance accepts connections"
                );
                self.shared.update(|status| status.last_recovery_ms = Some(ms(total)));
                self.show(engine, server, evictor, "running", starts.phases);
            }
            if !ready && stopping.is_none() && starts.server_begun.elapsed() > SERVER_START_MAX {
                return Ok(Ended::Failed("postgres did not accept connections in time".to_owned()));
            }
            if self.shared.status_wanted() || last_shown.elapsed() > Duration::from_secs(1) {
                last_shown = Instant::now();
                let state = match (ready, stopping.is_some()) {
                    (_, true) => "stopping",
                    (true, false) => "running",
                    (false, false) => "starting",
                };
                self.show(engine, server, evictor, state, starts.phases);
            }
        }
    }

    /// Ships the last of the log of a server that ended in order, and tells the nodes that it is durable.
    fn finish(&mut self, engine: &mut Engine) -> anyhow::Result<Ended> {
        let deadline = Instant::now() + Duration::from_secs(10);
        engine.turn(Duration::ZERO)?;
        while !engine.shipper().all_durable() && Instant::now() < deadline {
            engine.turn(Duration::from_millis(20))?;
        }
        let deadline = Instant::now() + Duration::from_millis(500);
        while engine.shipper().has_untold() && Instant::now() < deadline {
            engine.turn(Duration::from_millis(5))?;
        }
        Ok(Ended::Stopped)
    }

    fn show(
        &self,
        engine: &Engine,
        server: &RunningServer,
        evictor: &Evictor,
        state: &'static str,
        phases: StartPhases,
    ) {
        let shipper = engine.shipper();
        let durable = shipper.durable().end.to_string();
        let groups = self
            .config
            .placement
            .groups()
            .map(|group| GroupStatus {
                id: group.0,
                pgcl: shipper.tracker().group_complete(group).to_string(),
                members: engine
                    .members(group)
                    .map(|member| MemberStatus {
                        node: member.node.0,
                        scl: member.segment_complete_lsn.to_string(),
                        state: if member.connected { "up" } else { "down" },
                    })
                    .collect(),
            })
            .collect();
        let (ship, read) = (engine.ship_counters(), engine.read_counters());
        let before = self.shared.shown();
        self.shared.show(Status {
            state,
            epoch: shipper.tracker().epoch().0,
            vcl: durable.clone(),
            vdl: durable,
            shipped: shipper.last_shipped().end.to_string(),
            groups,
            driver_pid: std::process::id(),
            server_version: before.server_version,
            warnings: before.warnings,
            postgres_pid: Some(server.server.process_id()),
            last_recovery_ms: before.last_recovery_ms,
            phases,
            restarts: before.restarts,
            last_failure: before.last_failure,
            counters: Counters {
                records: ship.records,
                record_bytes: ship.record_bytes,
                batches_sent: ship.batches_sent,
                bytes_sent: ship.bytes_sent,
                batches_encoded: ship.batches_encoded,
                acknowledgements: ship.acknowledgements,
                retained_bytes: shipper.retained_bytes() as u64,
                reads: read.operations,
                prefetch_hits: read.prefetch_hits,
                prefetches: read.prefetches,
                read_requests: read.requests,
                read_hedges: read.hedges,
                read_failures: read.failures,
                read_errors: read.errors,
                cache_bytes: evictor.figures().bytes.load(Ordering::Relaxed),
                cache_limit_bytes: evictor.limit_bytes(),
                cache_blocks_dropped: evictor.figures().dropped_blocks.load(Ordering::Relaxed),
            },
        });
    }
}

/// When the parts of a start began.
struct Starts {
    begun: Instant,
    server_begun: Instant,
    phases: StartPhases,
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// An error with its causes, and what confines this process if that may be one.
fn explained(error: &anyhow::Error) -> String {
    match confinement::as_cause_of(error.chain()) {
        Some(confinement) => format!("{error:#} ({confinement})"),
        None => format!("{error:#}"),
    }
}

/// Whether the server says in its `postmaster.pid` that it accepts connections.
fn accepts_connections(data_directory: &Path) -> bool {
    std::fs::read_to_string(data_directory.join("postmaster.pid"))
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
}
