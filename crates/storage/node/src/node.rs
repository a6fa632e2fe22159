//! A running node: its store, its threads, and how they start and stop.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use borealis_client::Credentials;
use borealis_metrics::server::MetricsServer;
use borealis_spec::{Endpoint, NodeConfig, Role};
use borealis_store::{Identity, Options, SegmentSource, Store};
use borealis_types::GroupId;
use borealis_wire::NodeStatus;

use crate::backup::Backup;
use crate::catch_up::{CatchUp, Keeper, Known, Mender, Puller, Refiller, Refills};
use crate::connections::{Acceptor, AppendPath, FrameMemory, Host, LargeAnswers, Listener, Requests};
use crate::descriptors;
use crate::exposition::exposition;
use crate::housekeeping::Housekeeping;
use crate::line_throttle::LineThrottle;
use crate::materializer::Materializer;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::open_connections::OpenConnections;
use crate::refusals::Refusals;
use crate::scrubber::Scrubber;
use crate::standing::Standing;

fn identity_of(config: &NodeConfig) -> Identity {
    Identity {
        volume: config.volume,
        node: config.node,
        zone: config.zone.clone(),
        version: config.postgres_version,
        placement: config.placement,
        groups: config.own_groups(),
        incarnation: config.incarnation,
    }
}

fn options_of(config: &NodeConfig, open_files_max: usize) -> Options {
    Options {
        memory_limit_bytes: config.memory_limit_bytes,
        log_retention_bytes: config.log_retention_bytes,
        open_files_max,
        free_space_min_bytes: config.free_space_min_bytes,
        ..Options::default()
    }
}

/// Makes a new node's empty store, beside its configuration file. Done once in a node's life.
///
/// # Errors
/// When the configuration contradicts itself, the folder has a store already, or cannot be written.
pub fn create(config: &NodeConfig) -> anyhow::Result<()> {
    config.validate().context("the node's configuration is wrong")?;
    std::fs::create_dir_all(&config.directory)
        .with_context(|| format!("cannot make the node's folder {}", config.directory.display()))?;
    let directory = config.store_directory();
    let options = options_of(config, Options::default().open_files_max);
    Store::create(&directory, identity_of(config), options).with_context(|| {
        format!("cannot make the store of node {} in {}", config.node, directory.display())
    })?;
    Ok(())
}

/// Makes a node's store of segments that other stores have, beside its configuration file. Its groups are those that the
/// sources name: the configuration says only which it had when the volume was made.
///
/// # Errors
/// As [`create`], and when the sources are in use or not of the same volume, or have not the groups that are asked of them.
pub fn gather(config: &NodeConfig, sources: &[SegmentSource]) -> anyhow::Result<()> {
    config.validate().context("the node's configuration is wrong")?;
    let directory = config.store_directory();
    let mut groups: Vec<GroupId> = sources.iter().flat_map(|source| &source.groups).copied().collect();
    groups.sort_unstable();
    groups.dedup();
    let identity = Identity { groups, ..identity_of(config) };
    let options = options_of(config, Options::default().open_files_max);
    Store::gather(sources, &directory, identity, &options)
        .with_context(|| format!("cannot make the store {} of other nodes' segments", directory.display()))
}

/// The parts of a node that others are made of.
#[derive(Debug)]
struct Parts {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    connections: Arc<OpenConnections>,
    known: Arc<Known>,
    members: Arc<Members>,
    refills: Arc<Refills>,
    materializer: Arc<Materializer>,
    standing: Arc<Standing>,
    housekeeping: Arc<Housekeeping>,
    scrubber: Arc<Scrubber>,
    backup: Option<Arc<Backup>>,
    credentials: Option<Arc<Credentials>>,
}

impl Parts {
    fn new(
        config: &NodeConfig,
        store: Store,
        credentials: Option<Arc<Credentials>>,
    ) -> anyhow::Result<Parts> {
        let (store, metrics, refusals) = (Arc::new(store), Arc::default(), Arc::default());
        let known = Arc::new(Known::new(config.node, config.placement));
        let standing = Arc::new(Standing::new(Arc::clone(&store)));
        let members = Members::new(
            config,
            Arc::clone(&store),
            Arc::clone(&known),
            Arc::clone(&standing),
            Arc::clone(&metrics),
        )?;
        let members = Arc::new(members);
        Ok(Parts {
            backup: Backup::of(config, &store, &known, &members)?,
            materializer: Arc::new(Materializer::new(
                Arc::clone(&store),
                Arc::clone(&metrics),
                Arc::clone(&refusals),
            )),
            housekeeping: Arc::new(Housekeeping::new(Arc::clone(&store))),
            scrubber: Arc::new(Scrubber::new(&store, Duration::from_secs(config.scrub_period_seconds))),
            store,
            metrics,
            refusals,
            connections: Arc::default(),
            known,
            members,
            standing,
            refills: Arc::default(),
            credentials,
        })
    }

    fn requests(&self, config: &NodeConfig) -> Requests {
        Requests {
            node: config.node,
            zone: config.zone.clone(),
            store: Arc::clone(&self.store),
            metrics: Arc::clone(&self.metrics),
            refusals: Arc::clone(&self.refusals),
            connections: Arc::clone(&self.connections),
            known: Arc::clone(&self.known),
            members: Arc::clone(&self.members),
            refills: Arc::clone(&self.refills),
            large_answers: LargeAnswers::default(),
            standing: Arc::clone(&self.standing),
            backup: self.backup.clone(),
            credentials: self.credentials.clone(),
        }
    }

    fn listener(&self, config: &NodeConfig, requests: &Arc<Requests>) -> Listener {
        Listener {
            host: Host {
                volume: config.volume,
                node: config.node,
                members: Arc::clone(&self.members),
                store: Arc::clone(&self.store),
                refusals: Arc::clone(&self.refusals),
                mistaken_lines: LineThrottle::default(),
                standing: Arc::clone(&self.standing),
            },
            requests: Arc::clone(requests),
            append_path: AppendPath {
                store: Arc::clone(&self.store),
                metrics: Arc::clone(&self.metrics),
                refusals: Arc::clone(&self.refusals),
                known: Arc::clone(&self.known),
                members: Arc::clone(&self.members),
                materializer: Arc::clone(&self.materializer),
            },
            connections: Arc::clone(&self.connections),
            metrics: Arc::clone(&self.metrics),
            frame_memory: FrameMemory::default(),
            strangers_lines: LineThrottle::default(),
            garbage_lines: LineThrottle::default(),
            refused_lines: LineThrottle::default(),
        }
    }

    fn catch_up(&self, config: &NodeConfig) -> CatchUp {
        CatchUp {
            volume: config.volume,
            node: config.node,
            store: Arc::clone(&self.store),
            metrics: Arc::clone(&self.metrics),
            known: Arc::clone(&self.known),
            members: Arc::clone(&self.members),
            standing: Arc::clone(&self.standing),
            credentials: self.credentials.clone(),
            puller: self.puller(),
        }
    }

    fn puller(&self) -> Puller {
        Puller {
            store: Arc::clone(&self.store),
            metrics: Arc::clone(&self.metrics),
            known: Arc::clone(&self.known),
            connections: Arc::clone(&self.connections),
            materializer: Arc::clone(&self.materializer),
        }
    }
}

/// A node that runs in this process.
#[derive(Debug)]
pub struct Node {
    parts: Parts,
    requests: Arc<Requests>,
    address: Endpoint,
    /// Dropped to stop accepting: the other end is polled beside the listener.
    stop_accepting: Option<UnixStream>,
    accept_thread: Option<JoinHandle<()>>,
    metrics_server: Option<MetricsServer>,
    threads: Vec<JoinHandle<()>>,
    /// Not among the others: it may hang in a request to somebody else's store.
    backup_threads: Vec<JoinHandle<()>>,
}

impl Node {
    /// Opens the store and starts serving.
    ///
    /// # Errors
    /// When the folder has no store, the store is another node's, another volume's or in use, or the address
    /// is taken.
    pub fn start(config: NodeConfig) -> anyhow::Result<Node> {
        config.validate().context("the node's configuration is wrong")?;
        // The store first: a folder in use is the better message when the node runs already.
        let store = open_store(&config)?;
        let parts = Parts::new(&config, store, credentials_of(&config)?)?;
        let socket = listen(&config, parts.credentials.as_ref())?;
        let address = config.listen.clone();
        let (stop_accepting, stop) = UnixStream::pair().context("cannot make a socket pair")?;
        let requests = Arc::new(parts.requests(&config));
        let listener = Arc::new(parts.listener(&config, &requests));
        let catch_up = Arc::new(parts.catch_up(&config));
        let materializer = Arc::clone(&parts.materializer);
        let mut node = Node {
            parts,
            requests,
            address: address.clone(),
            stop_accepting: Some(stop_accepting),
            accept_thread: None,
            metrics_server: None,
            threads: Vec::new(),
            backup_threads: Vec::new(),
        };
        // From here on dropping the node stops whatever was started.
        node.threads.push(spawn("materializer".to_owned(), move || materializer.run_until_stopped())?);
        let housekeeping = Arc::clone(&node.parts.housekeeping);
        node.threads.push(spawn("housekeeping".to_owned(), move || housekeeping.run_until_stopped())?);
        let scrubber = Arc::clone(&node.parts.scrubber);
        node.threads.push(spawn("scrubber".to_owned(), move || scrubber.run_until_stopped())?);
        let credentials = node.parts.credentials.clone();
        let Parts { store, known, members, refills, .. } = &node.parts;
        let mender = Mender::new(&config, store, known, members, credentials.clone());
        node.threads.push(spawn("mender".to_owned(), move || mender.run_until_stopped())?);
        let refiller = Refiller::new(&config, (known, members), refills, node.parts.puller(), credentials);
        node.threads.push(spawn("refiller".to_owned(), move || refiller.run_until_stopped())?);
        let store = Arc::clone(&node.parts.store);
        node.threads.push(spawn("log-preparer".to_owned(), move || store.prepare_log_files())?);
        if let Some(backup) = &node.parts.backup {
            let (uploads, deletes) = (Arc::clone(backup), Arc::clone(backup));
            node.backup_threads.push(spawn("backup".to_owned(), move || uploads.run_until_stopped())?);
            let delete = move || deletes.delete_until_stopped();
            node.backup_threads.push(spawn("backup-retention".to_owned(), delete)?);
        }
        node.metrics_server = node.show_metrics(&config);
        let keeper = Keeper::new(catch_up);
        node.threads.push(spawn("gossip-keeper".to_owned(), move || keeper.run_until_stopped())?);
        let accept = move || listener.accept_until(&socket, &stop);
        node.accept_thread = Some(spawn("accept".to_owned(), accept)?);
        tracing::info!(node = %config.node, zone = %config.zone.0, %address, "storage node serves");
        Ok(node)
    }

    /// Shows metrics where the configuration says. A node that cannot still serves: its promises matter more than who watches.
    fn show_metrics(&self, config: &NodeConfig) -> Option<MetricsServer> {
        let address = config.metrics_listen.as_ref()?;
        let (volume, requests, metrics) =
            (config.volume, Arc::clone(&self.requests), Arc::clone(&self.parts.metrics));
        let text = move || exposition(volume, &requests.status(), &metrics).text();
        match MetricsServer::start(address, text) {
            Ok(server) => {
                tracing::info!(address = %server.address(), "shows its metrics");
                Some(server)
            }
            Err(error) => {
                let file = config.file();
                tracing::warn!(
                    "cannot show metrics on {address}: {error}; change `metrics_listen` in {}",
                    file.display()
                );
                None
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Endpoint {
        &self.address
    }

    /// Its state, as [`borealis_wire::Request::Status`] returns it.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.requests.status()
    }

    /// Fills a segment with pages from its peers, without looking first for log that continues it: it is new and empty. Does
    /// nothing until the segment knows what is durable, or if it lacks nothing.
    pub fn refill(&self, group: GroupId) {
        self.parts.known.request_refill(group);
    }

    /// Stops serving and releases the store, after what is under way. Redo that is not materialized is left so: the
    /// next opening indexes it again in less time.
    pub fn stop(self) {
        drop(self);
    }

    fn stop_threads(&mut self) {
        drop(self.stop_accepting.take());
        drop(self.metrics_server.take());
        if let Some(thread) = self.accept_thread.take() {
            let _ = thread.join();
        }
        if let Some(backup) = &self.parts.backup {
            backup.stop();
        }
        self.parts.known.stop();
        self.parts.members.wake();
        self.parts.store.end_materialization();
        self.parts.materializer.stop();
        self.parts.housekeeping.stop();
        self.parts.scrubber.stop();
        self.parts.connections.close_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if self.backup_threads.is_empty() {
            return;
        }
        if self.parts.backup.as_ref().is_none_or(|backup| backup.wait_for_end()) {
            for thread in self.backup_threads.drain(..) {
                let _ = thread.join();
            }
        } else {
            tracing::warn!("a request to the backup's store hangs; the node does not wait for it");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(body).context("cannot start a thread")
}

/// The node's certificate, which has to be that of this very node.
fn credentials_of(config: &NodeConfig) -> anyhow::Result<Option<Arc<Credentials>>> {
    let Some(files) = &config.tls else { return Ok(None) };
    let credentials = Credentials::load_for(files.below(&config.directory), Role::Node(config.node))
        .with_context(|| {
            format!("node {} cannot speak TLS; see `tls` in {}", config.node, config.file().display())
        })?;
    Ok(Some(credentials))
}

fn listen(config: &NodeConfig, credentials: Option<&Arc<Credentials>>) -> anyhow::Result<Acceptor> {
    Acceptor::listen(&config.listen, credentials).with_context(|| {
        let wanted = match config.listen {
            Endpoint::Unix(_) => "see to it that it may write that folder",
            Endpoint::Tls { .. } => "see to it that the address is this host's and the port is free",
        };
        format!(
            "node {} cannot listen on {}; {wanted}, or change `listen` in {}",
            config.node,
            config.listen,
            config.file().display()
        )
    })
}

fn open_store(config: &NodeConfig) -> anyhow::Result<Store> {
    let directory = config.store_directory();
    let options = options_of(config, descriptors::raise_limit()?);
    let store = Store::open(&directory, options)
        .with_context(|| format!("node {} cannot open its store {}", config.node, directory.display()))?;
    let found = store.identity();
    // Segments may have come and left since the store was made.
    let expected = Identity { groups: found.groups.clone(), ..identity_of(config) };
    anyhow::ensure!(
        *found == expected,
        "the store {} belongs to node {} of volume {} (incarnation {:032x}), the configuration names node {} of \
         volume {} (incarnation {:032x}); give the node its own folder back, or replace it (`borealis node replace`)",
        directory.display(),
        found.node,
        found.volume,
        found.incarnation,
        expected.node,
        expected.volume,
        expected.incarnation,
    );
    Ok(store)
}
