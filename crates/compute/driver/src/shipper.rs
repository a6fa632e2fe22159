//! The write path's state: which records exist, who has which, and what that makes durable.
//!
//! Invariant: pure. Records, acknowledgements and connection changes go in; batches to send and sequences to
//! publish come out.
//! Invariant: a sequence is published only when everything decoded at it is at or below the volume durable
//! LSN, and the volume durable LSN comes from the quorum tracker alone.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use borealis_quorum::writer::{ImpossibleAcknowledgement, WriterTracker};
use borealis_types::{GroupSet, Lsn, NodeId, RecordSpan, VolumeEpoch};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, SegmentProgress};

use crate::retained::RetainedQueue;
use borealis_client::polled::BatchFrame;

/// Bounds of the shipper.
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

/// A node's number in the driver's list of nodes.
pub type PeerIndex = usize;

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
    node: NodeId,
    groups: GroupSet,
    connected: bool,
    /// Number of the next record to send.
    next: u64,
    /// Everything below this number was acknowledged, or given up for gossip to deliver.
    acknowledged: u64,
    in_flight: VecDeque<InFlight>,
    /// The durable point it knows.
    known_durable: Lsn,
}

/// Counters of the write path, since the shipper was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShipCounters {
    /// Records shipped.
    pub records: u64,
    /// Their bytes.
    pub record_bytes: u64,
    /// Batches handed to connections, each node counted.
    pub batches_sent: u64,
    /// Bytes of those batches with their frames, each node counted.
    pub bytes_sent: u64,
    /// Batches encoded; fewer than sent when nodes share one.
    pub batches_encoded: u64,
    /// Acknowledgements received.
    pub acknowledgements: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Shipper {
    #[cfg(feature = "broken-durability")]
    one_is_enough: bool,
    tracker: WriterTracker,
    epoch: VolumeEpoch,
    limits: ShipperLimits,
    retained: RetainedQueue,
    peers: Vec<Peer>,
    last_shipped: RecordSpan,
    /// The current round: number of the record after its last, and where that record ends.
    round: (u64, Lsn),
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
        /// The request answered.
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
        let peer = |(node, groups)| Peer {
            node,
            groups,
            connected: false,
            next: 0,
            acknowledged: 0,
            in_flight: VecDeque::new(),
            known_durable: Lsn::ZERO,
        };
        Shipper {
            #[cfg(feature = "broken-durability")]
            one_is_enough: crate::broken_durability::is_wanted(),
            tracker,
            epoch,
            limits,
            retained: RetainedQueue::default(),
            peers: nodes.into_iter().map(peer).collect(),
            last_shipped: last,
            round: (0, last.end),
            unpublished: VecDeque::new(),
            // Zero is for what comes unasked.
            next_request_id: 1,
            last_encoded: None,
            links: Vec::new(),
            counters: ShipCounters::default(),
        }
    }

    /// Takes the next record of the stream.
    ///
    /// # Panics
    /// If it does not follow the last one: order is what the whole system rests on.
    pub fn ship(&mut self, span: RecordSpan, groups: GroupSet, bytes: &[u8]) {
        assert!(
            span.start >= self.last_shipped.end,
            "record at {} is before the end of the stream",
            span.start
        );
        self.tracker.ship(span, groups, &mut self.links);
        self.retained.push(span, groups, &self.links, bytes);
        self.last_shipped = span;
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
        let mut newest = None;
        while let Some(&(sequence, end)) = self.unpublished.front()
            && end <= durable
        {
            newest = Some(sequence);
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

    /// The last record shipped.
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
    pub fn known_durable(&self, peer: PeerIndex) -> Lsn {
        self.peers[peer].known_durable
    }

    /// Whether the node is connected for appends.
    #[must_use]
    pub fn is_connected(&self, peer: PeerIndex) -> bool {
        self.peers[peer].connected
    }

    /// The lowest durable point that a connected node is known to know. Nodes whose oldest batch was sent
    /// before `since` are left out: one that hangs must not hold everyone back.
    #[must_use]
    pub fn lowest_known_durable(&self, since: Duration) -> Option<Lsn> {
        self.peers
            .iter()
            .filter(|peer| peer.connected && peer.in_flight.front().is_none_or(|batch| batch.sent >= since))
            .map(|peer| peer.known_durable)
            .min()
    }

    /// Nodes whose oldest batch was sent before `since` and is still not acknowledged.
    pub fn silent_since(&self, since: Duration) -> impl Iterator<Item = PeerIndex> {
        self.peers.iter().enumerate().filter_map(move |(index, peer)| {
            (peer.connected && peer.in_flight.front().is_some_and(|batch| batch.sent < since))
                .then_some(index)
        })
    }

    /// Whether everything is durable and some connected, idle node has not been told so.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        let durable = self.durable().end;
        self.all_durable()
            && self
                .peers
                .iter()
                .any(|peer| peer.connected && peer.in_flight.is_empty() && peer.known_durable < durable)
    }

    /// A node is connected and its segments stand at `segments`; `known_durable` is the lowest durable point
    /// they know. What it lacks and the driver still has is sent again.
    ///
    /// # Errors
    /// When the node claims to have what was never shipped; it is then not connected.
    pub fn connected(
        &mut self,
        peer: PeerIndex,
        segments: &[SegmentProgress],
        known_durable: Lsn,
    ) -> Result<(), UnexpectedAcknowledgement> {
        let node = self.peers[peer].node;
        for segment in segments {
            self.tracker.restate(node, segment.group, segment.segment_complete_lsn)?;
        }
        let state = &mut self.peers[peer];
        state.connected = true;
        state.known_durable = known_durable;
        state.in_flight.clear();
        let (mut next, end) = (self.retained.first(), self.retained.end());
        while next < end {
            let Some((span, groups, _)) = self.retained.span(next) else { break };
            let lacks = segments.iter().any(|segment| {
                groups.contains(segment.group)
                    && state.groups.contains(segment.group)
                    && segment.segment_complete_lsn < span.end
            });
            if lacks {
                break;
            }
            next += 1;
        }
        state.next = next;
        state.acknowledged = next;
        self.release();
        Ok(())
    }

    /// A node's connection is gone.
    pub fn disconnected(&mut self, peer: PeerIndex) {
        let state = &mut self.peers[peer];
        state.connected = false;
        state.in_flight.clear();
    }

    /// A node acknowledged a batch.
    ///
    /// # Errors
    /// When it is not the batch that was due.
    pub fn appended(
        &mut self,
        peer: PeerIndex,
        request_id: u64,
        progress: &[SegmentProgress],
    ) -> Result<(), UnexpectedAcknowledgement> {
        let state = &mut self.peers[peer];
        let expected = state.in_flight.front().map(|batch| batch.request_id);
        if expected != Some(request_id) {
            return Err(UnexpectedAcknowledgement::Order { answered: request_id, expected });
        }
        if let Some(batch) = state.in_flight.pop_front() {
            state.acknowledged = state.acknowledged.max(batch.through);
            state.known_durable = state.known_durable.max(batch.durable);
        }
        self.counters.acknowledgements += 1;
        self.progressed(peer, progress)
    }

    /// A node's segments moved.
    ///
    /// # Errors
    /// When the node claims to have what was never shipped.
    pub fn progressed(
        &mut self,
        peer: PeerIndex,
        progress: &[SegmentProgress],
    ) -> Result<(), UnexpectedAcknowledgement> {
        self.acknowledge_segments(peer, progress)?;
        self.release();
        Ok(())
    }

    fn acknowledge_segments(
        &mut self,
        peer: PeerIndex,
        progress: &[SegmentProgress],
    ) -> Result<(), UnexpectedAcknowledgement> {
        let node = self.peers[peer].node;
        for segment in progress {
            self.tracker.acknowledge(node, segment.group, self.epoch, segment.segment_complete_lsn)?;
            #[cfg(feature = "broken-durability")]
            if self.one_is_enough {
                for other in &self.peers {
                    let complete = segment.segment_complete_lsn;
                    self.tracker.acknowledge(other.node, segment.group, self.epoch, complete)?;
                }
            }
        }
        Ok(())
    }

    fn release(&mut self) {
        let durable = self.durable().end;
        let acknowledged = self.peers.iter().map(|peer| peer.acknowledged).min().unwrap_or(0);
        self.retained.release(durable, acknowledged, self.limits.retained_bytes);
        let first = self.retained.first();
        for peer in &mut self.peers {
            // What was dropped, its peers will tell it.
            peer.next = peer.next.max(first);
            peer.acknowledged = peer.acknowledged.max(first);
        }
    }

    /// Number of the node's next record, past those that are not for it.
    fn next_for(&self, peer: PeerIndex) -> u64 {
        let state = &self.peers[peer];
        let mut next = state.next;
        while let Some((_, groups, _)) = self.retained.span(next)
            && !intersect(groups, state.groups)
        {
            next += 1;
        }
        next
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
    pub fn can_take(&self, peer: PeerIndex, quiet: bool) -> bool {
        let state = &self.peers[peer];
        if !state.connected || state.in_flight.len() >= self.limits.batches_in_flight {
            return false;
        }
        let untold = state.in_flight.is_empty() && state.known_durable < self.durable().end;
        self.next_for(peer) < self.sendable_end() || quiet && untold && self.all_durable()
    }

    /// The next batch for a node, if it can take one and there is something to say.
    ///
    /// `minimum_read_point` goes into the header. When `quiet`, and all is durable, a batch without records
    /// tells the node so, once.
    pub fn next_batch(
        &mut self,
        peer: PeerIndex,
        minimum_read_point: Lsn,
        quiet: bool,
        now: Duration,
    ) -> Option<Rc<BatchFrame>> {
        if !self.can_take(peer, quiet) {
            return None;
        }
        self.advance_round();
        let first = self.next_for(peer);
        let end = self.round.0;
        let durable = self.durable().end;
        let groups = self.peers[peer].groups;
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
        let state = &mut self.peers[peer];
        state.next = encoded.through;
        state.in_flight.push_back(InFlight {
            request_id: encoded.request_id,
            through: encoded.through,
            durable: encoded.durable,
            sent: now,
        });
        self.counters.batches_sent += 1;
        self.counters.bytes_sent += encoded.frame.size_bytes() as u64;
        Some(encoded.frame)
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
                builder.push(record.span, record.links, record.bytes);
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
    a == b && !a.is_empty() || a.iter().any(|group| b.contains(group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_quorum::quorum_set::QuorumSets;
    use borealis_types::GroupId;
    use borealis_wire::BatchReader;
    use proptest::prelude::*;

    const NODES: u16 = 6;

    fn groups(numbers: &[u16]) -> GroupSet {
        numbers.iter().fold(GroupSet::EMPTY, |set, &number| set.with(GroupId(number)))
    }

    fn shipper(group_count: u16, limits: ShipperLimits) -> Shipper {
        let members = [0, 1, 2, 3, 4, 5].map(NodeId);
        let sets = (0..group_count).map(|_| QuorumSets::new(vec![members]).unwrap()).collect();
        let tracker = WriterTracker::new(VolumeEpoch(7), sets, RecordSpan::NONE, &[]);
        let all: Vec<u16> = (0..group_count).collect();
        let nodes = (0..NODES).map(|node| (NodeId(node), groups(&all)));
        Shipper::new(tracker, VolumeEpoch(7), RecordSpan::NONE, nodes, limits)
    }

    fn limits() -> ShipperLimits {
        ShipperLimits {
            batches_in_flight: 1,
            batch_bytes: 1 << 20,
            retained_bytes: 1 << 20,
            in_rounds: false,
        }
    }

    fn span(number: u64) -> RecordSpan {
        RecordSpan { start: Lsn(number * 100 + 8), end: Lsn(number * 100 + 96) }
    }

    fn ship(shipper: &mut Shipper, number: u64, to: &[u16]) {
        shipper.ship(span(number), groups(to), &[number as u8; 60]);
    }

    fn progress(list: &[(u16, u64)]) -> Vec<SegmentProgress> {
        let one = |&(group, lsn)| SegmentProgress { group: GroupId(group), segment_complete_lsn: Lsn(lsn) };
        list.iter().map(one).collect()
    }

    fn connect_all(shipper: &mut Shipper) {
        for peer in 0..usize::from(NODES) {
            shipper.connected(peer, &[], Lsn::ZERO).unwrap();
        }
    }

    fn next(shipper: &mut Shipper, peer: PeerIndex) -> Option<Rc<BatchFrame>> {
        shipper.next_batch(peer, Lsn::ZERO, false, Duration::ZERO)
    }

    fn records_of(frame: &BatchFrame) -> Vec<Lsn> {
        let (_, reader) = BatchReader::new(frame.batch()).unwrap();
        reader.map(|record| record.unwrap().span.end).collect()
    }

    #[test]
    fn six_idle_nodes_share_one_encoded_batch() {
        let mut shipper = shipper(2, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        ship(&mut shipper, 2, &[0, 1]);
        let frames: Vec<_> = (0..6).map(|peer| next(&mut shipper, peer).unwrap()).collect();
        assert!(frames.iter().all(|frame| Rc::ptr_eq(frame, &frames[0])));
        assert_eq!(shipper.counters().batches_encoded, 1);
        assert_eq!(records_of(&frames[0]), [span(1).end, span(2).end]);
    }

    #[test]
    fn while_a_node_is_busy_its_next_batch_fills() {
        let mut shipper = shipper(1, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        assert!(next(&mut shipper, 0).is_some());
        ship(&mut shipper, 2, &[0]);
        ship(&mut shipper, 3, &[0]);
        assert!(next(&mut shipper, 0).is_none(), "one batch in flight is the limit");
        shipper.appended(0, 1, &progress(&[(0, span(1).end.0)])).unwrap();
        assert_eq!(records_of(&next(&mut shipper, 0).unwrap()), [span(2).end, span(3).end]);
    }

    #[test]
    fn a_sequence_is_published_only_when_four_nodes_have_what_was_decoded_at_it() {
        let mut shipper = shipper(1, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        shipper.decoded(10);
        ship(&mut shipper, 2, &[0]);
        shipper.decoded(11);
        shipper.decoded(12);
        for peer in 0..3 {
            shipper.progressed(peer, &progress(&[(0, span(2).end.0)])).unwrap();
            assert_eq!(shipper.take_publishable(), None);
        }
        shipper.progressed(3, &progress(&[(0, span(1).end.0)])).unwrap();
        assert_eq!(shipper.take_publishable(), Some(10));
        assert_eq!(shipper.take_publishable(), None);
        shipper.progressed(3, &progress(&[(0, span(2).end.0)])).unwrap();
        assert_eq!(shipper.take_publishable(), Some(12));
        // A write that completed no record is as durable as what came before it.
        shipper.decoded(13);
        assert_eq!(shipper.take_publishable(), Some(13));
    }

    #[test]
    fn a_reconnected_node_gets_again_what_it_lacks() {
        let mut shipper = shipper(2, limits());
        connect_all(&mut shipper);
        for number in 1..=4 {
            ship(&mut shipper, number, &[(number % 2) as u16]);
        }
        assert!(next(&mut shipper, 0).is_some());
        shipper.disconnected(0);
        assert!(next(&mut shipper, 0).is_none());
        // Group 1 has records 1 and 3, group 0 has 2 and 4; the node kept 1, 2 and 3.
        let kept = progress(&[(0, span(2).end.0), (1, span(3).end.0)]);
        shipper.connected(0, &kept, Lsn::ZERO).unwrap();
        assert_eq!(records_of(&next(&mut shipper, 0).unwrap()), [span(4).end]);
    }

    #[test]
    fn a_node_that_comes_back_without_what_it_acknowledged_does_not_count_for_it() {
        let mut shipper = shipper(1, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        shipper.decoded(1);
        for peer in 0..3 {
            shipper.progressed(peer, &progress(&[(0, span(1).end.0)])).unwrap();
        }
        shipper.disconnected(0);
        shipper.connected(0, &progress(&[(0, 0)]), Lsn::ZERO).unwrap();
        shipper.progressed(3, &progress(&[(0, span(1).end.0)])).unwrap();
        assert_eq!(shipper.take_publishable(), None, "three nodes have it");
        assert_eq!(records_of(&next(&mut shipper, 0).unwrap()), [span(1).end]);
        shipper.progressed(0, &progress(&[(0, span(1).end.0)])).unwrap();
        assert_eq!(shipper.take_publishable(), Some(1));
    }

    #[test]
    fn a_slow_node_is_left_to_its_peers_beyond_the_bound_and_slows_nobody() {
        let mut shipper = shipper(1, ShipperLimits { retained_bytes: 600, ..limits() });
        connect_all(&mut shipper);
        for number in 1..=100 {
            ship(&mut shipper, number, &[0]);
            for peer in 0..5 {
                let frame = next(&mut shipper, peer).unwrap();
                assert_eq!(records_of(&frame), [span(number).end]);
            }
            let id = shipper.peers[0].in_flight[0].request_id;
            for peer in 0..5 {
                shipper.appended(peer, id, &progress(&[(0, span(number).end.0)])).unwrap();
            }
            assert_eq!(shipper.durable(), span(number));
        }
        assert!(shipper.retained_bytes() <= 600);
        let first = records_of(&next(&mut shipper, 5).unwrap())[0];
        assert!(first > span(80).end, "the oldest records are dropped, {first} is the first left");
    }

    #[test]
    fn in_rounds_what_arrives_on_the_way_goes_to_everyone_together() {
        let mut shipper = shipper(1, ShipperLimits { in_rounds: true, ..limits() });
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        let frames: Vec<_> = (0..5).map(|peer| next(&mut shipper, peer).unwrap()).collect();
        assert!(frames.iter().all(|frame| Rc::ptr_eq(frame, &frames[0])));
        ship(&mut shipper, 2, &[0]);
        ship(&mut shipper, 3, &[0]);
        for peer in 0..3 {
            shipper.appended(peer, 1, &progress(&[(0, span(1).end.0)])).unwrap();
            assert!(next(&mut shipper, peer).is_none(), "the first round is not durable");
        }
        assert_eq!(
            records_of(&next(&mut shipper, 5).unwrap()),
            [span(1).end],
            "the last one joins the round"
        );
        shipper.appended(3, 1, &progress(&[(0, span(1).end.0)])).unwrap();
        for peer in 0..4 {
            assert_eq!(records_of(&next(&mut shipper, peer).unwrap()), [span(2).end, span(3).end]);
        }
        assert!(next(&mut shipper, 4).is_none(), "it is still busy with the first round");
    }

    #[test]
    fn the_final_durable_point_is_told_once() {
        let mut shipper = shipper(1, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        for peer in 0..6 {
            assert!(next(&mut shipper, peer).is_some());
        }
        for peer in 0..6 {
            shipper.appended(peer, 1, &progress(&[(0, span(1).end.0)])).unwrap();
        }
        assert!(shipper.has_untold());
        assert!(next(&mut shipper, 0).is_none(), "not before it is quiet");
        let frame = shipper.next_batch(0, Lsn(5), true, Duration::ZERO).unwrap();
        let (header, reader) = BatchReader::new(frame.batch()).unwrap();
        assert_eq!((header.durable, reader.count()), (span(1), 0));
        for peer in 1..6 {
            let other = shipper.next_batch(peer, Lsn(5), true, Duration::ZERO).unwrap();
            assert!(Rc::ptr_eq(&frame, &other));
        }
        for peer in 0..6 {
            shipper.appended(peer, 2, &[]).unwrap();
            assert!(shipper.next_batch(peer, Lsn(5), true, Duration::ZERO).is_none());
        }
        assert!(!shipper.has_untold());
    }

    #[test]
    fn an_acknowledgement_out_of_order_or_of_the_future_is_refused() {
        let mut shipper = shipper(1, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        assert!(next(&mut shipper, 0).is_some());
        assert!(shipper.appended(0, 99, &[]).is_err());
        assert!(shipper.progressed(0, &progress(&[(0, 1_000_000)])).is_err());
        assert_eq!(shipper.durable(), RecordSpan::NONE);
    }

    proptest! {
        /// Nodes that lose connections, come back, and acknowledge in any order end up with every record, and
        /// the durable point never passes what four of them have.
        #[test]
        fn every_node_gets_every_record_in_order(
            steps in prop::collection::vec((0u8..4, 0usize..6), 1..300),
            batch_bytes in 100usize..1000,
            batches_in_flight in 1usize..3,
            in_rounds: bool,
        ) {
            let limits = ShipperLimits { batches_in_flight, batch_bytes, retained_bytes: 1 << 20, in_rounds };
            let mut shipper = shipper(1, limits);
            let mut shipped = 0u64;
            // What each node has, and what is on the way to it.
            let mut has = [0u64; 6];
            let mut sent: Vec<VecDeque<(u64, Vec<Lsn>)>> = vec![VecDeque::new(); 6];
            let mut connected = [false; 6];
            let deliver = |shipper: &mut Shipper, has: &mut [u64; 6], sent: &mut Vec<VecDeque<(u64, Vec<Lsn>)>>, peer: usize| {
                let Some((id, ends)) = sent[peer].pop_front() else { return };
                for end in ends {
                    let number = (end.0 - 96) / 100;
                    assert!(number <= has[peer] + 1, "node {peer} has {} and got {number}", has[peer]);
                    has[peer] = has[peer].max(number);
                }
                shipper.appended(peer, id, &progress(&[(0, span(has[peer]).end.0)])).unwrap();
            };
            for (kind, peer) in steps {
                match kind {
                    0 => {
                        shipped += 1;
                        ship(&mut shipper, shipped, &[0]);
                    }
                    1 => deliver(&mut shipper, &mut has, &mut sent, peer),
                    2 if connected[peer] => {
                        shipper.disconnected(peer);
                        sent[peer].clear();
                        connected[peer] = false;
                    }
                    _ if !connected[peer] => {
                        let complete = if has[peer] == 0 { 0 } else { span(has[peer]).end.0 };
                        shipper.connected(peer, &progress(&[(0, complete)]), Lsn::ZERO).unwrap();
                        connected[peer] = true;
                    }
                    _ => {}
                }
                for (peer, sent) in sent.iter_mut().enumerate() {
                    while let Some(frame) = next(&mut shipper, peer) {
                        let id = shipper.peers[peer].in_flight.back().unwrap().request_id;
                        sent.push_back((id, records_of(&frame)));
                    }
                }
                let mut sorted = has;
                sorted.sort_unstable();
                let durable = shipper.durable().end;
                prop_assert!(durable.0 <= span(sorted[2]).end.0, "durable {durable} with {has:?}");
            }
            for (peer, connected) in connected.iter().enumerate() {
                if !connected {
                    let complete = if has[peer] == 0 { 0 } else { span(has[peer]).end.0 };
                    shipper.connected(peer, &progress(&[(0, complete)]), Lsn::ZERO).unwrap();
                }
            }
            loop {
                for (peer, sent) in sent.iter_mut().enumerate() {
                    while let Some(frame) = next(&mut shipper, peer) {
                        let id = shipper.peers[peer].in_flight.back().unwrap().request_id;
                        sent.push_back((id, records_of(&frame)));
                    }
                }
                if sent.iter().all(VecDeque::is_empty) {
                    break;
                }
                for peer in 0..6 {
                    deliver(&mut shipper, &mut has, &mut sent, peer);
                }
            }
            prop_assert_eq!(has, [shipped; 6]);
            prop_assert!(shipper.all_durable());
        }
    }
}
