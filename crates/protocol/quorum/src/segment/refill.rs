//! Going on from a durable point whose state came from peers, where no peer's log continues the chain.
//!
//! A *refill* brings the pages of the group as of a durable point instead of the records up to there. The segment then
//! has every effect of these records, and none of their bytes. Nobody asks for those: a recovery begins above what any
//! segment it fenced knows to be durable, and a peer that lacks them is refilled itself.

use borealis_types::{Lsn, ReadPoint, RecordSpan, invariant};
use borealis_wire::Refusal;

use super::{Fenced, ReadRefusal, Segment};
use crate::DurablePoint;

/// Why a segment does not go on from a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JumpRefused {
    /// A recovery is under way: what the segment told it must stay true until it ends.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The chain reaches the point already.
    #[error("the chain is complete through {complete} already")]
    Reached {
        /// SCL.
        complete: Lsn,
    },
    /// The segment does not know the point to be durable.
    #[error("the segment knows the volume to be durable through {durable} only")]
    NotDurable {
        /// What it knows.
        durable: Lsn,
    },
}

impl Segment {
    /// The durable point that a refill brings the segment to, if it lacks records up to there.
    #[must_use]
    pub fn refill_point(&self) -> Option<DurablePoint> {
        let point = self.known_durable;
        self.check_jump(point).is_ok().then_some(point)
    }

    fn check_jump(&self, point: DurablePoint) -> Result<(), JumpRefused> {
        if self.promised.epoch > self.history.newest_epoch() {
            return Err(Fenced { current: self.promised }.into());
        }
        let (complete, durable) = (self.segment_complete_lsn(), self.known_durable.volume.end);
        if point.group_tail <= complete {
            return Err(JumpRefused::Reached { complete });
        }
        if point.volume.end > durable || point.group_tail > point.volume.end {
            return Err(JumpRefused::NotDurable { durable });
        }
        Ok(())
    }

    /// Goes on from `point`, as of which the caller has everything durably: SCL is the group's last record there, and
    /// records that waited go on from it. Nothing below the point can be read here any more.
    ///
    /// # Errors
    /// If a recovery is under way, the chain has reached the point, or it is not known to be durable. Nothing has changed
    /// then.
    pub fn jump(&mut self, point: DurablePoint) -> Result<(), JumpRefused> {
        self.check_jump(point)?;
        // The chain ends below a durable point, so all of it is durable.
        invariant!("durable-before-uncertain", self.recent.is_empty(), "{:?}", self.recent.front());
        let tail = point.group_tail;
        self.floor = RecordSpan { start: tail, end: tail };
        // What begins before the tail and ends behind it would contradict the chain.
        self.held.retain(|&previous_end, _| previous_end >= tail);
        self.minimum_read_point = self.minimum_read_point.max(point.volume.end);
        self.connect_held();
        self.assert_consistent();
        Ok(())
    }

    /// [`Segment::permit_read`] where versions from `pinned` on are kept although nobody else reads them any more.
    ///
    /// # Errors
    /// What to answer the reader.
    pub fn permit_pinned_read(&self, at: ReadPoint, pinned: Lsn) -> Result<(), Refusal> {
        match self.check_read(at) {
            Err(ReadRefusal::TooOld { .. }) if at.lsn >= pinned => Ok(()),
            _ => self.permit_read(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use borealis_types::{EpochHistory, EpochOpening, GroupId, ServerVersion, VolumeEpoch, WriterId};

    use super::*;
    use crate::segment::{Offer, Source};
    use crate::{ChainLink, Promise};

    const EPOCH: VolumeEpoch = VolumeEpoch(1);

    fn span(start: u64, end: u64) -> RecordSpan {
        RecordSpan { start: Lsn(start), end: Lsn(end) }
    }

    fn point(volume: RecordSpan, group_tail: u64) -> DurablePoint {
        DurablePoint { volume, group_tail: Lsn(group_tail) }
    }

    fn offer(segment: &mut Segment, previous_end: u64, span: RecordSpan) -> Offer {
        segment.offer(Source::Writer, EPOCH, ChainLink { previous_end: Lsn(previous_end), span })
    }

    /// Complete through 200, while the volume is durable through 900 and the group's last record there ends at 800.
    fn lagging() -> Segment {
        let mut segment = Segment::new(GroupId(0));
        segment.fence(Promise { epoch: EPOCH, writer: WriterId(1) }).expect("fresh");
        let mut history = EpochHistory::default();
        let server_version = ServerVersion::NEWEST_TESTED;
        history.push(EpochOpening { epoch: EPOCH, last: RecordSpan::NONE, server_version });
        segment.install(Some(WriterId(1)), &history, point(RecordSpan::NONE, 0)).expect("promised");
        assert_eq!(offer(&mut segment, 0, span(100, 200)), Offer::Complete);
        assert_eq!(segment.refill_point(), None, "nothing is known to be missing");
        assert!(segment.observe_durable(EPOCH, point(span(850, 900), 800)));
        segment
    }

    #[test]
    fn a_segment_goes_on_from_a_point_and_what_waited_connects() {
        let mut segment = lagging();
        assert_eq!(offer(&mut segment, 500, span(500, 600)), Offer::Held);
        assert_eq!(offer(&mut segment, 800, span(950, 1000)), Offer::Held);
        assert_eq!(offer(&mut segment, 1000, span(1000, 1100)), Offer::Held);
        let at = segment.refill_point().expect("it lacks records");
        segment.jump(at).expect("durable");
        assert_eq!((segment.segment_complete_lsn(), segment.held_count()), (Lsn(1100), 0));
        assert_eq!(segment.minimum_read_point(), Lsn(900), "older versions never were here");
        assert_eq!(segment.jump(at), Err(JumpRefused::Reached { complete: Lsn(1100) }));
        let restored = Segment::restore(segment.checkpoint()).expect("what it wrote");
        assert_eq!(restored, segment);
        assert_eq!(offer(&mut segment, 600, span(700, 800)), Offer::Duplicate, "its effects are here");
    }

    #[test]
    fn a_segment_does_not_jump_beyond_what_is_durable_or_during_a_recovery() {
        let mut segment = lagging();
        let beyond = point(span(900, 1000), 990);
        assert_eq!(segment.jump(beyond), Err(JumpRefused::NotDurable { durable: Lsn(900) }));
        let at = segment.refill_point().expect("it lacks records");
        segment.fence(Promise { epoch: VolumeEpoch(2), writer: WriterId(2) }).expect("newer");
        assert!(matches!(segment.jump(at), Err(JumpRefused::Fenced(_))));
        assert_eq!((segment.refill_point(), segment.segment_complete_lsn()), (None, Lsn(200)));
    }

    #[test]
    fn a_pin_permits_only_what_is_too_old() {
        let mut segment = lagging();
        segment.jump(segment.refill_point().expect("it lacks records")).expect("durable");
        segment.observe_minimum_read_point(EPOCH, Lsn(900));
        let at = |epoch, lsn| ReadPoint { epoch: VolumeEpoch(epoch), lsn: Lsn(lsn) };
        assert!(segment.permit_read(at(1, 850)).is_err());
        assert_eq!(segment.permit_pinned_read(at(1, 850), Lsn(850)), Ok(()));
        assert!(segment.permit_pinned_read(at(1, 849), Lsn(850)).is_err());
        assert!(segment.permit_pinned_read(at(1, 901), Lsn(850)).is_err(), "not here yet");
        assert!(segment.permit_pinned_read(at(2, 850), Lsn(850)).is_err(), "of a recovery not heard of");
    }
}
