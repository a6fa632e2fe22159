//! Starting and stopping instances.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_instance::{leftovers, memory_directory};
use borealis_types::{InstanceId, VolumeId};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{Cluster, STOP_TIMEOUT};
use crate::log::log_tail;
use crate::process::{self, ProcessIdentity};
use crate::supervision::{Ended, Restarts};
use crate::{driver_socket, ports, probe};

/// What the name of every memory directory begins with.
pub(super) const MEMORY_NAME_PREFIX: &str = "borealis-";
const DRIVER_LOG_NAME: &str = "driver.log";
/// Longest wait for the first answered query.
const INSTANCE_START_TIMEOUT: Duration = Duration::from_secs(120);

impl Cluster {
    /// Before an instance is started: ends the processes of one that was killed or is still being stopped, for they
    /// hold its port. Its memory is the next driver's to clear. Does nothing to one that runs.
    ///
    /// # Errors
    /// When there is no such instance, or something does not end even when killed.
    pub fn clear_the_way(&self, id: InstanceId) -> anyhow::Result<()> {
        self.finish_stopping_instance(id)?;
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
        if let Some(identity) = self.driver_process(id) {
            if !self.was_started_again(id) {
                bail!("instance {id} is already running at {}", Self::url(self.instance(id)?));
            }
            // It died, and the supervisor was faster.
            self.wait_for_instance(id, identity, begin)?;
            return Ok(begin.elapsed());
        }
        Restarts::clear(&self.instance_directory(id))?;
        let identity = self.spawn_instance(id)?;
        if let Err(error) = self.wait_for_instance(id, identity, begin) {
            if !identity.is_alive() {
                // Whoever asked for it has the reason, and it is not tried again behind their back.
                process::remove_process_file(&self.driver_process_file(id))?;
            }
            return Err(error);
        }
        Ok(begin.elapsed())
    }

    /// Whether the instance runs because the supervisor started it after a death, a short while ago.
    #[must_use]
    pub fn was_started_again(&self, id: InstanceId) -> bool {
        let restarts = Restarts::load(&self.instance_directory(id)).unwrap_or_default();
        restarts.in_a_row > 0 && self.driver_process(id).is_some()
    }

    /// Starts the driver of an instance that does not run, and does not wait for it.
    pub(crate) fn spawn_instance(&self, id: InstanceId) -> anyhow::Result<ProcessIdentity> {
        let instance = self.instance(id)?;
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
        self.issue_for_instance(instance)?;
        let config_file = config.instance_dir.join(super::INSTANCE_CONFIG_NAME);
        clear_memory_of_moved(&config_file, config.volume, &config.memory_dir);
        fs::write(&config_file, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("cannot write {}", config_file.display()))?;
        Ended::clear(&config.instance_dir)?;
        let log = config.instance_dir.join(DRIVER_LOG_NAME);
        let process_file = self.driver_process_file(id);
        process::spawn_detached(&["internal", "driver"], &config_file, &log, &process_file)
            .context("cannot start the driver")
    }

    /// Waits until SQL is answered.
    ///
    /// # Errors
    /// When the driver ends, or nothing is answered in time.
    fn wait_for_instance(
        &self,
        id: InstanceId,
        identity: ProcessIdentity,
        begin: Instant,
    ) -> anyhow::Result<()> {
        let port = self.instance(id)?.port;
        let folder = self.instance_directory(id);
        let deadline = begin + INSTANCE_START_TIMEOUT;
        loop {
            let answered = if driver_socket::server_runs(&folder) {
                probe::answers_sql(port, Duration::from_secs(5))
            } else {
                Err(std::io::Error::other("its driver does not say that the server runs"))
            };
            match answered {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!("instance {id} does not answer SQL: {error}\n{}", self.instance_logs(id));
                }
                Err(_) => {}
            }
            if !identity.is_alive() {
                let why =
                    Ended::load(&folder).map_or_else(String::new, |ended| format!(": {}", ended.reason));
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
        let memory = self.memory_directory(self.instance(id)?);
        self.no_longer_wanted(id)?;
        let driver = self.stopping_driver(id);
        // The driver first: it would begin to restart a server that died alone.
        if let Some(driver) = driver {
            driver.kill_and_wait()?;
        }
        let server = leftovers::clear(&memory);
        process::end_stopping(&self.driver_process_file(id))?;
        Ok(driver.is_some() || server > 0)
    }

    /// Stops an instance in order.
    ///
    /// # Errors
    /// When it does not end even when killed.
    pub fn stop_instance(&self, id: InstanceId) -> anyhow::Result<bool> {
        self.instance(id)?;
        self.no_longer_wanted(id)?;
        let was_there = self.finish_stopping_instance(id)?;
        self.clear_memory(id)?;
        Ok(was_there)
    }

    /// Ends the driver of an instance that is being stopped, and with it the server; returns whether it was there. An
    /// earlier command that was to do it may have been interrupted before it had told the driver.
    pub(super) fn finish_stopping_instance(&self, id: InstanceId) -> anyhow::Result<bool> {
        let driver = self.stopping_driver(id);
        if let Some(driver) = driver {
            driver.signal(Signal::SIGTERM);
            if !driver.wait_gone(STOP_TIMEOUT) {
                driver.kill_and_wait()?;
                leftovers::clear(&self.memory_directory(self.instance(id)?));
            }
        }
        process::end_stopping(&self.driver_process_file(id))?;
        Ok(driver.is_some())
    }

    /// Before a process is ended: nobody is to start it again, and it stays on record.
    fn no_longer_wanted(&self, id: InstanceId) -> anyhow::Result<()> {
        process::begin_stopping(&self.driver_process_file(id))?;
        Restarts::clear(&self.instance_directory(id))?;
        Ok(())
    }
}

/// What the file that an instance was started with says of where it was.
#[derive(Deserialize)]
struct EarlierPlace {
    volume: VolumeId,
    instance_dir: PathBuf,
    memory_dir: PathBuf,
}

/// Gives back the memory of an instance whose cluster was moved since: nobody would look for it by the old place's name. If
/// there is a cluster in that place, this one is a copy, and the memory is the other's.
fn clear_memory_of_moved(config_file: &Path, volume: VolumeId, memory: &Path) {
    let earlier = fs::read(config_file).ok();
    let Some(earlier) = earlier.and_then(|text| serde_json::from_slice::<EarlierPlace>(&text).ok()) else {
        return;
    };
    let name = earlier.memory_dir.file_name().and_then(|name| name.to_str());
    let is_memory = name.is_some_and(|name| name.starts_with(MEMORY_NAME_PREFIX));
    if !is_memory || earlier.memory_dir == memory || earlier.volume != volume {
        return;
    }
    let Some(place) = earlier.instance_dir.ancestors().nth(2) else { return };
    let is_gone = |name: &str| {
        fs::symlink_metadata(place.join(name))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    // A link from the old place to the new one is this cluster, too.
    let here = config_file.ancestors().nth(3).and_then(|here| here.canonicalize().ok());
    let is_here = here.is_some() && place.canonicalize().ok() == here;
    if !is_here && (!is_gone("nodes") || !is_gone(crate::catalog::FILE_NAME)) {
        return;
    }
    // It is only memory: the start goes on without it.
    if let Err(error) = memory_directory::remove(&earlier.memory_dir) {
        eprintln!("the memory of this cluster's earlier place is not given back: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_moved_clusters_memory_is_given_back() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let place = |name: &str| folder.path().join(name);
        let is_kept = |memory: &str, cluster: &str| {
            let config_file = place("instance.json");
            fs::create_dir_all(place(memory).join("data")).expect("made");
            let text = serde_json::json!({
                "volume": VolumeId(7), "instance_dir": place(cluster).join("instances/1"), "memory_dir": place(memory),
            });
            fs::write(&config_file, text.to_string()).expect("written");
            clear_memory_of_moved(&config_file, VolumeId(7), &place("borealis-new-1"));
            place(memory).exists()
        };
        fs::create_dir_all(place("original/nodes")).expect("made");
        assert!(is_kept("borealis-old-1", "original"), "a copy took the original's memory");
        assert!(!is_kept("borealis-old-1", "moved-away"), "nobody looks for it there any more");
        assert!(is_kept("precious", "moved-away"), "it is no memory directory");
        assert!(is_kept("borealis-new-1", "moved-away"), "it is the one in use");
    }
}
