//! Instances: how they start, and what becomes of what they do.

use borealis_compute::read::Answer;
use borealis_quorum::Promise;
use borealis_quorum::membership::GroupMembership;
use borealis_quorum::quorum_set::QuorumSets;
use borealis_quorum::recovery::Failure;
use borealis_types::{ServerVersion, VolumeEpoch, WriterId};

use super::{EPOCH_STEP, Event, RELEASES, World};
use crate::Defect;
use crate::compute::{Compute, Start};
use crate::effects::Effects;
use crate::message::Host;
use crate::node::SimNode;

impl World {
    pub(super) fn finish_compute(&mut self, id: u32, effects: Effects) -> Result<(), String> {
        if let Some(what) = effects.impossible {
            return Err(what);
        }
        let epoch = self.computes[&id].promise.epoch;
        for (node, message) in effects.send {
            self.send(Host::Compute(id), Host::Node(node), message);
        }
        if let Some(record) = &effects.shipped {
            self.coverage.count(if epoch < self.oracle.newest_epoch() {
                "records written by replaced writers"
            } else {
                "records written"
            });
            self.oracle.shipped(record);
        }
        self.coverage.add("members left out by a recovery", effects.left_out as u64);
        // A recovery that was superseded may read what its successor changed; it finishes nothing any more.
        let newer = |node: &SimNode| node.groups().any(|group| node.segment(group).promise().epoch > epoch);
        let superseded = self.nodes.iter().any(newer);
        if effects.left_out > 0 && self.liar.is_none() && !superseded {
            return Err(format!("the recovery of epoch {epoch} left a member out, and nobody lied"));
        }
        if let Some(outcome) = &effects.recovered {
            self.coverage.count("recoveries completed");
            if epoch > self.oracle.newest_epoch() {
                self.opened.entry(epoch).or_insert(self.now);
            }
            if self.liar.is_none() {
                self.oracle.continues(outcome)?;
            }
            let members = self.sets_that_count(id);
            self.oracle.recovered(outcome, &members, &self.nodes, &mut self.coverage)?;
            if members.left.is_some() {
                // Nobody writes in the epoch in which survivors agree.
                if let Some(compute) = self.computes.get_mut(&id) {
                    compute.stop();
                }
                if let Some(rescue) = &mut self.rescue {
                    rescue.agreed(outcome);
                }
            }
        }
        if let Some((end, ready)) = effects.ended {
            self.check_end(epoch, end, ready)?;
        }
        for what in &effects.counted {
            self.coverage.count(what);
        }
        if let Some(failure) = &effects.failed {
            self.note_failure(id, failure, superseded)?;
        }
        if let Some(through) = effects.durable {
            let members = self.sets_that_count(id);
            self.oracle.acknowledged(epoch, through, &members, &self.nodes, &mut self.coverage)?;
        }
        for (asked, answer) in &effects.answered {
            self.coverage.count(match answer {
                Answer::Error(_) => "reads of instances given up",
                _ => "reads of instances answered",
            });
            self.oracle.check_answer(*asked, answer).map_err(|what| format!("instance {id}: {what}"))?;
        }
        Ok(())
    }

    /// A recovery gave up.
    fn note_failure(&mut self, id: u32, failure: &Failure, superseded: bool) -> Result<(), String> {
        let epoch = self.computes[&id].promise.epoch;
        match failure {
            Failure::Superseded { current } => {
                self.coverage.count("recoveries superseded");
                self.last_epoch = self.last_epoch.max(*current);
            }
            Failure::MembershipChanged { .. } => {
                self.coverage.count("recoveries begun again with other members");
                let memberships = self.computes[&id].memberships().to_vec();
                let epoch = VolumeEpoch(self.last_epoch.0 + EPOCH_STEP);
                self.start_compute_through(epoch, None, memberships);
            }
            Failure::NoQuorum { .. } => self.coverage.count("recoveries without quorum"),
            // With a liar among those that answer, it is right to refuse: nothing is cut.
            _ if self.liar.is_some() || superseded => {
                self.coverage.count("recoveries that refused contradictory words")
            }
            other => return Err(format!("recovery of epoch {epoch}: {other}")),
        }
        Ok(())
    }

    pub(super) fn start_compute(&mut self, epoch: VolumeEpoch) {
        let memberships = self.hinted_memberships();
        self.start_compute_through(epoch, None, memberships);
    }

    /// Starts an instance that knows these memberships, and recovers through these members of each group, if not through
    /// all.
    pub(super) fn start_compute_through(
        &mut self,
        epoch: VolumeEpoch,
        survivors: Option<Vec<QuorumSets>>,
        memberships: Vec<GroupMembership>,
    ) -> u32 {
        let id = self.next_compute;
        self.next_compute += 1;
        self.last_epoch = self.last_epoch.max(epoch);
        let promise = Promise { epoch, writer: WriterId(u64::from(id) + 1) };
        let server_version = self.draw_release();
        let recorded = match self.defect {
            Defect::RecoveryRecordsOldRelease => self.last_release,
            _ => server_version,
        };
        self.last_release = server_version;
        let start = Start { id, promise, server_version, recorded, survivors, memberships };
        let (mut compute, effects) = Compute::start(start, self.now, self.defect);
        compute.stubborn = self.random.chance(500);
        self.coverage.count("recoveries started");
        let host = compute.host();
        self.computes.insert(id, compute);
        for (node, message) in effects.send {
            self.send(host, Host::Node(node), message);
        }
        self.schedule(80, Event::ComputeTick(id));
        self.schedule(20, Event::Write(id));
        id
    }

    fn draw_release(&mut self) -> ServerVersion {
        let older = self.random.below(RELEASES) as u32;
        ServerVersion::new(ServerVersion::NEWEST_TESTED.server_version_num() - older)
            .expect("a known release")
    }
}
