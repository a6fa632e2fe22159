//! What a round of questions comes to: the picture that the controller decides on.
//!
//! Everything here is a function of answers and of `now`, a monotonic clock's reading. [`Memory`] is all that lasts from one round
//! to the next: when each node was heard last, since this controller began.

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_controller::catalog::records::{Fleet, FleetGroup, NodeState};
use borealis_controller::fleet::{
    GroupObservation, MemberProgress, NodeObservation, Observed, Observer, SelfReport,
};
use borealis_quorum::membership::{GroupMembership, MembershipState, credible_membership};
use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{AvailabilityZone, Lsn, NodeId, VolumeId};
use borealis_wire::{NodeStatus, SegmentSummary};

use crate::host::Witness;
use crate::questions::{Answer, Answers};

/// How far behind a segment may be and count as complete: answers are not of one moment, and what a writer may have in
/// flight is less than this. The last step of a change looks closer (`borealis_quorum::membership::Bar`).
const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// What a segment is taken to need on a disk while no refill has said how much its pages are. A node takes no redo when its
/// disk is nearly full, so this only keeps segments off disks that are full already.
const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// How many must speak for a membership that is not believed yet, for it to be carried through.
const SUPPORT_MIN: usize = 2;

/// When everybody was heard last.
#[derive(Clone, Default, Debug)]
pub struct Memory {
    /// By the controller itself.
    own: BTreeMap<NodeId, Duration>,
    /// What writers said in the last round.
    witnesses: Vec<Witness>,
}

impl Memory {
    /// Of a controller that begins.
    #[must_use]
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Takes note of a round of answers that came at `now`.
    pub fn take(&mut self, fleet: &Fleet, answers: &Answers, witnesses: Vec<Witness>, now: Duration) {
        for &node in fleet.nodes.keys() {
            // Who was never heard is missed since it could have been.
            self.own.entry(node).or_insert(now);
        }
        for (node, _) in answers.keys() {
            self.own.insert(*node, now);
        }
        self.witnesses = witnesses;
    }

    /// How long ago each observer heard a node.
    fn heard_ms_ago(&self, node: NodeId, answers: &Answers, now: Duration) -> BTreeMap<Observer, u64> {
        let ms_ago =
            |heard: &Duration| u64::try_from(now.saturating_sub(*heard).as_millis()).unwrap_or(u64::MAX);
        let mut heard = BTreeMap::new();
        heard.extend(self.own.get(&node).map(|at| (Observer::Controller, ms_ago(at))));
        for witness in &self.witnesses {
            let ago = witness.heard_ms_ago.get(&node);
            heard.extend(ago.map(|ago| (Observer::Writer(witness.volume, witness.instance), *ago)));
        }
        for (&(peer, _), answer) in answers {
            let said = answer.status.heard.iter().filter(|said| said.node == node && peer != node);
            heard.extend(said.map(|said| (Observer::Peer(peer), said.ms_ago)));
        }
        heard
    }
}

/// What this round saw, for the controller to decide on. `lost` and `starting` are what the host says.
#[must_use]
pub fn observed(
    fleet: &Fleet,
    answers: &Answers,
    memory: &Memory,
    host: &HostReport,
    now: Duration,
) -> Observed {
    let records = fleet.nodes.values().filter(|record| record.state != NodeState::Removed);
    let nodes = records.map(|record| {
        let node = record.node;
        let observation = NodeObservation {
            heard_ms_ago: memory.heard_ms_ago(node, answers, now),
            answer: answer_of(node, answers).map(|answer| self_report(&answer.status)),
            lost: host.lost.get(&node).cloned(),
        };
        (node, observation)
    });
    let groups = fleet.volumes.values().flat_map(|volume| {
        volume.placement.groups().map(|group| FleetGroup { volume: volume.volume, group })
    });
    let groups = groups.filter_map(|group| {
        let known = fleet.memberships.get(&group).map(|record| &record.membership);
        Some((group, observe_group(group, known, answers)?))
    });
    Observed { nodes: nodes.collect(), groups: groups.collect(), starting: host.starting.clone() }
}

/// What the host of some nodes says of them.
#[derive(Clone, Default, Debug)]
pub struct HostReport {
    /// Why it is of no use to wait for these nodes.
    pub lost: BTreeMap<NodeId, String>,
    /// Node processes that were started and have not answered yet, by zone.
    pub starting: BTreeMap<AvailabilityZone, usize>,
}

fn answer_of(node: NodeId, answers: &Answers) -> Option<&Answer> {
    answers.iter().find(|((known, _), _)| *known == node).map(|(_, answer)| answer)
}

fn self_report(status: &NodeStatus) -> SelfReport {
    SelfReport {
        incarnation: format!("{:032x}", status.incarnation),
        broken: status.failure.clone(),
        free_bytes: status.free_bytes,
    }
}

/// The membership to go by: what enough members have installed, or else the one that is known.
#[must_use]
pub fn newest_membership(
    known: Option<&GroupMembership>,
    claims: &BTreeMap<NodeId, MembershipState>,
) -> Option<GroupMembership> {
    // First without what is known: a catalog that was made anew may be mistaken about it.
    let by_themselves = credible_membership(None, claims)
        .filter(|found| known.is_none_or(|known| found.epoch() >= known.epoch()));
    let base = by_themselves.as_ref().or(known);
    credible_membership(base, claims).or_else(|| base.cloned())
}

/// The membership after `current` that somebody acts on already, though it is not known to have been chosen: whoever began it
/// did not carry it through.
#[must_use]
pub fn begun_after<'a>(
    current: &GroupMembership,
    claims: &'a BTreeMap<NodeId, MembershipState>,
) -> Option<&'a GroupMembership> {
    let installed = claims.values().map(MembershipState::installed);
    installed
        .filter(|next| current.transition_to(next).is_some())
        .find(|next| claims.values().filter(|claim| claim.supports(next)).count() >= SUPPORT_MIN)
}

/// What nodes said that they store of a group's memberships.
#[must_use]
pub fn claims(group: FleetGroup, answers: &Answers) -> BTreeMap<NodeId, MembershipState> {
    let of_volume = answers.iter().filter(|((_, volume), _)| *volume == group.volume);
    let claim = |((node, _), answer): (&(NodeId, VolumeId), &Answer)| {
        Some((*node, answer.memberships.get(&group.group)?.clone()))
    };
    of_volume.filter_map(claim).collect()
}

fn observe_group(
    group: FleetGroup,
    known: Option<&GroupMembership>,
    answers: &Answers,
) -> Option<GroupObservation> {
    let claims = claims(group, answers);
    let membership = newest_membership(known, &claims)?;
    let has_it = |node| claims.get(&node).is_some_and(|claim| *claim.installed() == membership);
    let is_established =
        QuorumSets::of(&membership).is_write_quorum(has_it) && begun_after(&membership, &claims).is_none();
    let segments: BTreeMap<NodeId, (&SegmentSummary, &NodeStatus)> = membership
        .members()
        .into_iter()
        .filter_map(|node| {
            let status = &answers.get(&(node, group.volume))?.status;
            Some((node, (status.segments.iter().find(|known| known.group == group.group)?, status)))
        })
        .collect();
    if segments.is_empty() {
        return None;
    }
    let end = segments.values().map(|(segment, _)| segment.known_durable_tail).max().unwrap_or_default();
    let members =
        segments.iter().map(|(&node, (segment, status))| (node, progress(segment, status, end))).collect();
    let of_refills = segments.values().flat_map(|(_, status)| &status.refills);
    let largest =
        of_refills.filter(|refill| refill.group == group.group).map(|refill| refill.total_bytes).max();
    let segment_bytes = largest.unwrap_or(0).max(SEGMENT_BYTES_MIN);
    Some(GroupObservation { membership, is_established, members, segment_bytes })
}

/// How far a member is, given where its group's durable redo ends as far as any member knows.
fn progress(segment: &SegmentSummary, status: &NodeStatus, end: Lsn) -> MemberProgress {
    if let Some(refill) = status.refills.iter().find(|refill| refill.group == segment.group) {
        return MemberProgress::CatchingUp { done_bytes: refill.done_bytes, total_bytes: refill.total_bytes };
    }
    let lacks = end.0.saturating_sub(segment.segment_complete_lsn.0);
    if segment.joining || lacks > IN_FLIGHT_BYTES {
        return MemberProgress::CatchingUp { done_bytes: 0, total_bytes: 0 };
    }
    MemberProgress::Complete
}

#[cfg(test)]
mod tests;
