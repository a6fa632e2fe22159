//! Up to three nodes are lost for good, and somebody replaces them by copies of one of those that are left.
//!
//! Writers are not stopped first: the agreement of the survivors has to fence them. While a write quorum is left, a newer
//! writer may open the volume behind the agreement; then the survivors have to agree again. One of four or five survivors
//! may lie; three cannot tell which of them does.

use std::collections::BTreeSet;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::Outcome;
use borealis_types::{GroupId, Lsn, NodeId, READ_QUORUM, VolumeEpoch, WRITE_QUORUM};
use borealis_wire::GroupTail;

use super::{EPOCH_STEP, Event, NODES, World};
use crate::Defect;
use crate::node::SimNode;
use crate::oracle::Counted;

/// A rescue under way.
#[derive(Debug)]
pub(super) struct Rescue {
    /// Given up; all others must answer.
    lost: BTreeSet<NodeId>,
    /// The instance that carries out the agreement, once it was started.
    attempt: Option<u32>,
    /// What the survivors agreed on.
    agreed: Option<Agreement>,
}

/// In which epoch the survivors agreed, and where each group ends.
#[derive(Clone, Debug)]
struct Agreement {
    epoch: VolumeEpoch,
    tails: Vec<GroupTail>,
}

impl Rescue {
    /// How many members are left, if an instance is the one that they agree with.
    pub(super) fn members_left(&self, instance: u32) -> Option<usize> {
        (self.attempt == Some(instance)).then(|| usize::from(NODES) - self.lost.len())
    }

    pub(super) fn agreed(&mut self, outcome: &Outcome) {
        self.agreed = Some(Agreement { epoch: outcome.promise.epoch, tails: outcome.tails.clone() });
    }

    /// Whether so many are left that one of them may lie.
    pub(super) fn stands_a_liar(&self) -> bool {
        self.lost.len() < usize::from(NODES) - READ_QUORUM
    }
}

impl World {
    /// One look at how the rescue stands, and what has become possible; it begins with the first.
    ///
    /// # Errors
    /// If an acknowledged record is on too few nodes after it.
    pub(super) fn rescue_step(&mut self) -> Result<(), String> {
        if self.rescue.is_none() {
            self.lose_nodes_for_good();
        }
        let delay = self.random.between(40, 150);
        let Some(rescue) = &mut self.rescue else { return Ok(()) };
        let newer = |agreed: &Agreement| {
            let opened = self.nodes.iter().map(|node| node.segment(GroupId(0)).history().newest_epoch());
            opened.max().is_some_and(|epoch| epoch > agreed.epoch)
        };
        if rescue.agreed.as_ref().is_some_and(newer) {
            self.coverage.count("agreements of survivors overtaken by a writer");
            (rescue.agreed, rescue.attempt) = (None, None);
        }
        let (lost, attempt, agreed) = (rescue.lost.clone(), rescue.attempt, rescue.agreed.clone());
        if agreed.is_some() || self.defect == Defect::RescueWithoutAgreement {
            if let Some(source) = self.source_of_copies(&lost, agreed.as_ref()) {
                self.replace_by_copies(&lost, source);
                let six = Counted { sets: self.newest_sets(), left: None };
                return self.oracle.rescued(&six, &self.nodes);
            }
        } else if attempt.and_then(|id| self.computes.get(&id)).is_none_or(|compute| compute.is_stopped()) {
            let sets = self.newest_sets();
            let members = sets.iter().map(|sets| sets.survivors(&lost));
            let members: Vec<QuorumSets> = members.map(|sets| sets.expect("a read quorum is left")).collect();
            let memberships = self.newest_memberships();
            let epoch = VolumeEpoch(self.last_epoch.0 + EPOCH_STEP);
            let id = self.start_compute_through(epoch, Some(members), memberships);
            if let Some(rescue) = &mut self.rescue {
                rescue.attempt = Some(id);
            }
        }
        self.schedule(delay, Event::Rescue);
        Ok(())
    }

    /// Loses one to three nodes, with those that are lost already. Never three if one has lied: a rescue trusts all three
    /// that are left.
    fn lose_nodes_for_good(&mut self) {
        let mut lost: BTreeSet<usize> =
            (0..usize::from(NODES)).filter(|&position| self.lost[position]).collect();
        let most = (NODES as usize - READ_QUORUM).saturating_sub(usize::from(self.liar.is_some()));
        let wanted = match self.random.chance(500) {
            true => most,
            false => self.random.between(1, most as u64) as usize,
        };
        while lost.len() < wanted {
            lost.insert(self.random.below(u64::from(NODES)) as usize);
        }
        for &position in &lost {
            if self.nodes[position].running {
                self.nodes[position].crash(&mut self.random, &mut self.coverage);
            }
            self.lost[position] = true;
        }
        let lost: BTreeSet<NodeId> = lost.into_iter().map(|position| NodeId(position as u16)).collect();
        self.coverage.count(match lost.len() > usize::from(NODES) - WRITE_QUORUM {
            true => "write quorums lost for good",
            false => "rescues while a write quorum is left",
        });
        self.rescue = Some(Rescue { lost, attempt: None, agreed: None });
    }

    /// The node to copy: one that says it has every group to its end on disk, and nothing that cannot be there.
    fn source_of_copies(&self, lost: &BTreeSet<NodeId>, agreed: Option<&Agreement>) -> Option<usize> {
        let is_complete = |node: &SimNode| {
            let told = node.told_of_disk();
            let ends = |tail: &GroupTail| told[usize::from(tail.group.0)].complete.end == tail.last_end;
            agreed.is_some_and(|agreed| agreed.tails.iter().all(ends))
        };
        let careless = matches!(self.defect, Defect::RescueCopiesAnyone | Defect::RescueWithoutAgreement);
        self.nodes
            .iter()
            .position(|node| !lost.contains(&node.id) && node.running && (careless || is_complete(node)))
    }

    fn replace_by_copies(&mut self, lost: &BTreeSet<NodeId>, source: usize) {
        let behind = self.groups().any(|group| {
            let ends: Vec<Lsn> = self
                .nodes
                .iter()
                .filter(|node| !lost.contains(&node.id))
                .map(|node| node.durable_complete(group))
                .collect();
            ends.iter().any(|end| *end < self.nodes[source].durable_complete(group))
        });
        if behind {
            self.coverage.count("rescues while a survivor is behind");
        }
        for id in lost {
            let position = usize::from(id.0);
            let copy = self.nodes[source].copy_as(&self.nodes[position]);
            self.nodes[position] = copy;
            self.lost[position] = false;
        }
        if self.nodes.iter().any(|node| node.lie.is_some()) {
            self.coverage.count("rescues while a survivor lies");
        }
        self.coverage.count("volumes rescued");
        self.rescue = None;
    }
}
