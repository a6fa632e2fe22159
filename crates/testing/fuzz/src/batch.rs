//! One redo batch, which seeds of several targets contain.

use borealis_types::{GroupId, Lsn, RecordSpan, VolumeEpoch};
use borealis_wire::{BatchBuilder, BatchHeader, GroupLink, GroupTail};

/// A redo batch of a few records.
pub(crate) fn batch() -> Vec<u8> {
    let mut builder = BatchBuilder::new(&BatchHeader {
        volume_epoch: VolumeEpoch(3),
        durable: RecordSpan { start: Lsn(100), end: Lsn(160) },
        minimum_read_point: Lsn(160),
        tails: vec![GroupTail { group: GroupId(0), last_end: Lsn(160) }],
    });
    for start in [200, 300, 400] {
        let link = |group| GroupLink { group: GroupId(group), previous_end: Lsn(start - 40) };
        let span = RecordSpan { start: Lsn(start), end: Lsn(start + 64) };
        builder.push(span, &[link(1), link(3)], &[7; 60]);
    }
    builder.finish()
}
