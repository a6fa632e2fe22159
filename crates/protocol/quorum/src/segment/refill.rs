//! Going on from a durable point whose state came from peers, where no peer's log continues the chain.
//!
//! A *refill* brings the pages of the group as of a durable point instead of the records up to there. The segment then
//! has every effect of these records, and none of their bytes. Nobody asks for those: a recovery begins above what any
//! segment it fenced knows to be durable, and a peer that lacks them is refilled itself.
//!
//! A member that was away *jumps*; a joining segment takes its base ([`Segment::take_base`]). What happens to the chain is
//! one thing, `Segment::go_on_from`. When it may happen differs, so each is refused what is the other's. A member has
//! acknowledged what it has: it jumps to what it knows itself to be durable, never back, and its chain ends there or
//! before. A newcomer counts for nothing: it may know of no durable point, has perhaps a chain from the group's first record
//! that is longer than its base, and becomes full even where the group has no record yet.

use borealis_types::{Lsn, ReadPoint, RecordSpan, invariant};
use borealis_wire::Refusal;

use super::{Fenced, ReadRefusal, Segment, SegmentRecord, Standing};
use crate::DurablePoint;

/// Why a segment does not go on from a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JumpRefused {
    /// A recovery is under way: what the segment told it must stay true until it ends.
    #[error(transparent)]
    Fenced(#[from] Fenced),
    /// The segment is joining or absent: it has no chain to go on from, and takes a base instead.
    #[error("the segment is not a full member of its group")]
    NotFull,
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
        if self.standing != Standing::Full {
            return Err(JumpRefused::NotFull);
        }
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
    /// If the segment is no full member, a recovery is under way, the chain has reached the point, or it is not known to be durable. Nothing has changed
    /// then.
    pub fn jump(&mut self, point: DurablePoint) -> Result<(), JumpRefused> {
        self.check_jump(point)?;
        // The chain ends below a durable point, so all of it is durable.
        invariant!("durable-before-uncertain", self.recent.is_empty(), "{:?}", self.recent.front());
        self.go_on_from(point);
        self.assert_consistent();
        Ok(())
    }

    /// The chain goes on from the group's last record at `point`, and older versions never were here. Returns the records
    /// that this replaces: complete ones, those that waited for one before the point, and any that crosses it, which
    /// contradicts the chain. The chain must end below the point.
    pub(super) fn go_on_from(&mut self, point: DurablePoint) -> Vec<SegmentRecord> {
        let tail = point.group_tail;
        let mut replaced: Vec<SegmentRecord> = self.recent.drain(..).collect();
        let after = self.held.split_off(&tail);
        replaced.extend(std::mem::replace(&mut self.held, after).into_values());
        self.floor = RecordSpan { start: tail, end: tail };
        if point.volume.end > self.known_durable.volume.end {
            self.known_durable = point;
        }
        self.minimum_read_point = self.minimum_read_point.max(point.volume.end);
        self.connect_held();
        replaced
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
    fn a_segment_that_is_joining_or_absent_does_not_jump() {
        let segment = lagging();
        let at = segment.refill_point().expect("it lacks records");
        for standing in [Standing::Joining, Standing::Absent] {
            let mut other = Segment { standing, ..segment.clone() };
            assert_eq!((other.refill_point(), other.jump(at)), (None, Err(JumpRefused::NotFull)));
        }
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
