//! A running node: its store, its threads, and how they start and stop.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use borealis_spec::NodeConfig;
use borealis_store::{Identity, Options, Store};
use borealis_wire::NodeStatus;

use crate::catch_up::{CatchUp, Known, Puller};
use crate::connections::{AppendPath, Host, Listener, Requests};
use crate::line_throttle::LineThrottle;
use crate::materializer::Materializer;
use crate::metrics::Metrics;
use crate::open_connections::OpenConnections;
use crate::refusals::Refusals;

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

/// The parts of a node that others are made of.
#[derive(Debug)]
struct Parts {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    refusals: Arc<Refusals>,
    connections: Arc<OpenConnections>,
    known: Arc<Known>,
    materializer: Arc<Materializer>,
}

impl Parts {
    fn new(config: &NodeConfig, store: Store) -> Parts {
        let (store, metrics, refusals) = (Arc::new(store), Arc::default(), Arc::default());
        Parts {
            materializer: Arc::new(Materializer::new(
                Arc::clone(&store),
                Arc::clone(&metrics),
                Arc::clone(&refusals),
            )),
            store,
            metrics,
            refusals,
            connections: Arc::default(),
            known: Arc::new(Known::new(config)),
        }
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
        }
    }

    fn listener(&self, config: &NodeConfig, requests: &Arc<Requests>) -> Listener {
        Listener {
            host: Host {
                volume: config.volume,
                node: config.node,
                store: Arc::clone(&self.store),
                refusals: Arc::clone(&self.refusals),
            },
            requests: Arc::clone(requests),
            append_path: AppendPath {
                store: Arc::clone(&self.store),
                metrics: Arc::clone(&self.metrics),
                refusals: Arc::clone(&self.refusals),
                known: Arc::clone(&self.known),
                materializer: Arc::clone(&self.materializer),
            },
            connections: Arc::clone(&self.connections),
            metrics: Arc::clone(&self.metrics),
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
            puller: Puller {
                store: Arc::clone(&self.store),
                metrics: Arc::clone(&self.metrics),
                known: Arc::clone(&self.known),
                connections: Arc::clone(&self.connections),
                materializer: Arc::clone(&self.materializer),
                collected_lines: LineThrottle::default(),
            },
        }
    }
}

/// A node that runs in this process.
#[derive(Debug)]
pub struct Node {
    parts: Parts,
    requests: Arc<Requests>,
    address: SocketAddr,
    /// Dropped to stop accepting: the other end is polled beside the listener.
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
        let parts = Parts::new(&config, open_store(&config)?);
        let (socket, address) = listen(&config)?;
        let (stop_accepting, stop) = UnixStream::pair().context("cannot make a socket pair")?;
        let requests = Arc::new(parts.requests(&config));
        let listener = Arc::new(parts.listener(&config, &requests));
        let catch_up = Arc::new(parts.catch_up(&config));
        let materializer = Arc::clone(&parts.materializer);
        let mut node = Node {
            parts,
            requests,
            address,
            stop_accepting: Some(stop_accepting),
            accept_thread: None,
            threads: Vec::new(),
        };
        // From here on dropping the node stops whatever was started.
        node.threads.push(spawn("materializer".to_owned(), move || materializer.run_until_stopped())?);
        let store = Arc::clone(&node.parts.store);
        node.threads.push(spawn("log-preparer".to_owned(), move || store.prepare_log_files())?);
        for peer in config.peers {
            let catch_up = Arc::clone(&catch_up);
            let name = format!("gossip-{}", peer.node);
            node.threads.push(spawn(name, move || catch_up.run_until_stopped(&peer))?);
        }
        let accept = move || listener.accept_until(&socket, &stop);
        node.accept_thread = Some(spawn("accept".to_owned(), accept)?);
        tracing::info!(node = %config.node, zone = %config.zone.0, %address, "storage node serves");
        Ok(node)
    }

    /// Where it listens; differs from the configuration if that said port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its state, as [`borealis_wire::Request::Status`] returns it.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.requests.status()
    }

    /// Stops serving and releases the store, after what is under way. Redo that is not materialized is left so: the
    /// next opening indexes it again in less time.
    pub fn stop(self) {
        drop(self);
    }

    fn stop_threads(&mut self) {
        drop(self.stop_accepting.take());
        if let Some(thread) = self.accept_thread.take() {
            let _ = thread.join();
        }
        self.parts.known.stop();
        self.parts.store.end_materialization();
        self.parts.materializer.stop();
        self.parts.connections.close_all();
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

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(body).context("cannot start a thread")
}

fn listen(config: &NodeConfig) -> anyhow::Result<(TcpListener, SocketAddr)> {
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
    Ok((listener, address))
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
