//! From the start of the server to its end: nothing is served before its shim has reported, and everything after.

use std::path::Path;
use std::time::{Duration, Instant};

use borealis_instance::ProgramFile;
use borealis_instance::settings::KEPT_FILES;

use super::server::{RunningServer, accepts_connections};
use super::status::ms;
use super::{DriverError, Ended, Supervisor};
use crate::engine::Engine;
use crate::evict::Evictor;
use crate::instance_socket::StartPhases;
use crate::shim_gate;

/// How long `postgres` may take to accept connections.
const SERVER_START_MAX: Duration = Duration::from_secs(60);
/// How long a clean shutdown may take.
const SERVER_STOP_MAX: Duration = Duration::from_secs(60);
/// How often to poll the server and the signals when no event reports them: first while the server starts, then
/// while it runs.
const LOOK_INTERVAL_STARTING: Duration = Duration::from_millis(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// When the parts of a start began.
pub(super) struct Starts {
    pub begun: Instant,
    pub server_begun: Instant,
    pub phases: StartPhases,
}

/// How far a server has come, and when it was looked at.
struct Progress {
    /// The server has said that it accepts connections.
    ready: bool,
    /// Since when it is told to stop.
    stopping: Option<Instant>,
    last_shown: Instant,
    last_looked: Instant,
}

impl Progress {
    fn new() -> Progress {
        let now = Instant::now();
        Progress { ready: false, stopping: None, last_shown: now, last_looked: now }
    }

    /// The word for `borealis status`: `starting`, `running` or `stopping`.
    fn state(&self) -> &'static str {
        match (self.ready, self.stopping.is_some()) {
            (_, true) => "stopping",
            (true, false) => "running",
            (false, false) => "starting",
        }
    }
}

impl Supervisor {
    /// Serves until the server ends, by order or not.
    pub(super) fn serve(
        &mut self,
        engine: &mut Engine,
        server: &mut RunningServer,
        evictor: &Evictor,
        data_directory: &Path,
        mut starts: Starts,
    ) -> anyhow::Result<Ended> {
        let mut progress = Progress::new();
        loop {
            let look_interval = if progress.ready { LOOK_INTERVAL } else { LOOK_INTERVAL_STARTING };
            engine.turn(if progress.ready { Duration::from_millis(250) } else { look_interval })?;
            if !engine.is_serving() && engine.has_shim() {
                if let Some(ended) = self.admit(engine, server) {
                    return Ok(ended);
                }
                continue;
            }
            // Most turns only ship redo. Check the process, the signals and the socket when an event reported them, or
            // when the interval is over.
            if !engine.take_watched() && progress.last_looked.elapsed() < look_interval {
                continue;
            }
            progress.last_looked = Instant::now();
            server.drain_wakes();
            if let Some(how) = server.poll() {
                return self.after_end(engine, server, &how, progress.stopping.is_some());
            }
            if progress.stopping.is_none() && self.stop_wanted() {
                server.server.request_fast_shutdown();
                progress.stopping = Some(Instant::now());
                self.shared.update(|status| status.state = "stopping");
            }
            if progress.stopping.is_some_and(|since| since.elapsed() > SERVER_STOP_MAX) {
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
            if !progress.ready && engine.is_serving() && accepts_connections(data_directory) {
                progress.ready = true;
                self.now_ready(&mut starts);
                self.show(engine, server, evictor, "running", starts.phases);
            }
            if !progress.ready
                && progress.stopping.is_none()
                && starts.server_begun.elapsed() > SERVER_START_MAX
            {
                return Ok(Ended::Failed("postgres did not accept connections in time".to_owned()));
            }
            if self.shared.status_wanted() || progress.last_shown.elapsed() > Duration::from_secs(1) {
                progress.last_shown = Instant::now();
                self.show(engine, server, evictor, progress.state(), starts.phases);
            }
        }
    }

    /// Begins to serve a server whose shim has reported, unless another program runs than the one that was asked for
    /// its release: then it has to be started again.
    fn admit(&self, engine: &mut Engine, server: &RunningServer) -> Option<Ended> {
        let report = engine.loaded_shim()?;
        shim_gate::require_loaded(Some(&report), server.gate.started);
        // Only now is it certain which program the process has become: a script may stand before it.
        let program = ProgramFile::reported(report.program_identity);
        if let Err(replaced) = self.binaries.check_running(program, &report.program_path, &self.user) {
            return Some(Ended::Failed(replaced.to_string()));
        }
        engine.serve_server(&report);
        None
    }

    /// What a server that has ended comes to.
    fn after_end(
        &self,
        engine: &mut Engine,
        server: &RunningServer,
        how: &str,
        was_told: bool,
    ) -> anyhow::Result<Ended> {
        // What it wrote last may still have to be shipped.
        if was_told {
            return finish(engine);
        }
        if !engine.has_shim()
            && let Some(fault) = server.gate.fault_of_ended(engine.shim_report(), how)
        {
            return Err(DriverError::from(fault).into());
        }
        Ok(Ended::Failed(format!(
            "postgres ended by itself ({how}); see {}{}",
            self.config.instance_dir.join("postgres.log").display(),
            self.cure_of_kept_files(),
        )))
    }

    /// What to do if a file that was kept is why the server did not come up.
    fn cure_of_kept_files(&self) -> String {
        if self.has_served || self.kept.files.is_empty() {
            return String::new();
        }
        let names: Vec<&str> = self.kept.files.iter().map(|file| file.name()).collect();
        format!(
            ". If a setting in what was kept of {} is to blame: `borealis up --pg-set NAME=VALUE` wins over it, and \
             `borealis up --pg-set {KEPT_FILES}=off` starts without all of them. If it is pg_hba.conf or pg_ident.conf, \
             `{KEPT_FILES}=none` starts without those too: then everybody on this machine may enter without a password",
            names.join(", ")
        )
    }

    /// The server accepts connections: notes how long that took.
    fn now_ready(&mut self, starts: &mut Starts) {
        self.has_served = true;
        starts.phases.server_ms = ms(starts.server_begun.elapsed());
        let total = starts.begun.elapsed();
        tracing::info!(port = self.config.port, total_ms = ms(total), "the instance accepts connections");
        self.shared.update(|status| status.last_recovery_ms = Some(ms(total)));
    }
}

/// Ships the last of the log of a server that ended in order, and tells the nodes that it is durable.
pub(super) fn finish(engine: &mut Engine) -> anyhow::Result<Ended> {
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
