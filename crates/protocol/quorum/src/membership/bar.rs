//! What the sets that stay must have before others may go.

use borealis_types::{Lsn, NodeId, SEGMENTS_PER_GROUP, VolumeEpoch, WRITE_QUORUM};

use crate::segment::SegmentSummary;

/// Whatever a write quorum had, one of its members may not say so (it is broken); the others do.
const TELL: usize = WRITE_QUORUM - 1;

/// At least as much as any write quorum of a membership's base had promised, installed and stored when its members began to
/// act on that membership.
///
/// A write under an earlier membership needs four of the base, and the members that answered with the present one installed
/// refuse it. So whatever was acknowledged earlier was stored by four, who say so or have not answered; and the same holds
/// for promises that fence, and for histories that recoveries installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// The newest volume epoch that may have been promised by a write quorum.
    pub promised: VolumeEpoch,
    /// The newest epoch whose history a write quorum may have installed.
    pub history: VolumeEpoch,
    /// How far a write quorum may have been complete.
    pub complete: Lsn,
}

impl Bar {
    /// From the members of the base that answered, each with its first answer since it has the membership installed; `None`
    /// if they are too few.
    pub fn of<'a>(
        base: &[NodeId; SEGMENTS_PER_GROUP],
        answer_of: impl Fn(NodeId) -> Option<&'a SegmentSummary>,
    ) -> Option<Bar> {
        let answers: Vec<&SegmentSummary> = base.iter().filter_map(|&node| answer_of(node)).collect();
        let silent = base.len() - answers.len();
        // Whoever did not answer may have had anything.
        let must_tell = TELL.checked_sub(silent).filter(|&count| count > 0)?;
        let promised = nth_highest(must_tell, answers.iter().map(|answer| answer.promised.epoch))?;
        let history = nth_highest(must_tell, answers.iter().map(|answer| answer.history.newest_epoch()))?;
        // A recovery counts a segment that has what is in question, though its chain may have an older hole. It leaves
        // there the durable point of its outcome.
        let position = |answer: &SegmentSummary| answer.complete.end.max(answer.known_durable.group_tail);
        let complete = nth_highest(must_tell, answers.iter().map(|answer| position(answer)))?;
        Some(Bar { promised, history, complete })
    }

    /// Whether a member has all of it, and counts.
    #[must_use]
    pub fn is_met_by(&self, summary: &SegmentSummary) -> bool {
        !summary.joining
            && summary.promised.epoch >= self.promised
            && summary.history.newest_epoch() >= self.history
            && summary.complete.end >= self.complete
    }
}

fn nth_highest<T: Ord>(n: usize, values: impl Iterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable_by(|a, b| b.cmp(a));
    values.into_iter().nth(n - 1)
}
