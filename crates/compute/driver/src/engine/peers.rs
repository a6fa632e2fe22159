//! The two connections to every storage node: opened, introduced, and given up.

use std::io;
use std::time::{Duration, Instant};

use borealis_client::handshake::{Introduction, kind_of};
use borealis_client::polled::Connection;
use borealis_client::{Endpoint, Route};
use borealis_compute::ship::{Greeted, UnexpectedAcknowledgement, greet};
use borealis_types::{GroupSet, NodeId};
use borealis_wire::message::decode_payload;
use borealis_wire::{Caller, Payload, Refusal, Reply, Request, SegmentProgress, SegmentSummary};
use mio::Token;

use super::{Engine, EngineError, ReadLines};

const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// Until a node is connected to again that may be about to learn of a membership.
const RETRY_SOON: Duration = Duration::from_millis(50);
/// Tokens below are the loop's own.
pub(super) const TOKEN_FIRST_PEER: usize = 16;

/// Request ids of a connection's first requests, beyond those of batches and reads.
const HELLO_ID: u64 = u64::MAX;
const INSTALL_ID: u64 = u64::MAX - 1;
const FENCE_ID: u64 = u64::MAX - 2;

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The node was greeted and has not answered.
    Greeting,
    /// The node was sent the history and has not answered.
    Installing,
    /// The node has this epoch's history: requests and batches may be sent.
    Ready,
}

#[derive(Debug)]
pub(super) enum Link {
    Down { retry_at: Instant, pause: Duration },
    Up { connection: Connection, stage: Stage, since: Instant, pause: Duration },
}

impl Link {
    pub(super) fn new(now: Instant) -> Link {
        Link::Down { retry_at: now, pause: RECONNECT_MIN }
    }

    pub(super) fn ready(&mut self) -> Option<&mut Connection> {
        match self {
            Link::Up { connection, stage: Stage::Ready, .. } => Some(connection),
            _ => None,
        }
    }

    /// Has it tried again in a moment, if it is down.
    pub(super) fn retry_soon(&mut self, now: Instant) {
        if let Link::Down { retry_at, pause } = self {
            (*retry_at, *pause) = (now + RETRY_SOON, RECONNECT_MIN);
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Link::Up { stage: Stage::Ready, .. })
    }
}

/// Which of a node's two connections. Reads do not wait behind batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Line {
    Append,
    Read,
}

#[derive(Debug)]
pub(super) struct PeerLinks {
    /// Where it was looked for last; `None` while nobody has said where it is.
    pub(super) address: Option<Endpoint>,
    /// How often in a row it did not answer an introduction as its writer: the places where it may be take turns.
    pub(super) failures: usize,
    /// When it said something on one of its connections, or when this writer began with it.
    pub(super) heard: Instant,
    pub(super) groups: GroupSet,
    pub(super) append: Link,
    pub(super) read: Link,
    /// Its segments have the history of our epoch. Before that they may hold records that were truncated, and must
    /// not be read.
    pub(super) installed: bool,
    /// Last message that was logged about it, so that a dead node does not fill the log.
    pub(super) last_failure: String,
}

impl PeerLinks {
    /// Those of a node that is to be connected to at once.
    pub(super) fn new(groups: GroupSet, now: Instant) -> PeerLinks {
        PeerLinks {
            address: None,
            failures: 0,
            heard: now,
            groups,
            append: Link::new(now),
            read: Link::new(now),
            installed: false,
            last_failure: String::new(),
        }
    }

    pub(super) fn link(&mut self, line: Line) -> &mut Link {
        match line {
            Line::Append => &mut self.append,
            Line::Read => &mut self.read,
        }
    }
}

impl Engine {
    pub(super) fn token(node: NodeId, line: Line) -> Token {
        Token(TOKEN_FIRST_PEER + 2 * usize::from(node.0) + usize::from(line == Line::Read))
    }

    /// Reads what a node sent and takes every complete frame of it.
    pub(super) fn take_frames(
        &mut self,
        node: NodeId,
        line: Line,
        has_ended: bool,
    ) -> Result<(), EngineError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let received = match self.peer(node).link(line) {
            Link::Up { connection, .. } => {
                let flushed = if connection.has_outbound() { connection.flush() } else { Ok(()) };
                flushed.and_then(|()| connection.receive(&mut scratch, has_ended))
            }
            Link::Down { .. } => Ok(true),
        };
        self.scratch = scratch;
        loop {
            let frame = match self.peer(node).link(line) {
                Link::Up { connection, stage, .. } => connection.next_frame().map(|frame| (frame, *stage)),
                Link::Down { .. } => return Ok(()),
            };
            let (payload, stage) = match frame {
                Ok((Some(payload), stage)) => (payload, stage),
                Ok((None, _)) => break,
                Err(error) => {
                    self.disconnect(node, line, &error.to_string());
                    return Ok(());
                }
            };
            let (request_id, reply) = match decode_payload::<Reply>(payload) {
                Ok(Payload::Message { request_id, message }) => (request_id, message),
                Ok(Payload::Append { .. }) => {
                    self.disconnect(node, line, "it sent a batch");
                    return Ok(());
                }
                Err(error) => {
                    self.disconnect(node, line, &error.to_string());
                    return Ok(());
                }
            };
            self.peer(node).heard = Instant::now();
            if let Reply::Refused(refusal @ Refusal::OtherMembership { .. }) = &reply {
                self.note_other_membership(node, line, refusal);
                return Ok(());
            }
            match line {
                Line::Append => self.take_append_reply(node, stage, request_id, reply)?,
                Line::Read => self.take_read_reply(node, stage, request_id, reply)?,
            }
        }
        match received {
            Ok(true) => {}
            Ok(false) => self.disconnect(node, line, "the node closed the connection"),
            Err(error) => self.disconnect(node, line, &error.to_string()),
        }
        Ok(())
    }

    pub(super) fn take_append_reply(
        &mut self,
        node: NodeId,
        stage: Stage,
        request_id: u64,
        reply: Reply,
    ) -> Result<(), EngineError> {
        let outcome = match (stage, reply) {
            (_, Reply::Refused(Refusal::Fenced(epoch))) if epoch > self.epoch => {
                Err(self.note_fenced(node, epoch))
            }
            // The promise of this epoch before its history: a competitor of the recovery may have it, who lost.
            (Stage::Installing, Reply::Summaries(_) | Reply::Refused(Refusal::Fenced(_)))
                if request_id == FENCE_ID =>
            {
                Ok(())
            }
            (_, Reply::Refused(refusal)) => Err(refusal.to_string()),
            (Stage::Greeting, reply @ Reply::Welcome { .. }) if request_id == HELLO_ID => {
                match self.introduction(node, Line::Append).judge(reply) {
                    Ok(segments) => return self.welcome(node, &segments),
                    Err(error) => Err(error.to_string()),
                }
            }
            (Stage::Installing, Reply::Summaries(segments)) if request_id == INSTALL_ID => {
                return self.welcome(node, &segments);
            }
            // Ignore progress before the introduction ends: its last message carries the same SCLs.
            (Stage::Greeting | Stage::Installing, Reply::Progress(_)) => Ok(()),
            (Stage::Ready, Reply::Appended(progress)) => {
                let result = self.shipper.appended(node, request_id, &progress);
                self.note(result, node, &progress)
            }
            (Stage::Ready, Reply::Progress(progress)) => {
                let result = self.shipper.progressed(node, &progress);
                self.note(result, node, &progress)
            }
            (_, other) => Err(format!("an answer that nobody asked for: {}", kind_of(&other))),
        };
        if let Err(why) = outcome {
            self.disconnect(node, Line::Append, &why);
        }
        Ok(())
    }

    pub(super) fn note(
        &mut self,
        result: Result<(), UnexpectedAcknowledgement>,
        node: NodeId,
        progress: &[SegmentProgress],
    ) -> Result<(), String> {
        result.map_err(|error| error.to_string())?;
        for segment in progress {
            self.read_router.observe_readable(node, segment.group, segment.segment_complete_lsn);
        }
        Ok(())
    }

    /// A node introduced itself, or answered an installation.
    pub(super) fn welcome(&mut self, node: NodeId, segments: &[SegmentSummary]) -> Result<(), EngineError> {
        let installing = matches!(self.peer(node).append, Link::Up { stage: Stage::Installing, .. });
        let greeted = greet(self.epoch, self.peer(node).groups, segments);
        let now = self.now();
        self.tenure.hosts(
            node,
            segments.iter().fold(GroupSet::EMPTY, |set, segment| set.with(segment.group)),
            now,
        );
        self.ask_to_confirm(node);
        if !matches!(greeted, Greeted::Fenced { .. }) {
            self.tenure.introduced(node, self.epoch, self.epoch, now);
        }
        let (progress, known_durable) = match greeted {
            Greeted::Fenced { promised, installed } => {
                self.tenure.introduced(node, promised, installed, now);
                let why = format!("it is promised to the newer epoch {promised}");
                self.disconnect(node, Line::Append, &why);
                return Ok(());
            }
            Greeted::Ready { progress, known_durable } => (progress, known_durable),
            Greeted::Behind if installing => {
                self.disconnect(node, Line::Append, "the node did not take the volume's history");
                return Ok(());
            }
            Greeted::Behind => {
                let (epoch, writer) = (self.epoch, self.outcome.promise.writer);
                let fence = Request::Fence { epoch, writer };
                let request = Request::Install {
                    epoch,
                    writer,
                    history: self.outcome.history.clone(),
                    tails: self.outcome.tails.clone(),
                };
                if let Link::Up { connection, stage, .. } = &mut self.peer(node).append {
                    connection.send(FENCE_ID, &fence);
                    connection.send(INSTALL_ID, &request);
                    *stage = Stage::Installing;
                }
                return Ok(());
            }
        };
        let result = self.shipper.connected(node, &progress, known_durable);
        if let Err(why) = self.note(result, node, &progress) {
            self.disconnect(node, Line::Append, &why);
            return Ok(());
        }
        let peer = self.peer(node);
        peer.installed = true;
        peer.failures = 0;
        if let Link::Up { stage, pause, .. } = &mut peer.append {
            *stage = Stage::Ready;
            *pause = RECONNECT_MIN;
        }
        if !std::mem::take(&mut peer.last_failure).is_empty() {
            tracing::info!(node = node.0, "storage node is connected again");
        }
        Ok(())
    }

    pub(super) fn take_read_reply(
        &mut self,
        node: NodeId,
        stage: Stage,
        request_id: u64,
        reply: Reply,
    ) -> Result<(), EngineError> {
        match (stage, reply) {
            (Stage::Greeting, reply) if request_id == HELLO_ID => {
                if let Err(error) = self.introduction(node, Line::Read).judge(reply) {
                    self.disconnect(node, Line::Read, &error.to_string());
                } else if let Link::Up { stage, pause, .. } = &mut self.peer(node).read {
                    *stage = Stage::Ready;
                    *pause = RECONNECT_MIN;
                    self.ask_to_confirm(node);
                }
            }
            (Stage::Ready, reply) => {
                let Some(reply) = self.take_confirmation(node, request_id, reply) else { return Ok(()) };
                let now = self.now();
                let mut lines = ReadLines { peers: &mut self.peers, shipper: &self.shipper };
                self.reads.answered(node, request_id, reply, &mut self.read_router, &mut lines, now);
                self.answer_done();
                self.reads_due = self.reads.next_due();
            }
            (_, other) => {
                let why = format!("an answer that nobody asked for: {}", kind_of(&other));
                self.disconnect(node, Line::Read, &why);
            }
        }
        Ok(())
    }

    /// What is said first on one of a node's connections.
    fn introduction(&self, node: NodeId, line: Line) -> Introduction {
        let (epoch, writer) = (self.epoch, self.outcome.promise.writer);
        let caller = match line {
            Line::Append => Caller::Writer { epoch, writer },
            Line::Read => Caller::Reader { epoch, writer },
        };
        let memberships = self.memberships.made_for();
        Introduction { volume: self.config.volume, node, caller, memberships }
    }

    /// Opens connections whose time has come.
    pub(super) fn connect_due(&mut self) {
        let now = Instant::now();
        for &node in self.nodes().iter() {
            for line in [Line::Append, Line::Read] {
                let pause = match self.peer(node).link(line) {
                    Link::Down { retry_at, pause } if *retry_at <= now => *pause,
                    _ => continue,
                };
                match self.open(node, line) {
                    Ok(mut connection) => {
                        connection.send(HELLO_ID, &self.introduction(node, line).hello());
                        let link = Link::Up { connection, stage: Stage::Greeting, since: now, pause };
                        *self.peer(node).link(line) = link;
                    }
                    Err(error) => {
                        let pause = (pause * 2).min(RECONNECT_MAX);
                        let peer = self.peer(node);
                        *peer.link(line) = Link::Down { retry_at: now + pause, pause };
                        peer.failures += usize::from(line == Line::Append);
                        self.log_failure(node, &error.to_string());
                    }
                }
            }
        }
    }

    /// Begins to connect to a node where it may be.
    fn open(&mut self, node: NodeId, line: Line) -> io::Result<Connection> {
        let address = self.memberships.addresses().attempt(node, self.peer_failures(node));
        let address = address.map(|address| address.address.clone());
        self.peer(node).address.clone_from(&address);
        let Some(address) = address else {
            return Err(io::Error::other("no node has said where it is"));
        };
        let route = Route::new(&address, self.config.credentials.as_ref());
        Connection::open(route, node, self.poll.registry(), Engine::token(node, line))
    }

    fn peer_failures(&self, node: NodeId) -> usize {
        self.peers.get(&node).map_or(0, |peer| peer.failures)
    }

    pub(super) fn disconnect(&mut self, node: NodeId, line: Line, why: &str) {
        if self.give_up(node, line) {
            self.log_failure(node, why);
        }
    }

    /// Closes one of a node's connections, and opens it again after a pause; whether there was one.
    pub(super) fn give_up(&mut self, node: NodeId, line: Line) -> bool {
        let pause = match self.peer(node).link(line) {
            Link::Up { pause, .. } => *pause,
            Link::Down { .. } => return false,
        };
        let down = Link::Down { retry_at: Instant::now() + pause, pause: (pause * 2).min(RECONNECT_MAX) };
        if let Link::Up { connection, stage, .. } = std::mem::replace(self.peer(node).link(line), down) {
            connection.close(self.poll.registry());
            // Whoever listens there may be another, or nobody.
            self.peer(node).failures += usize::from(line == Line::Append && stage == Stage::Greeting);
        }
        match line {
            Line::Append => self.shipper.disconnected(node),
            Line::Read => {
                let now = self.now();
                let mut lines = ReadLines { peers: &mut self.peers, shipper: &self.shipper };
                self.reads.disconnected(node, &mut self.read_router, &mut lines, now);
                self.answer_done();
                self.reads_due = self.reads.next_due();
            }
        }
        true
    }

    pub(super) fn log_failure(&mut self, node: NodeId, why: &str) {
        let peer = self.peer(node);
        if peer.last_failure != why {
            let address = peer.address.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(node = node.0, address, "storage node: {why}");
            peer.last_failure = why.to_owned();
        }
    }
}
