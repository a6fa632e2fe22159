//! Borealis, driven through its command line as any user would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_spec::node::STORE_FOLDER_NAME;
use borealis_store::{Options, Policy, Store};
use borealis_types::Lsn;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Environment, Memory};
use crate::processes::Role;
use borealis_testbed::cleanup::{self, Item};

/// Longest wait for nodes that were away to have everything.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// A cluster of six nodes and one instance.
#[derive(Debug)]
pub struct Borealis {
    program: PathBuf,
    directory: PathBuf,
    port: u16,
    cleanup: Item,
}

impl Borealis {
    /// A new, empty cluster.
    ///
    /// # Errors
    /// When it cannot be made or does not start.
    pub fn start(environment: &Environment, directory: &Path) -> anyhow::Result<Borealis> {
        Borealis::start_with_backup(environment, directory, None)
    }

    /// As [`Borealis::start`]; its nodes back it up to a folder if one is given, which they make.
    ///
    /// # Errors
    /// As [`Borealis::start`].
    pub fn start_with_backup(
        environment: &Environment,
        directory: &Path,
        backup: Option<&Path>,
    ) -> anyhow::Result<Borealis> {
        let cleanup = Item::Cluster(environment.borealis.clone(), directory.to_owned());
        let cluster = Borealis {
            program: environment.borealis.clone(),
            directory: directory.to_owned(),
            port: borealis_testbed::free_port()?,
            cleanup: cleanup.clone(),
        };
        cleanup::add(cleanup);
        let port = cluster.port.to_string();
        let buffers = format!("shared_buffers={}", Memory::SharedBuffers.shared_buffers());
        let bin = environment.binaries.folder.display().to_string();
        let memory = environment.memory_dir.as_ref().map(|folder| folder.display().to_string());
        let mut words = vec!["up", "--detach", "--port", &port, "--pg-bin", &bin, "--pg-user"];
        words.extend([
            environment.user.name.as_str(),
            "--pg-set",
            &buffers,
            "--pg-set",
            "max_connections=200",
        ]);
        if let Some(memory) = &memory {
            words.extend(["--memory-dir", memory]);
        }
        let backup = backup.map(|folder| folder.display().to_string());
        // As words: without them a cluster may come to have a backup of its own accord.
        words.extend(["--backup", backup.as_deref().unwrap_or("none")]);
        cluster.command(&words)?;
        Ok(cluster)
    }

    /// Runs `borealis` with these words; returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.program)
            .args(words)
            .arg("--dir")
            .arg(&self.directory)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if !output.status.success() {
            bail!("`borealis {}` failed:\n{}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of a node's store.
    #[must_use]
    pub fn store_folder(&self, node: u16) -> PathBuf {
        self.directory.join("nodes").join(node.to_string()).join(STORE_FOLDER_NAME)
    }

    /// What `borealis status --json` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.command(&["status", "--json"])?).context("status is not JSON")
    }

    /// Process numbers of its nodes that run: (node, process).
    ///
    /// # Errors
    /// When the status cannot be read.
    pub fn nodes(&self) -> anyhow::Result<Vec<(u16, u32)>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("status lists no nodes")?;
        let number = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
        Ok(nodes
            .iter()
            .filter_map(|node| Some((u16::try_from(number(&node["id"])?).ok()?, number(&node["pid"])?)))
            .collect())
    }

    /// The driver's and the postmaster's process.
    ///
    /// # Errors
    /// When the instance does not run.
    pub fn instance_processes(&self) -> anyhow::Result<[u32; 2]> {
        let instance = self.status()?["instances"][0].clone();
        let process = |name: &str| {
            let number = instance[name].as_u64().and_then(|number| u32::try_from(number).ok());
            number.with_context(|| format!("status has no {name}"))
        };
        Ok([process("driver_pid")?, process("postgres_pid")?])
    }

    /// Its processes.
    ///
    /// # Errors
    /// When the instance does not run.
    pub fn parts(&self) -> anyhow::Result<Vec<(Role, u32)>> {
        let [driver, postgres] = self.instance_processes()?;
        let mut parts = vec![("driver", driver), ("postgres", postgres)];
        parts.extend(self.nodes()?.into_iter().map(|(_, process)| ("six nodes", process)));
        Ok(parts)
    }

    /// Counters of the driver, and of the nodes all together (`nodes_…`).
    ///
    /// # Errors
    /// When the status cannot be read.
    pub fn counters(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let status = self.status()?;
        let mut counters = BTreeMap::new();
        let driver = status["instances"][0]["driver"]["counters"].as_object().into_iter().flatten();
        for (name, value) in driver {
            counters.insert(format!("driver_{name}"), value.as_f64().unwrap_or(0.0));
        }
        for node in status["nodes"].as_array().into_iter().flatten() {
            for (name, value) in node["metrics"].as_object().into_iter().flatten() {
                *counters.entry(format!("nodes_{name}")).or_insert(0.0) += value.as_f64().unwrap_or(0.0);
            }
        }
        Ok(counters)
    }

    /// The newest point of its backup that can be restored, if there is one yet.
    ///
    /// # Errors
    /// When what is said of it makes no sense.
    pub fn newest_restorable(&self) -> anyhow::Result<Option<Lsn>> {
        // It fails as long as there is none.
        let Ok(said) = self.command(&["backup", "status", "--json"]) else { return Ok(None) };
        let said: Value = serde_json::from_str(&said).context("the backup's status is not JSON")?;
        let Some(text) = said["newest_lsn"].as_str() else { return Ok(None) };
        let newest = text.parse().with_context(|| format!("`{text}` is no LSN"))?;
        Ok(Some(newest))
    }

    /// Stops it in order and starts it with other memory.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub fn restart_with(&mut self, memory: Memory) -> anyhow::Result<()> {
        self.command(&["down"])?;
        let limit = if memory == Memory::StorageOnly { "0" } else { "auto" };
        let buffers = format!("shared_buffers={}", memory.shared_buffers());
        self.command(&["up", "--detach", "--pg-set", &buffers, "--cache-limit", limit])?;
        Ok(())
    }

    /// Lets every node write the pages of all redo it has, as a checkpoint does for PostgreSQL: nodes do it in their own
    /// time, which would be that of the next system measured. Restarts everything.
    ///
    /// # Errors
    /// When something does not stop, fold or start.
    pub fn fold(&self) -> anyhow::Result<()> {
        let nodes = self.nodes()?;
        self.command(&["down"])?;
        std::thread::scope(|scope| {
            let fold = |node: u16| -> anyhow::Result<()> {
                Store::open(&self.store_folder(node), Options::default())?.materialize(Policy::Now)?;
                Ok(())
            };
            let folding: Vec<_> = nodes.iter().map(|&(node, _)| scope.spawn(move || fold(node))).collect();
            folding.into_iter().try_for_each(|folding| {
                folding.join().unwrap_or_else(|_| bail!("the thread that folds a node's redo panicked"))
            })
        })?;
        self.command(&["up", "--detach"])?;
        Ok(())
    }

    /// Waits until every node has everything of every group.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_until_whole(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let status = self.status()?;
            let groups = status["protection_groups"].as_array().context("status lists no groups")?;
            let mut members =
                groups.iter().flat_map(|group| group["members"].as_array().into_iter().flatten());
            if members.all(|member| member["state"] == "up") {
                return Ok(());
            }
            if begin.elapsed() > CATCH_UP_TIMEOUT {
                bail!("the nodes did not catch up within {CATCH_UP_TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Borealis {
    fn drop(&mut self) {
        // A stopped node would never answer the wish to end.
        let nodes = self.nodes().unwrap_or_default();
        for (_, process) in &nodes {
            cleanup::signal(*process, Signal::SIGCONT);
        }
        // Nobody needs the data again, so nothing need end in order; `down` removes what is left.
        let killed = self.command(&["instance", "kill"]);
        let nodes: Vec<String> = nodes.iter().map(|(node, _)| node.to_string()).collect();
        let kill: Vec<&str> = ["node", "kill"].into_iter().chain(nodes.iter().map(String::as_str)).collect();
        let killed =
            killed.and_then(|_| if kill.len() > 2 { self.command(&kill) } else { Ok(String::new()) });
        // In any case: it stops what could not be killed.
        let stopped = self.command(&["down"]);
        if let Err(error) = stopped.and(killed) {
            eprintln!("the cluster in {} could not be stopped: {error:#}", self.directory.display());
            return;
        }
        cleanup::remove(&self.cleanup);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
