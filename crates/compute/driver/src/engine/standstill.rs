//! Saying in the log that the stream stands still. The server's processes wait without a word: what they wait in,
//! PostgreSQL calls a critical section, which nothing may end.

use std::fmt::Write as _;
use std::time::Duration;

use borealis_compute::ship::Word;
use borealis_types::Lsn;

use super::Engine;
use super::peers::Link;

impl Engine {
    /// Says it when nothing became durable for seconds although something is written, and when that is over.
    pub(super) fn watch_progress(&mut self) {
        let now = self.now();
        let Some(server) = &self.server else { return };
        let written = server.shm.wal_written();
        let is_waiting = server.is_served && written.sequence > server.published_sequence;
        let durable = self.shipper.durable().end;
        match self.standstill.look(now, durable, is_waiting) {
            Some(Word::StandsStill(stood)) => {
                let reason = self.standstill_reason(written.lsn);
                tracing::warn!(seconds = stood.as_secs(), %durable, reason, "the log stands still");
            }
            Some(Word::GoesOn(stood)) => {
                tracing::info!(seconds = stood.as_secs(), %durable, "the log goes on");
            }
            None => {}
        }
    }

    fn standstill_reason(&self, written: Lsn) -> String {
        let shipped = self.shipper.last_shipped().end;
        if shipped <= self.shipper.durable().end {
            return format!(
                "the server has written up to {written}, and the record that begins at {shipped} is not all there"
            );
        }
        let mut reason = format!("shipped up to {shipped}, written up to {written}");
        let silent: Vec<_> =
            self.shipper.silent_since(self.now().saturating_sub(Duration::from_secs(1))).collect();
        for (node, peer) in &self.peers {
            // Writing into a string cannot fail.
            let _ = match &peer.append {
                Link::Up { .. } if silent.contains(node) => write!(reason, "; node {node} does not answer"),
                Link::Up { .. } => write!(reason, "; node {node} answers"),
                Link::Down { .. } => write!(reason, "; node {node} is not connected ({})", peer.last_failure),
            };
        }
        reason
    }
}
