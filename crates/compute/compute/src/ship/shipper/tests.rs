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
    shipper_of(&vec![members; usize::from(group_count)], limits)
}

/// A shipper whose groups have these members.
fn shipper_of(members: &[[NodeId; 6]], limits: ShipperLimits) -> Shipper {
    let sets = members.iter().map(|&members| QuorumSets::new(vec![members]).unwrap()).collect();
    let tracker = WriterTracker::new(VolumeEpoch(7), sets, RecordSpan::NONE, &[]);
    let mut nodes: BTreeMap<NodeId, GroupSet> = BTreeMap::new();
    for (group, members) in (0..).zip(members) {
        for &node in members {
            let groups = nodes.entry(node).or_default();
            *groups = groups.with(GroupId(group));
        }
    }
    Shipper::new(tracker, VolumeEpoch(7), RecordSpan::NONE, nodes, limits)
}

/// Two groups with the nodes 0 to 5 and 4 to 9: only two nodes have both.
fn shipper_with_nodes_that_have_some_groups(limits: ShipperLimits) -> Shipper {
    let mut shipper = shipper_of(&[[0, 1, 2, 3, 4, 5].map(NodeId), [4, 5, 6, 7, 8, 9].map(NodeId)], limits);
    for peer in 0..10 {
        shipper.connected(NodeId(peer), &[], Lsn::ZERO).unwrap();
    }
    shipper
}

fn limits() -> ShipperLimits {
    ShipperLimits { batches_in_flight: 1, batch_bytes: 1 << 20, retained_bytes: 1 << 20, in_rounds: false }
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
    for peer in 0..NODES {
        shipper.connected(NodeId(peer), &[], Lsn::ZERO).unwrap();
    }
}

fn next(shipper: &mut Shipper, peer: u16) -> Option<Rc<BatchFrame>> {
    shipper.next_batch(NodeId(peer), Lsn::ZERO, false, Duration::ZERO)
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
fn a_node_gets_the_records_of_its_groups_and_each_counts_for_its_own() {
    let mut shipper = shipper_with_nodes_that_have_some_groups(limits());
    ship(&mut shipper, 1, &[0]);
    ship(&mut shipper, 2, &[1]);
    ship(&mut shipper, 3, &[0, 1]);
    shipper.decoded(1);
    assert_eq!(records_of(&next(&mut shipper, 0).unwrap()), [span(1).end, span(3).end]);
    assert_eq!(records_of(&next(&mut shipper, 9).unwrap()), [span(2).end, span(3).end]);
    assert_eq!(records_of(&next(&mut shipper, 4).unwrap()), [1, 2, 3].map(|number| span(number).end));
    let complete = span(3).end.0;
    for peer in 0..4 {
        shipper.progressed(NodeId(peer), &progress(&[(0, complete)])).unwrap();
    }
    assert_eq!(shipper.durable(), span(1), "the next record is of the other group");
    for peer in 6..9 {
        shipper.progressed(NodeId(peer), &progress(&[(1, complete)])).unwrap();
    }
    // A node that does not host the group is no member of it, whatever it says.
    shipper.progressed(NodeId(0), &progress(&[(1, complete)])).unwrap();
    assert_eq!(shipper.take_publishable(), None, "three of group 1");
    shipper.progressed(NodeId(5), &progress(&[(0, complete), (1, complete)])).unwrap();
    assert_eq!((shipper.durable(), shipper.take_publishable()), (span(3), Some(1)));
}

#[test]
fn nothing_is_kept_for_a_node_that_the_records_are_not_for() {
    let none_kept = ShipperLimits { retained_bytes: usize::MAX, ..limits() };
    let mut shipper = shipper_with_nodes_that_have_some_groups(none_kept);
    ship(&mut shipper, 1, &[0]);
    for peer in 0..10 {
        assert_eq!(next(&mut shipper, peer).is_some(), peer < 6, "node {peer}");
    }
    for peer in 0..6 {
        shipper.appended(NodeId(peer), 1 + u64::from(peer >= 4), &progress(&[(0, span(1).end.0)])).unwrap();
    }
    assert_eq!(shipper.retained_bytes(), 0);
    // What is passed over is not asked for again: a record of its own is the next.
    ship(&mut shipper, 2, &[1]);
    assert_eq!(records_of(&next(&mut shipper, 9).unwrap()), [span(2).end]);
}

#[test]
fn a_node_without_records_is_told_the_durable_point_while_others_are_busy() {
    let mut shipper = shipper_with_nodes_that_have_some_groups(limits());
    let second = Duration::from_secs(1);
    let mut now = 10 * second;
    let mut told = 0;
    for number in 1..=30 {
        ship(&mut shipper, number, &[0]);
        for peer in 0..6 {
            assert!(shipper.next_batch(NodeId(peer), Lsn::ZERO, false, now).is_some());
            let id = shipper.peers[&NodeId(peer)].in_flight.back().unwrap().request_id;
            shipper.appended(NodeId(peer), id, &progress(&[(0, span(number).end.0)])).unwrap();
        }
        // The stream never rests, so nobody says that it is quiet.
        if let Some(frame) = shipper.next_batch(NodeId(9), Lsn::ZERO, false, now) {
            let (header, reader) = BatchReader::new(frame.batch()).unwrap();
            assert_eq!((header.durable, reader.count()), (span(number), 0));
            let id = shipper.peers[&NodeId(9)].in_flight.back().unwrap().request_id;
            shipper.appended(NodeId(9), id, &[]).unwrap();
            told += 1;
        }
        now += second / 10;
    }
    assert_eq!(told, 3, "once a second");
    assert!(shipper.known_durable(NodeId(9)) >= span(20).end);
}

#[test]
fn other_members_are_sent_to_and_counted_anew_and_those_that_left_are_neither() {
    let mut shipper = shipper(2, limits());
    connect_all(&mut shipper);
    ship(&mut shipper, 1, &[0]);
    for node in 0..6 {
        let frame = next(&mut shipper, node).unwrap();
        assert_eq!(records_of(&frame), [span(1).end]);
    }
    let end = span(1).end.0;
    for node in [0, 1, 5] {
        shipper.appended(NodeId(node), 1, &progress(&[(0, end)])).unwrap();
    }
    let with_node_6 = QuorumSets::new(vec![[0, 1, 2, 3, 4, 6].map(NodeId)]).unwrap();
    shipper.set_members(GroupId(0), &with_node_6);
    assert_eq!(shipper.groups_of(NodeId(5)), groups(&[1]));
    assert_eq!(shipper.groups_of(NodeId(6)), groups(&[0]));
    // Unconnected, all that have the group: what they said before does not count.
    assert!((0..7).all(|node| next(&mut shipper, node).is_none()));
    for node in [2, 3] {
        shipper.connected(NodeId(node), &progress(&[(0, end)]), Lsn::ZERO).unwrap();
    }
    assert_eq!(shipper.durable(), RecordSpan::NONE);
    for node in [0, 6] {
        shipper.connected(NodeId(node), &progress(&[(0, end)]), Lsn::ZERO).unwrap();
    }
    assert_eq!(shipper.durable(), span(1));
    shipper.set_members(GroupId(1), &with_node_6);
    assert!(!shipper.has_peer(NodeId(5)) && shipper.has_peer(NodeId(6)));
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
    shipper.appended(NodeId(0), 1, &progress(&[(0, span(1).end.0)])).unwrap();
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
        shipper.progressed(NodeId(peer), &progress(&[(0, span(2).end.0)])).unwrap();
        assert_eq!(shipper.take_publishable(), None);
    }
    shipper.progressed(NodeId(3), &progress(&[(0, span(1).end.0)])).unwrap();
    assert_eq!(shipper.take_publishable(), Some(10));
    assert_eq!(shipper.take_publishable(), None);
    shipper.progressed(NodeId(3), &progress(&[(0, span(2).end.0)])).unwrap();
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
    shipper.disconnected(NodeId(0));
    assert!(next(&mut shipper, 0).is_none());
    // Group 1 has records 1 and 3, group 0 has 2 and 4; the node kept 1, 2 and 3.
    let kept = progress(&[(0, span(2).end.0), (1, span(3).end.0)]);
    shipper.connected(NodeId(0), &kept, Lsn::ZERO).unwrap();
    assert_eq!(records_of(&next(&mut shipper, 0).unwrap()), [span(4).end]);
}

#[test]
fn a_node_that_comes_back_without_what_it_acknowledged_does_not_count_for_it() {
    let mut shipper = shipper(1, limits());
    connect_all(&mut shipper);
    ship(&mut shipper, 1, &[0]);
    shipper.decoded(1);
    for peer in 0..3 {
        shipper.progressed(NodeId(peer), &progress(&[(0, span(1).end.0)])).unwrap();
    }
    shipper.disconnected(NodeId(0));
    shipper.connected(NodeId(0), &progress(&[(0, 0)]), Lsn::ZERO).unwrap();
    shipper.progressed(NodeId(3), &progress(&[(0, span(1).end.0)])).unwrap();
    assert_eq!(shipper.take_publishable(), None, "three nodes have it");
    assert_eq!(records_of(&next(&mut shipper, 0).unwrap()), [span(1).end]);
    shipper.progressed(NodeId(0), &progress(&[(0, span(1).end.0)])).unwrap();
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
        let id = shipper.peers[&NodeId(0)].in_flight[0].request_id;
        for peer in 0..5 {
            shipper.appended(NodeId(peer), id, &progress(&[(0, span(number).end.0)])).unwrap();
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
        shipper.appended(NodeId(peer), 1, &progress(&[(0, span(1).end.0)])).unwrap();
        assert!(next(&mut shipper, peer).is_none(), "the first round is not durable");
    }
    assert_eq!(records_of(&next(&mut shipper, 5).unwrap()), [span(1).end], "the last one joins the round");
    shipper.appended(NodeId(3), 1, &progress(&[(0, span(1).end.0)])).unwrap();
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
        shipper.appended(NodeId(peer), 1, &progress(&[(0, span(1).end.0)])).unwrap();
    }
    assert!(shipper.has_untold());
    assert!(next(&mut shipper, 0).is_none(), "not before it is quiet");
    let frame = shipper.next_batch(NodeId(0), Lsn(5), true, Duration::ZERO).unwrap();
    let (header, reader) = BatchReader::new(frame.batch()).unwrap();
    assert_eq!((header.durable, reader.count()), (span(1), 0));
    for peer in 1..6 {
        let other = shipper.next_batch(NodeId(peer), Lsn(5), true, Duration::ZERO).unwrap();
        assert!(Rc::ptr_eq(&frame, &other));
    }
    for peer in 0..6 {
        shipper.appended(NodeId(peer), 2, &[]).unwrap();
        assert!(shipper.next_batch(NodeId(peer), Lsn(5), true, Duration::ZERO).is_none());
    }
    assert!(!shipper.has_untold());
}

#[test]
fn an_acknowledgement_out_of_order_or_of_the_future_is_refused() {
    let mut shipper = shipper(1, limits());
    connect_all(&mut shipper);
    ship(&mut shipper, 1, &[0]);
    assert!(next(&mut shipper, 0).is_some());
    assert!(shipper.appended(NodeId(0), 99, &[]).is_err());
    assert!(shipper.progressed(NodeId(0), &progress(&[(0, 1_000_000)])).is_err());
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
            shipper.appended(NodeId(peer as u16), id, &progress(&[(0, span(has[peer]).end.0)])).unwrap();
        };
        for (kind, peer) in steps {
            match kind {
                0 => {
                    shipped += 1;
                    ship(&mut shipper, shipped, &[0]);
                }
                1 => deliver(&mut shipper, &mut has, &mut sent, peer),
                2 if connected[peer] => {
                    shipper.disconnected(NodeId(peer as u16));
                    sent[peer].clear();
                    connected[peer] = false;
                }
                _ if !connected[peer] => {
                    let complete = if has[peer] == 0 { 0 } else { span(has[peer]).end.0 };
                    shipper.connected(NodeId(peer as u16), &progress(&[(0, complete)]), Lsn::ZERO).unwrap();
                    connected[peer] = true;
                }
                _ => {}
            }
            for (peer, sent) in sent.iter_mut().enumerate() {
                while let Some(frame) = next(&mut shipper, peer as u16) {
                    let id = shipper.peers[&NodeId(peer as u16)].in_flight.back().unwrap().request_id;
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
                shipper.connected(NodeId(peer as u16), &progress(&[(0, complete)]), Lsn::ZERO).unwrap();
            }
        }
        loop {
            for (peer, sent) in sent.iter_mut().enumerate() {
                while let Some(frame) = next(&mut shipper, peer as u16) {
                    let id = shipper.peers[&NodeId(peer as u16)].in_flight.back().unwrap().request_id;
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

/// The defects: each breaks the shipper from inside, as no caller can.
mod broken {
    use super::*;

    fn shipped() -> Shipper {
        let mut shipper = shipper(1, limits());
        connect_all(&mut shipper);
        ship(&mut shipper, 1, &[0]);
        shipper
    }

    #[test]
    #[should_panic(
        expected = "invariant shipped-in-order is broken: a record at 0/6C in a stream up to 0/C4"
    )]
    fn a_record_before_the_end_of_the_stream() {
        ship(&mut shipped(), 1, &[0]);
    }

    #[test]
    #[should_panic(expected = "invariant every-record-has-a-group is broken")]
    fn a_record_for_nobody() {
        ship(&mut shipped(), 2, &[]);
    }

    #[test]
    #[should_panic(expected = "invariant durable-never-falls is broken")]
    fn a_durable_point_that_fell() {
        let mut shipper = shipped();
        shipper.published = span(9).end;
        shipper.take_publishable();
    }

    #[test]
    #[should_panic(expected = "invariant acknowledged-was-sent is broken")]
    fn an_acknowledgement_of_what_was_not_sent() {
        let mut shipper = shipped();
        assert!(next(&mut shipper, 0).is_some());
        shipper.peers.get_mut(&NodeId(0)).unwrap().next = 0;
        let _ = shipper.appended(NodeId(0), 1, &[]);
    }

    #[test]
    #[should_panic(expected = "invariant next-record-is-retained is broken")]
    fn a_record_that_was_dropped_before_it_was_sent() {
        let mut shipper = shipped();
        shipper.retained.release(Lsn::MAX, u64::MAX, 0);
        ship(&mut shipper, 2, &[0]);
        let _ = next(&mut shipper, 0);
    }

    #[test]
    #[should_panic(expected = "invariant window-is-bounded is broken: 2 batches")]
    fn a_batch_beyond_the_window() {
        let mut shipper = shipped();
        // Between the check and the sending: the batch of a peer that counts as idle.
        assert!(next(&mut shipper, 0).is_some());
        ship(&mut shipper, 2, &[0]);
        shipper.advance_round();
        shipper.send_batch(NodeId(0), Lsn::ZERO, Duration::ZERO);
    }
}

#[test]
fn pieces_and_the_record_after_them_name_the_entry_before() {
    let mut shipper = shipper(1, limits());
    connect_all(&mut shipper);
    let mut previous = RecordSpan::NONE;
    let parts = [Part::Whole, Part::First, Part::Middle, Part::Last, Part::Whole, Part::Whole];
    for (number, part) in (1..).zip(parts) {
        shipper.ship_part(span(number), part, groups(&[0]), &[number as u8; 60]);
    }
    let frame = next(&mut shipper, 0).unwrap();
    let (_, reader) = BatchReader::new(frame.batch()).unwrap();
    for (record, part) in reader.map(Result::unwrap).zip(parts) {
        // What its own bytes say is of the record, not of the entry.
        let is_said = part != Part::Whole || previous == span(4);
        let expected = RecordForm { part, previous_start: is_said.then_some(previous.start) };
        assert_eq!(record.form, expected, "the entry at {}", record.span.start);
        previous = record.span;
    }
}
