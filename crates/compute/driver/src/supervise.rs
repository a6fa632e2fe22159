//! The life of an instance: recover the volume, make a data directory, run the server, and again when it ends.

mod serve;
mod server;
mod statistics;
mod status;

use std::fs::{File, TryLockError};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use borealis_instance::confinement;
use borealis_instance::data_directory;
use borealis_instance::import::run_initdb;
use borealis_instance::kept_files;
use borealis_instance::leftovers::IMPORT_DIRECTORY;
use borealis_instance::memory_directory;
use borealis_instance::{Binaries, Contents, Import, KeptFiles, OperatingSystemUser, Settings};
use borealis_metrics::server::MetricsServer;
use borealis_redo::control_file::ControlFile;
use borealis_shm::path::control_file;
use borealis_shm::probe_memory_file_system;
use borealis_types::membership::REPLACEMENTS_MAX;
use borealis_types::{META_GROUP, RecordSpan, VolumeEpoch, WriterId, invariant};
use borealis_wal::EffectError;
use borealis_wal::layout::FIRST_NORMAL_XID;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::config::{Configured, DriverConfig};
use crate::contents::{self, ContentsError};
use crate::descriptors;
use crate::engine::{Engine, EngineError};
use crate::evict::{Evictor, default_limit_bytes};
use crate::exposition::exposition;
use crate::import_state;
use crate::instance_socket::{self, StartPhases, StatusBoard};
use crate::memberships;
use crate::recover::{self, OwnEpochs, RecoverError};
use crate::release;
use crate::shim_gate::ShimFault;
use crate::shim_library::ShimLibrary;

use serve::Starts;
use status::ms;

/// The process's exit code when a newer writer took the volume over. Starting again at once would take it back.
pub const EXIT_FENCED: u8 = 3;

/// After a server that ran this long the next one is started without delay.
const SETTLED: Duration = Duration::from_secs(30);

/// Lines left out of kept files that an instance's status shows; its log has all.
const LEFT_OUT_SHOWN_MAX: usize = 10;

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

/// The epoch of the newer writer that took the volume over, if that is what ended a run of the server.
fn newer_writer(error: &anyhow::Error) -> Option<VolumeEpoch> {
    if let Some(EngineError::Fenced(epoch)) = error.downcast_ref() {
        return Some(*epoch);
    }
    if let Some(RecoverError::TakenOver(epoch)) = error.downcast_ref() {
        return Some(*epoch);
    }
    None
}

/// Whether a run ended because too few nodes could be reached to open the volume again. They come back or are brought back;
/// until then an instance that had the volume open waits, for however long: nothing is wrong with it. One that is just being
/// started ends, so that whoever starts it learns why.
fn waits_for_quorum(error: &anyhow::Error, has_opened: bool) -> bool {
    has_opened && matches!(error.downcast_ref(), Some(RecoverError::NoQuorum(_)))
}

/// Whether a run ended for a cause that passes by itself, so that the next one may well succeed.
fn may_pass(error: &anyhow::Error) -> bool {
    // Promises alone do not say that another writer began: the next recovery finds out.
    let fenced = matches!(error.downcast_ref(), Some(ContentsError::Fenced(_)));
    let tenure = matches!(error.downcast_ref(), Some(EngineError::Outvoted(_) | EngineError::LeaseOver(_)));
    let moving = matches!(error.downcast_ref(), Some(RecoverError::MembersChange(_)));
    fenced || tenure || moving
}

/// Runs the instance until it is told to stop by a signal (`SIGTERM`, `SIGINT`) or over its socket.
///
/// # Errors
/// When the instance cannot be started, keeps failing, or a newer writer took the volume over
/// ([`DriverError::Fenced`]).
pub fn run(config: DriverConfig) -> anyhow::Result<()> {
    config.validate()?;
    // Two members of each group may be replaced at a time, by nodes that are not among the configured ones.
    descriptors::raise_limit(
        config.nodes.len() + REPLACEMENTS_MAX * usize::from(config.placement.group_count()),
    );
    let config = Configured::new(config)?;
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
    let shared = Arc::new(StatusBoard::default());
    shared.update(|status| {
        status.state = "starting";
        status.driver_pid = std::process::id();
    });
    let socket = config.instance_dir.join("driver.sock");
    instance_socket::listen(&socket, shared.clone())
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let _metrics_server = show_metrics(&config, &shared);

    let mut supervisor = Supervisor {
        config: Arc::new(config),
        binaries,
        user,
        settings,
        kept: KeptFiles::default(),
        statistics_parts: 0,
        shim_library,
        shared,
        signals,
        writer: new_writer()?,
        epoch: VolumeEpoch(0),
        own_epochs: OwnEpochs::default(),
        has_served: false,
    };
    let result = supervisor.run_until_stopped();
    // The socket goes with the process that answers on it.
    let _ = std::fs::remove_file(&socket);
    result
}

/// Shows metrics where the configuration says. An instance that cannot still serves.
fn show_metrics(config: &DriverConfig, shared: &Arc<StatusBoard>) -> Option<MetricsServer> {
    let address = config.metrics_listen.as_ref()?;
    let (volume, instance, shared) = (config.volume, config.instance, Arc::clone(shared));
    let text = move || exposition(volume, instance, &shared.fresh_status()).text();
    match MetricsServer::start(address, text) {
        Ok(server) => {
            tracing::info!(address = %server.address(), "shows its metrics");
            Some(server)
        }
        Err(error) => {
            tracing::warn!("cannot show metrics on {address}: {error}; choose another with --metrics-port");
            None
        }
    }
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
pub(crate) fn new_writer() -> anyhow::Result<WriterId> {
    use std::io::Read;
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random bytes")?;
    // Zero means that nobody knows which writer.
    Ok(WriterId(u64::from_le_bytes(bytes) | 1))
}

struct Supervisor {
    config: Arc<Configured>,
    binaries: Binaries,
    user: OperatingSystemUser,
    settings: Settings,
    /// What the current run took over of the files that outlived the server before.
    kept: KeptFiles,
    /// In how many parts the volume has an earlier server's statistics.
    statistics_parts: usize,
    shim_library: ShimLibrary,
    shared: Arc<StatusBoard>,
    signals: SignalFd,
    writer: WriterId,
    /// That of the last recovery; zero before the first.
    epoch: VolumeEpoch,
    /// What it asked the nodes for, across its recoveries.
    own_epochs: OwnEpochs,
    /// The server accepted connections since this was looked at last.
    has_served: bool,
}

impl Supervisor {
    fn run_until_stopped(&mut self) -> anyhow::Result<()> {
        let mut failures = 0;
        let mut pause = Duration::from_millis(50);
        loop {
            let begun = Instant::now();
            let ended = self.run_once();
            let has_opened = self.epoch > VolumeEpoch(0);
            let waits = ended.as_ref().is_err_and(|error| waits_for_quorum(error, has_opened));
            let failure = match ended {
                Ok(Ended::Stopped) => {
                    memory_directory::remove(&self.config.memory_dir)?;
                    return Ok(());
                }
                Ok(Ended::Failed(why)) => why,
                Err(error) if matches!(error.downcast_ref(), Some(DriverError::Shim(_))) => {
                    self.show_refused(&error);
                    return Err(error);
                }
                Err(error) if let Some(epoch) = newer_writer(&error) => {
                    self.shared.update(|status| status.state = "fenced");
                    return Err(DriverError::Fenced(epoch).into());
                }
                Err(error) if waits || may_pass(&error) => confinement::in_words(error.chain()),
                Err(error) => match error.downcast_ref::<EngineError>() {
                    // A restart would only bring the next such record.
                    Some(EngineError::Effect(refused @ EffectError::Custom { .. })) => {
                        let refused = refused.clone();
                        self.show_refused(&refused);
                        return Err(DriverError::Refused(refused).into());
                    }
                    // What stopped the stream was never shipped, so after a recovery it is not there.
                    Some(_) => confinement::in_words(error.chain()),
                    None => return Err(error),
                },
            };
            if begun.elapsed() >= SETTLED {
                pause = Duration::from_millis(50);
            }
            // One that served was no failed start: whatever ended it, its users want it back.
            if std::mem::take(&mut self.has_served) {
                failures = 0;
            }
            failures += u32::from(!waits);
            tracing::error!("the instance has to be started again: {failure}");
            if failures > self.config.tuning.restarts_max {
                return Err(DriverError::KeepsFailing(failures, failure).into());
            }
            self.shared.update(|status| {
                status.restarts += u32::from(!waits);
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

    fn show_refused(&self, why: &impl std::fmt::Display) {
        self.shared.update(|status| {
            status.state = "refused";
            status.last_failure = Some(why.to_string());
        });
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

        let mut memberships = memberships::known(&self.config)?;
        let recovered = recover::recover(
            &self.config,
            &mut memberships,
            self.writer,
            server_version,
            &mut self.own_epochs,
        )?;
        phases.connect_ms = ms(recovered.phases.connect);
        phases.protocol_ms = ms(recovered.phases.protocol);
        let outcome = recovered.outcome;
        self.epoch = raised(self.epoch, outcome.promise.epoch);
        tracing::info!(
            epoch = outcome.promise.epoch.0,
            %server_version,
            vdl = %outcome.durable.end,
            connect_ms = phases.connect_ms,
            protocol_ms = phases.protocol_ms,
            "the volume is open for writing"
        );
        let mut engine = Engine::new(self.config.clone(), outcome, memberships, FIRST_NORMAL_XID)?;
        engine.watch(self.signals.as_raw_fd())?;
        let waker = Arc::new(engine.waker()?);
        self.shared.set_waker(Some(waker));

        if self.needs_import(&engine) {
            let import_begun = Instant::now();
            self.shared.update(|status| status.state = "importing");
            if !self.import(&mut engine)? {
                return Ok(Ended::Stopped);
            }
            phases.import_ms = ms(import_begun.elapsed());
        }

        let Some((control, data_directory)) = self.write_data_directory(&mut engine, &mut phases)? else {
            return Ok(Ended::Stopped);
        };
        let server_begun = Instant::now();
        let mut server = self.start_server(&mut engine, &control, &data_directory)?;
        engine.expect_server(server.server.process_id());
        if let Some(end) = &server.end {
            engine.watch(end.as_raw_fd())?;
        }
        engine.watch(server.wake.as_raw_fd())?;
        let limit_bytes =
            self.config.tuning.cache_limit_bytes.unwrap_or_else(|| default_limit_bytes(memory_bytes));
        let evictor =
            Evictor::start(&data_directory, &server.shared_memory, server.event_descriptor, limit_bytes)?;
        let starts = Starts { begun, server_begun, phases };
        let ended = self.serve(&mut engine, &mut server, &evictor, &data_directory, starts);
        // One that did not stop in time goes on writing its log.
        let has_ended = !data_directory.join("postmaster.pid").exists();
        if matches!(ended, Ok(Ended::Stopped)) && has_ended {
            self.keep_statistics(&mut engine, &control, &data_directory);
        }
        // It may wait for an answer that would never come.
        engine.detach();
        ended
    }

    /// Writes a data directory whose log begins with a checkpoint at the volume's durable point, and has that
    /// checkpoint made durable. `None` when the driver was told to stop meanwhile.
    fn write_data_directory(
        &mut self,
        engine: &mut Engine,
        phases: &mut StartPhases,
    ) -> anyhow::Result<Option<(ControlFile, PathBuf)>> {
        let directory_begun = Instant::now();
        let durable = engine.shipper().durable();
        let tail = engine.shipper().tracker().durable_point(META_GROUP).group_tail;
        let mut contents =
            contents::read(&self.config, engine.memberships(), engine.shipper().epoch(), durable.end, tail)?;
        engine.set_next_xid((contents.counters.next_full_xid & 0xFFFF_FFFF) as u32);
        self.take_kept_files(&mut contents);
        self.statistics_parts = borealis_instance::statistics::parts(&contents.values);
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
        if !self.wait_durable(engine)? {
            return Ok(None);
        }
        phases.checkpoint_ms = ms(checkpoint_begun.elapsed());
        require_durable(checkpoint.span, engine.shipper().durable());
        Ok(Some((control, data_directory)))
    }

    /// Takes over what may be of the files that outlived the server before, and says what may not.
    fn take_kept_files(&mut self, contents: &mut Contents) {
        let binaries = &self.binaries;
        let check = |settings: &Settings| settings.check_libraries(binaries);
        self.kept = kept_files::admit(&mut contents.values, &self.settings, check);
        for left_out in &self.kept.left_out {
            tracing::warn!("{left_out}");
        }
        let left_out = self.kept.left_out.iter().take(LEFT_OUT_SHOWN_MAX).map(ToString::to_string);
        self.shared.update(|status| status.warnings.extend(left_out));
    }

    /// Whether the volume is empty, or holds only a part of an import that was interrupted.
    fn needs_import(&self, engine: &Engine) -> bool {
        let (shipper, durable) = (engine.shipper(), engine.shipper().durable());
        let tail = shipper.tracker().durable_point(META_GROUP).group_tail;
        if durable == RecordSpan::NONE {
            return true;
        }
        let memberships = engine.memberships();
        let again =
            import_state::was_interrupted(&self.config, memberships, shipper.epoch(), durable.end, tail);
        if again {
            tracing::info!("the first start was interrupted while it filled the volume; it is filled anew");
        }
        again
    }

    /// Ships a fresh `initdb`. `false` when the driver was told to stop before all of it was durable: the volume
    /// is then only partly filled, and the next start begins again.
    fn import(&mut self, engine: &mut Engine) -> anyhow::Result<bool> {
        let directory = self.config.memory_dir.join(IMPORT_DIRECTORY);
        run_initdb(&self.binaries, &self.user, &directory)?;
        let import = Import::read(self.config.version, &directory)?;
        let ahead_max = self.config.tuning.shipped_ahead_bytes;
        let mut records = 0u64;
        let after = engine.shipper().durable();
        import.for_each_record(after, |record| -> anyhow::Result<()> {
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
}

/// The epoch that a recovery opened: above every one this driver had before, or nothing would keep what it sent in
/// the old one out of the volume.
fn raised(before: VolumeEpoch, opened: VolumeEpoch) -> VolumeEpoch {
    invariant!("recovery-raises-the-epoch", opened > before, "epoch {} after {}", opened.0, before.0);
    opened
}

/// A server that starts from a checkpoint trusts that all log up to its end is kept.
fn require_durable(checkpoint: RecordSpan, durable: RecordSpan) {
    invariant!(
        "server-starts-from-durable-log",
        durable.end >= checkpoint.end,
        "the checkpoint ends at {}, and {} is durable",
        checkpoint.end,
        durable.end
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::Lsn;

    #[test]
    fn only_an_instance_that_had_the_volume_waits_for_its_nodes() {
        let no_quorum = anyhow::Error::from(RecoverError::NoQuorum("group 0 has 2 of 6 segments".to_owned()));
        assert!(waits_for_quorum(&no_quorum, true));
        assert!(!waits_for_quorum(&no_quorum, false) && !may_pass(&no_quorum));
        let taken = anyhow::Error::from(RecoverError::TakenOver(VolumeEpoch(3)));
        assert!(!waits_for_quorum(&taken, true) && !may_pass(&taken));
        let lease = anyhow::Error::from(EngineError::LeaseOver(Duration::from_secs(11)));
        assert!(!waits_for_quorum(&lease, true) && may_pass(&lease));
        assert!(may_pass(&RecoverError::MembersChange(33).into()));
    }

    #[test]
    #[should_panic(expected = "invariant recovery-raises-the-epoch is broken: epoch 7 after 7")]
    fn a_recovery_that_opens_an_old_epoch_is_noticed() {
        assert_eq!(raised(VolumeEpoch(0), VolumeEpoch(7)), VolumeEpoch(7));
        raised(VolumeEpoch(7), VolumeEpoch(7));
    }

    #[test]
    #[should_panic(expected = "invariant server-starts-from-durable-log is broken")]
    fn a_checkpoint_that_is_not_durable_is_noticed() {
        let span = |start, end| RecordSpan { start: Lsn(start), end: Lsn(end) };
        require_durable(span(100, 200), span(100, 200));
        require_durable(span(200, 300), span(100, 200));
    }
}
