//! Whether instances end when they have to, and not otherwise.

use borealis_compute::ship::TenureEnd;
use borealis_types::VolumeEpoch;

use super::World;
use crate::writer::LEASE;

/// From the end of a lease until the instance looks at the clock.
const LOOK_MS: u64 = 250;

impl World {
    /// An instance of `epoch` ended by itself while `ready` nodes, a write quorum, took its batches.
    pub(super) fn check_end(
        &mut self,
        epoch: VolumeEpoch,
        end: TenureEnd,
        ready: Option<usize>,
    ) -> Result<(), String> {
        match end {
            TenureEnd::Replaced(by) => {
                self.coverage.count("writers that ended as replaced");
                let count = self.installed.iter().filter(|installed| **installed > epoch).count();
                if count + usize::from(self.liar.is_some()) < 2 {
                    return Err(format!("epoch {epoch} ended as replaced by {by}, which {count} nodes know"));
                }
            }
            TenureEnd::Outvoted(by) => {
                self.coverage.count("writers that ended as outvoted");
                if let Some(ready) = ready {
                    return Err(format!(
                        "epoch {epoch} ended because of {by}, with {ready} nodes left to it"
                    ));
                }
            }
            TenureEnd::LeaseOver(_) => self.coverage.count("writers whose lease was over"),
        }
        Ok(())
    }

    /// Notes the newest history that a node ever had, which a recovery may take back from it.
    pub(super) fn note_installed(&mut self, position: usize) {
        let node = &self.nodes[position];
        for history in node.groups().map(|group| node.segment(group).history()) {
            self.installed[position] = self.installed[position].max(history.newest_epoch());
            self.oracle.noted(history);
        }
    }

    /// An instance that is alive must not have had a successor for longer than its lease.
    pub(super) fn check_lease(&self, id: u32) -> Result<(), String> {
        let Some(compute) = self.computes.get(&id) else { return Ok(()) };
        if compute.stubborn || compute.is_stopped() || compute.positions().is_none() {
            return Ok(());
        }
        let epoch = compute.promise.epoch;
        let Some((newer, since)) = self.opened.iter().find(|(newer, _)| **newer > epoch) else {
            return Ok(());
        };
        if self.now > since + LEASE.as_millis() as u64 + LOOK_MS {
            return Err(format!("epoch {epoch} goes on, though epoch {newer} was opened at {since} ms"));
        }
        Ok(())
    }
}
