//! A local cluster: where its parts are, how they are configured, and its nodes.

pub(crate) mod certificates;
mod create;
mod folders;
mod instances;
mod members;
mod rebuild;
mod replace;
mod restore;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use borealis_client::verify::Target;
use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_instance::OperatingSystemUser;
use borealis_spec::{
    DriverConfig, Endpoint, Membership, MetricsAddress, NodeAddress, NodeConfig, TlsFiles, Tuning,
};
use borealis_types::{AvailabilityZone, InstanceId, NodeId};
use nix::sys::signal::Signal;

use crate::catalog::{Catalog, CatalogLock, InstanceEntry, NODE_LOG_NAME, NODE_PROCESS_NAME, NodeEntry};
use crate::log::log_tail;
use crate::node_user;
use crate::process::{self, ProcessIdentity};
use crate::supervision::{Ended, Restarts};
use crate::whole_file::write_whole;

use certificates::{OwnCertificate, TLS_NAME};
pub use create::{CreateOptions, check_fleet, check_machine};
pub use members::Left;
pub use rebuild::{InstanceDefaults, rebuild_catalog};
pub use replace::{Replaced, Replacement};
pub use restore::{FromBackup, RestoreOptions};

/// Zones of a local cluster, with two nodes or more in each.
const ZONES: [&str; 3] = ["az1", "az2", "az3"];
/// Where nodes stand that are gone for good.
const GONE_ZONE: &str = "gone";
/// The name of an instance's configuration in its folder.
const INSTANCE_CONFIG_NAME: &str = "instance.json";
/// The name of the file with an instance's process.
const PROCESS_NAME: &str = "process";
/// The one instance of a local cluster, which writes.
pub const WRITER: InstanceId = InstanceId(1);
/// Longest wait for a node to answer; a node that has much log to read needs a while.
const NODE_START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a clean end before a process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster's directory and its catalog.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    /// The nodes and instances it consists of, as `cluster.json` has them.
    pub catalog: Catalog,
    own_certificate: OwnCertificate,
}

impl Cluster {
    fn new(directory: PathBuf, catalog: Catalog) -> Cluster {
        Cluster { directory, catalog, own_certificate: OwnCertificate::default() }
    }

    /// Opens the cluster in `directory`.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn open(directory: &Path) -> anyhow::Result<Cluster> {
        let catalog = Catalog::load(directory)?;
        // A creation that was interrupted after its last step left its mark, which is of no use any more. Whoever only
        // looks may not be able to remove it, and need not.
        let _ = Catalog::end_creation(directory);
        let directory = directory.canonicalize().context("cannot resolve the cluster's directory")?;
        Ok(Cluster::new(directory, catalog))
    }

    /// Opens the cluster in `directory` for a command that changes it, which nobody else does as long as the lock is held.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or another command is changing it.
    pub fn open_locked(directory: &Path) -> anyhow::Result<(Cluster, CatalogLock)> {
        // First, so that no lock is left where there is no cluster.
        Cluster::open(directory)?;
        let lock = Catalog::lock(directory)?;
        // Again: what was read before may have been changed by whoever held the lock.
        Ok((Cluster::open(directory)?, lock))
    }

    /// The folder that has `cluster.json`, `nodes` and `instances`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The folder of a node: its configuration, log file and store.
    #[must_use]
    pub fn node_directory(&self, node: NodeId) -> PathBuf {
        self.directory.join("nodes").join(node.to_string())
    }

    /// The folder of the sockets that the nodes listen on.
    #[must_use]
    pub fn sockets_directory(&self) -> PathBuf {
        self.directory.join("sockets")
    }

    /// Where a node listens: on a socket, whose path follows from where the cluster is, so that one that was moved is found
    /// again; or on its port, over TLS.
    #[must_use]
    pub fn endpoint(&self, node: NodeId) -> Endpoint {
        let entry = self.catalog.nodes.iter().find(|entry| entry.id == node);
        if let Some(port) = entry.and_then(|entry| entry.port) {
            return Endpoint::Tls { host: "127.0.0.1".to_owned(), port };
        }
        Endpoint::Unix(self.sockets_directory().join(node.to_string()))
    }

    /// The folder of an instance: its configuration and log files. It can be deleted at any time.
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
        let name = format!("{}{:08x}-{}", instances::MEMORY_NAME_PREFIX, crc32c::crc32c(&name), instance.id);
        instance.memory_root.join(name)
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
        process::read_process_file(&self.node_process_file(node))
    }

    /// The process of a node that is being stopped, or was when the command that did it was interrupted.
    #[must_use]
    pub fn stopping_node(&self, node: NodeId) -> Option<ProcessIdentity> {
        process::read_stopping(&self.node_process_file(node))
    }

    /// The file with a node's process, which is there as long as it is to run.
    pub(crate) fn node_process_file(&self, node: NodeId) -> PathBuf {
        self.node_directory(node).join(NODE_PROCESS_NAME)
    }

    /// The process number that a node has, or had before it died.
    pub(crate) fn last_node_process(&self, node: NodeId) -> Option<u32> {
        process::recorded_process_id(&self.node_process_file(node))
    }

    /// The process of an instance's driver, if it runs.
    #[must_use]
    pub fn driver_process(&self, instance: InstanceId) -> Option<ProcessIdentity> {
        process::read_process_file(&self.driver_process_file(instance))
    }

    /// The process of the driver of an instance that is being stopped; as [`Cluster::stopping_node`].
    #[must_use]
    pub fn stopping_driver(&self, instance: InstanceId) -> Option<ProcessIdentity> {
        process::read_stopping(&self.driver_process_file(instance))
    }

    /// The file with the process of an instance's driver, which is there as long as it is to run.
    pub(crate) fn driver_process_file(&self, instance: InstanceId) -> PathBuf {
        self.instance_directory(instance).join(PROCESS_NAME)
    }

    /// The process number that an instance's driver has, or had before it died.
    pub(crate) fn last_driver_process(&self, instance: InstanceId) -> Option<u32> {
        process::recorded_process_id(&self.driver_process_file(instance))
    }

    /// Whether any process of the cluster runs, also one that is being stopped.
    #[must_use]
    pub fn anything_runs(&self) -> bool {
        let node_runs = |id| self.node_process(id).or_else(|| self.stopping_node(id)).is_some();
        let driver_runs = |id| self.driver_process(id).or_else(|| self.stopping_driver(id)).is_some();
        self.catalog.nodes.iter().any(|node| node_runs(node.id))
            || self.catalog.instances.iter().any(|instance| driver_runs(instance.id))
    }

    /// Whether any process of the cluster is to run: it does, or has died and was not told to.
    #[must_use]
    pub fn anything_is_wanted(&self) -> bool {
        let nodes = self.catalog.nodes.iter().map(|node| self.node_process_file(node.id));
        let instances = self.catalog.instances.iter().map(|instance| self.driver_process_file(instance.id));
        nodes.chain(instances).any(|file| file.exists())
    }

    /// Whom the nodes run as, if root starts them: the user of the server. `None` if we are not root.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn node_user(&self) -> anyhow::Result<Option<OperatingSystemUser>> {
        let instance = self.instance(WRITER)?;
        let user = OperatingSystemUser::choose(instance.postgres_user.as_deref())?;
        Ok(user.switch.then_some(user))
    }

    /// Closes the folders of the cluster to everyone but their owners, and makes the one for sockets.
    fn close_folders(&self, user: Option<&OperatingSystemUser>) -> anyhow::Result<()> {
        for folder in ["nodes", "instances"] {
            node_user::private_folder(&self.directory.join(folder), None)?;
        }
        node_user::private_folder(&self.sockets_directory(), user)
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
            self.endpoint(node.id),
            self.catalog.protection_groups,
        );
        config.postgres_version = self.catalog.postgres_version;
        config.detached = true;
        config.tls = self.speaks_tls().then(|| TlsFiles::in_folder(Path::new(TLS_NAME)));
        config.groups = self.catalog.groups.clone();
        let addresses = self.node_addresses(&config.groups).into_iter();
        config.peers = addresses.filter(|peer| peer.node != node.id).collect();
        config.backup.clone_from(&self.catalog.backup);
        keep_what_a_person_set(&mut config);
        if self.catalog.metrics_port.is_some() {
            config.metrics_listen = self.metrics_address(node.id.0)?;
        }
        Ok(config)
    }

    /// Where the controller shows its metrics: one port before the instance's; nowhere if that is the database's.
    #[must_use]
    pub fn controller_metrics_address(&self) -> Option<MetricsAddress> {
        let is_free = |port: &u16| *port > 0 && self.catalog.instances.iter().all(|it| it.port != *port);
        let port = self.catalog.metrics_port?.checked_sub(1).filter(is_free)?;
        Some(MetricsAddress::Loopback((Ipv4Addr::LOCALHOST, port).into()))
    }

    /// Where a part shows its metrics: so many ports after the instance's.
    fn metrics_address(&self, after: u16) -> anyhow::Result<Option<MetricsAddress>> {
        let Some(first) = self.catalog.metrics_port.filter(|port| *port > 0) else { return Ok(None) };
        let port = first.checked_add(after).with_context(|| {
            format!("--metrics-port {first}: there is no port {after} higher; choose a lower one")
        })?;
        Ok(Some(MetricsAddress::Loopback((Ipv4Addr::LOCALHOST, port).into())))
    }

    /// Where the nodes are. Whom `groups` names has an address, also when nobody answers there any more.
    fn node_addresses(&self, groups: &Membership) -> Vec<NodeAddress> {
        let there = self.catalog.nodes.iter().map(|node| (node.id, node.zone.clone()));
        let is_named = |node: &&NodeId| groups.iter().any(|members| members.nodes.contains(node));
        let gone = self.catalog.retired_nodes.iter().filter(is_named);
        let gone = gone.map(|&node| (node, AvailabilityZone(GONE_ZONE.to_owned())));
        let address = |(node, zone)| NodeAddress { node, zone, address: self.endpoint(node) };
        there.chain(gone).map(address).collect()
    }

    /// What a verification of the whole volume has to look at.
    #[must_use]
    pub fn verification_target(&self) -> Target {
        Target {
            volume: self.catalog.volume_id(),
            nodes: self.node_addresses(&self.catalog.groups),
            groups: self.catalog.groups.clone(),
            memberships: self.memberships(),
            credentials: self.credentials().ok().flatten(),
            placement: self.catalog.protection_groups,
            lsn: None,
            timeouts: Timeouts::default(),
        }
    }

    /// Starts nodes and waits until each answers. Those that run already are only waited for while they start, as when
    /// the supervisor was faster. Those that are still being stopped end first: they hold their stores.
    ///
    /// # Errors
    /// When one of them is not of this cluster any more, or ends or does not answer; the end of its log is
    /// part of the message.
    pub fn start_nodes(&self, nodes: &[NodeId]) -> anyhow::Result<()> {
        let mut started = Vec::new();
        let mut running = Vec::new();
        self.finish_stopping_nodes(nodes)?;
        for &id in nodes {
            let node = self.node(id)?;
            if let Some(identity) = self.node_process(id) {
                running.push((node, identity));
                continue;
            }
            Restarts::clear(&self.node_directory(id))?;
            started.push((node, self.spawn_node(id)?));
        }
        for (node, identity) in started {
            if let Err(error) = self.wait_for_node(node, identity) {
                if !identity.is_alive() {
                    // Whoever asked for it has the reason, and it is not tried again behind their back.
                    process::remove_process_file(&self.node_process_file(node.id))?;
                }
                return Err(error);
            }
        }
        for (node, identity) in running {
            self.wait_while_starting(node, identity)?;
        }
        Ok(())
    }

    /// Starts a node that does not run, and does not wait for it.
    pub(crate) fn spawn_node(&self, id: NodeId) -> anyhow::Result<ProcessIdentity> {
        let config = self.node_config(self.node(id)?)?;
        if !config.store_directory().is_dir() {
            bail!(
                "node {id} has lost its data: {} is missing. An empty node must not take the old one's place; nothing was \
                 started in its stead. If it is lost for good, `borealis node replace {id}` says how to replace it",
                config.store_directory().display()
            );
        }
        if config.incarnation == 0 {
            bail!(
                "the catalog was made anew while node {id} was not there, and does not know it. Now that it is, \
                 remove {} and run `borealis up` again; nothing was changed",
                self.directory.join("cluster.json").display()
            );
        }
        let user = self.node_user()?;
        self.close_folders(user.as_ref())?;
        node_user::prepare_node_folder(&config.directory, &config.store_directory(), user.as_ref())?;
        self.issue_for_node(id, &config.directory, user.as_ref())?;
        let mut arguments = vec!["internal", "node"];
        if let Some(user) = &user {
            arguments.extend(["--user", &user.name]);
        }
        let config_file = save_node_config(&config)?;
        let log = config.directory.join(NODE_LOG_NAME);
        Ended::clear(&config.directory)?;
        let process_file = self.node_process_file(id);
        process::spawn_detached(&arguments, &config_file, &log, &process_file)
            .with_context(|| format!("cannot start node {id}"))
    }

    fn wait_for_node(&self, node: &NodeEntry, process: ProcessIdentity) -> anyhow::Result<()> {
        self.wait_until(node, process, Result::is_ok)
    }

    /// Waits until a node that somebody else started listens. What else may be wrong with it is not asked.
    fn wait_while_starting(&self, node: &NodeEntry, process: ProcessIdentity) -> anyhow::Result<()> {
        self.wait_until(node, process, |answer| !answer.as_ref().is_err_and(is_not_listening))
    }

    fn wait_until(
        &self,
        node: &NodeEntry,
        process: ProcessIdentity,
        is_enough: impl Fn(&Result<NodeClient, ClientError>) -> bool,
    ) -> anyhow::Result<()> {
        let log = &self.node_directory(node.id).join(NODE_LOG_NAME);
        let deadline = Instant::now() + NODE_START_TIMEOUT;
        loop {
            let answer = self.node_client(node.id, Timeouts::default());
            if is_enough(&answer) {
                return Ok(());
            }
            let error = answer.err().map_or_else(String::new, |error| error.to_string());
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
            self.node_no_longer_wanted(id)?;
            if let Some(process) = self.stopping_node(id) {
                process.signal(Signal::SIGKILL);
                killed.push((id, process));
            }
        }
        for (id, process) in &killed {
            process.kill_and_wait()?;
            process::end_stopping(&self.node_process_file(*id))?;
        }
        Ok(killed.into_iter().map(|(id, _)| id).collect())
    }

    /// Stops nodes in order.
    ///
    /// # Errors
    /// When one does not end even when killed.
    pub fn stop_nodes(&self, nodes: &[NodeId]) -> anyhow::Result<()> {
        for &id in nodes {
            self.node_no_longer_wanted(id)?;
        }
        self.finish_stopping_nodes(nodes)
    }

    /// Before a node is ended: nobody is to start it again, and it stays on record.
    fn node_no_longer_wanted(&self, id: NodeId) -> anyhow::Result<()> {
        process::begin_stopping(&self.node_process_file(id))?;
        Restarts::clear(&self.node_directory(id))?;
        Ok(())
    }

    /// Ends those of the nodes that are being stopped. An earlier command that was to do it may have been interrupted
    /// before it had told them.
    fn finish_stopping_nodes(&self, nodes: &[NodeId]) -> anyhow::Result<()> {
        let running: Vec<ProcessIdentity> = nodes.iter().filter_map(|&id| self.stopping_node(id)).collect();
        for process in &running {
            process.signal(Signal::SIGTERM);
        }
        for process in running {
            if !process.wait_gone(STOP_TIMEOUT) {
                process.kill_and_wait()?;
            }
        }
        for &id in nodes {
            process::end_stopping(&self.node_process_file(id))?;
        }
        Ok(())
    }

    /// Ends whatever is being stopped, the instances before the nodes that their last redo goes to.
    ///
    /// # Errors
    /// When something does not end even when killed.
    pub fn finish_stopping(&self) -> anyhow::Result<()> {
        for instance in &self.catalog.instances {
            self.finish_stopping_instance(instance.id)?;
        }
        let nodes: Vec<NodeId> = self.catalog.nodes.iter().map(|node| node.id).collect();
        self.finish_stopping_nodes(&nodes)
    }

    /// The installed shim.
    ///
    /// # Errors
    /// When it is missing.
    pub fn shim_library(&self) -> anyhow::Result<PathBuf> {
        shim_library()
    }

    fn driver_config(&self, instance: &InstanceEntry) -> anyhow::Result<DriverConfig> {
        Ok(DriverConfig {
            volume: self.catalog.volume_id(),
            placement: self.catalog.protection_groups,
            version: self.catalog.postgres_version,
            nodes: self.node_addresses(&self.catalog.groups),
            groups: self.catalog.groups.clone(),
            memberships: self.memberships(),
            tls: self.speaks_tls().then(|| TlsFiles::in_folder(Path::new(TLS_NAME))),
            instance: instance.id,
            instance_dir: self.instance_directory(instance.id),
            memory_dir: self.memory_directory(instance),
            postgres_bin_dir: instance.postgres_bin_dir.clone(),
            shim_library: shim_library()?,
            port: instance.port,
            postgres_user: instance.postgres_user.clone(),
            settings: instance.settings.clone(),
            metrics_listen: self.metrics_address(0)?,
            tuning: Tuning { cache_limit_bytes: instance.cache_limit_bytes, ..Tuning::default() },
        })
    }
}

/// Whether nobody listens at a node's address: if its process runs, it is still starting.
pub(crate) fn is_not_listening(error: &ClientError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error, ClientError::Connect { source, .. } if matches!(source.kind(), NotFound | ConnectionRefused))
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

/// The values that a person may set in the node's own file stay as they are there.
fn keep_what_a_person_set(config: &mut NodeConfig) {
    let kept = std::fs::read(config.file()).ok();
    let kept = kept.and_then(|text| serde_json::from_slice::<NodeConfig>(&text).ok());
    if let Some(kept) = kept {
        config.free_space_min_bytes = kept.free_space_min_bytes;
        config.log_retention_bytes = kept.log_retention_bytes;
        config.refill_bytes_per_second = kept.refill_bytes_per_second;
        config.scrub_period_seconds = kept.scrub_period_seconds;
        config.backup_snapshot_bytes = kept.backup_snapshot_bytes;
        config.backup_deletion_seconds = kept.backup_deletion_seconds;
        config.metrics_listen = kept.metrics_listen;
    }
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
