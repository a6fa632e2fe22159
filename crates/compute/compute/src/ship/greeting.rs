//! What a node's introduction means to the writer it was made to.

use borealis_types::{GroupSet, Lsn, VolumeEpoch};
use borealis_wire::{SegmentProgress, SegmentSummary};

/// What to do with a node that introduced itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Greeted {
    /// A segment of it is promised to a newer epoch. It takes nothing from this writer; see [`super::tenure`].
    Fenced {
        /// The newest epoch that a segment is promised to.
        promised: VolumeEpoch,
        /// The newest epoch that a segment has the history of.
        installed: VolumeEpoch,
    },
    /// It missed the recovery that made this writer: it has to install the history first. Its SCLs may count records
    /// which that recovery cut, so none of them may be believed yet.
    Behind,
    /// It has the history of this epoch and takes batches.
    Ready {
        /// The SCL of each of its segments, which the writer counts from here on.
        progress: Vec<SegmentProgress>,
        /// The lowest durable point that a segment of it knows.
        known_durable: Lsn,
    },
}

/// What the writer of `epoch` does with a node that has `groups` and says this of its segments.
#[must_use]
pub fn greet(epoch: VolumeEpoch, groups: GroupSet, segments: &[SegmentSummary]) -> Greeted {
    let promised = segments.iter().map(|s| s.promised_epoch).max().unwrap_or_default();
    let installed = segments.iter().map(|s| s.history.newest_epoch()).max().unwrap_or_default();
    if promised > epoch {
        return Greeted::Fenced { promised, installed };
    }
    let is_behind = |s: &SegmentSummary| {
        (groups.contains(s.group) && s.history.newest_epoch() < epoch) || s.promised_epoch < epoch
    };
    if segments.iter().any(is_behind) {
        return Greeted::Behind;
    }
    let progress = segments
        .iter()
        .map(|s| SegmentProgress { group: s.group, segment_complete_lsn: s.segment_complete_lsn })
        .collect();
    let known_durable = segments.iter().map(|s| s.known_durable.end).min().unwrap_or_default();
    Greeted::Ready { progress, known_durable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{EpochHistory, EpochOpening, GroupId, RecordSpan, ServerVersion, WriterId};

    const EPOCH: VolumeEpoch = VolumeEpoch(7);

    fn segment(promised: u64, installed: u64) -> SegmentSummary {
        let mut history = EpochHistory::default();
        history.push(EpochOpening {
            epoch: VolumeEpoch(installed),
            last: RecordSpan::NONE,
            server_version: ServerVersion::NEWEST_TESTED,
        });
        SegmentSummary {
            group: GroupId(0),
            promised_epoch: VolumeEpoch(promised),
            promised_writer: WriterId(1),
            history,
            segment_complete_lsn: Lsn(80),
            known_durable: RecordSpan { start: Lsn(8), end: Lsn(40) },
            known_durable_tail: Lsn(40),
            readable_through: Lsn(80),
            minimum_read_point: Lsn::ZERO,
            materialized_lsn: Lsn::ZERO,
            joining: false,
            membership_epoch: borealis_types::MembershipEpoch(1),
        }
    }

    #[test]
    fn only_a_node_with_the_history_of_the_writers_epoch_is_ready() {
        let groups = GroupSet::EMPTY.with(GroupId(0));
        let fenced = Greeted::Fenced { promised: VolumeEpoch(8), installed: EPOCH };
        assert_eq!(greet(EPOCH, groups, &[segment(7, 7), segment(8, 7)]), fenced);
        assert_eq!(greet(EPOCH, groups, &[segment(7, 7), segment(7, 5)]), Greeted::Behind);
        assert_eq!(greet(EPOCH, groups, &[segment(6, 6)]), Greeted::Behind);
        let progress = vec![SegmentProgress { group: GroupId(0), segment_complete_lsn: Lsn(80) }];
        let ready = Greeted::Ready { progress, known_durable: Lsn(40) };
        assert_eq!(greet(EPOCH, groups, &[segment(7, 7)]), ready);
    }
}
