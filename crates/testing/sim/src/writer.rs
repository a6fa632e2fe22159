//! A simulated instance once it writes: the product's shipper and reads ([`borealis_compute`]) over simulated connections.
//!
//! What stands here is what the driver's event loop does around them: open connections, introduce itself, give up
//! those that fall silent, and after every event send what may be sent and publish what became durable.

mod members;

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_compute::read::{Reads, Transport};
use borealis_compute::ship::{
    Greeted, Shipper, ShipperLimits, Tenure, TenureEnd, TenureLimits, UnexpectedAcknowledgement, greet,
};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::read_routing::ReadRouter;
use borealis_quorum::recovery::Outcome;
use borealis_quorum::writer::WriterTracker;
use borealis_types::server_request;
use borealis_types::{
    BlockKey, Fork, GroupId, GroupSet, Lsn, NodeId, PageKey, Part, Placement, RecordSpan, RelationFork,
    RelationLocator, ServerVersion, VolumeEpoch,
};
use borealis_wal::Effect;
use borealis_wire::{Refusal, Reply, Request, SegmentProgress, SegmentSummary};

use crate::Defect;
use crate::effects::{Asked, Effects};
use crate::message::{LineId, Message, OnLine, SimRecord};
use crate::random::Random;

/// How far a writer runs ahead of its durable position.
const LOG_AHEAD_MAX_BYTES: u64 = 1500;
/// A node that leaves a batch or an introduction unanswered for so long is disconnected.
const SILENCE_MAX: Duration = Duration::from_millis(400);
/// A node that leaves a batch unanswered for so long no longer holds back what others may forget.
const SILENCE_TOLERATED: Duration = Duration::from_millis(200);
/// Until a broken connection is opened again.
const RECONNECT_AFTER: Duration = Duration::from_millis(60);
/// After the last record, until the nodes are told the final durable point.
const QUIET_AFTER: Duration = Duration::from_millis(100);
/// A read that nobody answered for so long fails.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Reads that PostgreSQL has under way at most: a fenced instance asks every node again and again.
const READS_MAX: usize = 4;
/// Pages fetched ahead that are kept.
const PREFETCH_BYTES: usize = 64 << 10;

const RELATION: RelationFork = RelationFork {
    locator: RelationLocator { tablespace: 1663, database: 5, relation: 16_384 },
    fork: Fork::Main,
};
/// Blocks of the relation that is read: of several extents, so of several groups.
const BLOCKS: u64 = 4096;

/// Ids of a connection's first requests, beyond those of batches and reads.
const HELLO_ID: u64 = u64::MAX;
const INSTALL_ID: u64 = u64::MAX - 1;
const FENCE_ID: u64 = u64::MAX - 2;
/// Ids of questions whether the epoch still holds: this bit, and when they were sent, in milliseconds.
const CONFIRM_BIT: u64 = 1 << 62;

/// How long an instance shows what it has without a read quorum's word that it has no successor.
pub const LEASE: Duration = Duration::from_millis(700);
/// How long newer promises may take its write quorum away.
const OUTVOTED: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The node was greeted and has not answered.
    Greeting,
    /// The node was sent the history and has not answered.
    Installing,
    Ready,
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Down { retry_at: Duration },
    Up { line: LineId, stage: Stage, since: Duration },
}

/// Which of a node's two connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    Append,
    Read,
}

#[derive(Debug)]
struct NodeLinks {
    append: Link,
    read: Link,
}

impl NodeLinks {
    fn link(&mut self, which: Which) -> &mut Link {
        match which {
            Which::Append => &mut self.append,
            Which::Read => &mut self.read,
        }
    }
}

/// How reads reach the nodes.
struct ReadLines<'a> {
    links: &'a BTreeMap<NodeId, NodeLinks>,
    shipper: &'a Shipper,
    send: &'a mut Vec<(NodeId, Message)>,
}

impl Transport for ReadLines<'_> {
    fn send(&mut self, node: NodeId, request_id: u64, request: &Request) -> bool {
        let Some(Link::Up { line, stage: Stage::Ready, .. }) = self.links.get(&node).map(|links| links.read)
        else {
            return false;
        };
        self.send.push((node, Message::Line(line, OnLine::Request(request_id, request.clone()))));
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

/// See the module.
#[derive(Debug)]
pub struct Writer {
    instance: u32,
    outcome: Outcome,
    server_version: ServerVersion,
    stubborn: bool,
    defect: Defect,
    placement: Placement,
    shipper: Shipper,
    reads: Reads<u64>,
    tenure: Tenure,
    router: ReadRouter,
    links: BTreeMap<NodeId, NodeLinks>,
    /// The groups of the record whose pieces are being written, and how many are left.
    cutting: (GroupSet, u64),
    next_line: u64,
    last_shipped_at: Duration,
    asked: BTreeMap<u64, Asked>,
    next_read: u64,
}

impl Writer {
    /// The writer that a recovery made.
    #[must_use]
    pub fn new(
        instance: u32,
        outcome: Outcome,
        server_version: ServerVersion,
        members: Vec<QuorumSets>,
        now: Duration,
        defect: Defect,
    ) -> Writer {
        let epoch = outcome.promise.epoch;
        let nodes = members::groups_of_nodes(&members);
        let placement = Placement::new(members.len() as u16).expect("a volume has a group");
        // Each instance another tuning, the same for the same seed.
        let mut tuning = Random::new(u64::from(instance) << 32 | epoch.0);
        let limits = ShipperLimits {
            batches_in_flight: tuning.between(1, 3) as usize,
            batch_bytes: tuning.between(60, 1000) as usize,
            retained_bytes: tuning.between(100, 4000) as usize,
            in_rounds: tuning.chance(500),
        };
        let lease = if defect == Defect::LeaseIgnored { Duration::MAX / 2 } else { LEASE };
        let limits_of_tenure = TenureLimits { lease, outvoted: OUTVOTED };
        let confirmed = now.saturating_sub(outcome.confirmed_before);
        let tenure = Tenure::new(epoch, members.clone(), limits_of_tenure, confirmed, now);
        let tracker = WriterTracker::new(epoch, members, outcome.durable, &outcome.tails);
        let down = Link::Down { retry_at: Duration::ZERO };
        Writer {
            instance,
            server_version,
            stubborn: false,
            defect,
            placement,
            shipper: Shipper::new(tracker, epoch, outcome.durable, nodes.clone(), limits),
            reads: Reads::new(epoch, placement, READ_TIMEOUT, PREFETCH_BYTES),
            tenure,
            router: ReadRouter::new(),
            links: nodes.keys().map(|&node| (node, NodeLinks { append: down, read: down })).collect(),
            cutting: (GroupSet::EMPTY, 0),
            next_line: 0,
            last_shipped_at: Duration::ZERO,
            asked: BTreeMap::new(),
            next_read: 0,
            outcome,
        }
    }

    /// Lets it go on when it is told that it is fenced.
    pub fn set_stubborn(&mut self, stubborn: bool) {
        self.stubborn = stubborn;
    }

    fn epoch(&self) -> VolumeEpoch {
        self.outcome.promise.epoch
    }

    /// Durable position and last shipped position.
    #[must_use]
    pub fn positions(&self) -> (Lsn, Lsn) {
        (self.shipper.durable().end, self.shipper.last_shipped().end)
    }

    /// Takes what came on a connection. `false` when it is fenced and stops.
    pub fn receive(
        &mut self,
        node: NodeId,
        line: LineId,
        content: OnLine,
        now: Duration,
        effects: &mut Effects,
    ) -> bool {
        let Some((which, stage)) = self.find(node, line) else {
            if !matches!(content, OnLine::Closed) {
                effects.send.push((node, Message::Line(line, OnLine::Closed)));
            }
            return true;
        };
        match content {
            OnLine::Reply(id, reply) if which == Which::Read => {
                self.take_read_reply(node, stage, id, reply, now, effects);
                true
            }
            OnLine::Reply(id, reply) => self.take_append_reply(node, stage, id, reply, now, effects),
            OnLine::Closed => {
                self.disconnect(node, which, now, effects);
                true
            }
            OnLine::Request(..) | OnLine::Batch(_) => {
                effects.impossible = Some(format!("node {node} asked instance {}", self.instance));
                true
            }
        }
    }

    fn find(&self, node: NodeId, line: LineId) -> Option<(Which, Stage)> {
        let links = self.links.get(&node)?;
        [(Which::Append, links.append), (Which::Read, links.read)].into_iter().find_map(|(which, link)| {
            match link {
                Link::Up { line: known, stage, .. } if known == line => Some((which, stage)),
                _ => None,
            }
        })
    }

    fn take_append_reply(
        &mut self,
        node: NodeId,
        stage: Stage,
        id: u64,
        reply: Reply,
        now: Duration,
        effects: &mut Effects,
    ) -> bool {
        match (stage, reply) {
            (_, Reply::Refused(Refusal::Fenced(newer))) if newer > self.epoch() => {
                effects.count("refusals that a writer heard");
                self.tenure.refused(node, newer, now);
                self.disconnect(node, Which::Append, now, effects);
                if self.defect == Defect::EndsAtFirstRefusal {
                    return self.end(TenureEnd::Outvoted(newer), effects);
                }
            }
            // The promise before the history, which a competitor of the recovery may have.
            (Stage::Installing, Reply::Summaries(_) | Reply::Refused(_)) if id == FENCE_ID => {}
            (_, Reply::Refused(_)) => self.disconnect(node, Which::Append, now, effects),
            (Stage::Greeting, Reply::Welcome { segments, .. }) => {
                return self.welcome(node, &segments, false, now, effects);
            }
            (Stage::Installing, Reply::Summaries(segments)) if id == INSTALL_ID => {
                return self.welcome(node, &segments, true, now, effects);
            }
            (Stage::Greeting | Stage::Installing, Reply::Progress(_)) => {}
            (Stage::Ready, Reply::Appended(progress)) => {
                let result = self.shipper.appended(node, id, &progress);
                self.note(node, result, &progress, effects);
            }
            (Stage::Ready, Reply::Progress(progress)) => {
                let result = self.shipper.progressed(node, &progress);
                self.note(node, result, &progress, effects);
            }
            (_, other) => effects.impossible = Some(format!("node {node} answered {other:?}")),
        }
        true
    }

    fn note(
        &mut self,
        node: NodeId,
        result: Result<(), UnexpectedAcknowledgement>,
        progress: &[SegmentProgress],
        effects: &mut Effects,
    ) {
        if let Err(error) = result {
            effects.impossible = Some(error.to_string());
            return;
        }
        for segment in progress {
            self.router.observe_readable(node, segment.group, segment.segment_complete_lsn);
        }
        if self.defect == Defect::AcknowledgeAtThree && node == NodeId(0) {
            // What it does to the counted node's own place in the stream is not the point.
            let _ = self.shipper.progressed(NodeId(5), progress);
        }
    }

    /// A node introduced itself, or answered an installation.
    fn welcome(
        &mut self,
        node: NodeId,
        segments: &[SegmentSummary],
        installing: bool,
        now: Duration,
        effects: &mut Effects,
    ) -> bool {
        let hosted = segments.iter().fold(GroupSet::EMPTY, |set, segment| set.with(segment.group));
        self.tenure.hosts(node, hosted, now);
        let greeted = greet(self.epoch(), self.shipper.groups_of(node), segments);
        if !matches!(greeted, Greeted::Fenced { .. }) {
            self.tenure.introduced(node, self.epoch(), self.epoch(), now);
        }
        let stage = match greeted {
            Greeted::Fenced { promised, installed } => {
                self.tenure.introduced(node, promised, installed, now);
                self.disconnect(node, Which::Append, now, effects);
                if self.defect == Defect::ReplacedOnOneWord && installed > self.epoch() {
                    return self.end(TenureEnd::Replaced(installed), effects);
                }
                return true;
            }
            Greeted::Behind if installing => {
                self.disconnect(node, Which::Append, now, effects);
                return true;
            }
            Greeted::Behind => {
                let (epoch, writer) = (self.epoch(), self.outcome.promise.writer);
                self.send_request(node, FENCE_ID, Request::Fence { epoch, writer }, effects);
                let request = Request::Install {
                    epoch,
                    writer,
                    history: self.outcome.history.clone(),
                    tails: self.outcome.tails.clone(),
                };
                self.send_request(node, INSTALL_ID, request, effects);
                Stage::Installing
            }
            Greeted::Ready { progress, known_durable } => {
                let result = self.shipper.connected(node, &progress, known_durable);
                self.note(node, result, &progress, effects);
                Stage::Ready
            }
        };
        self.set_stage(node, Which::Append, stage);
        true
    }

    fn send_request(&mut self, node: NodeId, id: u64, request: Request, effects: &mut Effects) {
        if let Some(Link::Up { line, .. }) = self.links.get(&node).map(|links| links.append) {
            effects.send.push((node, Message::Line(line, OnLine::Request(id, request))));
        }
    }

    fn set_stage(&mut self, node: NodeId, which: Which, to: Stage) {
        if let Some(links) = self.links.get_mut(&node)
            && let Link::Up { stage, .. } = links.link(which)
        {
            *stage = to;
        }
    }

    fn take_read_reply(
        &mut self,
        node: NodeId,
        stage: Stage,
        id: u64,
        reply: Reply,
        now: Duration,
        effects: &mut Effects,
    ) {
        if let Reply::Refused(Refusal::Fenced(newer)) = &reply {
            self.tenure.refused(node, *newer, now);
        }
        match (stage, reply) {
            (Stage::Ready, reply) if id & (CONFIRM_BIT << 1 | CONFIRM_BIT) == CONFIRM_BIT => {
                if reply == Reply::Confirmed {
                    effects.count("epochs confirmed");
                    self.tenure.confirmed(node, Duration::from_millis(id & (CONFIRM_BIT - 1)));
                }
            }
            (Stage::Greeting, Reply::Welcome { .. }) => self.set_stage(node, Which::Read, Stage::Ready),
            (Stage::Greeting, _) => self.disconnect(node, Which::Read, now, effects),
            (_, reply) => self.with_reads(effects, |reads, router, lines| {
                reads.answered(node, id, reply, router, lines, now);
            }),
        }
    }

    fn with_reads(
        &mut self,
        effects: &mut Effects,
        act: impl FnOnce(&mut Reads<u64>, &mut ReadRouter, &mut ReadLines<'_>),
    ) {
        let mut lines = ReadLines { links: &self.links, shipper: &self.shipper, send: &mut effects.send };
        act(&mut self.reads, &mut self.router, &mut lines);
    }

    fn disconnect(&mut self, node: NodeId, which: Which, now: Duration, effects: &mut Effects) {
        let Some(links) = self.links.get_mut(&node) else { return };
        let Link::Up { line, .. } = *links.link(which) else { return };
        *links.link(which) = Link::Down { retry_at: now + RECONNECT_AFTER };
        effects.send.push((node, Message::Line(line, OnLine::Closed)));
        match which {
            Which::Append => self.shipper.disconnected(node),
            Which::Read => self.with_reads(effects, |reads, router, lines| {
                reads.disconnected(node, router, lines, now);
            }),
        }
    }

    /// Notes that it ends, unless it is stubborn; whether it goes on.
    fn end(&self, end: TenureEnd, effects: &mut Effects) -> bool {
        if !self.stubborn {
            effects.ended = Some((end, self.ready_nodes()));
        }
        self.stubborn
    }

    /// Nodes that take its batches: how many, if they are a write quorum of every group. One that refused a read for a newer
    /// promise takes none, though its other connection has not heard so yet.
    fn ready_nodes(&self) -> Option<usize> {
        let is_ready = |node: NodeId| {
            let is_up = |links: &NodeLinks| matches!(links.append, Link::Up { stage: Stage::Ready, .. });
            self.links.get(&node).is_some_and(is_up) && self.tenure.fenced_by(node).is_none()
        };
        let tracker = self.shipper.tracker();
        let suffices = |group| tracker.members(group).is_write_quorum(is_ready);
        let count = self.links.keys().filter(|&&node| is_ready(node)).count();
        self.placement.groups().all(suffices).then_some(count)
    }

    fn look_at_tenure(&mut self, now: Duration, effects: &mut Effects) -> bool {
        if self.tenure.take_ask(now) {
            let id = CONFIRM_BIT | now.as_millis() as u64;
            for (&node, links) in &self.links {
                if let Link::Up { line, stage: Stage::Ready, .. } = links.read {
                    let request = Request::Confirm { epoch: self.epoch() };
                    effects.send.push((node, Message::Line(line, OnLine::Request(id, request))));
                }
            }
        }
        let links = &self.links;
        let is_ready = |node: NodeId| {
            links.get(&node).is_some_and(|l| matches!(l.append, Link::Up { stage: Stage::Ready, .. }))
        };
        match self.tenure.check(is_ready, now) {
            Ok(()) => true,
            Err(end) => self.end(end, effects),
        }
    }

    /// Time passed. `false` when it has to end.
    pub fn tick(&mut self, now: Duration, effects: &mut Effects) -> bool {
        let silent: Vec<NodeId> = self.shipper.silent_since(now.saturating_sub(SILENCE_MAX)).collect();
        for node in silent {
            self.disconnect(node, Which::Append, now, effects);
        }
        let slow = |link: &Link| matches!(link, Link::Up { stage, since, .. } if *stage != Stage::Ready && *since + SILENCE_MAX < now);
        for node in self.links.keys().copied().collect::<Vec<_>>() {
            for which in [Which::Append, Which::Read] {
                if self.links.get_mut(&node).is_some_and(|links| slow(links.link(which))) {
                    self.disconnect(node, which, now, effects);
                }
            }
        }
        self.with_reads(effects, |reads, router, lines| {
            reads.tick(router, lines, now);
        });
        self.look_at_tenure(now, effects)
    }

    /// Makes one more record, unless the log is too far ahead.
    pub fn write(&mut self, random: &mut Random, content: u64, now: Duration, effects: &mut Effects) {
        if self.shipper.tracker().log_ahead_bytes() > LOG_AHEAD_MAX_BYTES {
            return;
        }
        let group_count = u64::from(self.placement.group_count());
        let mut groups = GroupSet::EMPTY.with(GroupId(random.below(group_count) as u16));
        while random.chance(300) {
            groups = groups.with(GroupId(random.below(group_count) as u16));
        }
        let part = self.next_part(random, &mut groups);
        let previous = self.shipper.last_shipped();
        // Now and then a page header lies between two records; the first record is never at zero.
        let may_skip = part.begins_record();
        let skip = if previous == RecordSpan::NONE || (may_skip && random.chance(100)) { 24 } else { 0 };
        let start = Lsn(previous.end.0 + skip);
        let span = RecordSpan { start, end: Lsn(start.0 + 8 * random.between(3, 12)) };
        // Every page of its groups.
        if self.defect != Defect::PrefetchIgnoresChanges {
            self.reads.invalidate(&[Effect::CreateRelation(RELATION)], span.end);
        }
        let bytes = SimRecord::bytes(content, previous.start, self.server_version);
        self.shipper.ship_part(span, part, groups, &bytes);
        self.shipper.decoded(span.end.0);
        self.last_shipped_at = now;
        effects.shipped = Some(
            SimRecord {
                epoch: self.epoch(),
                span,
                previous_start: previous.start,
                links: self.shipper.last_links().to_vec(),
                part,
                content,
                truth: self.server_version,
            }
            .into(),
        );
    }

    /// What part of a record the next entry is; `groups` become those of the record that it goes on with.
    fn next_part(&mut self, random: &mut Random, groups: &mut GroupSet) -> Part {
        let (of_record, left) = self.cutting;
        if left > 0 {
            *groups = of_record;
            self.cutting.1 = left - 1;
            return if left == 1 { Part::Last } else { Part::Middle };
        }
        if !random.chance(120) {
            return Part::Whole;
        }
        self.cutting = (*groups, random.between(1, 3));
        Part::First
    }

    /// Asks for a page, or hints that it will.
    pub fn read(&mut self, random: &mut Random, now: Duration, effects: &mut Effects) {
        if self.asked.len() >= READS_MAX {
            return;
        }
        let key = BlockKey { relation_fork: RELATION, block: random.below(BLOCKS) as u32 };
        if random.chance(300) {
            self.with_reads(effects, |reads, router, lines| reads.prefetch(key, router, lines, now));
            // PostgreSQL follows its hint most of the time, at once or a little later.
            if random.chance(500) {
                return;
            }
        }
        let id = self.next_read;
        self.next_read += 1;
        let group = self.placement.group_of(&PageKey::Block(key));
        self.asked.insert(id, Asked { group, durable: self.shipper.durable().end });
        let what = server_request::Request::ReadBlock(key);
        self.with_reads(effects, |reads, router, lines| reads.begin(id, what, router, lines, now));
    }

    /// After every event: opens connections that are due, sends what may be sent, publishes what became durable.
    pub fn go_on(&mut self, now: Duration, effects: &mut Effects) {
        self.connect_due(now, effects);
        let quiet = self.last_shipped_at + QUIET_AFTER <= now;
        let since = now.saturating_sub(SILENCE_TOLERATED);
        let minimum = self.shipper.minimum_read_point(self.reads.lowest_read_point(), since);
        for (&node, links) in &self.links {
            let Link::Up { line, stage: Stage::Ready, .. } = links.append else { continue };
            while let Some(frame) = self.shipper.next_batch(node, minimum, quiet, now) {
                effects.send.push((node, Message::Line(line, OnLine::Batch(frame))));
            }
        }
        if let Some(sequence) = self.shipper.take_publishable() {
            effects.durable = Some(Lsn(sequence));
        }
        for (id, answer) in self.reads.take_done() {
            let asked = self.asked.remove(&id).expect("only what was asked is answered, and once");
            effects.answered.push((asked, answer));
        }
    }
}
