//! The driver's event loop: all sockets, the shared memory, and the state machines between them.
//!
//! One thread owns everything. A turn of the loop is: read what PostgreSQL wrote and asked; send; sleep until
//! something happens; take what the nodes answered; publish what became durable.
//!
//! Invariant: nothing is published as durable but through [`Shipper::take_publishable`], and after the stream
//! stopped (fenced, or poisoned) nothing is published at all.

mod cut;
mod members;
mod peers;
mod server;
mod standing;
mod standstill;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::Memberships;
use borealis_compute::read::{ReadCounters, Reads, Transport};
use borealis_compute::ship::{
    Router, ShipCounters, Shipper, ShipperLimits, Standstill, Tenure, TenureLimits,
};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::read_routing::ReadRouter;
use borealis_quorum::recovery::Outcome;
use borealis_quorum::writer::WriterTracker;
use borealis_shm::{InstanceState, SlotIndex};
use borealis_types::{GroupId, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch, invariant};
use borealis_wal::{EffectError, Record, RecordError};
use borealis_wire::Request;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use self::peers::{Line, Link, PeerLinks, Stage, TOKEN_FIRST_PEER};
use self::server::ServerSide;
use crate::config::Configured;
use crate::wal_feed::FeedError;

/// The loop wakes at least this often, to show the shim that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A node that leaves a batch unanswered for so long is disconnected.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// After this long without an answer a node no longer counts for the minimum read point, or one slow node would keep
/// old page versions on all others.
const SILENCE_TOLERATED: Duration = Duration::from_secs(2);
/// A node that takes longer to introduce itself is disconnected.
const GREETING_MAX: Duration = Duration::from_secs(3);
/// Working space for reading from sockets.
const SCRATCH_BYTES: usize = 64 << 10;

const TOKEN_SHM: Token = Token(0);
const TOKEN_WAKER: Token = Token(1);
/// Descriptors that others watch through the loop: signals and the server's end.
const TOKEN_WATCHED: Token = Token(2);

/// Why the loop must end.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A newer writer took the volume over.
    #[error("this instance was fenced by a newer writer (epoch {0})")]
    Fenced(VolumeEpoch),
    /// Newer promises took the write quorum, and no recovery of them finished.
    #[error(
        "storage nodes are promised to epoch {0}, of which no recovery finished, so that no write quorum is left; a \
         recovery above it brings them back"
    )]
    Outvoted(VolumeEpoch),
    /// A read quorum could not be asked whether a newer writer has the volume.
    #[error(
        "no read quorum of the storage nodes has confirmed for {} s that there is no newer writer, so nothing is shown \
         any more; it passes when they can be reached", .0.as_secs()
    )]
    LeaseOver(Duration),
    /// The log cannot be read on.
    #[error("the log stream stopped: {0}")]
    Feed(#[from] FeedError),
    /// A record's effects are not known.
    #[error("the log stream stopped: {0}")]
    Effect(#[from] EffectError),
    /// A record that was made here is malformed.
    #[error("a record that was made here is malformed: {0}")]
    Record(#[from] RecordError),
    /// A system call that cannot fail in ordinary circumstances did.
    #[error("the driver's event loop: {0}")]
    System(#[from] io::Error),
}

/// A segment as the driver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemberView {
    /// The node that has the segment.
    pub node: NodeId,
    /// Its SCL, as far as acknowledged to this writer.
    pub segment_complete_lsn: Lsn,
    /// Whether the node is connected.
    pub connected: bool,
    /// The newer epoch that the node is promised to, if it is: it takes nothing from this writer.
    pub fenced_by: Option<VolumeEpoch>,
}

/// A node as the driver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// How long ago it said anything on a connection of this writer; since the writer began, if it never did.
    pub heard: Duration,
    /// Whether it takes batches.
    pub connected: bool,
}

/// The one owner of everything while a server runs: sockets, shared memory and the pure machines.
pub struct Engine {
    config: Arc<Configured>,
    epoch: VolumeEpoch,
    /// The release that everything shipped here is recorded as written by.
    server_version: ServerVersion,
    outcome: Outcome,
    /// Who the members of each group are, as far as it was learned.
    memberships: Memberships,
    /// Groups whose members are others since the last turn; the connections are still those of before.
    changed: BTreeSet<GroupId>,
    poll: Poll,
    events: Events,
    /// Scratch list of one turn: token, and whether the peer closed. Kept between turns to save an allocation.
    ready: Vec<(Token, bool)>,
    scratch: Vec<u8>,
    /// The keys of `peers`, to walk them while the engine changes.
    nodes: Rc<[NodeId]>,
    peers: BTreeMap<NodeId, PeerLinks>,
    shipper: Shipper,
    router: Router,
    read_router: ReadRouter,
    reads: Reads<SlotIndex>,
    tenure: Tenure,
    /// When the tenure was looked at last.
    tenure_checked: Duration,
    server: Option<ServerSide>,
    started: Instant,
    last_shipped_at: Instant,
    /// When reads are due for a look at the clock.
    reads_due: Option<Duration>,
    standstill: Standstill,
    /// A watched descriptor became readable.
    watched: bool,
    stopped: bool,
}

/// How the read path reaches the nodes: over their read connections.
struct ReadLines<'a> {
    peers: &'a mut BTreeMap<NodeId, PeerLinks>,
    shipper: &'a Shipper,
}

impl Transport for ReadLines<'_> {
    fn send(&mut self, node: NodeId, request_id: u64, request: &Request) -> bool {
        let peer = self.peers.get_mut(&node).filter(|peer| peer.installed);
        let Some(connection) = peer.and_then(|peer| peer.read.ready()) else { return false };
        connection.send(request_id, request);
        true
    }

    fn durable(&self) -> Lsn {
        self.shipper.durable().end
    }

    fn needed(&self, group: GroupId) -> Lsn {
        self.shipper.group_tail(group)
    }

    fn read_point(&self, node: NodeId, group: GroupId) -> Lsn {
        self.shipper.read_point(node, group)
    }
}

/// The tenure of the writer that a recovery made, `age` after the recovery was last certain that it has no successor.
fn tenure_of(config: &Configured, outcome: &Outcome, members: &[QuorumSets], age: Duration) -> Tenure {
    let limits = TenureLimits {
        lease: Duration::from_millis(config.tuning.lease_ms),
        outvoted: Duration::from_millis(config.tuning.outvoted_ms),
    };
    Tenure::new(outcome.promise.epoch, members.to_vec(), limits, Duration::ZERO, age)
}

impl Engine {
    /// An engine for the writer that a recovery made through the members of these memberships. `next_xid` is the first
    /// transaction id that the volume's counters do not know to be used.
    ///
    /// # Errors
    /// When the system refuses a poll.
    pub fn new(
        config: Arc<Configured>,
        outcome: Outcome,
        memberships: Memberships,
        next_xid: u32,
    ) -> Result<Engine, EngineError> {
        let members: Vec<QuorumSets> = memberships.groups().values().map(QuorumSets::of).collect();
        let now = Instant::now();
        let epoch = outcome.promise.epoch;
        let server_version = outcome
            .history
            .server_version_of(epoch)
            .expect("invariant \"one release per record\": a recovery's history ends with its own opening");
        let tuning = &config.tuning;
        // The clock of the engine begins with the lease.
        let started = now.checked_sub(outcome.confirmed_before).unwrap_or(now);
        let tenure = tenure_of(&config, &outcome, &members, now.saturating_duration_since(started));
        let tracker = WriterTracker::new(epoch, members, outcome.durable, &outcome.tails);
        let limits = ShipperLimits {
            batches_in_flight: tuning.batches_in_flight,
            batch_bytes: tuning.batch_bytes,
            retained_bytes: tuning.retained_bytes,
            in_rounds: tuning.in_rounds,
        };
        let of_nodes = members::groups_of_nodes(&memberships);
        let peers: BTreeMap<NodeId, PeerLinks> =
            of_nodes.iter().map(|(&node, &groups)| (node, PeerLinks::new(groups, now))).collect();
        #[cfg_attr(not(feature = "broken-durability"), expect(unused_mut, reason = "only a test breaks it"))]
        let mut shipper = Shipper::new(tracker, epoch, outcome.durable, of_nodes, limits);
        #[cfg(feature = "broken-durability")]
        if crate::broken_durability::is_wanted() {
            shipper.break_durability();
        }
        let reads = Reads::new(
            epoch,
            config.placement,
            Duration::from_millis(tuning.read_timeout_ms),
            tuning.prefetch_bytes,
        );
        Ok(Engine {
            router: Router::new(config.placement, next_xid),
            config,
            epoch,
            server_version,
            outcome,
            memberships,
            changed: BTreeSet::new(),
            poll: Poll::new()?,
            events: Events::with_capacity(256),
            ready: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            nodes: peers.keys().copied().collect(),
            peers,
            shipper,
            read_router: ReadRouter::new(),
            reads,
            tenure,
            tenure_checked: Duration::ZERO,
            server: None,
            started,
            last_shipped_at: now,
            reads_due: None,
            standstill: Standstill::default(),
            watched: false,
            stopped: false,
        })
    }

    /// A handle that wakes the loop from another thread.
    ///
    /// # Errors
    /// When the system refuses one.
    pub fn waker(&self) -> Result<Waker, EngineError> {
        Ok(Waker::new(self.poll.registry(), TOKEN_WAKER)?)
    }

    /// Wakes the loop when the descriptor becomes readable. Its owner looks at it after each turn.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn watch(&self, descriptor: RawFd) -> Result<(), EngineError> {
        Ok(self.poll.registry().register(&mut SourceFd(&descriptor), TOKEN_WATCHED, Interest::READABLE)?)
    }

    /// Whether a watched descriptor became readable, or another thread woke the loop, since this was asked
    /// last.
    pub fn take_watched(&mut self) -> bool {
        std::mem::take(&mut self.watched)
    }

    /// Says that the volume's counters stand at this transaction id.
    pub fn set_next_xid(&mut self, next_xid: u32) {
        self.router = Router::new(self.config.placement, next_xid);
    }

    /// Who has which record, and what is durable.
    #[must_use]
    pub fn shipper(&self) -> &Shipper {
        &self.shipper
    }

    /// Counters of the write path.
    #[must_use]
    pub fn ship_counters(&self) -> ShipCounters {
        self.shipper.counters()
    }

    /// Counters of the read path.
    #[must_use]
    pub fn read_counters(&self) -> ReadCounters {
        self.reads.counters()
    }

    /// The segments of a group.
    pub fn members(&self, group: GroupId) -> impl Iterator<Item = MemberView> {
        let members = self.peers.iter().filter(move |(_, peer)| peer.groups.contains(group));
        members.map(move |(&node, peer)| MemberView {
            node,
            segment_complete_lsn: self.shipper.tracker().segment_complete(node, group),
            connected: peer.append.is_ready(),
            fenced_by: self.tenure.fenced_by(node),
        })
    }

    /// Every node that has a segment, in number order.
    pub fn node_views(&self) -> impl Iterator<Item = NodeView> {
        self.peers.iter().map(|(&node, peer)| NodeView {
            node,
            heard: peer.heard.elapsed(),
            connected: peer.append.is_ready(),
        })
    }

    /// Who the members of each group are, as far as it was learned.
    #[must_use]
    pub fn memberships(&self) -> &Memberships {
        &self.memberships
    }

    /// The nodes of the volume, in number order.
    fn nodes(&self) -> Rc<[NodeId]> {
        Rc::clone(&self.nodes)
    }

    fn peer(&mut self, node: NodeId) -> &mut PeerLinks {
        self.peers.get_mut(&node).expect("the engine speaks only of the volume's nodes")
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ships a record that was made here and not by the server.
    ///
    /// # Errors
    /// When it is malformed or its effects are not known.
    pub fn ship(&mut self, span: RecordSpan, bytes: &[u8]) -> Result<(), EngineError> {
        let record = Record::parse(self.server_version, span, bytes)?;
        let groups = self.router.route(&record)?;
        self.shipper.ship(span, groups, bytes);
        self.last_shipped_at = Instant::now();
        Ok(())
    }

    /// One turn of the loop, which sleeps for at most `wait` and returns early when something happened.
    ///
    /// # Errors
    /// When the stream must stop. The shared memory then says so, nothing is published any more, and the
    /// engine is of no further use.
    pub fn turn(&mut self, wait: Duration) -> Result<(), EngineError> {
        let result = self.try_turn(wait);
        if let Err(error) = &result {
            self.stop(error);
        }
        result
    }

    fn stop(&mut self, error: &EngineError) {
        self.stopped = true;
        let Some(server) = &self.server else { return };
        let state = match error {
            EngineError::Fenced(epoch) => InstanceState::Fenced(*epoch),
            _ => InstanceState::Poisoned,
        };
        server.shm.set_state(state, &error.to_string());
    }

    fn try_turn(&mut self, wait: Duration) -> Result<(), EngineError> {
        invariant!("stopped-stream-rests", !self.stopped);
        self.connect_due();
        if self.is_serving() {
            self.feed()?;
            self.take_requests();
        }
        self.send_batches();
        self.publish();
        self.flush_all();
        let wait = self.sleep_time(wait);
        let sleep = self
            .server
            .as_ref()
            .is_none_or(|server| server.shm.prepare_to_sleep(server.looked_sequence) || !server.is_served);
        let timeout = if sleep { wait } else { Duration::ZERO };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        if let Some(server) = &self.server {
            server.shm.woke(self.events.iter().any(|event| event.token() == TOKEN_SHM));
            server.shm.heartbeat();
        }
        self.take_events()?;
        self.take_members();
        self.publish();
        self.run_timers();
        self.look_at_tenure()
    }

    fn sleep_time(&self, wait: Duration) -> Duration {
        let now = Instant::now();
        let mut time = wait.min(HEARTBEAT);
        if let Some(due) = self.reads_due {
            time = time.min(due.saturating_sub(self.now()));
        }
        for peer in self.peers.values() {
            for link in [&peer.append, &peer.read] {
                if let Link::Down { retry_at, .. } = link {
                    time = time.min(retry_at.saturating_duration_since(now));
                }
            }
        }
        if self.shipper.has_untold() {
            time = time.min(self.quiet_after().saturating_sub(self.last_shipped_at.elapsed()));
        }
        if time.is_zero() {
            return time;
        }
        // The poll counts whole milliseconds and would wake too early, again and again.
        time.max(Duration::from_millis(1))
    }

    fn quiet_after(&self) -> Duration {
        Duration::from_millis(self.config.tuning.quiet_ms)
    }

    fn minimum_read_point(&self) -> Lsn {
        let since = self.now().saturating_sub(SILENCE_TOLERATED);
        self.shipper.minimum_read_point(self.reads.lowest_read_point(), since)
    }

    /// Gives every node that can take one its next batch.
    fn send_batches(&mut self) {
        let quiet = self.last_shipped_at.elapsed() >= self.quiet_after();
        let now = self.now();
        let mut minimum_read_point = None;
        for &node in self.nodes().iter() {
            while self.shipper.can_take(node, quiet, now) {
                let minimum = *minimum_read_point.get_or_insert_with(|| self.minimum_read_point());
                let Some(frame) = self.shipper.next_batch(node, minimum, quiet, now) else { break };
                let Some(connection) = self.peer(node).append.ready() else { break };
                connection.send_batch(frame);
                let result = connection.flush();
                if let Err(error) = result {
                    self.disconnect(node, Line::Append, &error.to_string());
                }
            }
        }
    }

    fn flush_all(&mut self) {
        for &node in self.nodes().iter() {
            for line in [Line::Append, Line::Read] {
                let result = match self.peer(node).link(line) {
                    Link::Up { connection, .. } if connection.has_outbound() => connection.flush(),
                    _ => continue,
                };
                if let Err(error) = result {
                    self.disconnect(node, line, &error.to_string());
                }
            }
        }
    }

    fn take_events(&mut self) -> Result<(), EngineError> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.extend(
            self.events.iter().map(|event| (event.token(), event.is_read_closed() || event.is_error())),
        );
        let result = ready.drain(..).try_for_each(|(token, has_ended)| self.take_event(token, has_ended));
        self.ready = ready;
        result
    }

    fn take_event(&mut self, token: Token, has_ended: bool) -> Result<(), EngineError> {
        self.watched |= token == TOKEN_WATCHED || token == TOKEN_WAKER;
        let Some(number) = token.0.checked_sub(TOKEN_FIRST_PEER) else { return Ok(()) };
        // The number in a token was made from a node's.
        let Ok(node) = u16::try_from(number / 2).map(NodeId) else { return Ok(()) };
        if !self.peers.contains_key(&node) {
            return Ok(());
        }
        self.take_frames(node, if number % 2 == 0 { Line::Append } else { Line::Read }, has_ended)
    }

    /// Does what time has made due.
    fn run_timers(&mut self) {
        self.watch_progress();
        let now = self.now();
        if self.reads_due.is_some_and(|due| due <= now) {
            let mut lines = ReadLines { peers: &mut self.peers, shipper: &self.shipper };
            self.reads_due = self.reads.tick(&mut self.read_router, &mut lines, now);
            self.answer_done();
        }
        let silent: Vec<NodeId> = self.shipper.silent_since(now.saturating_sub(SILENCE_MAX)).collect();
        for node in silent {
            self.disconnect(node, Line::Append, "it leaves batches unanswered");
        }
        for &node in self.nodes().iter() {
            for line in [Line::Append, Line::Read] {
                let slow = match self.peer(node).link(line) {
                    Link::Up { stage, since, .. } => *stage != Stage::Ready && since.elapsed() > GREETING_MAX,
                    Link::Down { .. } => false,
                };
                if slow {
                    self.disconnect(node, line, "it does not introduce itself");
                }
            }
        }
    }
}
