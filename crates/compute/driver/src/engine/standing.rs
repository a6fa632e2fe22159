//! Whether this instance still is the volume's writer: what nodes say of it, and what follows.

use std::time::Duration;

use borealis_compute::ship::TenureEnd;
use borealis_types::{NodeId, VolumeEpoch};
use borealis_wire::{Refusal, Reply, Request};

use super::{Engine, EngineError};

/// Between two looks. Whatever ends a tenure lasts much longer.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Request ids of questions whether the epoch still holds: this bit, and when they were sent, in nanoseconds.
const CONFIRM_BIT: u64 = 1 << 62;

impl Engine {
    /// Asks the nodes to confirm when that is due, and ends when the tenure is over.
    pub(super) fn look_at_tenure(&mut self) -> Result<(), EngineError> {
        let now = self.now();
        if now < self.tenure_checked + LOOK_INTERVAL {
            return Ok(());
        }
        self.tenure_checked = now;
        if self.tenure.take_ask(now) {
            for &node in self.nodes().iter() {
                self.ask_to_confirm(node);
            }
        }
        let peers = &self.peers;
        let is_connected = |node: NodeId| peers.get(&node).is_some_and(|peer| peer.append.is_ready());
        self.tenure.check(is_connected, now).map_err(|end| match end {
            TenureEnd::Replaced(epoch) => EngineError::Fenced(epoch),
            TenureEnd::Outvoted(epoch) => EngineError::Outvoted(epoch),
            TenureEnd::LeaseOver(unconfirmed) => EngineError::LeaseOver(unconfirmed),
        })
    }

    /// Asks one node to confirm, if it can be asked. Also as soon as it introduced itself: what it was asked on a connection that
    /// is gone, it may never answer, and while members change, connections do not last until all are asked again.
    pub(super) fn ask_to_confirm(&mut self, node: NodeId) {
        let sent = self.now().as_nanos() as u64;
        let request = Request::Confirm { epoch: self.epoch };
        if let Some(connection) = self.peer(node).read.ready() {
            connection.send(CONFIRM_BIT | (sent & (CONFIRM_BIT - 1)), &request);
        }
    }

    /// A node is promised to a newer epoch, by which it refused something. The others may be enough to go on with.
    pub(super) fn note_fenced(&mut self, node: NodeId, promised: VolumeEpoch) -> String {
        let now = self.now();
        self.tenure.refused(node, promised, now);
        format!("it is promised to the newer epoch {promised}")
    }

    /// Takes what an answer on a read connection says of promises; `None` if it is no answer to a read.
    pub(super) fn take_confirmation(&mut self, node: NodeId, request_id: u64, reply: Reply) -> Option<Reply> {
        if let Reply::Refused(Refusal::Fenced(promised)) = reply {
            self.note_fenced(node, promised);
        }
        // Ids of reads count from one and do not get that far; those of an introduction have the highest bit.
        if request_id & (CONFIRM_BIT << 1 | CONFIRM_BIT) != CONFIRM_BIT {
            return Some(reply);
        }
        if reply == Reply::Confirmed {
            let asked = Duration::from_nanos(request_id & (CONFIRM_BIT - 1));
            self.tenure.confirmed(node, asked.min(self.now()));
        }
        None
    }
}
