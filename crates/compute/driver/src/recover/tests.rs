//! The parts of a recovery that are its own, and recoveries of volumes whose members have changed.

mod members;

use borealis_quorum::recovery::TailRecord;
use borealis_types::{EPOCH_STEP_MAX, EpochHistory, Lsn, RecordSpan};
use borealis_wire::{BatchReader, GroupLink};

use super::worker::{REPAIR_BATCH_BYTES, fence_steps, repair_batch};
use super::*;

fn record(number: u64, epoch: u64, length: usize) -> TailRecord<Handle> {
    TailRecord {
        epoch: VolumeEpoch(epoch),
        span: RecordSpan { start: Lsn(number << 32), end: Lsn((number << 32) + length as u64) },
        previous_start: Lsn((number - 1) << 32),
        links: vec![GroupLink { group: GroupId(0), previous_end: Lsn((number - 1) << 32) }],
        handle: Handle { form: RecordForm::default(), bytes: Arc::from(vec![0; length]) },
    }
}

#[test]
fn no_epoch_follows_the_last_one() {
    assert_eq!(next_epoch(VolumeEpoch(4)), Some(VolumeEpoch(5)));
    for damaged in [1 << 48, u64::MAX - 1, u64::MAX] {
        assert_eq!(next_epoch(VolumeEpoch(damaged)), None, "a damaged node's word must not spread");
    }
}

#[test]
fn a_node_that_is_far_behind_is_led_to_an_epoch_in_steps() {
    let steps = |promised, wanted| {
        fence_steps(VolumeEpoch(promised), VolumeEpoch(wanted)).map(|step| step.0).collect::<Vec<_>>()
    };
    assert!(steps(4, 5).is_empty() && steps(9, 5).is_empty() && steps(4, 4 + EPOCH_STEP_MAX).is_empty());
    assert_eq!(steps(4, 5 + EPOCH_STEP_MAX), [4 + EPOCH_STEP_MAX]);
    let all = steps(4, 10 * EPOCH_STEP_MAX);
    let from_each = all.iter().zip([4].iter().chain(&all));
    assert!(from_each.into_iter().all(|(step, before)| step - before <= EPOCH_STEP_MAX));
    assert!(10 * EPOCH_STEP_MAX - all.last().unwrap() <= EPOCH_STEP_MAX);
}

#[test]
fn an_attempt_of_its_own_that_died_half_way_is_no_successor() {
    let mut own = OwnEpochs { opened: VolumeEpoch(4), tried: BTreeSet::new() };
    let segment = |epochs: &[u64]| {
        let mut history = EpochHistory::default();
        for &epoch in epochs {
            let server_version = ServerVersion::NEWEST_TESTED;
            let last = RecordSpan::NONE;
            history.push(borealis_types::EpochOpening { epoch: VolumeEpoch(epoch), last, server_version });
        }
        SegmentSummary {
            group: GroupId(0),
            promised_epoch: history.newest_epoch(),
            promised_writer: WriterId(1),
            history,
            segment_complete_lsn: Lsn::ZERO,
            known_durable: RecordSpan::NONE,
            known_durable_tail: Lsn::ZERO,
            readable_through: Lsn::ZERO,
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
            joining: false,
            membership_epoch: borealis_types::MembershipEpoch(1),
        }
    };
    let welcomes: BTreeMap<_, _> = [&[4, 9][..], &[4, 9], &[4], &[4]]
        .into_iter()
        .zip(1..)
        .map(|(epochs, node)| (NodeId(node), vec![segment(epochs)]))
        .collect();
    assert_eq!(newest_installed(opened_of_each(&welcomes, &own)), VolumeEpoch(9));
    own.tried.insert(VolumeEpoch(9));
    assert_eq!(newest_installed(opened_of_each(&welcomes, &own)), VolumeEpoch(4));
}

#[test]
fn a_driver_that_has_written_does_not_take_the_volume_back() {
    assert_eq!(own_history(VolumeEpoch(0)), None, "one that begins takes over from whoever writes");
    assert_eq!(own_history(VolumeEpoch(5)), Some(VolumeEpoch(5)), "a history of epoch 6 is of its successor");
}

#[test]
fn a_repair_batch_holds_a_large_record_alone() {
    let large = REPAIR_BATCH_BYTES * 2;
    let records = [
        record(1, 1, 100),
        record(2, 1, 100),
        record(3, 1, large),
        record(4, 1, 100),
        record(5, 1, REPAIR_BATCH_BYTES - 50),
        record(6, 2, 100),
        record(7, 1, 100),
    ];
    let (mut rest, mut counts) = (&records[..], Vec::new());
    while let Some(first) = rest.first() {
        let before = rest.len();
        let (batch, left) = repair_batch(first.epoch, rest);
        let (header, reader) = BatchReader::new(&batch).unwrap();
        assert_eq!(header.volume_epoch, first.epoch);
        assert_eq!(reader.map(Result::unwrap).count(), before - left.len());
        assert!(batch.len() <= REPAIR_BATCH_BYTES || before - left.len() == 1);
        counts.push(before - left.len());
        rest = left;
    }
    assert_eq!(counts, [2, 1, 1, 1, 1, 1]);
}
