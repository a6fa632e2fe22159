use std::collections::BTreeMap;

use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, ReadPoint, RecordSpan, ServerVersion, VolumeEpoch, WriterId,
};
use borealis_wire::Refusal;
use proptest::prelude::*;

use super::{HELD_RECORDS_MAX, InstallError, Offer, ReadRefusal, Segment, SegmentRecord, Source};
use crate::{ChainLink, DurablePoint, Promise};

fn span(start: u64, end: u64) -> RecordSpan {
    RecordSpan { start: Lsn(start), end: Lsn(end) }
}

fn link(previous_end: u64, start: u64, end: u64) -> ChainLink {
    ChainLink { previous_end: Lsn(previous_end), span: span(start, end) }
}

fn history(openings: &[(u64, RecordSpan)]) -> EpochHistory {
    let mut history = EpochHistory::default();
    for &(epoch, last) in openings {
        history.push(EpochOpening { epoch: VolumeEpoch(epoch), last, server_version: release(epoch) });
    }
    history
}

/// Each epoch's writer runs another release than the one before.
fn release(epoch: u64) -> ServerVersion {
    ServerVersion::new(150_018 + (epoch % 3) as u32).expect("a release")
}

fn promise(epoch: u64) -> Promise {
    Promise { epoch: VolumeEpoch(epoch), writer: WriterId(epoch * 10) }
}

fn durable(last: RecordSpan, group_tail: u64) -> DurablePoint {
    DurablePoint { volume: last, group_tail: Lsn(group_tail) }
}

/// A segment in epoch 1 of a new volume.
fn first_epoch() -> Segment {
    let mut segment = Segment::new(GroupId(0));
    segment
        .install(Some(promise(1).writer), &history(&[(1, RecordSpan::NONE)]), DurablePoint::default())
        .expect("nothing stands in the way");
    segment
}

const FIRST: VolumeEpoch = VolumeEpoch(1);

#[test]
fn complete_counts_no_hole_and_connects_what_waited() {
    let mut segment = first_epoch();
    assert_eq!(segment.offer(Source::Writer, FIRST, link(0, 8, 40)), Offer::Complete);
    assert_eq!(segment.offer(Source::Writer, FIRST, link(80, 90, 120)), Offer::Held);
    assert_eq!(segment.offer(Source::Writer, FIRST, link(80, 90, 120)), Offer::Duplicate);
    assert_eq!(segment.segment_complete_lsn(), Lsn(40));
    assert_eq!(segment.gap().map(|gap| (gap.after, gap.through)), Some((Lsn(40), Lsn(80))));
    assert_eq!(segment.offer(Source::Peer, FIRST, link(40, 40, 80)), Offer::Complete);
    assert_eq!(segment.complete(), span(90, 120));
    assert_eq!(segment.gap(), None);
    assert_eq!(segment.offer(Source::Peer, FIRST, link(40, 40, 80)), Offer::Duplicate);
}

#[test]
fn contradictions_are_noticed() {
    let mut segment = first_epoch();
    for (offered, outcome) in [
        (link(0, 8, 40), Offer::Complete),
        (link(0, 8, 32), Offer::Conflict),
        (link(16, 24, 56), Offer::Conflict),
        (link(80, 90, 120), Offer::Held),
        (link(80, 90, 128), Offer::Conflict),
        (link(60, 70, 100), Offer::Conflict),
        (link(100, 110, 130), Offer::Conflict),
        (link(40, 40, 100), Offer::Conflict),
        (link(200, 190, 210), Offer::Conflict),
        (link(200, 210, 210), Offer::Conflict),
        (link(40, 40, 80), Offer::Complete),
    ] {
        let before = segment.clone();
        assert_eq!(segment.offer(Source::Writer, FIRST, offered), outcome, "{offered:?}");
        assert!(outcome.must_persist() || segment == before, "a refusal changes nothing");
    }
}

#[test]
fn a_fenced_segment_serves_the_old_writer_no_more_and_acknowledges_nothing_until_installed() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    assert_eq!(segment.acknowledgement(), Some((FIRST, Lsn(40))));
    segment.fence(promise(3)).expect("newer");
    assert_eq!(segment.fence(promise(3)).map(|summary| summary.complete), Ok(span(8, 40)), "idempotent");
    let other = Promise { writer: WriterId(1), ..promise(3) };
    assert_eq!(segment.fence(other).map_err(|fenced| fenced.current), Err(promise(3)));
    assert!(segment.fence(promise(2)).is_err());
    assert_eq!(segment.offer(Source::Writer, FIRST, link(40, 40, 80)), Offer::Stale);
    assert_eq!(segment.offer(Source::Writer, VolumeEpoch(3), link(40, 40, 80)), Offer::NeedsHistory);
    assert_eq!(segment.acknowledgement(), None);
    assert!(!segment.observe_durable(FIRST, durable(span(8, 40), 40)), "the summary must stay true");
    let two = history(&[(1, RecordSpan::NONE), (2, span(8, 40))]);
    let refused = segment.install(None, &two, durable(span(8, 40), 40));
    assert!(matches!(refused, Err(InstallError::Fenced(_))), "{refused:?}");
    let three = history(&[(1, RecordSpan::NONE), (3, span(8, 40))]);
    segment.install(Some(promise(3).writer), &three, durable(span(8, 40), 40)).expect("its own recovery");
    assert_eq!(segment.acknowledgement(), Some((VolumeEpoch(3), Lsn(40))));
    assert_eq!(segment.offer(Source::Writer, VolumeEpoch(3), link(40, 40, 80)), Offer::Complete);
}

#[test]
fn an_installed_history_cuts_for_ever_and_only_once() {
    let mut segment = first_epoch();
    for offered in [link(0, 8, 40), link(40, 40, 80), link(80, 80, 120), link(160, 160, 200)] {
        assert!(segment.offer(Source::Writer, FIRST, offered).must_persist());
    }
    // The volume's last record is of another group.
    let cut = history(&[(1, RecordSpan::NONE), (2, span(40, 88))]);
    let installed = segment.install(None, &cut, durable(span(40, 88), 80)).expect("newer");
    let cut_starts: Vec<u64> = installed.cut.iter().map(|record| record.link.span.start.0).collect();
    assert_eq!(cut_starts, [80, 160]);
    assert_eq!(segment.complete(), span(40, 80));
    assert_eq!(segment.readable_through(), Lsn(88));
    for source in [Source::Writer, Source::Peer, Source::Recovery] {
        assert_eq!(segment.offer(source, FIRST, link(80, 80, 120)), Offer::Stale);
    }
    let again = segment.install(None, &cut, durable(span(40, 88), 80)).expect("the same");
    assert!(!again.changed);
    let new = link(80, 88, 100);
    assert_eq!(segment.offer(Source::Writer, VolumeEpoch(2), new), Offer::Complete);
    let other = history(&[(1, RecordSpan::NONE), (2, span(8, 40))]);
    let contradiction = segment.install(None, &other, DurablePoint::default());
    assert!(matches!(contradiction, Err(InstallError::Contradiction { .. })), "{contradiction:?}");
    let below = history(&[(1, RecordSpan::NONE), (3, span(8, 40))]);
    let below = segment.install(None, &below, DurablePoint::default());
    assert!(matches!(below, Err(InstallError::CutsDurable { .. })), "{below:?}");
}

#[test]
fn a_history_replaces_the_one_an_abandoned_recovery_left() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    let abandoned = history(&[(1, RecordSpan::NONE), (2, span(8, 40))]);
    segment.install(Some(promise(2).writer), &abandoned, durable(span(8, 40), 40)).expect("newer");
    assert_eq!(segment.segment_complete_lsn(), Lsn(40));
    // The next recovery did not see it and kept the second record.
    segment.fence(promise(3)).expect("newer");
    let base = history(&[(1, RecordSpan::NONE)]);
    assert!(segment.adopt_for_recovery(promise(2), &base).is_err(), "not the promise it keeps");
    segment.adopt_for_recovery(promise(3), &base).expect("its own recovery");
    assert_eq!(segment.offer(Source::Recovery, FIRST, link(40, 40, 80)), Offer::Complete);
    let kept = history(&[(1, RecordSpan::NONE), (3, span(40, 80))]);
    segment.install(Some(promise(3).writer), &kept, durable(span(40, 80), 80)).expect("its own recovery");
    assert_eq!(segment.segment_complete_lsn(), Lsn(80));
    assert!(segment.adopt_for_recovery(promise(3), &base).is_err(), "a late repeat must not undo it");
}

#[test]
fn a_read_is_refused_by_a_segment_that_missed_a_recovery() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    assert_eq!(segment.check_read(point(FIRST, 40)), Ok(()));
    assert!(matches!(segment.check_read(point(VolumeEpoch(2), 8)), Err(ReadRefusal::HistoryBehind { .. })));
    assert!(matches!(segment.check_read(point(FIRST, 41)), Err(ReadRefusal::Behind { .. })));
    segment.observe_durable(FIRST, durable(span(900, 960), 40));
    assert_eq!(segment.check_read(point(FIRST, 960)), Ok(()), "complete as far as the volume is known");
    segment.observe_durable(FIRST, durable(span(960, 999), 980));
    assert!(segment.check_read(point(FIRST, 999)).is_err(), "the group went on");
    assert!(segment.observe_minimum_read_point(FIRST, Lsn(40)));
    assert!(matches!(segment.check_read(point(FIRST, 39)), Err(ReadRefusal::TooOld { .. })));
}

fn point(epoch: VolumeEpoch, lsn: u64) -> ReadPoint {
    ReadPoint { epoch, lsn: Lsn(lsn) }
}

#[test]
fn a_segment_that_promised_a_newer_writer_answers_no_reader_of_the_older_one() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.fence(promise(2)).expect("newer");
    let newer = VolumeEpoch(2);
    assert_eq!(segment.permit_read(point(FIRST, 40)), Err(Refusal::Fenced(newer)));
    // Its own reader has to wait for the history: what is here may yet be cut.
    let behind = Refusal::HistoryBehind { group: segment.group(), wanted: newer, known: FIRST };
    assert_eq!(segment.permit_read(point(newer, 40)), Err(behind));
    // A tool that compares nodes wants what is here.
    assert_eq!(segment.permit_read(Lsn(40).into()), Ok(()));
    assert!(matches!(segment.permit_read(Lsn(41).into()), Err(Refusal::NotReadable { .. })));
}

#[test]
fn a_claim_from_a_later_epoch_does_not_make_dead_records_durable() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    assert!(!segment.observe_durable(VolumeEpoch(2), durable(span(88, 200), 200)));
    let cut = history(&[(1, RecordSpan::NONE), (2, span(8, 40))]);
    let installed = segment.install(None, &cut, durable(span(88, 200), 200)).expect("newer");
    assert_eq!(installed.cut.len(), 1);
    assert_eq!(segment.readable_through(), Lsn(40));
}

#[test]
fn gossip_asks_only_for_what_the_peer_has_and_waits_while_fenced() {
    let mut behind = first_epoch();
    let mut ahead = first_epoch();
    ahead.offer(Source::Writer, FIRST, link(0, 8, 40));
    ahead.offer(Source::Writer, FIRST, link(40, 40, 80));
    let plan = behind.plan_gossip(&ahead.summary());
    assert_eq!(plan.ask.map(|gap| (gap.after, gap.through)), Some((Lsn(0), Lsn(80))));
    assert_eq!(ahead.plan_gossip(&behind.summary()), Default::default());
    let two = history(&[(1, RecordSpan::NONE), (2, span(8, 40))]);
    ahead.install(None, &two, durable(span(8, 40), 40)).expect("newer");
    assert!(behind.plan_gossip(&ahead.summary()).install_history);
    behind.fence(promise(3)).expect("newer");
    assert_eq!(behind.plan_gossip(&ahead.summary()), Default::default(), "epoch 3 decides");
}

#[test]
fn what_waits_is_bounded_except_for_a_recovery() {
    let mut segment = first_epoch();
    let far = |number: u64| link(number * 8, number * 8, number * 8 + 8);
    for number in 1..=HELD_RECORDS_MAX as u64 {
        assert_eq!(segment.offer(Source::Writer, FIRST, far(number)), Offer::Held);
    }
    let next = HELD_RECORDS_MAX as u64 + 1;
    assert_eq!(segment.offer(Source::Writer, FIRST, far(next)), Offer::TooFarAhead);
    assert_eq!(segment.offer(Source::Peer, FIRST, far(next)), Offer::TooFarAhead);
    assert_eq!(segment.offer(Source::Recovery, FIRST, far(next)), Offer::Held);
    assert_eq!(segment.offer(Source::Peer, FIRST, link(0, 1, 8)), Offer::Complete);
    assert_eq!(segment.segment_complete_lsn(), Lsn(next * 8 + 8));
}

/// A volume's life as one group sees it: what each epoch wrote, and what each recovery kept.
#[derive(Clone, Debug)]
struct Life {
    records: Vec<SegmentRecord>,
    /// The history after each recovery, and the durable point at it.
    histories: Vec<(EpochHistory, DurablePoint)>,
}

fn life() -> impl Strategy<Value = Life> {
    let epoch = (prop::collection::vec((0u64..3, 1u64..5), 0..12), any::<prop::sample::Index>());
    prop::collection::vec(epoch, 1..5).prop_map(|epochs| {
        let mut records = Vec::new();
        let mut histories = Vec::new();
        let mut openings = vec![(1, RecordSpan::NONE)];
        let mut kept: Vec<RecordSpan> = Vec::new();
        for (number, (lengths, keep)) in (1..).zip(epochs) {
            let last = kept.last().copied().unwrap_or_default();
            histories.push((history(&openings), durable(last, last.end.0)));
            for (gap, length) in lengths {
                let previous = kept.last().copied().unwrap_or_default();
                let start = previous.end.0 + 8 * gap + if previous.end == Lsn::ZERO { 8 } else { 0 };
                let record = link(previous.end.0, start, start + 8 * length);
                records.push(SegmentRecord { epoch: VolumeEpoch(number), link: record });
                kept.push(record.span);
            }
            let durable_before = kept.iter().filter(|span| span.end <= last.end).count();
            let keep = durable_before + keep.index(kept.len() - durable_before + 1);
            kept.truncate(keep);
            openings.push((number + 1, kept.last().copied().unwrap_or_default()));
        }
        let last = kept.last().copied().unwrap_or_default();
        histories.push((history(&openings), durable(last, last.end.0)));
        Life { records, histories }
    })
}

/// SCL by definition: walk the chain over everything offered so far that the history admits.
fn complete_by_definition(offered: &[SegmentRecord], history: &EpochHistory) -> RecordSpan {
    let by_previous: BTreeMap<Lsn, RecordSpan> = offered
        .iter()
        .filter(|r| r.epoch <= history.newest_epoch() && history.admits(r.epoch, r.link.span.end))
        .map(|r| (r.link.previous_end, r.link.span))
        .collect();
    let mut at = RecordSpan::NONE;
    while let Some(&next) = by_previous.get(&at.end) {
        at = next;
    }
    at
}

proptest! {
    /// In whatever order records and histories come, a segment is what the definition says, and a checkpoint
    /// restores it.
    #[test]
    fn a_segment_agrees_with_the_definition(
        life in life(),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..80),
    ) {
        let mut segment = Segment::new(GroupId(0));
        let mut installed = None;
        let mut taken: Vec<SegmentRecord> = Vec::new();
        for (index, kind) in steps {
            if kind == 0 || life.records.is_empty() {
                let position = index.index(life.histories.len());
                let (history, point) = &life.histories[position];
                let result = segment.install(None, history, *point);
                prop_assert_eq!(result.is_ok(), installed.is_none_or(|known| known <= position));
                installed = installed.max(Some(position));
                taken.retain(|r| segment.history().admits(r.epoch, r.link.span.end));
            } else {
                let record = life.records[index.index(life.records.len())];
                let offer = segment.offer(Source::Peer, record.epoch, record.link);
                prop_assert!(offer != Offer::Conflict && offer != Offer::TooFarAhead, "{:?}", offer);
                if offer.must_persist() {
                    prop_assert!(!taken.contains(&record));
                    taken.push(record);
                } else {
                    prop_assert_eq!(offer == Offer::Duplicate, taken.contains(&record));
                }
            }
            prop_assert_eq!(segment.complete(), complete_by_definition(&taken, segment.history()));
            let restored = Segment::restore(segment.checkpoint());
            prop_assert_eq!(restored.as_ref(), Ok(&segment));
        }
    }

    /// Nothing a peer can send makes a segment panic, and a refusal leaves it as it was.
    #[test]
    fn hostile_offers_do_no_harm(
        offers in prop::collection::vec((0u8..3, 0u64..4, 0u64..200, 0u64..200, 0u64..200), 0..60),
        fences in prop::collection::vec((0usize..60, 0u64..5), 0..4),
    ) {
        let mut segment = first_epoch();
        for (position, (source, epoch, previous_end, start, end)) in offers.into_iter().enumerate() {
            for &(_, epoch) in fences.iter().filter(|(at, _)| *at == position) {
                let _ = segment.fence(promise(epoch));
                let last = segment.complete();
                let mut next = segment.history().clone();
                if VolumeEpoch(epoch) > next.newest_epoch() {
                    next.push(EpochOpening { epoch: VolumeEpoch(epoch), last, server_version: release(epoch) });
                }
                let _ = segment.install(None, &next, durable(last, last.end.0));
            }
            let before = segment.clone();
            let source = [Source::Writer, Source::Peer, Source::Recovery][usize::from(source)];
            let offer = segment.offer(source, VolumeEpoch(epoch), link(previous_end, start, end));
            prop_assert!(offer.must_persist() || segment == before);
            prop_assert_eq!(Segment::restore(segment.checkpoint()), Ok(segment.clone()));
        }
    }
}

#[test]
fn a_checkpoint_that_contradicts_itself_is_refused() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    segment.offer(Source::Writer, FIRST, link(120, 120, 160));
    let good = segment.checkpoint();
    assert_eq!(Segment::restore(good.clone()), Ok(segment));
    let mut bad = good.clone();
    bad.recent.remove(0);
    assert!(Segment::restore(bad).is_err());
    let mut bad = good.clone();
    bad.summary.complete = span(8, 40);
    assert!(Segment::restore(bad).is_err());
    let mut bad = good.clone();
    bad.held[0].link = link(80, 120, 160);
    assert!(Segment::restore(bad).is_err());
    let mut bad = good.clone();
    bad.summary.promised = Promise::default();
    assert!(Segment::restore(bad).is_err());
    let mut bad = good;
    bad.recent[1].epoch = VolumeEpoch(2);
    assert!(Segment::restore(bad).is_err());
}

#[test]
fn a_history_that_rewrites_an_older_opening_is_refused() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    let two = history(&[(1, RecordSpan::NONE), (2, span(40, 80))]);
    segment.install(None, &two, DurablePoint::default()).expect("newer");
    segment.offer(Source::Writer, VolumeEpoch(2), link(80, 80, 120));
    let before = segment.clone();
    let rewritten = history(&[(1, RecordSpan::NONE), (2, span(8, 40)), (3, span(80, 120))]);
    let refused = segment.install(None, &rewritten, DurablePoint::default());
    assert!(matches!(refused, Err(InstallError::Contradiction { .. })), "{refused:?}");
    assert_eq!(segment, before);
}

#[test]
fn a_history_with_other_openings_below_the_durable_position_is_refused() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    let two = history(&[(1, RecordSpan::NONE), (2, span(8, 40))]);
    segment.install(None, &two, durable(span(8, 40), 40)).expect("newer");
    segment.offer(Source::Writer, VolumeEpoch(2), link(40, 40, 72));
    segment.observe_durable(VolumeEpoch(2), durable(span(40, 72), 72));
    let before = segment.clone();
    // As if epoch 2 had never been, though a record of it is durable.
    let other = history(&[(1, RecordSpan::NONE), (3, span(40, 72))]);
    let refused = segment.install(None, &other, DurablePoint::default());
    assert!(
        matches!(refused, Err(InstallError::RewritesDurable { .. } | InstallError::ChangesRelease { .. })),
        "{refused:?}"
    );
    assert_eq!(segment, before);
}

#[test]
fn a_history_that_says_another_release_wrote_what_stays_is_refused() {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    let lying = |last: RecordSpan| {
        let mut history = EpochHistory::default();
        for (epoch, last) in [(1, RecordSpan::NONE), (2, last)] {
            history.push(EpochOpening {
                epoch: VolumeEpoch(epoch),
                last,
                server_version: release(epoch + 1),
            });
        }
        history
    };
    // Neither for records that a recovery may yet cut, nor for durable ones that are known only by position.
    for point in [DurablePoint::default(), durable(span(40, 80), 80)] {
        segment.observe_durable(FIRST, point);
        let before = segment.clone();
        let refused = segment.install(None, &lying(span(40, 80)), DurablePoint::default());
        assert!(matches!(refused, Err(InstallError::ChangesRelease { .. })), "{refused:?}");
        assert_eq!(segment, before);
    }
    // A new release from here on is what an opening is for.
    let honest = history(&[(1, RecordSpan::NONE), (2, span(40, 80))]);
    segment.install(None, &honest, DurablePoint::default()).expect("newer");
    let of = |end| segment.history().server_version_at(Lsn(end));
    assert_eq!((of(80), of(120)), (Some(release(1)), Some(release(2))));
}

/// A segment that has two records, the first of them durable.
fn one_durable_and_one_not() -> Segment {
    let mut segment = first_epoch();
    segment.offer(Source::Writer, FIRST, link(0, 8, 40));
    segment.offer(Source::Writer, FIRST, link(40, 40, 80));
    assert!(segment.observe_durable(FIRST, durable(span(8, 40), 40)));
    segment
}

#[test]
#[should_panic(expected = "invariant no-hole-below-scl is broken")]
fn a_chain_extended_over_a_hole_is_noticed() {
    let mut segment = one_durable_and_one_not();
    segment.extend(SegmentRecord { epoch: FIRST, link: link(88, 90, 120) });
}

#[test]
#[should_panic(expected = "invariant no-hole-below-scl is broken")]
fn a_record_that_waits_though_it_connects_is_noticed() {
    let mut segment = one_durable_and_one_not();
    segment.held.insert(Lsn(80), SegmentRecord { epoch: FIRST, link: link(80, 80, 120) });
    segment.fence(promise(2)).expect("a newer epoch");
}

#[test]
#[should_panic(expected = "invariant durable-before-uncertain is broken")]
fn a_durable_record_left_among_the_uncertain_is_noticed() {
    let mut segment = one_durable_and_one_not();
    segment.known_durable = durable(span(40, 80), 80);
    let _ = segment.checkpoint();
}

#[test]
#[should_panic(expected = "invariant floor-is-durable is broken")]
fn a_floor_above_the_durable_position_is_noticed() {
    let mut segment = first_epoch();
    segment.floor = span(8, 40);
    let _ = segment.checkpoint();
}

#[test]
#[should_panic(expected = "invariant promise-covers-history is broken")]
fn a_history_newer_than_the_promise_is_noticed() {
    let mut segment = one_durable_and_one_not();
    segment.history = history(&[(1, RecordSpan::NONE), (3, span(40, 80))]);
    let _ = segment.checkpoint();
}

#[test]
#[should_panic(expected = "invariant promise-never-falls is broken")]
fn a_promise_taken_back_is_noticed() {
    one_durable_and_one_not().set_promise(promise(0));
}

#[test]
#[should_panic(expected = "invariant nothing-durable-is-truncated is broken")]
fn a_truncation_of_what_is_durable_is_noticed() {
    let mut segment = one_durable_and_one_not();
    // The second record counts as durable, but nobody told the chain; and a later history leaves it out.
    segment.known_durable = durable(span(40, 80), 80);
    let second = segment.recent.front_mut().expect("the second record");
    second.epoch = VolumeEpoch(0);
    segment.promised = promise(2);
    let _ =
        segment.install(None, &history(&[(1, RecordSpan::NONE), (2, span(40, 80))]), DurablePoint::default());
}
