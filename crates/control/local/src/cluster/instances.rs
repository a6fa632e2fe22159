//! Starting and stopping instances.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_instance::{leftovers, memory_directory};
use borealis_types::InstanceId;
use nix::sys::signal::Signal;

use super::{Cluster, STOP_TIMEOUT};
use crate::log::{last_word, log_tail};
use crate::{driver_socket, ports, probe, process};

/// Longest wait for the first answered query.
const INSTANCE_START_TIMEOUT: Duration = Duration::from_secs(120);

impl Cluster {
    /// Before an instance is started: ends the processes of one that was killed, for they still hold its port. Its
    /// memory is the next driver's to clear. Does nothing to one that runs.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn clear_the_way(&self, id: InstanceId) -> anyhow::Result<()> {
        if self.driver_process(id).is_none() {
            leftovers::clear(&self.memory_directory(self.instance(id)?));
        }
        Ok(())
    }

    /// What an instance's folder says it was started with; `None` if it never was, or the folder was removed.
    #[must_use]
    pub fn instance_config(&self, id: InstanceId) -> Option<Vec<u8>> {
        fs::read(self.instance_directory(id).join(super::INSTANCE_CONFIG_NAME)).ok()
    }

    /// Takes back what a start that failed has written there: a catalog that is lost is made anew from it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn restore_instance_config(&self, id: InstanceId, earlier: Option<&[u8]>) -> anyhow::Result<()> {
        let path = self.instance_directory(id).join(super::INSTANCE_CONFIG_NAME);
        let result = match earlier {
            Some(bytes) => fs::write(&path, bytes),
            None if path.exists() => fs::remove_file(&path),
            None => Ok(()),
        };
        result.with_context(|| format!("cannot restore {}", path.display()))
    }

    /// Gives back the memory of an instance that does not run, and ends what is left of it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear_memory(&self, id: InstanceId) -> anyhow::Result<()> {
        if self.driver_process(id).is_none() {
            memory_directory::remove(&self.memory_directory(self.instance(id)?))?;
        }
        Ok(())
    }

    /// Starts an instance: its driver recovers the volume, writes a fresh data directory and starts the server.
    /// Returns when SQL is answered, with the time that took.
    ///
    /// # Errors
    /// When the port is taken, the library is missing, or the driver ends; the end of its log is part of the
    /// message.
    pub fn start_instance(&self, id: InstanceId) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let instance = self.instance(id)?;
        if self.driver_process(id).is_some() {
            bail!("instance {id} is already running at {}", Self::url(instance));
        }
        self.clear_the_way(id)?;
        if !ports::is_free(instance.port) {
            bail!(
                "port {} on 127.0.0.1 is taken by another program; stop it or choose another with \
                 `borealis up --port P`",
                instance.port
            );
        }
        let config = self.driver_config(instance)?;
        fs::create_dir_all(&config.instance_dir)
            .with_context(|| format!("cannot create {}", config.instance_dir.display()))?;
        let config_file = config.instance_dir.join(super::INSTANCE_CONFIG_NAME);
        fs::write(&config_file, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("cannot write {}", config_file.display()))?;
        let log = config.instance_dir.join("driver.log");
        let log_begin = log.metadata().map_or(0, |metadata| metadata.len());
        let process_file = config.instance_dir.join("process");
        let identity = process::spawn_detached(&["internal", "driver"], &config_file, &log, &process_file)
            .context("cannot start the driver")?;
        let deadline = begin + INSTANCE_START_TIMEOUT;
        loop {
            let answered = if driver_socket::server_runs(&config.instance_dir) {
                probe::answers_sql(instance.port, Duration::from_secs(5))
            } else {
                Err(std::io::Error::other("its driver does not say that the server runs"))
            };
            match answered {
                Ok(()) => return Ok(begin.elapsed()),
                Err(error) if Instant::now() > deadline => {
                    bail!("instance {id} does not answer SQL: {error}\n{}", self.instance_logs(id));
                }
                Err(_) => {}
            }
            if !identity.is_alive() {
                let why = last_word(&log, log_begin);
                bail!("instance {id} ended while starting{why}\n{}", self.instance_logs(id));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn instance_logs(&self, id: InstanceId) -> String {
        let folder = self.instance_directory(id);
        let mut text = String::new();
        for name in ["driver.log", "postgres.log"] {
            let path = folder.join(name);
            if path.is_file() {
                text += &format!("{} ends with:\n{}\n", path.display(), log_tail(&path));
            }
        }
        text
    }

    /// Kills an instance: the server and its driver, as a power cut would.
    ///
    /// # Errors
    /// When one of them does not end.
    pub fn kill_instance(&self, id: InstanceId) -> anyhow::Result<bool> {
        let instance = self.instance(id)?;
        let driver = self.driver_process(id);
        // The driver first: it would begin to restart a server that died alone.
        if let Some(driver) = driver {
            driver.kill_and_wait()?;
        }
        let server = leftovers::clear(&self.memory_directory(instance));
        Ok(driver.is_some() || server > 0)
    }

    /// Stops an instance in order.
    ///
    /// # Errors
    /// When it does not end even when killed.
    pub fn stop_instance(&self, id: InstanceId) -> anyhow::Result<bool> {
        let driver = self.driver_process(id);
        if let Some(driver) = driver {
            driver.signal(Signal::SIGTERM);
            if !driver.wait_gone(STOP_TIMEOUT) {
                self.kill_instance(id)?;
            }
        }
        self.clear_memory(id)?;
        Ok(driver.is_some())
    }
}
