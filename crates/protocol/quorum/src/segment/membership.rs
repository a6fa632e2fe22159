//! A segment and the memberships of its group: which requests it takes, how it joins, how it leaves.
//!
//! A segment that comes into a group is *joining*: it is empty, takes promises, histories and live records, and counts
//! for nothing until it has everything as of one durable point ([`Segment::take_base`]). A segment whose node leaves the
//! group is *absent*: it keeps the last membership it knew, so that it can teach it and is not led back by an old message.

use borealis_types::{GroupId, Lsn, MembershipEpoch, NodeId, VolumeEpoch};

use super::{Segment, SegmentRecord, Standing};
use crate::DurablePoint;
use crate::membership::{Accepted, Ballot, Contradiction, GroupMembership, MembershipState, NotAccepted};

/// A request was meant for another membership than the one installed here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OtherMembership {
    /// The sender knows an older one. This is the one to learn.
    Newer(GroupMembership),
    /// The sender knows one that this segment has not learned yet.
    NotLearned,
}

/// What the installation of a membership changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MembershipInstalled {
    /// Whether there is something to persist.
    pub changed: bool,
    /// The segment became absent: the caller forgets the bytes of all its records, and its pages.
    pub left: bool,
}

/// Why a segment cannot take a base now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BaseRefused {
    /// Between a fence and the installation that follows it, what was said to the recovery stays as it was.
    #[error("a recovery is under way: the base waits for its history")]
    Fenced,
    /// The point is durable under a history that the one installed here does not continue.
    #[error("the history here has no volume epoch {0}")]
    NeedsHistory(VolumeEpoch),
    /// The segment is no member, or is full: a member that was away jumps ([`Segment::jump`]).
    #[error("the segment is not joining its group")]
    NotJoining,
    /// A record here crosses the point, so one of them is not of this volume.
    #[error("a record that ends at {0} crosses the base")]
    Crosses(Lsn),
}

impl Segment {
    /// An empty segment of a new group, which is a member from the beginning.
    #[must_use]
    pub fn created(group: GroupId, membership: GroupMembership) -> Segment {
        Segment { membership: Some(MembershipState::new(membership)), ..Segment::new(group) }
    }

    /// On a node that is no member of the group (yet), and has not heard of any of its memberships.
    #[must_use]
    pub fn absent(group: GroupId) -> Segment {
        Segment { standing: Standing::Absent, ..Segment::new(group) }
    }

    /// What the segment is to its group.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// What is stored of the group's memberships; `None` where configuration says once and for all who the members are.
    #[must_use]
    pub fn membership(&self) -> Option<&MembershipState> {
        self.membership.as_ref()
    }

    /// Whether a request that was made for the membership of `epoch` may be carried out here.
    ///
    /// One epoch ahead is allowed: a step never takes a member out and in again, so what the segment promises or stores
    /// now is still there when it has learned of the step. Two steps could.
    ///
    /// # Errors
    /// If the sender has to learn first, or this segment.
    pub fn check_membership(&self, epoch: MembershipEpoch) -> Result<(), OtherMembership> {
        let Some(state) = &self.membership else { return Ok(()) };
        let installed = state.installed().epoch();
        if epoch < installed {
            Err(OtherMembership::Newer(state.installed().clone()))
        } else if epoch.0 > installed.0 + 1 || self.standing == Standing::Absent {
            Err(OtherMembership::NotLearned)
        } else {
            Ok(())
        }
    }

    /// Promises to accept no membership of an older attempt for the epoch after `installed`. Returns whether there is
    /// something to persist before the answer leaves, which is [`Segment::membership`] whether or not it promised.
    pub fn prepare_membership(&mut self, installed: MembershipEpoch, ballot: Ballot) -> bool {
        let votes = self.standing != Standing::Absent;
        self.membership
            .as_mut()
            .filter(|state| votes && state.installed().epoch() == installed)
            .is_some_and(|state| state.prepare(ballot))
    }

    /// Accepts a proposed membership. Returns whether there is something to persist before the answer leaves, which is
    /// [`Segment::membership`].
    ///
    /// # Errors
    /// If it was not accepted.
    pub fn accept_membership(&mut self, proposed: &Accepted) -> Result<bool, NotAccepted> {
        let votes = self.standing != Standing::Absent;
        self.membership.as_mut().filter(|_| votes).ok_or(NotAccepted::NoStep)?.accept(proposed)
    }

    /// Acts on a membership that was chosen, as a controller or enough peers say
    /// ([`credible_membership`](crate::membership::credible_membership)), on the node `own`: joins with it, stays, or
    /// leaves. An older one changes nothing.
    ///
    /// # Errors
    /// If another one of the same epoch is installed.
    pub fn install_membership(
        &mut self,
        own: NodeId,
        membership: &GroupMembership,
    ) -> Result<MembershipInstalled, Contradiction> {
        let changed = match &mut self.membership {
            Some(state) => state.install(membership)?,
            None => {
                self.membership = Some(MembershipState::new(membership.clone()));
                true
            }
        };
        if !changed {
            return Ok(MembershipInstalled::default());
        }
        let (is_member, was_absent) = (membership.contains(own), self.standing == Standing::Absent);
        let left = !is_member && !was_absent;
        if is_member && was_absent {
            self.standing = Standing::Joining;
        } else if left {
            // Whatever it had, the membership that goes on without it has at four of each set.
            *self = Segment { membership: self.membership.take(), ..Segment::absent(self.group) };
        }
        self.assert_consistent();
        Ok(MembershipInstalled { changed, left })
    }

    /// The point that a joining segment takes for its base: the newest that it knows to be durable. `None` while it has to hear
    /// of a history first, or of a point that is not older than that.
    #[must_use]
    pub fn base_point(&self) -> Option<DurablePoint> {
        let newest = self.history.newest()?;
        let point = self.known_durable;
        let may_take = self.standing == Standing::Joining && self.promised.epoch <= newest.epoch;
        let is_known = newest.last.end <= point.volume.end && point.group_tail <= point.volume.end;
        (may_take && is_known).then_some(point)
    }

    /// Whether the chain has every record of the group up to `point`, from the first one on: what these made can be made
    /// here, and need not be brought.
    #[must_use]
    pub fn has_chain_to(&self, point: DurablePoint) -> bool {
        self.chain_end().end >= point.group_tail
    }

    /// The joining segment has, durably, everything of the group as of `point`, which is durable under the history of `epoch`:
    /// its chain goes on from there, and it is full from then on. Returns the records that the base contains: the caller
    /// forgets them.
    ///
    /// # Errors
    /// If it cannot be done now. The segment is unchanged then.
    pub fn take_base(
        &mut self,
        epoch: VolumeEpoch,
        point: DurablePoint,
    ) -> Result<Vec<SegmentRecord>, BaseRefused> {
        let newest = self.history.newest_epoch();
        if self.standing != Standing::Joining {
            return Err(BaseRefused::NotJoining);
        }
        // A recovery that died left a history, and a point in it, that later ones need not have continued.
        if epoch != newest && self.history.server_version_of(epoch).is_none() {
            return Err(BaseRefused::NeedsHistory(epoch));
        }
        if self.promised.epoch > newest {
            return Err(BaseRefused::Fenced);
        }
        let base = point.group_tail;
        if base > point.volume.end {
            return Err(BaseRefused::Crosses(base));
        }
        if self.chain_end().end >= base {
            self.standing = Standing::Full;
            self.observe_durable(epoch, point);
            return Ok(Vec::new());
        }
        let crossing = self.held.values().find(|r| r.link.previous_end < base && r.link.span.end > base);
        if let Some(record) = crossing {
            return Err(BaseRefused::Crosses(record.link.span.end));
        }
        // Nothing crosses, and the chain ends before the base: all that is replaced is contained.
        let contained = self.go_on_from(point);
        self.standing = Standing::Full;
        self.assert_consistent();
        Ok(contained)
    }
}
