//! Which of the fenced members' words a recovery goes by.
//!
//! With all members honest every word of each is true, and the most that anyone knows would do. One of them may be broken
//! or may have been lied to, though. So what decides is vouched for by a second member, and who says what all others
//! rule out is left out of account, as if it had not answered:
//!
//! * **The newest history** is the newest that two members have, each perhaps with more behind it, and that may be at a write
//!   quorum. A recovery that completed has
//!   its history on four members, two of which are among any four; where later recoveries died while they installed, those two
//!   may continue it differently, so that nobody's history ends with it ([`Witnessed`]). What a single member has is of a
//!   recovery that died while it installed, or was never made. It is passed over: the member takes the next history, which
//!   differs only after what it knows to be durable, or refuses and counts as absent.
//! * **Known durable points.** What was durable when it was said is complete on four members of each group, two of which
//!   are among any four. So the walk starts at the second highest point, and must reach the highest. If it does not, whoever
//!   said it is left out, and the rest is asked anew: four members are enough without it. A point counts only if the history
//!   that counts has, below it, the openings that its member has.
//! * **Where a group ends.** No member whose history is the one believed may have a record of the group between that end
//!   and the volume's.
//!
//! A volume that is opened through the survivors of a greater loss ([`QuorumSets::survivors`]) has no second witness to
//! ask for: perhaps one of three survivors is all that is left of a write quorum. There each member is believed.
//!
//! A member that is left out makes the recovery wait for another; it never makes it cut. What is not defended: two broken
//! members of those that answer; records that a broken member invents after the last one that is durable; and a member that
//! denies what it has while two are away, for of a history that only one of the other three has nobody can tell whether
//! it was completed or made up.

use std::collections::{BTreeMap, BTreeSet};

use borealis_types::{EpochHistory, GroupId, NodeId, SEGMENTS_PER_GROUP, VolumeEpoch, WRITE_QUORUM};

use super::{Decision, Failure, Group, Recovery, Request};
use crate::DurablePoint;
use crate::evidence::Witnessed;
#[cfg(doc)]
use crate::quorum_set::QuorumSets;
use crate::segment::{SegmentSummary, same_openings_below};

impl<Handle: Clone> Recovery<Handle> {
    /// The newest history that enough members have.
    pub(super) fn newest_history(&self) -> Result<EpochHistory, Failure> {
        // A node's segments nearly always have the same history: that is compared once.
        let mut histories: BTreeMap<(NodeId, VolumeEpoch), (&EpochHistory, GroupId)> = BTreeMap::new();
        for (id, group) in self.group_ids().zip(&self.groups) {
            for (&node, summary) in &group.summaries {
                let history = &summary.history;
                histories.entry((node, history.newest_epoch())).or_insert((history, id));
            }
        }
        let of_members = || histories.iter().map(|(&said, &(history, _))| (said, history));
        let vouched = histories.values().filter_map(|&(history, group)| {
            let vouched = |has: &dyn Fn((NodeId, VolumeEpoch)) -> bool| {
                let having = histories.keys().filter(|&&said| has(said));
                let members: BTreeSet<NodeId> = having.map(|&(node, _)| node).collect();
                members.len() >= self.witnesses_needed() && self.may_be_completed(has)
            };
            Some((Witnessed::new(history, of_members()).longest(vouched)?, group))
        });
        let vouched: Vec<(EpochHistory, GroupId)> = vouched.collect();
        let Some((newest, _)) = vouched.iter().max_by_key(|(history, _)| history.newest_epoch()) else {
            return Ok(EpochHistory::default());
        };
        let contradicts =
            |history: &EpochHistory| history.newest_epoch() == newest.newest_epoch() && history != newest;
        match vouched.iter().find(|(history, _)| contradicts(history)) {
            Some((_, group)) => Err(self.contradiction(*group, "history")),
            None => Ok(newest.clone()),
        }
    }

    /// Whether what members have, each in its history that ends with some epoch, may be at a write quorum of each group's
    /// base, counting all that did not answer, and one that denies it. Two members may have what certainly nobody completed,
    /// and another recovery may have brought to a write quorum what that one cut. A group's own segments decide: a member
    /// installs in all of its segments, and a later recovery may since have taken it back in those that it repaired.
    fn may_be_completed(&self, has: &dyn Fn((NodeId, VolumeEpoch)) -> bool) -> bool {
        self.groups.iter().all(|group| {
            let base = group.members.sets()[0].iter();
            let answered = base.filter_map(|node| Some((*node, group.summaries.get(node)?)));
            let lacks =
                answered.filter(|(node, summary)| !has((*node, summary.history.newest_epoch()))).count();
            lacks <= SEGMENTS_PER_GROUP - WRITE_QUORUM + 1
        })
    }

    /// A member whose durable point is of another past than the history that counts. What is durable was so under a history
    /// that every later one continues, so such a point is of a recovery that died while it installed, or is made up; and
    /// the member would refuse the outcome. Two such members, of two such recoveries, are no witnesses of each other.
    pub(super) fn member_of_another_past(&self) -> Option<NodeId> {
        let base = self.base_history.as_ref()?;
        let is_of_another = |summary: &SegmentSummary| {
            !same_openings_below(&summary.history, base, summary.known_durable.volume.end)
        };
        let mut summaries = self.groups.iter().flat_map(|group| &group.summaries);
        summaries.find(|(_, summary)| is_of_another(summary)).map(|(&node, _)| node)
    }

    /// Nobody opens an epoch without a promise of it, and this one was promised to us, who have not yet.
    pub(super) fn refuse_premature_openings(&self) -> Result<(), Failure> {
        // Only of the write quorum that answered first: a later member may have our own opening from a peer.
        for (id, group) in self.group_ids().zip(&self.groups) {
            let premature =
                |summary: &&SegmentSummary| summary.history.newest_epoch() >= self.options.promise.epoch;
            if let Some(summary) = group.summaries.values().find(premature) {
                let position = summary.complete.end;
                let what = "a history as new as the promise";
                return Err(Failure::Contradiction { group: id, position, what });
            }
        }
        Ok(())
    }

    /// How many members must say what is to be believed.
    fn witnesses_needed(&self) -> usize {
        self.groups.iter().map(|group| group.members.witnesses_needed()).min().unwrap_or(1)
    }

    fn contradiction(&self, group: GroupId, what: &'static str) -> Failure {
        let ends = self.group(group).summaries.values().map(|summary| summary.complete.end);
        Failure::Contradiction { group, position: ends.max().unwrap_or_default(), what }
    }

    /// The durable point of a group that the walk begins at: the second highest that members know, so that one of them
    /// alone cannot raise it; of survivors, the highest.
    pub(super) fn known_durable(&self, id: GroupId) -> DurablePoint {
        let points = known_points(self.group(id));
        let witnessed = self.witnesses_needed() - 1;
        let second = points.get(witnessed).or(points.first()).copied().unwrap_or_default();
        let alike = |point: &DurablePoint| points.iter().filter(|other| *other == point).count();
        let candidates = points.iter().filter(|point| point.volume.end == second.volume.end);
        candidates.copied().max_by_key(|point| (alike(point), point.group_tail)).unwrap_or_default()
    }

    /// A member whose word about what is durable is ruled out by what was decided from the others'.
    pub(super) fn implausible_member(&self, decision: &Decision) -> Option<NodeId> {
        self.group_ids().zip(&self.groups).find_map(|(id, group)| {
            let base = self.known_durable(id);
            let is_ruled_out = |summary: &SegmentSummary| {
                let said = summary.known_durable;
                let differs = said.volume.end == base.volume.end && said != base;
                said.volume.end > decision.durable.end || said.group_tail > said.volume.end || differs
            };
            group.summaries.iter().find(|(_, summary)| is_ruled_out(summary)).map(|(&node, _)| node)
        })
    }

    /// Refuses a decision by which a group ends before a record of it that stays.
    pub(super) fn check_group_ends(&self, decision: &Decision) -> Result<(), Failure> {
        let Some(base) = &self.base_history else { return Ok(()) };
        for (id, group) in self.group_ids().zip(&self.groups) {
            let tail = decision.tails[usize::from(id.0)];
            let has_more = |summary: &&SegmentSummary| {
                let end = summary.complete.end;
                summary.history == *base && end > tail && end <= decision.durable.end
            };
            if let Some(summary) = group.summaries.values().find(has_more) {
                let position = summary.complete.end;
                return Err(Failure::Contradiction { group: id, position, what: "the group's end" });
            }
        }
        Ok(())
    }

    /// Goes on as if this member had not answered, from the first step after the fence.
    pub(super) fn leave_out(&mut self, node: NodeId) {
        self.left_out.insert(node);
        self.base_history = None;
        self.decision = None;
        for group in &mut self.groups {
            group.summaries.remove(&node);
        }
        self.forget_tails();
    }

    /// What was read counted by another history, or from another point.
    pub(super) fn forget_tails(&mut self) {
        for group in &mut self.groups {
            group.tails.clear();
            group.union.clear();
        }
        self.outstanding.retain(|request, _| matches!(request, Request::Fence(_)));
    }

    /// Members whose words the others' rule out: they count as absent, and need a person's look.
    #[must_use]
    pub fn left_out(&self) -> &BTreeSet<NodeId> {
        &self.left_out
    }
}

/// The durable points that members of a group know, highest first.
fn known_points<Handle>(group: &Group<Handle>) -> Vec<DurablePoint> {
    let mut points: Vec<DurablePoint> =
        group.summaries.values().map(|summary| summary.known_durable).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.volume.end));
    points
}
