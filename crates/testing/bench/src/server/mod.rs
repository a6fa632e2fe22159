//! The systems that are compared.

mod borealis;
mod forgetting;
mod stock;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

pub use borealis::Borealis;
pub use forgetting::{forget_file, forget_files};
pub use stock::Stock;

use crate::model::System;
use crate::processes::Role;
use borealis_testbed::sql::Connection;

/// Longest wait for an answer. A statement that takes longer is not part of any measurement.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Between attempts to reach a server that starts.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Where pages are for a read-only run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// All in shared buffers.
    SharedBuffers,
    /// Small shared buffers; the rest one step further, in the operating system's or Borealis's cache.
    LocalCache,
    /// Small shared buffers and nothing else.
    StorageOnly,
}

impl Memory {
    /// The setting of `shared_buffers`.
    #[must_use]
    pub fn shared_buffers(self) -> &'static str {
        match self {
            Memory::SharedBuffers => "1GB",
            Memory::LocalCache | Memory::StorageOnly => "16MB",
        }
    }
}

/// One of the systems that are compared, running.
#[derive(Debug)]
pub enum Server {
    /// Stock PostgreSQL in one of its three settings (A, B or C).
    Stock(Box<Stock>),
    /// A cluster of six nodes and its instance.
    Borealis(Borealis),
}

impl Server {
    /// Which of the compared systems it is.
    #[must_use]
    pub fn system(&self) -> System {
        match self {
            Server::Stock(stock) => stock.system(),
            Server::Borealis(_) => System::Borealis,
        }
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Server::Stock(stock) => stock.port(),
            Server::Borealis(borealis) => borealis.port(),
        }
    }

    /// A connection.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn connect(&self) -> anyhow::Result<Connection> {
        connect(self.port())
    }

    /// Its processes; their children belong to them.
    ///
    /// # Errors
    /// When Borealis does not say.
    pub fn parts(&self) -> anyhow::Result<Vec<(Role, u32)>> {
        match self {
            Server::Stock(stock) => Ok(stock.parts()),
            Server::Borealis(borealis) => borealis.parts(),
        }
    }

    /// What it counts itself, all rising.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let mut counters = wal_counters(self.port())?;
        if let Server::Borealis(borealis) = self {
            counters.extend(borealis.counters()?);
        }
        Ok(counters)
    }

    /// Stops it in order and starts it with other memory.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub fn restart_with(&mut self, memory: Memory) -> anyhow::Result<()> {
        match self {
            Server::Stock(stock) => stock.restart_with(memory),
            Server::Borealis(borealis) => borealis.restart_with(memory),
        }
    }

    /// Reads the tables once so that they are as near as the settings allow.
    ///
    /// # Errors
    /// When a table does not exist or the server fails.
    pub fn warm(&self, relations: &[&str]) -> anyhow::Result<()> {
        let mut connection = self.connect()?;
        connection.query("CREATE EXTENSION IF NOT EXISTS pg_prewarm")?;
        for relation in relations {
            connection
                .query(&format!("SELECT pg_prewarm('{relation}')"))
                .with_context(|| format!("{}: cannot read {relation}", self.system().name()))?;
        }
        Ok(())
    }
}

/// A connection to a server that runs.
///
/// # Errors
/// When it does not answer.
pub fn connect(port: u16) -> anyhow::Result<Connection> {
    Connection::open(port, ANSWER_TIMEOUT)
        .with_context(|| format!("the server on port {port} does not answer"))
}

/// Waits for the first answered query of a server that starts.
///
/// # Errors
/// When there is none within two minutes, or `ended` says that there will be none.
pub fn wait_for_answer(port: u16, mut ended: impl FnMut() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let answer =
            Connection::open(port, ANSWER_TIMEOUT).and_then(|mut connection| connection.query("SELECT 1"));
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if ended() || begin.elapsed() > ANSWER_TIMEOUT => {
                return Err(error).with_context(|| format!("the server on port {port} did not start"));
            }
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

fn wal_counters(port: u16) -> anyhow::Result<BTreeMap<String, f64>> {
    let names = ["wal_records", "wal_fpi", "wal_bytes", "wal_write", "wal_sync"];
    let rows = connect(port)?.query(&format!("SELECT {} FROM pg_stat_wal", names.join(", ")))?;
    let row = rows.first().context("pg_stat_wal is empty")?;
    let values = row.iter().map(|value| value.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0.0));
    Ok(names.iter().map(|name| (*name).to_owned()).zip(values).collect())
}

/// The end of a log file, for a message.
fn log_tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    format!("{} ends with:\n{}", path.display(), lines[lines.len().saturating_sub(8)..].join("\n"))
}

/// What servers are made of and where.
#[derive(Clone, Debug)]
pub struct Environment {
    /// PostgreSQL's programs, the same for every system.
    pub binaries: borealis_instance::Binaries,
    /// The system user that runs the servers.
    pub user: borealis_instance::OperatingSystemUser,
    /// The `borealis` program.
    pub borealis: PathBuf,
    /// Folder for the databases; its disk is what is measured.
    pub folder: PathBuf,
    /// Where Borealis keeps WAL in flight and cached pages; its default if `None`.
    pub memory_dir: Option<PathBuf>,
}

impl Environment {
    /// Starts a system that is new and empty, in a folder of this name.
    ///
    /// # Errors
    /// When it cannot be made or does not start.
    pub fn start(&self, system: System, folder: &str) -> anyhow::Result<Server> {
        let folder = self.folder.join(folder);
        let server = match system {
            System::Borealis => Borealis::start(self, &folder).map(Server::Borealis),
            System::Stock | System::Ceiling | System::Replicated => {
                Stock::start(self, system, &folder).map(|stock| Server::Stock(Box::new(stock)))
            }
        };
        server.with_context(|| format!("{} cannot be set up", system.name()))
    }
}
