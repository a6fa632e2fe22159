//! A running node: its store, its threads, and how they start and stop.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use borealis_spec::NodeConfig;
use borealis_store::{Identity, Options, Store, StoreError};
use borealis_wire::{NodeStatus, Refusal};

use crate::background::{Background, materialize_until_stopped};
use crate::connections::{Connections, accept_until};
use crate::gossip::{Gossip, gossip_until_stopped};
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use crate::requests;

/// What all threads of a node share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) connections: Connections,
    pub(crate) gossip: Gossip,
    pub(crate) background: Background,
    pub(crate) garbage_log: LogLimit,
    pub(crate) refused_log: LogLimit,
    failure_log: LogLimit,
}

impl Shared {
    /// What to tell a caller about an error of the store. The store's own failures are logged, too.
    pub(crate) fn refusal(&self, error: &StoreError) -> Refusal {
        let refusal = error.to_refusal();
        if matches!(refusal, Refusal::Failed(_))
            && let Some(suppressed) = self.failure_log.admit()
        {
            tracing::error!(%error, suppressed, "the store failed");
        }
        refusal
    }
}

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

fn options_of(config: &NodeConfig) -> Options {
    Options {
        memory_limit_bytes: config.memory_limit_bytes,
        log_retention_bytes: config.log_retention_bytes,
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
    Store::create(&directory, identity_of(config), options_of(config)).with_context(|| {
        format!("cannot make the store of node {} in {}", config.node, directory.display())
    })?;
    Ok(())
}

/// A node that runs in this process.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Closed to stop accepting.
    stop_accepting: Option<UnixStream>,
    accept_thread: Option<JoinHandle<()>>,
    threads: Vec<JoinHandle<()>>,
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
        let listener = TcpListener::bind(config.listen).with_context(|| {
            format!(
                "node {} cannot listen on {}; stop whatever uses that port, or change `listen` in {}",
                config.node,
                config.listen,
                config.file().display()
            )
        })?;
        let address = listener.local_addr().context("a bound listener has an address")?;
        listener.set_nonblocking(true).context("cannot make the listener non-blocking")?;
        let shared = Arc::new(Shared {
            gossip: Gossip::new(&config),
            config,
            store,
            metrics: Metrics::default(),
            connections: Connections::default(),
            background: Background::default(),
            garbage_log: LogLimit::default(),
            refused_log: LogLimit::default(),
            failure_log: LogLimit::default(),
        });
        let (stop_accepting, stop) = UnixStream::pair().context("cannot make a socket pair")?;
        let mut node = Node {
            shared: Arc::clone(&shared),
            address,
            stop_accepting: Some(stop_accepting),
            accept_thread: None,
            threads: Vec::new(),
        };
        // From here on dropping the node stops whatever was started.
        node.spawn("materializer".to_owned(), materialize_until_stopped)?;
        for peer in shared.config.peers.clone() {
            node.spawn(format!("gossip-{}", peer.node), move |shared| gossip_until_stopped(shared, &peer))?;
        }
        let accepting = Arc::clone(&shared);
        let accept_thread = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept_until(&accepting, &listener, &stop))
            .context("cannot start a thread")?;
        node.accept_thread = Some(accept_thread);
        let (node_id, zone) = (shared.config.node, &shared.config.zone.0);
        tracing::info!(node = %node_id, %zone, %address, "storage node serves");
        Ok(node)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce(&Shared) + Send + 'static) -> anyhow::Result<()> {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name(name).spawn(move || body(&shared));
        self.threads.push(spawned.context("cannot start a thread")?);
        Ok(())
    }

    /// Where it listens; differs from the configuration if that said port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its state, as [`borealis_wire::Request::Status`] returns it.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        requests::status(&self.shared)
    }

    /// Stops serving and releases the store, after what is under way. Redo that is not folded into pages is not
    /// folded now: the next opening indexes it again in less time.
    pub fn stop(self) {
        drop(self);
    }

    fn stop_threads(&mut self) {
        drop(self.stop_accepting.take());
        if let Some(thread) = self.accept_thread.take() {
            let _ = thread.join();
        }
        self.shared.gossip.stop();
        self.shared.store.end_materialization();
        self.shared.background.stop();
        self.shared.connections.close_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

fn open_store(config: &NodeConfig) -> anyhow::Result<Store> {
    let directory = config.store_directory();
    let store = Store::open(&directory, options_of(config))
        .with_context(|| format!("node {} cannot open its store {}", config.node, directory.display()))?;
    let expected = identity_of(config);
    let found = store.identity();
    anyhow::ensure!(
        *found == expected,
        "the store {} belongs to node {} of volume {} (incarnation {:032x}), the configuration names node {} of \
         volume {} (incarnation {:032x}); give the node its own folder back, or rebuild it",
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
