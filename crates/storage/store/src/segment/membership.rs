//! The memberships of groups in a store's state: segments that come, stay and leave. The same code runs when it happens and
//! when the log is replayed.

use borealis_quorum::membership::{Contradiction, GroupMembership, MembershipState};
use borealis_quorum::segment::{MembershipInstalled, Segment, Standing};
use borealis_types::{GroupId, MembershipEpoch, VolumeEpoch};
use borealis_wire::Refusal;

use crate::StoreError;
use crate::log::position::LogPosition;
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::segment::stay::{Homes, Stay};

/// What became of an installed membership.
pub(crate) struct Outcome {
    pub installed: MembershipInstalled,
    /// The segment that left, for its caller to drop outside of the lock: its index may be large.
    pub left: Option<HostedSegment>,
}

impl State {
    /// The segment of a group, whether it is here or what is left of it.
    pub(crate) fn any_segment(&self, group: GroupId) -> Option<&Segment> {
        self.segments.get(&group).map(|hosted| &hosted.segment).or_else(|| self.absent.get(&group))
    }

    pub(crate) fn any_segment_mut(&mut self, group: GroupId) -> Option<&mut Segment> {
        let hosted = self.segments.get_mut(&group).map(|hosted| &mut hosted.segment);
        hosted.or_else(|| self.absent.get_mut(&group))
    }

    /// What is stored of every group's memberships, in the order of the groups.
    pub(crate) fn memberships(&self) -> Vec<(GroupId, MembershipState)> {
        let segments = self.segments.values().map(|hosted| &hosted.segment).chain(self.absent.values());
        let mut states: Vec<_> =
            segments.filter_map(|segment| Some((segment.group(), segment.membership()?.clone()))).collect();
        states.sort_unstable_by_key(|(group, _)| *group);
        states
    }

    /// Whether a membership is newer than what is installed.
    pub(crate) fn is_newer(
        &self,
        group: GroupId,
        membership: &GroupMembership,
    ) -> Result<bool, Contradiction> {
        let known = self.any_segment(group).and_then(Segment::membership).map(MembershipState::installed);
        match known {
            Some(known) if known.epoch() == membership.epoch() && known != membership => Err(Contradiction),
            Some(known) => Ok(membership.epoch() > known.epoch()),
            None => Ok(true),
        }
    }

    /// Acts on a membership whose log entry has its payload at `position`. The folder of a segment that comes with it is there.
    pub(crate) fn install_membership(
        &mut self,
        homes: Homes<'_>,
        position: LogPosition,
        group: GroupId,
        membership: &GroupMembership,
    ) -> Result<Outcome, Contradiction> {
        if let Some(hosted) = self.segments.get_mut(&group) {
            let installed = hosted.segment.install_membership(homes.node, membership)?;
            let left = if installed.left { self.take_out(group) } else { None };
            return Ok(Outcome { installed, left });
        }
        let known = self.absent.remove(&group);
        let mut segment = known.clone().unwrap_or_else(|| Segment::absent(group));
        let installed = match segment.install_membership(homes.node, membership) {
            Ok(installed) => installed,
            Err(error) => {
                self.absent.extend(known.map(|known| (group, known)));
                return Err(error);
            }
        };
        if segment.standing() == Standing::Absent {
            self.absent.insert(group, segment);
        } else {
            let stay = Stay { joined: membership.epoch(), log_from: position };
            let pages = homes.pages(group, stay);
            self.segments.insert(group, HostedSegment::new(segment, stay, Default::default(), None, pages));
        }
        Ok(Outcome { installed, left: None })
    }

    /// Takes out a segment whose node left its group. What it knows of memberships stays.
    fn take_out(&mut self, group: GroupId) -> Option<HostedSegment> {
        let hosted = self.segments.remove(&group)?;
        self.absent.insert(group, hosted.segment.clone());
        self.left_folders.push((group, hosted.stay.joined));
        self.peer_floors.remove(&group);
        // No log is kept for its sake, nor handed out as that of a later stay.
        self.batch_locations.forget_group(group);
        Some(hosted)
    }

    /// Refuses what was made for other memberships than those installed here. A group that is not listed is not looked at.
    /// Whoever is fenced hears that first, and need not learn where to go on: `epoch` is that of a fence, of an
    /// installation, or of a recovery.
    pub(crate) fn check_made_for(
        &self,
        made_for: &[(GroupId, MembershipEpoch)],
        epoch: Option<VolumeEpoch>,
    ) -> Result<(), StoreError> {
        use borealis_quorum::segment::OtherMembership;
        let (mut newer, mut not_learned) = (Vec::new(), Vec::new());
        for &(group, known) in made_for {
            let Some(segment) = self.any_segment(group) else { continue };
            match segment.check_membership(known) {
                Ok(()) => {}
                Err(OtherMembership::Newer(_)) => newer.push(group),
                // Whoever left need not learn who is a member now.
                Err(OtherMembership::NotLearned) if segment.standing() == Standing::Absent => {}
                Err(OtherMembership::NotLearned) => not_learned.push(group),
            }
        }
        if newer.is_empty() && not_learned.is_empty() {
            return Ok(());
        }
        let promised = self.segments.values().map(|hosted| hosted.segment.promise().epoch).max();
        if let (Some(promised), Some(epoch)) = (promised, epoch)
            && epoch < promised
        {
            return Err(Refusal::Fenced(promised).into());
        }
        Err(StoreError::OtherMembership { newer, not_learned })
    }
}
