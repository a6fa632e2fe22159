//! A volume of six nodes in this process, spare ones beside it, and a writer that is just enough of one.

// Each test file uses its own part of this, and a broken step should stop the test.
#![allow(dead_code, clippy::unwrap_used)]

pub mod members;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::handshake::Introduction;
use borealis_client::{ClientError, Credentials, NodeClient, Route, Timeouts, verify};
use borealis_fleet::{Fleet, Validity};
use borealis_node::Node;
use borealis_spec::{Endpoint, Membership, NodeAddress, NodeConfig, Role, TlsFiles};
use borealis_types::{
    AvailabilityZone, BlockKey, EpochHistory, EpochOpening, Fork, GroupId, InstanceId, Lsn, META_GROUP,
    MembershipEpoch, MetaKey, NodeId, PageBytes, PageKey, Placement, RecordSpan, RelationFork,
    RelationLocator, ServerVersion, VolumeEpoch, VolumeId, WriterId,
};
use borealis_wal::native::Native;
use borealis_wire::{
    BatchBuilder, BatchHeader, Caller, GroupLink, GroupTail, SegmentProgress, SegmentSummary,
};

pub const VOLUME: VolumeId = VolumeId(0xB0EA_1155_0000_0000_0000_0000_0000_0001);
/// Nodes that have the groups from the beginning.
pub const NODE_COUNT: usize = 6;

pub struct Cluster {
    pub directory: tempfile::TempDir,
    pub placement: Placement,
    pub configs: Vec<NodeConfig>,
    pub nodes: Vec<Option<Node>>,
    /// What signs for the cluster's parts, if they speak TLS.
    pub fleet: Option<Fleet>,
}

impl Cluster {
    /// Makes and starts six nodes.
    pub fn start(group_count: u16) -> Cluster {
        let mut cluster = Cluster::create(group_count);
        for index in 0..NODE_COUNT {
            cluster.start_node(index);
        }
        cluster
    }

    /// Makes and starts six nodes that speak TLS on the loopback address.
    pub fn start_over_tls(group_count: u16) -> Cluster {
        // All at one time, so that they differ.
        let held: Vec<TcpListener> =
            (0..NODE_COUNT).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        let endpoint = |_: &std::path::Path, index: usize| Endpoint::Tls {
            host: "127.0.0.1".to_owned(),
            port: ports[index],
        };
        let mut cluster = Cluster::create_at(group_count, endpoint);
        let folder = cluster.directory.path().join("fleet");
        let fleet = Fleet::init(&folder, "test".parse().unwrap(), Validity::days(2)).unwrap();
        for config in &cluster.configs {
            let hosts = ["127.0.0.1".to_owned()];
            fleet
                .issue(Role::Node(config.node), &hosts, Validity::days(1), &config.directory.join("tls"))
                .unwrap();
        }
        cluster.fleet = Some(fleet);
        for index in 0..NODE_COUNT {
            cluster.start_node(index);
        }
        cluster
    }

    /// Makes six nodes without starting them.
    pub fn create(group_count: u16) -> Cluster {
        Cluster::create_with_spares(group_count, 0)
    }

    /// Makes six nodes, and so many that have no group yet: they know the six, which do not know them.
    pub fn create_with_spares(group_count: u16, spares: usize) -> Cluster {
        let endpoint = |folder: &std::path::Path, index: usize| {
            Endpoint::Unix(folder.join(format!("socket-{}", index + 1)))
        };
        let mut cluster = Cluster::create_at(group_count, endpoint);
        for index in NODE_COUNT..NODE_COUNT + spares {
            let mut config = NodeConfig::new(
                cluster.directory.path().join(format!("{}", index + 1)),
                VOLUME,
                NodeId(index as u16 + 1),
                AvailabilityZone("az1".to_owned()),
                0x1000 + index as u128,
                endpoint(cluster.directory.path(), index),
                cluster.placement,
            );
            config.memory_limit_bytes = 64 << 20;
            let six = cluster.configs.iter().take(NODE_COUNT);
            config.peers = six
                .map(|other| NodeAddress {
                    node: other.node,
                    zone: other.zone.clone(),
                    address: other.listen.clone(),
                })
                .collect();
            borealis_node::create(&config).unwrap();
            cluster.configs.push(config);
            cluster.nodes.push(None);
        }
        cluster
    }

    fn create_at(group_count: u16, endpoint: impl Fn(&std::path::Path, usize) -> Endpoint) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let placement = Placement::new(group_count).unwrap();
        let endpoint = |index: usize| endpoint(directory.path(), index);
        let zone = |index: usize| AvailabilityZone(format!("az{}", index / 2 + 1));
        let configs: Vec<NodeConfig> = (0..NODE_COUNT)
            .map(|index| {
                let mut config = NodeConfig::new(
                    directory.path().join(format!("{}", index + 1)),
                    VOLUME,
                    NodeId(index as u16 + 1),
                    zone(index),
                    0x1000 + index as u128,
                    endpoint(index),
                    placement,
                );
                if let Endpoint::Tls { .. } = config.listen {
                    config.tls = Some(TlsFiles::in_folder("tls".as_ref()));
                }
                config.memory_limit_bytes = 64 << 20;
                config.peers = (0..NODE_COUNT)
                    .filter(|peer| *peer != index)
                    .map(|peer| NodeAddress {
                        node: NodeId(peer as u16 + 1),
                        zone: zone(peer),
                        address: endpoint(peer),
                    })
                    .collect();
                let everyone: Vec<NodeId> = (1..=NODE_COUNT as u16).map(NodeId).collect();
                config.groups = Membership::everyone_has_everything(placement, &everyone);
                borealis_node::create(&config).unwrap();
                config
            })
            .collect();
        Cluster { directory, placement, configs, nodes: (0..NODE_COUNT).map(|_| None).collect(), fleet: None }
    }

    pub fn start_node(&mut self, index: usize) {
        assert!(self.nodes[index].is_none());
        self.nodes[index] = Some(Node::start(self.configs[index].clone()).unwrap());
    }

    /// Ends a node without a checkpoint, as a kill would.
    pub fn kill_node(&mut self, index: usize) {
        drop(self.nodes[index].take().expect("the node runs"));
    }

    pub fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().expect("the node runs")
    }

    pub fn address(&self, index: usize) -> &Endpoint {
        &self.configs[index].listen
    }

    /// A connection on which nothing was said.
    pub fn socket(&self, index: usize) -> UnixStream {
        let Endpoint::Unix(path) = self.address(index) else { panic!("it listens on a socket") };
        UnixStream::connect(path).unwrap()
    }

    pub fn connect(&self, index: usize, caller: Caller) -> NodeClient {
        self.try_connect(index, caller).unwrap()
    }

    pub fn try_connect(&self, index: usize, caller: Caller) -> Result<NodeClient, ClientError> {
        self.try_connect_as(index, caller, self.credentials_of(caller).as_ref())
    }

    fn credentials_of(&self, caller: Caller) -> Option<Arc<Credentials>> {
        self.credentials(match caller {
            Caller::Peer(node) => Role::Node(node),
            Caller::Client => Role::Client,
            Caller::Controller => Role::Controller,
            Caller::Writer { .. } | Caller::Recovery | Caller::Reader { .. } => {
                Role::Instance(VOLUME, InstanceId(1))
            }
        })
    }

    /// A connection of somebody who has this certificate, whatever it says that it is.
    pub fn try_connect_as(
        &self,
        index: usize,
        caller: Caller,
        credentials: Option<&Arc<Credentials>>,
    ) -> Result<NodeClient, ClientError> {
        let route = Route::new(self.address(index), credentials);
        NodeClient::connect(route, VOLUME, self.configs[index].node, caller, Timeouts::default())
    }

    /// A connection for these memberships.
    pub fn try_connect_for(
        &self,
        index: usize,
        caller: Caller,
        memberships: &[(GroupId, MembershipEpoch)],
    ) -> Result<NodeClient, ClientError> {
        let (node, memberships) = (self.configs[index].node, memberships.to_vec());
        let introduction = Introduction { volume: VOLUME, node, caller, memberships };
        let credentials = self.credentials_of(caller);
        let route = Route::new(self.address(index), credentials.as_ref());
        NodeClient::introduced(route, &introduction, Timeouts::default())
    }

    /// A certificate for this role; none if the cluster is on sockets.
    pub fn credentials(&self, role: Role) -> Option<Arc<Credentials>> {
        let fleet = self.fleet.as_ref()?;
        let folder = self.directory.path().join(format!("{role:?}").replace(' ', "-"));
        let files = TlsFiles::in_folder(&folder);
        if !files.certificate.exists() {
            fleet.issue(role, &["127.0.0.1".to_owned()], Validity::days(1), &folder).unwrap();
        }
        Some(Credentials::load(files).unwrap())
    }

    pub fn client(&self, index: usize) -> NodeClient {
        self.connect(index, Caller::Recovery)
    }

    pub fn summary(&self, index: usize, group: GroupId) -> SegmentSummary {
        self.segment(index, group).unwrap()
    }

    pub fn segment(&self, index: usize, group: GroupId) -> Option<SegmentSummary> {
        self.node(index).status().segments.into_iter().find(|segment| segment.group == group)
    }

    pub fn metric(&self, index: usize, name: &str) -> u64 {
        let metrics = self.node(index).status().metrics;
        metrics.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no metric {name}")).1
    }

    pub fn verify_target(&self) -> verify::Target {
        verify::Target {
            volume: VOLUME,
            nodes: self.configs.iter().map(address_of).collect(),
            credentials: self.credentials(Role::Client),
            groups: self.configs[0].groups.clone(),
            memberships: BTreeMap::new(),
            placement: self.placement,
            lsn: None,
            timeouts: Timeouts::default(),
        }
    }
}

fn address_of(config: &NodeConfig) -> NodeAddress {
    NodeAddress { node: config.node, zone: config.zone.clone(), address: config.listen.clone() }
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits longer than for anything else: pages are copied.
pub fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn block(relation: u32, block: u32) -> PageKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation };
    PageKey::Block(BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block })
}

/// A page that could not be mistaken for another one.
pub fn image(seed: u32) -> PageBytes {
    let mut state = u64::from(seed) + 1;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

/// A writer without flow control: it makes records, and sends them to whom the test says.
pub struct Writer {
    pub epoch: VolumeEpoch,
    pub writer: WriterId,
    pub history: EpochHistory,
    pub placement: Placement,
    pub last: RecordSpan,
    pub group_ends: BTreeMap<GroupId, Lsn>,
    pub durable: RecordSpan,
    pub durable_tails: Vec<GroupTail>,
    pub minimum_read_point: Lsn,
    pub clients: BTreeMap<usize, NodeClient>,
    records: Vec<(RecordSpan, Vec<GroupLink>, Vec<u8>)>,
}

impl Writer {
    /// The volume's first writer: fences, installs and connects to all running nodes.
    pub fn first(cluster: &Cluster) -> Writer {
        let mut writer = Writer {
            epoch: VolumeEpoch(0),
            writer: WriterId(0),
            history: EpochHistory::default(),
            placement: cluster.placement,
            last: RecordSpan::NONE,
            group_ends: cluster.placement.groups().map(|group| (group, Lsn::ZERO)).collect(),
            durable: RecordSpan::NONE,
            durable_tails: Vec::new(),
            minimum_read_point: Lsn::ZERO,
            clients: BTreeMap::new(),
            records: Vec::new(),
        };
        writer.durable_tails = writer.tails();
        writer.succeed(cluster)
    }

    /// The next writer, which keeps what this one knows to be durable and cuts the rest.
    pub fn next(&self, cluster: &Cluster) -> Writer {
        let writer = Writer {
            epoch: self.epoch,
            writer: self.writer,
            history: self.history.clone(),
            placement: self.placement,
            last: self.durable,
            group_ends: self.durable_tails.iter().map(|tail| (tail.group, tail.last_end)).collect(),
            durable: self.durable,
            durable_tails: self.durable_tails.clone(),
            minimum_read_point: self.minimum_read_point,
            clients: BTreeMap::new(),
            records: Vec::new(),
        };
        writer.succeed(cluster)
    }

    fn succeed(mut self, cluster: &Cluster) -> Writer {
        self.epoch = VolumeEpoch(self.epoch.0 + 1);
        self.writer = WriterId(1000 + self.epoch.0);
        self.history.push(EpochOpening {
            epoch: self.epoch,
            last: self.durable,
            server_version: ServerVersion::NEWEST_TESTED,
        });
        let running: Vec<usize> = (0..NODE_COUNT).filter(|index| cluster.nodes[*index].is_some()).collect();
        for &index in &running {
            cluster.connect(index, Caller::Recovery).fence(self.epoch, self.writer).unwrap();
        }
        for &index in &running {
            self.install(cluster, index);
            self.connect(cluster, index);
        }
        self
    }

    pub fn install(&self, cluster: &Cluster, index: usize) {
        let mut client = cluster.connect(index, Caller::Recovery);
        client.install(self.epoch, self.writer, &self.history, &self.durable_tails).unwrap();
    }

    pub fn caller(&self) -> Caller {
        Caller::Writer { epoch: self.epoch, writer: self.writer }
    }

    pub fn connect(&mut self, cluster: &Cluster, index: usize) {
        self.clients.insert(index, cluster.connect(index, self.caller()));
    }

    fn tails(&self) -> Vec<GroupTail> {
        self.group_ends.iter().map(|(&group, &last_end)| GroupTail { group, last_end }).collect()
    }

    fn push(&mut self, groups: &[GroupId], native: &Native<'_>) -> RecordSpan {
        let bytes = native.encode(self.last.start);
        let start = if self.last.end == Lsn::ZERO { Lsn(0x0100_0028) } else { self.last.end };
        let span = RecordSpan { start, end: Lsn(start.0 + bytes.len() as u64).align_up() };
        let links: Vec<GroupLink> =
            groups.iter().map(|&group| GroupLink { group, previous_end: self.group_ends[&group] }).collect();
        for &group in groups {
            self.group_ends.insert(group, span.end);
        }
        self.records.push((span, links, bytes));
        self.last = span;
        span
    }

    /// Makes a record that gives a page new bytes.
    pub fn put_page(&mut self, key: PageKey, image: &PageBytes) -> RecordSpan {
        let group = self.placement.group_of(&key);
        self.push(&[group], &Native::PutPage { key, image })
    }

    /// Makes a record that gives a small value new bytes.
    pub fn put_meta(&mut self, key: MetaKey, value: &[u8]) -> RecordSpan {
        self.push(&[META_GROUP], &Native::PutMeta { key, value: Some(value) })
    }

    fn header(&self) -> BatchHeader {
        BatchHeader {
            volume_epoch: self.epoch,
            durable: self.durable,
            minimum_read_point: self.minimum_read_point,
            tails: self.durable_tails.clone(),
        }
    }

    /// The records made since the last call, as a batch.
    pub fn take_batch(&mut self) -> Vec<u8> {
        let mut builder = BatchBuilder::new(&self.header());
        for (span, links, bytes) in self.records.drain(..) {
            builder.push(span, &links, &bytes);
        }
        builder.finish()
    }

    /// Sends a batch to these nodes and waits for all of them.
    pub fn send(&mut self, batch: &[u8], nodes: &[usize]) -> Vec<Vec<SegmentProgress>> {
        for index in nodes {
            self.clients.get_mut(index).unwrap().send_append(batch).unwrap();
        }
        nodes
            .iter()
            .map(|index| match self.clients.get_mut(index).unwrap().receive().unwrap() {
                borealis_wire::Reply::Appended(progress) => progress,
                other => panic!("an append was answered with {other:?}"),
            })
            .collect()
    }

    /// Sends the records made since the last call to these nodes (at least four), after which they are durable.
    pub fn ship(&mut self, nodes: &[usize]) {
        assert!(nodes.len() >= 4);
        let batch = self.take_batch();
        self.send(&batch, nodes);
        self.durable = self.last;
        self.durable_tails = self.tails();
    }

    /// Notes that all records so far are durable, and that nobody reads below them.
    pub fn note_durable(&mut self) {
        self.durable = self.last;
        self.durable_tails = self.tails();
        self.minimum_read_point = self.durable.end;
    }

    /// Tells these nodes what is durable, and that nobody reads below it.
    pub fn announce(&mut self, nodes: &[usize]) {
        self.minimum_read_point = self.durable.end;
        let batch = self.take_batch();
        self.send(&batch, nodes);
    }
}

pub const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];
