//! PostgreSQL as distributed: alone, with standbys, or with nothing durable.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::forgetting::Forgetting;
use super::{Environment, Memory, connect, log_tail, wait_for_answer};
use crate::model::System;
use crate::processes::{self, Role};
use borealis_testbed::cleanup::{self, Item};

/// How many standbys B has. Three of them must have a commit: with the primary, four of six.
const STANDBYS: usize = 5;
/// How long sessions of a killed server may take to end.
const ORPHANS_MAX: Duration = Duration::from_secs(10);

/// A server, with its standbys.
#[derive(Debug)]
pub struct Stock {
    environment: Environment,
    system: System,
    folder: PathBuf,
    port: u16,
    memory: Memory,
    settings: Vec<String>,
    child: Option<Child>,
    standbys: Vec<Stock>,
    forgetting: Option<Forgetting>,
}

impl Stock {
    /// A new, empty server.
    ///
    /// # Errors
    /// When it cannot be made or does not start.
    pub fn start(environment: &Environment, system: System, folder: &Path) -> anyhow::Result<Stock> {
        let mut stock = Stock::prepared(environment, system, folder)?;
        stock.settings = match system {
            System::Ceiling => vec!["fsync=off".into(), "full_page_writes=off".into()],
            _ => Vec::new(),
        };
        stock.program("initdb", |command| {
            command.arg("-D").arg(stock.data()).args(["-A", "trust", "-U", "postgres"]);
        })?;
        stock.launch()?;
        if system == System::Replicated {
            stock.add_standbys()?;
        }
        Ok(stock)
    }

    fn prepared(environment: &Environment, system: System, folder: &Path) -> anyhow::Result<Stock> {
        fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        if environment.user.switch {
            std::os::unix::fs::chown(folder, Some(environment.user.user_id), Some(environment.user.group_id))
                .with_context(|| format!("cannot give {} to {}", folder.display(), environment.user.name))?;
        }
        Ok(Stock {
            environment: environment.clone(),
            system,
            folder: folder.to_owned(),
            port: borealis_testbed::free_port()?,
            memory: Memory::SharedBuffers,
            settings: Vec::new(),
            child: None,
            standbys: Vec::new(),
            forgetting: None,
        })
    }

    /// Each standby is a copy of the primary, in a folder beside it.
    fn add_standbys(&mut self) -> anyhow::Result<()> {
        for number in 1..=STANDBYS {
            let folder = self.folder.with_extension(format!("standby{number}"));
            let mut standby = Stock::prepared(&self.environment, self.system, &folder)?;
            let primary = self.port.to_string();
            standby.program("pg_basebackup", |command| {
                command.args([
                    "-h",
                    "127.0.0.1",
                    "-U",
                    "postgres",
                    "-c",
                    "fast",
                    "-X",
                    "stream",
                    "-p",
                    &primary,
                ]);
                command.arg("-D").arg(standby.data());
            })?;
            fs::write(standby.data().join("standby.signal"), "")?;
            standby.settings = vec![format!(
                "primary_conninfo=host=127.0.0.1 port={primary} user=postgres application_name=s{number}"
            )];
            // Nobody reads there; six times the primary's would only press on the memory of one machine.
            standby.memory = Memory::LocalCache;
            standby.launch()?;
            self.standbys.push(standby);
        }
        let mut connection = connect(self.port)?;
        connection.query("ALTER SYSTEM SET synchronous_standby_names = 'ANY 3 (s1, s2, s3, s4, s5)'")?;
        connection.query("SELECT pg_reload_conf()")?;
        let begin = Instant::now();
        let attached =
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum' AND state = 'streaming'";
        while connection.number(attached)? < STANDBYS as f64 {
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("the standbys do not attach; {}", log_tail(&self.log()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.environment.binaries.program(program));
        if self.environment.user.switch {
            command.uid(self.environment.user.user_id).gid(self.environment.user.group_id);
        }
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGOPTIONS"] {
            command.env_remove(name);
        }
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    fn program(&self, name: &str, with: impl FnOnce(&mut Command)) -> anyhow::Result<()> {
        let mut command = self.command(name);
        with(&mut command);
        let output = command.output().with_context(|| format!("cannot start {name}"))?;
        if !output.status.success() {
            bail!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.wait_until_up()
    }

    /// Starts the process without waiting for it to answer.
    fn spawn(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut settings = vec![
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.folder.display()),
            format!("shared_buffers={}", self.memory.shared_buffers()),
            "max_connections=200".to_owned(),
            // A server that is killed would leave the default kind behind.
            "dynamic_shared_memory_type=mmap".to_owned(),
        ];
        settings.extend(self.settings.iter().cloned());
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        let child = command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start postgres")?;
        cleanup::add(Item::Postmaster(child.id()));
        self.child = Some(child);
        Ok(())
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("the server was not started")?;
        let answer = wait_for_answer(self.port, || matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
        answer.with_context(|| log_tail(&self.log()))
    }

    /// Which of A, B and C.
    #[must_use]
    pub fn system(&self) -> System {
        self.system
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its processes.
    #[must_use]
    pub fn parts(&self) -> Vec<(Role, u32)> {
        let own = self.child.iter().map(|child| ("postgres", child.id()));
        let standbys = self.standbys.iter().flat_map(|standby| &standby.child);
        own.chain(standbys.map(|child| ("standbys", child.id()))).collect()
    }

    /// Stops it in order and starts it with other memory.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_with(&mut self, memory: Memory) -> anyhow::Result<()> {
        self.end(Signal::SIGINT);
        self.memory = memory;
        self.launch()?;
        self.forgetting = (memory == Memory::StorageOnly)
            .then(|| Forgetting::start(self.data().join("base")))
            .transpose()?;
        Ok(())
    }

    /// SIGKILLs every process of it, and starts it at once. Returns what its log says replay took, in seconds.
    ///
    /// # Errors
    /// When it does not start.
    pub fn crash_and_restart(&mut self) -> anyhow::Result<Option<f64>> {
        if let Some(mut child) = self.child.take() {
            // Stopped, it starts no session that this list would lack.
            cleanup::signal(child.id(), Signal::SIGSTOP);
            let sessions = processes::children(child.id());
            cleanup::signal(child.id(), Signal::SIGKILL);
            for process in &sessions {
                cleanup::signal(*process, Signal::SIGKILL);
            }
            cleanup::remove(&Item::Postmaster(child.id()));
            let _ = child.wait();
            // PostgreSQL refuses to start as long as one of them is attached to its shared memory.
            processes::wait_until_gone(&sessions, ORPHANS_MAX)?;
        }
        let said_before = fs::metadata(self.log()).map(|file| file.len()).unwrap_or(0);
        self.launch()?;
        let log = fs::read(self.log()).unwrap_or_default();
        let new = log.get(usize::try_from(said_before)?..).unwrap_or_default();
        Ok(parse_replay_seconds(&String::from_utf8_lossy(new)))
    }

    fn end(&mut self, signal: Signal) {
        self.forgetting = None;
        if let Some(mut child) = self.child.take() {
            cleanup::signal(child.id(), signal);
            let _ = child.wait();
            cleanup::remove(&Item::Postmaster(child.id()));
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // A primary waits for its standbys; an immediate shutdown does not, and nobody needs the data again.
        self.end(Signal::SIGQUIT);
        self.standbys.clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `redo done at 0/5A3C4E8 system usage: CPU: user: 0.21 s, system: 0.10 s, elapsed: 0.40 s`.
fn parse_replay_seconds(log: &str) -> Option<f64> {
    let line = log.lines().rev().find(|line| line.contains("redo done at"))?;
    line.rsplit_once("elapsed: ")?.1.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_replay_is_read() {
        let log = "LOG:  redo starts at 0/1\nLOG:  redo done at 0/5A3C4E8 system usage: CPU: user: 0.21 s, system: \
            0.10 s, elapsed: 0.40 s\nLOG:  checkpoint starting";
        assert_eq!(parse_replay_seconds(log), Some(0.4));
        assert_eq!(parse_replay_seconds("LOG:  redo is not required"), None);
    }
}
