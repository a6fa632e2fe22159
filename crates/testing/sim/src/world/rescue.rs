//! More nodes are lost for good than a write quorum can spare, and somebody makes a volume of those that are left.
//!
//! Writers are not stopped first: the agreement of the survivors has to fence them.

use std::collections::BTreeSet;

use borealis_quorum::quorum_set::QuorumSets;
use borealis_types::{Lsn, NodeId, READ_QUORUM, VolumeEpoch};
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
    /// Where each group ends, as the survivors agreed.
    agreed: Option<Vec<GroupTail>>,
}

impl Rescue {
    /// How many members are left, if an instance is the one that they agree with.
    pub(super) fn members_left(&self, instance: u32) -> Option<usize> {
        (self.attempt == Some(instance)).then(|| usize::from(NODES) - self.lost.len())
    }

    pub(super) fn agreed(&mut self, tails: Vec<GroupTail>) {
        self.agreed = Some(tails);
    }
}

impl World {
    /// One look at how the rescue stands, and what has become possible; it begins with the first.
    ///
    /// # Errors
    /// If an acknowledged record is on too few nodes after it.
    pub(super) fn rescue_step(&mut self) -> Result<(), String> {
        if self.rescue.is_none() {
            // Three cannot tell which one of them lies: a rescue trusts all that are left.
            if self.liar.is_some() {
                return Ok(());
            }
            self.lose_all_but_a_read_quorum();
        }
        let delay = self.random.between(40, 150);
        let Some(rescue) = &self.rescue else { return Ok(()) };
        let (lost, attempt, agreed) = (rescue.lost.clone(), rescue.attempt, rescue.agreed.clone());
        if agreed.is_some() || self.defect == Defect::RescueWithoutAgreement {
            if let Some(source) = self.source_of_copies(&lost, agreed.as_deref()) {
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

    fn lose_all_but_a_read_quorum(&mut self) {
        let mut lost: BTreeSet<usize> =
            (0..usize::from(NODES)).filter(|&position| self.lost[position]).collect();
        while lost.len() < usize::from(NODES) - READ_QUORUM {
            lost.insert(self.random.below(u64::from(NODES)) as usize);
        }
        for &position in &lost {
            if self.nodes[position].running {
                self.nodes[position].crash(&mut self.random, &mut self.coverage);
            }
            self.lost[position] = true;
        }
        let lost = lost.into_iter().map(|position| NodeId(position as u16)).collect();
        self.coverage.count("write quorums lost for good");
        self.rescue = Some(Rescue { lost, attempt: None, agreed: None });
    }

    /// The node to copy: one that has every group to its end, durably.
    fn source_of_copies(&self, lost: &BTreeSet<NodeId>, tails: Option<&[GroupTail]>) -> Option<usize> {
        let is_complete = |node: &SimNode| {
            tails.unwrap_or_default().iter().all(|tail| node.durable_complete(tail.group) >= tail.last_end)
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
        self.coverage.count("volumes rescued");
        self.rescue = None;
    }
}
