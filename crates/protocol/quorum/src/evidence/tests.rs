use super::*;
use crate::segment::Source;
use crate::{ChainLink, Promise};
use borealis_types::{EPOCH_STEP_MAX, EpochOpening, GroupId, RecordSpan, ServerVersion, WriterId};

const OWN: NodeId = NodeId(0);

fn members() -> QuorumSets {
    QuorumSets::new(vec![[0, 1, 2, 3, 4, 5].map(NodeId)]).expect("six different nodes")
}

fn span(start: u64, end: u64) -> RecordSpan {
    RecordSpan { start: Lsn(start), end: Lsn(end) }
}

fn history(openings: &[(u64, u64)]) -> EpochHistory {
    let mut history = EpochHistory::default();
    for &(epoch, end) in openings {
        let last = span(end.saturating_sub(8), end);
        let server_version = ServerVersion::NEWEST_TESTED;
        history.push(EpochOpening { epoch: VolumeEpoch(epoch), last, server_version });
    }
    history
}

/// A segment of epoch 1 with records that end at 40, 80 and 120, of which none is known to be durable.
fn segment() -> Segment {
    let mut segment = Segment::new(GroupId(0));
    let installed = segment.install(Some(WriterId(1)), &history(&[(1, 0)]), DurablePoint::default());
    assert!(installed.is_ok());
    for (previous, start, end) in [(0, 8, 40), (40, 40, 80), (80, 80, 120)] {
        let link = ChainLink { previous_end: Lsn(previous), span: span(start, end) };
        assert!(segment.offer(Source::Writer, VolumeEpoch(1), link).must_persist());
    }
    segment
}

fn claim(history: &EpochHistory, point: DurablePoint, complete: u64) -> SegmentSummary {
    SegmentSummary {
        group: GroupId(0),
        promised: Promise { epoch: history.newest_epoch(), writer: WriterId(1) },
        history: history.clone(),
        complete: span(complete, complete),
        known_durable: point,
        minimum_read_point: point.volume.end,
        joining: false,
    }
}

fn at(start: u64, end: u64, tail: u64) -> DurablePoint {
    DurablePoint { volume: span(start, end), group_tail: Lsn(tail) }
}

fn claims(said: &[(u16, SegmentSummary)]) -> Claims {
    said.iter().map(|(node, claim)| (NodeId(*node), claim.clone())).collect()
}

#[test]
fn one_two_or_three_peers_cannot_make_a_history_believed_and_four_can() {
    let forged = history(&[(1, 0), (5, 0x100)]);
    let of = |count: u16| {
        let said: Vec<_> =
            (1..=count).map(|node| (node, claim(&forged, at(0, 0x100, 0x100), 0x100))).collect();
        credible_history(&members(), OWN, &segment(), &claims(&said))
    };
    for count in 1..=3 {
        assert_eq!(of(count), None, "{count} peers");
    }
    assert_eq!(of(4), Some(forged.clone()));
}

#[test]
fn a_history_that_others_continue_counts_for_all_of_them() {
    let (older, newer) = (history(&[(1, 0), (2, 80)]), history(&[(1, 0), (2, 80), (3, 80)]));
    let other = history(&[(1, 0), (4, 80)]);
    let nothing = DurablePoint::default();
    let said = [(1, &newer), (2, &newer), (3, &older), (4, &older), (5, &other)];
    let said = claims(&said.map(|(node, history)| (node, claim(history, nothing, 80))));
    assert_eq!(credible_history(&members(), OWN, &segment(), &said), Some(older));
}

/// Later recoveries died while they installed, one at each of some members: what a write quorum stored is the end of nobody's
/// history any more.
#[test]
fn a_history_that_all_continue_differently_is_believed() {
    let completed = history(&[(1, 0), (2, 80)]);
    let continued = |epoch| history(&[(1, 0), (2, 80), (epoch, 80)]);
    let nothing = DurablePoint::default();
    let said = |epochs: &[u64]| {
        let of = (1..).zip(epochs).map(|(node, &epoch)| (node, claim(&continued(epoch), nothing, 80)));
        claims(&of.collect::<Vec<_>>())
    };
    let believed = |said: &Claims| credible_history(&members(), OWN, &segment(), said);
    assert_eq!(believed(&said(&[3, 4, 5])), None, "three could make it up");
    assert_eq!(believed(&said(&[3, 4, 5, 6])), Some(completed));
    assert_eq!(believed(&said(&[3, 3, 3, 3, 4])), Some(continued(3)));
}

#[test]
fn a_history_beyond_the_bounds_is_not_believed_whoever_says_it() {
    let far = history(&[(1, 0), (2 + EPOCH_STEP_MAX, 80)]);
    let said: Vec<_> = (1..=5).map(|node| (node, claim(&far, DurablePoint::default(), 80))).collect();
    assert_eq!(credible_history(&members(), OWN, &segment(), &claims(&said)), None);
    let long: Vec<_> = (1..=HISTORY_OPENINGS_MAX as u64 + 1).map(|epoch| (epoch, 0)).collect();
    let long = history(&long);
    assert!(matches!(check_history(VolumeEpoch(1), &long), Err(Implausible::TooLong(_))));
    assert!(check_history(VolumeEpoch(1), &history(&[(1, 0), (9, 8)])).is_ok());
}

#[test]
fn a_durable_point_needs_three_that_agree() {
    let (ours, segment) = (history(&[(1, 0)]), segment());
    let durable = |said: &[(u16, DurablePoint)]| {
        let said: Vec<_> = said.iter().map(|&(node, point)| (node, claim(&ours, point, 500))).collect();
        credible_durable(&members(), OWN, &segment, &claims(&said))
    };
    let true_point = at(400, 440, 120);
    assert_eq!(durable(&[(1, at(0x100, 0x200, 0x100))]), None);
    assert_eq!(durable(&[(1, true_point), (2, true_point)]), None);
    assert_eq!(durable(&[(1, true_point), (2, true_point), (3, true_point)]), Some(true_point));
    // One that says another tail for the same position is not of the three; but all three say that it is so far.
    let low = at(400, 440, 0);
    assert_eq!(durable(&[(1, true_point), (2, true_point), (3, low)]), Some(at(80, 120, 120)));
}

#[test]
fn while_the_stream_moves_the_point_is_of_the_own_chain() {
    let (ours, segment) = (history(&[(1, 0)]), segment());
    let points = [at(200, 240, 120), at(80, 120, 120), at(81, 100, 80), at(8, 40, 40)];
    let said: Vec<_> = (1..).zip(points).map(|(node, point)| (node, claim(&ours, point, 120))).collect();
    // Three are at 100 or beyond: of our own records the one that ends at 80 is durable, and exactly known.
    assert_eq!(credible_durable(&members(), OWN, &segment, &claims(&said)), Some(at(40, 80, 80)));
}

#[test]
fn a_member_vouches_only_for_what_it_has_and_only_under_the_same_history() {
    let segment = segment();
    let point = at(80, 120, 120);
    let with = |history: &EpochHistory, complete: u64| {
        let said: Vec<_> = (1..=5).map(|node| (node, claim(history, point, complete))).collect();
        credible_durable(&members(), OWN, &segment, &claims(&said))
    };
    assert_eq!(with(&history(&[(1, 0)]), 120), Some(point));
    assert_eq!(with(&history(&[(1, 0)]), 80), None, "they lack what they call durable");
    assert_eq!(with(&history(&[(1, 0), (2, 40)]), 120), None, "of another history");
    let impossible: Vec<_> =
        (1..=5).map(|node| (node, claim(&history(&[(1, 0)]), at(80, 120, 160), 200))).collect();
    assert_eq!(credible_durable(&members(), OWN, &segment, &claims(&impossible)), None);
}

#[test]
fn nobody_is_told_to_forget_by_one_peer() {
    let (ours, mut segment) = (history(&[(1, 0)]), segment());
    let said = |count: u16| -> Claims {
        claims(&(1..=count).map(|node| (node, claim(&ours, at(80, 120, 120), 120))).collect::<Vec<_>>())
    };
    let point =
        |segment: &Segment, count| credible_minimum_read_point(&members(), OWN, segment, &said(count));
    assert_eq!(point(&segment, 3), None, "nothing is known to be durable");
    assert!(segment.observe_durable(VolumeEpoch(1), at(40, 80, 80)));
    assert_eq!(point(&segment, 2), None);
    assert_eq!(point(&segment, 3), Some(Lsn(80)), "never above the durable point");
}

#[test]
fn an_epoch_that_one_member_alone_has_heard_of_is_not_installed() {
    let newest = |opened: &[&[u64]]| {
        newest_installed(opened.iter().map(|epochs| epochs.iter().copied().map(VolumeEpoch).collect())).0
    };
    assert_eq!(newest(&[&[3, 4], &[3, 4], &[3]]), 4);
    assert_eq!(
        newest(&[&[4], &[4], &[4, 9]]),
        4,
        "forged, or of a recovery that died after its first installation"
    );
    assert_eq!(newest(&[&[4, 5], &[4, 5, 9], &[4]]), 5, "whoever has a later one behind it has it, too");
    assert_eq!((newest(&[&[4]]), newest(&[])), (0, 0));
}

#[test]
fn two_recoveries_that_each_died_at_one_member_make_no_successor() {
    let opened = [&[4][..], &[4, 7], &[4, 8], &[4]];
    let opened = opened.map(|epochs| epochs.iter().copied().map(VolumeEpoch).collect());
    assert_eq!(newest_installed(opened), VolumeEpoch(4), "neither 7 nor 8 is at two of them");
}
