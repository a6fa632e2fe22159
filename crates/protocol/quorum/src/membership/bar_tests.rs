//! The bar over every way in which four of the base had something, and over who tells of it.

use borealis_types::{
    EpochHistory, EpochOpening, GroupId, Lsn, NodeId, RecordSpan, ServerVersion, VolumeEpoch,
};

use super::Bar;
use crate::segment::{Segment, SegmentSummary};
use crate::{DurablePoint, Promise};

const BASE: [NodeId; 6] = [NodeId(0), NodeId(1), NodeId(2), NodeId(3), NodeId(4), NodeId(5)];

fn summary(epoch: u64, end: u64) -> SegmentSummary {
    let mut history = EpochHistory::default();
    if epoch > 0 {
        let (epoch, last, server_version) =
            (VolumeEpoch(epoch), RecordSpan::NONE, ServerVersion::NEWEST_TESTED);
        history.push(EpochOpening { epoch, last, server_version });
    }
    SegmentSummary {
        promised: Promise { epoch: VolumeEpoch(epoch), ..Promise::default() },
        history,
        complete: RecordSpan { start: Lsn(end), end: Lsn(end) },
        ..Segment::new(GroupId(0)).summary()
    }
}

fn in_mask(mask: u32, node: NodeId) -> bool {
    mask & 1 << node.0 != 0
}

fn bar(answered: u32, answer_of: impl Fn(NodeId) -> SegmentSummary) -> Option<Bar> {
    let answers: Vec<SegmentSummary> = BASE.iter().map(|&node| answer_of(node)).collect();
    Bar::of(&BASE, |node| in_mask(answered, node).then(|| &answers[usize::from(node.0)]))
}

#[test]
fn what_four_of_the_base_had_is_in_the_bar_whoever_answers_and_though_one_of_them_denies_it() {
    let had = summary(7, 100);
    let mut checked = 0;
    for holders in (0..1u32 << 6).filter(|mask| mask.count_ones() == 4) {
        for answered in 0..1u32 << 6 {
            // The seventh denies nothing.
            for denies in 0..7u32 {
                let says = |node: NodeId| match in_mask(holders, node) && node.0 != denies as u16 {
                    true => had.clone(),
                    false => summary(0, 0),
                };
                match bar(answered, says) {
                    None => assert!(answered.count_ones() < 4, "{answered:06b} answered"),
                    Some(bar) => {
                        assert!(answered.count_ones() >= 4);
                        assert!(bar.promised >= VolumeEpoch(7), "{holders:06b} {answered:06b} {denies}");
                        assert!(bar.history >= VolumeEpoch(7), "{holders:06b} {answered:06b} {denies}");
                        assert!(bar.complete >= Lsn(100), "{holders:06b} {answered:06b} {denies}");
                        checked += 1;
                    }
                }
            }
        }
    }
    assert_eq!(checked, 15 * 22 * 7);
}

#[test]
fn a_member_that_claims_what_nobody_has_does_not_raise_the_bar_when_five_answer() {
    for answered in (0..1u32 << 6).filter(|mask| mask.count_ones() >= 5) {
        for liar in 0..6 {
            let says = |node: NodeId| if node.0 == liar { summary(9, 1 << 40) } else { summary(7, 100) };
            let bar = bar(answered, says).expect("five are enough");
            assert_eq!((bar.promised, bar.history, bar.complete), (VolumeEpoch(7), VolumeEpoch(7), Lsn(100)));
        }
    }
}

#[test]
fn the_durable_point_that_a_recovery_left_counts_where_the_chain_has_an_older_hole() {
    let volume = RecordSpan { start: Lsn(90), end: Lsn(100) };
    let with_hole =
        SegmentSummary { known_durable: DurablePoint { volume, group_tail: Lsn(100) }, ..summary(7, 40) };
    let bar = bar(0b11_1111, |node| if node.0 < 4 { with_hole.clone() } else { summary(7, 40) });
    assert_eq!(bar.expect("all answered").complete, Lsn(100));
}

#[test]
fn only_a_member_that_has_all_of_it_and_counts_meets_the_bar() {
    let bar = Bar { promised: VolumeEpoch(7), history: VolumeEpoch(7), complete: Lsn(100) };
    assert!(bar.is_met_by(&summary(7, 100)) && bar.is_met_by(&summary(8, 200)));
    assert!(!bar.is_met_by(&summary(7, 99)));
    assert!(!bar.is_met_by(&SegmentSummary { joining: true, ..summary(7, 100) }));
    assert!(!bar.is_met_by(&SegmentSummary { promised: Promise::default(), ..summary(7, 100) }));
    assert!(!bar.is_met_by(&SegmentSummary { history: EpochHistory::default(), ..summary(7, 100) }));
}
