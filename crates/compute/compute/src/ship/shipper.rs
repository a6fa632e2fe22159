//! The write path's state: which records exist, who has which, and what that makes durable.
//!
//! Invariant: pure. Records, acknowledgements and connection changes go in; batches to send and sequences to
//! publish come out.
//! Invariant: a sequence is published only when everything decoded at it is at or below the volume durable
//! LSN, and the volume durable LSN comes from the quorum tracker alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::writer::{ImpossibleAcknowledgement, WriterTracker};
use borealis_types::{GroupId, GroupSet, Lsn, NodeId, Part, RecordForm, RecordSpan, VolumeEpoch, invariant};
use borealis_wire::{BatchBuilder, BatchFrame, BatchHeader, GroupLink, SegmentProgress};

use super::retained::RetainedQueue;

/// A node whose groups get no records is told the durable point after this long, however busy others are: nobody may forget
/// page versions that a node still answers with, see [`Shipper::minimum_read_point`].
const UNTOLD_MAX: Duration = Duration::from_secs(1);

/// Bounds of memory and of what is under way, for one writer.
#[derive(Clone, Copy, Debug)]
pub struct ShipperLimits {
    /// Batches a node may have unacknowledged.
    pub batches_in_flight: usize,
    /// The goal for a batch's size.
    pub batch_bytes: usize,
    /// Durable records kept for nodes that lag.
    pub retained_bytes: usize,
    /// Send in rounds: what arrives while a round is on its way waits until the round is durable, and then goes
    /// to everyone together. A record has to wait for four nodes anyhow, so a fast node gains nothing by taking
    /// it earlier than the fourth can; and with fewer, fuller batches every node has less to do.
    pub in_rounds: bool,
}

/// An encoded batch and what it covers.
#[derive(Clone, Debug)]
struct Encoded {
    frame: Rc<BatchFrame>,
    request_id: u64,
    groups: GroupSet,
    /// Numbers of the first record and of the one after the last.
    first: u64,
    through: u64,
    durable: Lsn,
    /// It was cut by the size goal: waiting would not have made it longer.
    full: bool,
}

#[derive(Debug)]
struct InFlight {
    request_id: u64,
    through: u64,
    durable: Lsn,
    sent: Duration,
}

#[derive(Debug)]
struct Peer {
    groups: GroupSet,
    connected: bool,
    /// Number of the next record to send.
    next: u64,
    /// Everything below this number was acknowledged, or given up for gossip to deliver.
    acknowledged: u64,
    in_flight: VecDeque<InFlight>,
    /// The durable point it knows.
    known_durable: Lsn,
    /// When it was sent a batch last.
    last_sent: Duration,
}

impl Peer {
    /// That needs nothing before record number `first`.
    fn unconnected(groups: GroupSet, first: u64) -> Peer {
        Peer {
            groups,
            connected: false,
            next: first,
            acknowledged: first,
            in_flight: VecDeque::new(),
            known_durable: Lsn::ZERO,
            last_sent: Duration::ZERO,
        }
    }
}

/// Counters of the write path, since the shipper was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShipCounters {
    /// Records taken from the log, each counted once.
    pub records: u64,
    /// Bytes of those records, without links and frames.
    pub record_bytes: u64,
    /// Batches handed to connections, each node counted.
    pub batches_sent: u64,
    /// Bytes of those batches with their frames, each node counted.
    pub bytes_sent: u64,
    /// Batches encoded; fewer than sent when nodes share one.
    pub batches_encoded: u64,
    /// Batches that nodes said are durable, each node counted.
    pub acknowledgements: u64,
}

/// Who has which record and what is durable, for one writer in one epoch.
#[derive(Debug)]
pub struct Shipper {
    #[cfg(feature = "broken-durability")]
    one_is_enough: bool,
    tracker: WriterTracker,
    epoch: VolumeEpoch,
    limits: ShipperLimits,
    retained: RetainedQueue,
    peers: BTreeMap<NodeId, Peer>,
    last_shipped: RecordSpan,
    last_form: RecordForm,
    /// The current round: number of the record after its last, and where that record ends.
    round: (u64, Lsn),
    /// The durable point when something was published last.
    published: Lsn,
    /// Sequences not yet published, each with the end of the last record decoded when it was read.
    unpublished: VecDeque<(u64, Lsn)>,
    next_request_id: u64,
    last_encoded: Option<Encoded>,
    links: Vec<GroupLink>,
    counters: ShipCounters,
}

/// A node acknowledged what it was not sent; its connection is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnexpectedAcknowledgement {
    /// Replies come in the order of the requests.
    #[error("it answered request {answered} where {expected:?} was due")]
    Order {
        /// The number of the request that the node answered.
        answered: u64,
        /// The one that was due.
        expected: Option<u64>,
    },
    /// It claims to have what was never shipped.
    #[error(transparent)]
    Impossible(#[from] ImpossibleAcknowledgement),
}

impl Shipper {
    /// A shipper that continues after `last`, with every node still unconnected.
    #[must_use]
    pub fn new(
        tracker: WriterTracker,
        epoch: VolumeEpoch,
        last: RecordSpan,
        nodes: impl IntoIterator<Item = (NodeId, GroupSet)>,
        limits: ShipperLimits,
    ) -> Shipper {
        let peer = |(node, groups)| (node, Peer::unconnected(groups, 0));
        Shipper {
            #[cfg(feature = "broken-durability")]
            one_is_enough: false,
            tracker,
            epoch,
            limits,
            retained: RetainedQueue::default(),
            peers: nodes.into_iter().map(peer).collect(),
            last_shipped: last,
            last_form: RecordForm::default(),
            round: (0, last.end),
            published: Lsn::ZERO,
            unpublished: VecDeque::new(),
            // Zero is for what comes unasked.
            next_request_id: 1,
            last_encoded: None,
            links: Vec::new(),
            counters: ShipCounters::default(),
        }
    }

    /// Counts one node's acknowledgement for all six, for the test that the benchmark notices it.
    #[cfg(feature = "broken-durability")]
    pub fn break_durability(&mut self) {
        self.one_is_enough = true;
    }

    fn peer(&self, node: NodeId) -> &Peer {
        self.peers.get(&node).expect("a shipper is asked about nodes it was made with")
    }

    fn peer_mut(&mut self, node: NodeId) -> &mut Peer {
        self.peers.get_mut(&node).expect("a shipper is asked about nodes it was made with")
    }

    /// Takes the next record of the stream, a whole one.
    ///
    /// # Panics
    /// As [`Shipper::ship_part`].
    pub fn ship(&mut self, span: RecordSpan, groups: GroupSet, bytes: &[u8]) {
        self.ship_part(span, Part::Whole, groups, bytes);
    }

    /// Takes the next record of the stream, or the next piece of one: to everything here a piece is a record.
    ///
    /// # Panics
    /// If it does not follow the last one: order is what the whole system rests on.
    pub fn ship_part(&mut self, span: RecordSpan, part: Part, groups: GroupSet, bytes: &[u8]) {
        let last = self.last_shipped.end;
        invariant!(
            "shipped-in-order",
            span.start >= last,
            "a record at {} in a stream up to {last}",
            span.start
        );
        invariant!("every-record-has-a-group", !groups.is_empty(), "the record at {}", span.start);
        self.tracker.ship(span, groups, &mut self.links);
        // A record after a piece names the start of the whole record that the piece is of, not that of the piece.
        let is_named = !part.is_piece() && !self.last_form.part.is_piece();
        let form = RecordForm { part, previous_start: (!is_named).then_some(self.last_shipped.start) };
        self.retained.push(span, groups, &self.links, form, bytes);
        self.last_shipped = span;
        self.last_form = form;
        self.counters.records += 1;
        self.counters.record_bytes += bytes.len() as u64;
    }

    /// Everything written up to `sequence` has been shipped; publish it when that is durable.
    pub fn decoded(&mut self, sequence: u64) {
        let end = self.last_shipped.end;
        match self.unpublished.back_mut() {
            Some(last) if last.1 == end => last.0 = sequence,
            _ => self.unpublished.push_back((sequence, end)),
        }
    }

    /// The newest sequence that may be published now, if there is a new one.
    pub fn take_publishable(&mut self) -> Option<u64> {
        let durable = self.durable().end;
        let published = self.published;
        invariant!("durable-never-falls", durable >= published, "{durable} after {published}");
        let mut newest = None;
        while let Some(&(sequence, end)) = self.unpublished.front()
            && end <= durable
        {
            newest = Some(sequence);
            self.published = durable;
            self.unpublished.pop_front();
        }
        newest
    }

    /// The volume's last durable record.
    #[must_use]
    pub fn durable(&self) -> RecordSpan {
        self.tracker.volume_durable()
    }

    /// The volume epoch the shipper writes in.
    #[must_use]
    pub fn epoch(&self) -> VolumeEpoch {
        self.epoch
    }

    /// The quorum tracker, to read from.
    #[must_use]
    pub fn tracker(&self) -> &WriterTracker {
        &self.tracker
    }

    /// Where the redo of a group ends at the durable point: a segment that has its records up to here shows the group
    /// as of now.
    #[must_use]
    pub fn group_tail(&self, group: GroupId) -> Lsn {
        self.tracker.durable_point(group).group_tail
    }

    /// The LSN to ask `node` at, which shows the group as of now: the durable point the node knows, or where the group's
    /// redo ends if that is later.
    ///
    /// Between the group's last record and the durable point nothing of the group changes, so every position there
    /// shows the same; the node certainly can answer at the one it knows.
    #[must_use]
    pub fn read_point(&self, node: NodeId, group: GroupId) -> Lsn {
        let known = self.peers.get(&node).map_or(Lsn::ZERO, |peer| peer.known_durable);
        known.max(self.group_tail(group))
    }

    /// The lowest LSN at which anyone may still read (PGMRPL), which batches tell the nodes so that they may forget older
    /// versions: never above a point that a node is asked at. `lowest_asked` is the lowest of requests under way.
    ///
    /// A node is read at the durable point it knows, so nobody may forget what is at or after the lowest of those; nodes
    /// whose oldest batch was sent before `since` are left out, as in [`Shipper::lowest_known_durable`].
    #[must_use]
    pub fn minimum_read_point(&self, lowest_asked: Option<Lsn>, since: Duration) -> Lsn {
        let known = self.lowest_known_durable(since).unwrap_or(Lsn::ZERO);
        let durable = self.durable().end;
        lowest_asked.unwrap_or(durable).min(known).min(durable)
    }

    /// The place of the last record shipped in the chain of each of its groups, in group order.
    #[must_use]
    pub fn last_links(&self) -> &[GroupLink] {
        &self.links
    }

    /// The form of the last record shipped.
    #[must_use]
    pub fn last_form(&self) -> RecordForm {
        self.last_form
    }

    /// The end of the stream: the last record shipped, durable or not.
    #[must_use]
    pub fn last_shipped(&self) -> RecordSpan {
        self.last_shipped
    }

    /// Whether everything shipped is durable.
    #[must_use]
    pub fn all_durable(&self) -> bool {
        self.durable().end >= self.last_shipped.end
    }

    /// Counters since the shipper was made.
    #[must_use]
    pub fn counters(&self) -> ShipCounters {
        self.counters
    }

    /// Bytes of records held in memory.
    #[must_use]
    pub fn retained_bytes(&self) -> usize {
        self.retained.size_bytes()
    }

    /// The durable point a node is known to know.
    #[must_use]
    pub fn known_durable(&self, node: NodeId) -> Lsn {
        self.peer(node).known_durable
    }

    /// The lowest durable point that a connected node is known to know. Nodes whose oldest batch was sent
    /// before `since` are left out: one that hangs must not hold everyone back.
    #[must_use]
    pub fn lowest_known_durable(&self, since: Duration) -> Option<Lsn> {
        self.peers
            .values()
            .filter(|peer| peer.connected && peer.in_flight.front().is_none_or(|batch| batch.sent >= since))
            .map(|peer| peer.known_durable)
            .min()
    }

    /// Nodes whose oldest batch was sent before `since` and is still not acknowledged.
    pub fn silent_since(&self, since: Duration) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter_map(move |(&node, peer)| {
            (peer.connected && peer.in_flight.front().is_some_and(|batch| batch.sent < since)).then_some(node)
        })
    }

    /// Whether everything is durable and some connected, idle node has not been told so.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        let durable = self.durable().end;
        self.all_durable()
            && self
                .peers
                .values()
                .any(|peer| peer.connected && peer.in_flight.is_empty() && peer.known_durable < durable)
    }

    /// A node is connected and its segments stand at `segments`; `known_durable` is the lowest durable point
    /// they know. What it lacks and the driver still has is sent again.
    ///
    /// # Errors
    /// When the node claims to have what was never shipped; it is then not connected.
    pub fn connected(
        &mut self,
        node: NodeId,
        segments: &[SegmentProgress],
        known_durable: Lsn,
    ) -> Result<(), UnexpectedAcknowledgement> {
        for segment in segments {
            self.tracker.restate(node, segment.group, segment.segment_complete_lsn)?;
        }
        let of_node = self.peer(node).groups;
        let (mut next, end) = (self.retained.first(), self.retained.end());
        while next < end {
            let Some((span, groups, _)) = self.retained.span(next) else { break };
            let lacks = segments.iter().any(|segment| {
                groups.contains(segment.group)
                    && of_node.contains(segment.group)
                    && segment.segment_complete_lsn < span.end
            });
            if lacks {
                break;
            }
            next += 1;
        }
        let state = self.peer_mut(node);
        state.connected = true;
        state.known_durable = known_durable;
        state.in_flight.clear();
        state.next = next;
        state.acknowledged = next;
        self.release();
        Ok(())
    }

    /// A node's connection is gone.
    pub fn disconnected(&mut self, node: NodeId) {
        let state = self.peer_mut(node);
        state.connected = false;
        state.in_flight.clear();
    }

    /// A node acknowledged a batch.
    ///
    /// # Errors
    /// When it is not the batch that was due.
    pub fn appended(
        &mut self,
        node: NodeId,
        request_id: u64,
        progress: &[SegmentProgress],
    ) -> Result<(), UnexpectedAcknowledgement> {
        let state = self.peer_mut(node);
        let expected = state.in_flight.front().map(|batch| batch.request_id);
        if expected != Some(request_id) {
            return Err(UnexpectedAcknowledgement::Order { answered: request_id, expected });
        }
        if let Some(batch) = state.in_flight.pop_front() {
            state.acknowledged = state.acknowledged.max(batch.through);
            state.known_durable = state.known_durable.max(batch.durable);
        }
        let (acknowledged, next) = (state.acknowledged, state.next);
        invariant!(
            "acknowledged-was-sent",
            acknowledged <= next,
            "record {acknowledged} of {next} sent to {node}"
        );
        self.counters.acknowledgements += 1;
        self.progressed(node, progress)
    }

    /// A node's segments got further, by a batch or through their peers.
    ///
    /// # Errors
    /// When the node claims to have what was never shipped.
    pub fn progressed(
        &mut self,
        node: NodeId,
        progress: &[SegmentProgress],
    ) -> Result<(), UnexpectedAcknowledgement> {
        self.acknowledge_segments(node, progress)?;
        self.release();
        Ok(())
    }

    fn acknowledge_segments(
        &mut self,
        node: NodeId,
        progress: &[SegmentProgress],
    ) -> Result<(), UnexpectedAcknowledgement> {
        for segment in progress {
            self.tracker.acknowledge(node, segment.group, self.epoch, segment.segment_complete_lsn)?;
            #[cfg(feature = "broken-durability")]
            if self.one_is_enough {
                for &other in self.peers.keys() {
                    let complete = segment.segment_complete_lsn;
                    self.tracker.acknowledge(other, segment.group, self.epoch, complete)?;
                }
            }
        }
        Ok(())
    }

    /// Replaces a group's members, at a step of its membership. Every old and new member is unconnected then, and counts as
    /// having nothing of the group until it has introduced itself again: a segment may have left and come back empty
    /// since it was last heard of.
    pub fn set_members(&mut self, group: GroupId, members: &QuorumSets) {
        let mut affected: BTreeSet<NodeId> = self.tracker.members(group).members().collect();
        for &node in &affected {
            // Less than was shipped: it cannot be impossible.
            let _ = self.tracker.restate(node, group, Lsn::ZERO);
        }
        affected.extend(members.members());
        self.tracker.set_members(group, members.clone());
        let first = self.retained.first();
        for node in affected {
            let peer = self.peers.entry(node).or_insert_with(|| Peer::unconnected(GroupSet::EMPTY, first));
            let kept =
                if members.contains(node) { peer.groups.with(group) } else { peer.groups.without(group) };
            *peer = Peer { known_durable: peer.known_durable, ..Peer::unconnected(kept, peer.acknowledged) };
            if kept.is_empty() {
                self.peers.remove(&node);
            }
        }
        self.release();
    }

    /// Whether a node has a group of this shipper.
    #[must_use]
    pub fn has_peer(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// The groups that a node is sent.
    #[must_use]
    pub fn groups_of(&self, node: NodeId) -> GroupSet {
        self.peers.get(&node).map_or(GroupSet::EMPTY, |peer| peer.groups)
    }

    fn release(&mut self) {
        let durable = self.durable().end;
        let acknowledged = self.peers.values().map(|peer| peer.acknowledged).min().unwrap_or(0);
        self.retained.release(durable, acknowledged, self.limits.retained_bytes);
        let first = self.retained.first();
        for peer in self.peers.values_mut() {
            // What was dropped, its peers will tell it.
            peer.next = peer.next.max(first);
            peer.acknowledged = peer.acknowledged.max(first);
        }
    }

    /// Number of the node's next record. Those before it that are not for it are passed over once: it need not be sent
    /// anything for them, and they are not kept for it.
    fn next_for(&mut self, node: NodeId) -> u64 {
        let state = self.peers.get_mut(&node).expect("a shipper is asked about nodes it was made with");
        while let Some((_, groups, _)) = self.retained.span(state.next)
            && !intersect(groups, state.groups)
        {
            state.next += 1;
        }
        if state.in_flight.is_empty() {
            state.acknowledged = state.next;
        }
        state.next
    }

    /// Number of the record after the last that may be sent now.
    fn sendable_end(&self) -> u64 {
        let may_begin = !self.limits.in_rounds || self.durable().end >= self.round.1;
        if may_begin { self.retained.end() } else { self.round.0 }
    }

    /// Begins the next round if the last one is durable and there is something new.
    fn advance_round(&mut self) {
        let end = self.retained.end();
        if end > self.round.0 && (!self.limits.in_rounds || self.durable().end >= self.round.1) {
            self.round = (end, self.last_shipped.end);
        }
    }

    /// Whether [`Shipper::next_batch`] has one for the node.
    #[must_use]
    pub fn can_take(&mut self, node: NodeId, quiet: bool, now: Duration) -> bool {
        let state = self.peer(node);
        if !state.connected || state.in_flight.len() >= self.limits.batches_in_flight {
            return false;
        }
        let untold = state.in_flight.is_empty() && state.known_durable < self.durable().end;
        let is_time = now.saturating_sub(state.last_sent) >= UNTOLD_MAX || (quiet && self.all_durable());
        self.next_for(node) < self.sendable_end() || (untold && is_time)
    }

    /// The next batch for a node, if it can take one and there is something to say.
    ///
    /// `minimum_read_point` goes into the header. When `quiet`, and all is durable, a batch without records
    /// tells the node so, once; and, quiet or not, a node for which there was nothing in the last second.
    pub fn next_batch(
        &mut self,
        node: NodeId,
        minimum_read_point: Lsn,
        quiet: bool,
        now: Duration,
    ) -> Option<Rc<BatchFrame>> {
        if !self.can_take(node, quiet, now) {
            return None;
        }
        self.advance_round();
        Some(self.send_batch(node, minimum_read_point, now))
    }

    /// The batch of what the round has for the node, noted as sent.
    fn send_batch(&mut self, node: NodeId, minimum_read_point: Lsn, now: Duration) -> Rc<BatchFrame> {
        let first = self.next_for(node);
        let end = self.round.0;
        let durable = self.durable().end;
        let groups = self.peer(node).groups;
        let encoded = match &self.last_encoded {
            Some(last)
                if last.groups == groups
                    && last.first == first
                    && (last.through == end || last.full)
                    && (first < end || last.durable == durable) =>
            {
                last.clone()
            }
            _ => self.encode(groups, first, end, minimum_read_point),
        };
        let (retained_from, retained_to) = (self.retained.first(), self.retained.end());
        let window = self.limits.batches_in_flight;
        let state = self.peer_mut(node);
        // Nothing in between was dropped, or the node would have a hole that nobody knows of.
        invariant!(
            "next-record-is-retained",
            (retained_from..=retained_to).contains(&state.next) && encoded.through <= retained_to,
            "{node} gets {} to {}, retained are {retained_from} to {retained_to}",
            state.next,
            encoded.through
        );
        state.next = encoded.through;
        state.last_sent = now;
        state.in_flight.push_back(InFlight {
            request_id: encoded.request_id,
            through: encoded.through,
            durable: encoded.durable,
            sent: now,
        });
        let in_flight = state.in_flight.len();
        invariant!("window-is-bounded", in_flight <= window, "{in_flight} batches on the way to {node}");
        self.counters.batches_sent += 1;
        self.counters.bytes_sent += encoded.frame.size_bytes() as u64;
        encoded.frame
    }

    fn encode(&mut self, groups: GroupSet, first: u64, end: u64, minimum_read_point: Lsn) -> Encoded {
        let durable = self.durable();
        let header = BatchHeader {
            volume_epoch: self.epoch,
            durable,
            minimum_read_point: minimum_read_point.min(durable.end),
            tails: self.tracker.durable_tails().filter(|tail| groups.contains(tail.group)).collect(),
        };
        let mut builder = BatchBuilder::new(&header);
        let mut through = first;
        let mut full = false;
        while through < end
            && let Some(record) = self.retained.get(through)
        {
            if intersect(record.groups, groups) {
                let after = builder.size_bytes() + record.bytes.len();
                if builder.record_count() > 0 && after > self.limits.batch_bytes {
                    full = true;
                    break;
                }
                builder.push_form(record.span, record.form, record.links, record.bytes);
            }
            through += 1;
        }
        let request_id = self.next_request_id;
        self.next_request_id += 1;
        self.counters.batches_encoded += 1;
        let frame = Rc::new(BatchFrame::new(request_id, builder.finish()));
        let encoded = Encoded { frame, request_id, groups, first, through, durable: durable.end, full };
        self.last_encoded = Some(encoded.clone());
        encoded
    }

    /// Forgets the batch kept for sharing, so that its memory does not outlive a burst.
    pub fn trim(&mut self) {
        self.last_encoded = None;
    }
}

fn intersect(a: GroupSet, b: GroupSet) -> bool {
    (a == b && !a.is_empty()) || a.iter().any(|group| b.contains(group))
}

#[cfg(test)]
mod tests;
