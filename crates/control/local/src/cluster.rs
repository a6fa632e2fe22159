//! Operations on a local cluster: make it, start and stop its parts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_client::verify::Target;
use borealis_client::{NodeClient, Timeouts};
use borealis_driver::shim_library::ShimLibrary;
use borealis_instance::{Binaries, OperatingSystemUser, Settings, leftovers, memory_directory};
use borealis_spec::{DriverConfig, Membership, NodeAddress, NodeConfig, Tuning};
use borealis_types::{AvailabilityZone, InstanceId, NodeId, Placement, SEGMENTS_PER_GROUP, VolumeId};
use nix::sys::signal::Signal;

use crate::catalog::{Catalog, InstanceEntry, NodeEntry};
use crate::process::{self, ProcessIdentity};
use crate::whole_file::write_whole;
use crate::{ports, probe, status};

/// Zones of a local cluster, with two nodes in each.
const ZONES: [&str; 3] = ["az1", "az2", "az3"];
/// The writer instance.
pub const WRITER: InstanceId = InstanceId(1);
/// Longest wait for a node to answer; a node that has much log to read needs a while.
const NODE_START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for the first answered query.
const INSTANCE_START_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for a clean end before a process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How a new cluster is made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// How many protection groups.
    pub protection_groups: Placement,
    /// TCP port of the writer.
    pub port: u16,
    /// Folder of PostgreSQL's programs, if not where distributions put it.
    pub postgres_bin_dir: Option<PathBuf>,
    /// System user of the server when started by root.
    pub postgres_user: Option<String>,
    /// A memory file system's folder.
    pub memory_root: PathBuf,
    /// How much memory cached pages should take at most; `None` for a share of what is free.
    pub cache_limit_bytes: Option<u64>,
    /// PostgreSQL settings.
    pub settings: BTreeMap<String, String>,
}

/// A cluster's directory and its catalog.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// What it consists of.
    pub catalog: Catalog,
}

impl Cluster {
    /// Makes a new cluster in `directory`, which must be empty or not exist: six nodes, one writer.
    ///
    /// # Errors
    /// When the directory cannot be used, PostgreSQL is missing or a setting is refused. Nothing is left then.
    pub fn create(directory: &Path, options: &CreateOptions) -> anyhow::Result<Cluster> {
        let binaries = Binaries::find(options.postgres_bin_dir.as_deref())?;
        OperatingSystemUser::choose(options.postgres_user.as_deref())?;
        Settings::check(options.settings.clone())?;
        let memory_root = options
            .memory_root
            .canonicalize()
            .with_context(|| format!("cannot use {} for --memory-dir", options.memory_root.display()))?;
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let directory = directory.canonicalize().context("cannot resolve the cluster's directory")?;
        // An earlier creation that was interrupted left nodes that never belonged to a cluster.
        match fs::remove_dir_all(directory.join("nodes")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("cannot remove what an interrupted creation left");
            }
            _ => {}
        }
        let volume = VolumeId(random_number()?);
        let mut catalog = Catalog::new(volume, options.protection_groups, binaries.server_version.major());
        for (index, address) in ports::free_addresses(SEGMENTS_PER_GROUP)?.into_iter().enumerate() {
            catalog.nodes.push(NodeEntry {
                id: NodeId(index as u16 + 1),
                zone: AvailabilityZone(ZONES[index / 2].to_owned()),
                address,
                incarnation: format!("{:032x}", random_number()?),
            });
        }
        catalog.instances.push(InstanceEntry {
            id: WRITER,
            port: options.port,
            postgres_bin_dir: binaries.folder,
            postgres_user: options.postgres_user.clone(),
            memory_root,
            cache_limit_bytes: options.cache_limit_bytes,
            settings: options.settings.clone(),
        });
        let cluster = Cluster { directory, catalog };
        for node in &cluster.catalog.nodes {
            let config = cluster.node_config(node)?;
            fs::create_dir_all(&config.directory)
                .with_context(|| format!("cannot create {}", config.directory.display()))?;
            let config_file = save_node_config(&config)?;
            process::run_to_end(&["internal", "create-node"], &config_file)
                .with_context(|| format!("cannot create node {}", node.id))?;
        }
        // The catalog comes last: a creation that was interrupted left nothing that looks like a cluster.
        cluster.catalog.save(&cluster.directory)?;
        Ok(cluster)
    }

    /// Opens the cluster in `directory`.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn open(directory: &Path) -> anyhow::Result<Cluster> {
        let catalog = Catalog::load(directory)?;
        let directory = directory.canonicalize().context("cannot resolve the cluster's directory")?;
        Ok(Cluster { directory, catalog })
    }

    /// The cluster's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A node's folder.
    #[must_use]
    pub fn node_directory(&self, node: NodeId) -> PathBuf {
        self.directory.join("nodes").join(node.to_string())
    }

    /// An instance's folder.
    #[must_use]
    pub fn instance_directory(&self, instance: InstanceId) -> PathBuf {
        self.directory.join("instances").join(instance.to_string())
    }

    /// Where an instance's data directory and WAL live, on the memory file system.
    #[must_use]
    pub fn memory_directory(&self, instance: &InstanceEntry) -> PathBuf {
        // A copy of a cluster has the same volume, but another place.
        let mut name = self.catalog.volume.clone().into_bytes();
        name.extend_from_slice(self.directory.as_os_str().as_encoded_bytes());
        instance.memory_root.join(format!("borealis-{:08x}-{}", crc32c::crc32c(&name), instance.id))
    }

    /// A node's entry.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&self, id: NodeId) -> anyhow::Result<&NodeEntry> {
        self.catalog.nodes.iter().find(|node| node.id == id).with_context(|| {
            let known: Vec<String> = self.catalog.nodes.iter().map(|node| node.id.to_string()).collect();
            format!("there is no node {id}; the cluster has {}", known.join(", "))
        })
    }

    /// The nodes of a zone.
    ///
    /// # Errors
    /// When there is no such zone.
    pub fn nodes_in_zone(&self, zone: &str) -> anyhow::Result<Vec<NodeId>> {
        let nodes: Vec<NodeId> =
            self.catalog.nodes.iter().filter(|node| node.zone.0 == zone).map(|node| node.id).collect();
        if nodes.is_empty() {
            bail!("there is no availability zone `{zone}`; the cluster has {}", ZONES.join(", "));
        }
        Ok(nodes)
    }

    /// An instance's entry.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn instance(&self, id: InstanceId) -> anyhow::Result<&InstanceEntry> {
        self.catalog
            .instances
            .iter()
            .find(|instance| instance.id == id)
            .with_context(|| format!("there is no instance {id}; the cluster has instance {WRITER}"))
    }

    /// The URL of an instance's database.
    #[must_use]
    pub fn url(instance: &InstanceEntry) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", instance.port)
    }

    /// The process of a node, if it runs.
    #[must_use]
    pub fn node_process(&self, node: NodeId) -> Option<ProcessIdentity> {
        process::read_process_file(&self.node_directory(node).join("process"))
    }

    /// The process of an instance's driver, if it runs.
    #[must_use]
    pub fn driver_process(&self, instance: InstanceId) -> Option<ProcessIdentity> {
        process::read_process_file(&self.instance_directory(instance).join("process"))
    }

    /// Whether any process of the cluster runs.
    #[must_use]
    pub fn anything_runs(&self) -> bool {
        self.catalog.nodes.iter().any(|node| self.node_process(node.id).is_some())
            || self.catalog.instances.iter().any(|instance| self.driver_process(instance.id).is_some())
    }

    /// Chooses new addresses for the nodes if another program has taken one of theirs. Only for a cluster
    /// that is stopped.
    ///
    /// # Errors
    /// When no port is free or the catalog cannot be written.
    pub fn renew_taken_addresses(&mut self) -> anyhow::Result<()> {
        if self.catalog.nodes.iter().all(|node| ports::is_free(node.address.port())) {
            return Ok(());
        }
        let addresses = ports::free_addresses(self.catalog.nodes.len())?;
        for (node, address) in self.catalog.nodes.iter_mut().zip(addresses) {
            node.address = address;
        }
        self.catalog.save(&self.directory)?;
        Ok(())
    }

    fn node_config(&self, node: &NodeEntry) -> anyhow::Result<NodeConfig> {
        let incarnation =
            u128::from_str_radix(&node.incarnation, 16).context("the catalog has a malformed incarnation")?;
        let mut config = NodeConfig::new(
            self.node_directory(node.id),
            self.catalog.volume_id(),
            node.id,
            node.zone.clone(),
            incarnation,
            node.address,
            self.catalog.protection_groups,
        );
        config.detached = true;
        config.peers = self.node_addresses().filter(|peer| peer.node != node.id).collect();
        config.groups = self.membership();
        Ok(config)
    }

    /// Who has which group: in a cluster of six nodes, everyone has everything.
    fn membership(&self) -> Membership {
        let nodes: Vec<NodeId> = self.catalog.nodes.iter().map(|node| node.id).collect();
        Membership::everyone_has_everything(self.catalog.protection_groups, &nodes)
    }

    fn node_addresses(&self) -> impl Iterator<Item = NodeAddress> {
        let nodes = self.catalog.nodes.iter();
        nodes.map(|node| NodeAddress { node: node.id, zone: node.zone.clone(), address: node.address })
    }

    /// What a verification of the whole volume has to look at.
    #[must_use]
    pub fn verification_target(&self) -> Target {
        Target {
            volume: self.catalog.volume_id(),
            nodes: self.catalog.nodes.iter().map(|node| (node.id, node.address)).collect(),
            groups: self.membership(),
            placement: self.catalog.protection_groups,
            lsn: None,
            timeouts: Timeouts::default(),
        }
    }

    /// Starts nodes and waits until each answers.
    ///
    /// # Errors
    /// When one of them is not of this cluster any more, or ends or does not answer; the end of its log is
    /// part of the message.
    pub fn start_nodes(&self, nodes: &[NodeId]) -> anyhow::Result<()> {
        let mut started = Vec::new();
        for &id in nodes {
            let node = self.node(id)?;
            if self.node_process(id).is_some() {
                continue;
            }
            let config = self.node_config(node)?;
            if !config.store_directory().is_dir() {
                bail!(
                    "node {id} has lost its data: {} is missing. An empty node must not take the old one's \
                     place; nothing was started in its stead",
                    config.store_directory().display()
                );
            }
            let config_file = save_node_config(&config)?;
            let log = config.directory.join("node.log");
            let identity = process::spawn_detached(&["internal", "node"], &config_file, &log)
                .with_context(|| format!("cannot start node {id}"))?;
            process::write_process_file(&config.directory.join("process"), identity)?;
            started.push((node, identity, log));
        }
        for (node, identity, log) in started {
            self.wait_for_node(node, identity, &log)?;
        }
        Ok(())
    }

    fn wait_for_node(&self, node: &NodeEntry, process: ProcessIdentity, log: &Path) -> anyhow::Result<()> {
        let deadline = Instant::now() + NODE_START_TIMEOUT;
        loop {
            let error = match NodeClient::connect(
                node.address,
                self.catalog.volume_id(),
                node.id,
                borealis_wire::Caller::Client,
                Timeouts::default(),
            ) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if !process.is_alive() {
                bail!("node {} ended while starting; its log ends with:\n{}", node.id, log_tail(log));
            }
            if Instant::now() > deadline {
                bail!("node {} does not answer: {error}; its log ends with:\n{}", node.id, log_tail(log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills nodes, as a power cut would.
    ///
    /// # Errors
    /// When one does not exist or does not end.
    pub fn kill_nodes(&self, nodes: &[NodeId]) -> anyhow::Result<Vec<NodeId>> {
        let mut killed = Vec::new();
        for &id in nodes {
            self.node(id)?;
            if let Some(process) = self.node_process(id) {
                process.signal(Signal::SIGKILL);
                killed.push((id, process));
            }
        }
        for (_, process) in &killed {
            process.kill_and_wait()?;
        }
        Ok(killed.into_iter().map(|(id, _)| id).collect())
    }

    /// Stops every node in order.
    ///
    /// # Errors
    /// When one does not end even when killed.
    pub fn stop_nodes(&self) -> anyhow::Result<()> {
        let running: Vec<ProcessIdentity> =
            self.catalog.nodes.iter().filter_map(|node| self.node_process(node.id)).collect();
        for process in &running {
            process.signal(Signal::SIGTERM);
        }
        for process in running {
            if !process.wait_gone(STOP_TIMEOUT) {
                process.kill_and_wait()?;
            }
        }
        Ok(())
    }

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
        let config_file = config.instance_dir.join("instance.json");
        fs::write(&config_file, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("cannot write {}", config_file.display()))?;
        let log = config.instance_dir.join("driver.log");
        let log_begin = log.metadata().map_or(0, |metadata| metadata.len());
        let identity = process::spawn_detached(&["internal", "driver"], &config_file, &log)
            .context("cannot start the driver")?;
        process::write_process_file(&config.instance_dir.join("process"), identity)?;
        let deadline = begin + INSTANCE_START_TIMEOUT;
        loop {
            let answered = if status::server_runs(&config.instance_dir) {
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

    fn driver_config(&self, instance: &InstanceEntry) -> anyhow::Result<DriverConfig> {
        Ok(DriverConfig {
            volume: self.catalog.volume_id(),
            placement: self.catalog.protection_groups,
            version: self.catalog.postgres_version,
            nodes: self.node_addresses().collect(),
            groups: self.membership(),
            instance: instance.id,
            instance_dir: self.instance_directory(instance.id),
            memory_dir: self.memory_directory(instance),
            postgres_bin_dir: instance.postgres_bin_dir.clone(),
            shim_library: shim_library()?,
            port: instance.port,
            postgres_user: instance.postgres_user.clone(),
            settings: instance.settings.clone(),
            tuning: Tuning { cache_limit_bytes: instance.cache_limit_bytes, ..Tuning::default() },
        })
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

/// Checks what can be checked before a cluster is made, so that a machine it cannot run on is left as it was: that the
/// shim belongs to this program, and that the user, the cluster's directory and the memory folder will do.
///
/// # Errors
/// The first thing that would keep an instance from starting.
pub fn check_machine(directory: &Path, memory_root: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    ShimLibrary::load(&shim_library()?)?;
    user.require_name()?;
    let directory = std::path::absolute(directory).context("cannot find out where this is")?;
    for path in [directory.as_path(), memory_root] {
        if path.to_str().is_none() {
            bail!("the name of {} is not UTF-8; use a folder whose whole path is text", path.display());
        }
    }
    let memory_root = memory_root
        .canonicalize()
        .with_context(|| format!("cannot use {} for --memory-dir", memory_root.display()))?;
    memory_directory::check_root(&memory_root, user, memory_directory::NEEDED_MIB)?;
    Ok(())
}

/// The shim stands beside this program, where the build and an installation put it.
fn shim_library() -> anyhow::Result<PathBuf> {
    const NAME: &str = "libborealis_shim.so";
    let program = process::own_program()?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let candidates =
        [folder.join(NAME), folder.join("../lib").join(NAME), folder.join("../lib/borealis").join(NAME)];
    candidates.iter().find(|path| path.is_file()).cloned().with_context(|| {
        format!(
            "{NAME} is missing beside {}; build everything with `cargo build --release`",
            program.display()
        )
    })
}

/// What the program said when it failed that wrote a log from `begin` on, as the continuation of a sentence; empty if
/// it said nothing.
fn last_word(log: &Path, begin: u64) -> String {
    let written = fs::read(log).unwrap_or_default();
    let own = written.get(usize::try_from(begin).unwrap_or(usize::MAX)..).unwrap_or_default();
    let text = String::from_utf8_lossy(own);
    let word = text.lines().rev().find_map(|line| line.strip_prefix("borealis: "));
    word.map_or_else(String::new, |word| format!(": {word}"))
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = fs::File::open(path) {
        use std::io::{Seek, SeekFrom};
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(4096)));
        let _ = file.take(4096).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(12);
    lines[first..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Writes a node's configuration into the node's folder; returns the file's name.
fn save_node_config(config: &NodeConfig) -> anyhow::Result<PathBuf> {
    let path = config.file();
    let mut text = serde_json::to_vec_pretty(config).context("a node configuration always encodes")?;
    text.push(b'\n');
    write_whole(&path, &text)
        .with_context(|| format!("cannot write node configuration {}", path.display()))?;
    Ok(path)
}

fn random_number() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read random numbers from /dev/urandom")?;
    Ok(u128::from_le_bytes(bytes))
}
