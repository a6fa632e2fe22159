//! The server's side of the engine: the memory shared with it, its log, what it asks and what it is told.

use std::path::Path;
use std::time::Instant;

use borealis_compute::cache::OpenTransactions;
use borealis_compute::read::Answer;
use borealis_shm::{DriverSide, InstanceState, ShimReport, SlotIndex};
use borealis_types::{Lsn, PAGE_SIZE, PageBytes, invariant};
use mio::Interest;
use mio::unix::SourceFd;

use super::cut::{CutRecords, Told};
use super::{Engine, EngineError, ReadLines, TOKEN_SHM};
use crate::shim_gate;
use crate::wal_feed::{Fed, Flow, Fragment, WalFeed};

/// What becomes durable in the middle of what the server wrote at once is published in steps of this many bytes. Nobody
/// waits for such a place, but whoever is held back because too much is on its way goes on.
const PUBLISHED_BEHIND_BYTES_MAX: u64 = 1 << 20;

/// The running server's side: its shared memory and its log.
pub(super) struct ServerSide {
    pub(super) shm: DriverSide,
    pub(super) feed: WalFeed,
    pub(super) transactions: OpenTransactions,
    pub(super) cut: CutRecords,
    /// The last sequence whose bytes were read completely.
    pub(super) seen_sequence: u64,
    /// The last sequence that was looked at: what is new after it is worth waking for.
    pub(super) looked_sequence: u64,
    /// The last sequence that was published as durable.
    pub(super) published_sequence: u64,
    /// Where the volume was durable when that was published last.
    pub(super) published_durable: Lsn,
    /// The process that was started, once it was.
    pub(super) started: Option<u32>,
    /// It is the server that it must be, and has its shim. Nothing is shipped or answered before.
    pub(super) is_served: bool,
}

impl Engine {
    /// Attaches the memory shared with a server whose log goes on after the last record shipped.
    ///
    /// # Errors
    /// When the system refuses to watch its event descriptor.
    pub fn attach(
        &mut self,
        shm: DriverSide,
        data_directory: &Path,
        segment_bytes: u32,
    ) -> Result<(), EngineError> {
        let last = self.shipper.last_shipped();
        let feed = WalFeed::new(self.server_version, data_directory, segment_bytes, 1, last);
        self.poll.registry().register(&mut SourceFd(&shm.event_fd()), TOKEN_SHM, Interest::READABLE)?;
        // A new server has no open transaction. Without this the evictor would keep pages for the transactions of the last
        // server.
        shm.publish_oldest_open(Lsn::MAX);
        // So that the distance between what is written and what is durable is right from the first write on.
        shm.publish_durable(0, self.shipper.durable().end);
        shm.set_state(InstanceState::Running, "");
        self.server = Some(ServerSide {
            shm,
            feed,
            transactions: OpenTransactions::default(),
            cut: CutRecords::default(),
            seen_sequence: 0,
            looked_sequence: 0,
            published_sequence: 0,
            published_durable: self.shipper.durable().end,
            started: None,
            is_served: false,
        });
        Ok(())
    }

    /// The server was started in this process.
    pub fn expect_server(&mut self, process_id: u32) {
        if let Some(server) = &mut self.server {
            server.started = Some(process_id);
        }
    }

    /// What this build's shim has reported from the server that was started; `None` until it has.
    #[must_use]
    pub fn loaded_shim(&self) -> Option<ShimReport> {
        let started = self.server.as_ref()?.started?;
        self.shim_report().filter(|report| shim_gate::is_loaded(Some(report), started))
    }

    /// Whether this build's shim has reported from the server that was started.
    #[must_use]
    pub fn has_shim(&self) -> bool {
        self.loaded_shim().is_some()
    }

    /// From now on what the server writes is shipped, and what it asks for is answered. `report` is what its shim said:
    /// another process may write over it in the shared memory at any time.
    ///
    /// # Panics
    /// If it is not the report of the server that was started: nobody may be served without.
    pub fn serve_server(&mut self, report: &ShimReport) {
        if let Some(server) = &mut self.server {
            shim_gate::require_loaded(Some(report), server.started.unwrap_or_default());
            server.is_served = true;
        }
    }

    /// Whether the server is served.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_served)
    }

    /// What the shim said that a process of the server loaded.
    #[must_use]
    pub fn shim_report(&self) -> Option<ShimReport> {
        self.server.as_ref().and_then(|server| server.shm.shim_report())
    }

    /// Gives the shared memory up: whoever still waits for an answer over it is told that the instance has ended.
    pub fn detach(&mut self) {
        if let Some(server) = self.server.take()
            && matches!(server.shm.state(), InstanceState::Starting | InstanceState::Running)
        {
            server.shm.set_state(InstanceState::Poisoned, "the instance has ended");
        }
    }

    /// Reads what the server wrote to its log, and ships it.
    pub(super) fn feed(&mut self) -> Result<(), EngineError> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let position = server.shm.wal_written();
        // Take note of new log before reading it: while too much is shipped and not yet durable it is not read, and only
        // an acknowledgement makes room.
        server.looked_sequence = position.sequence;
        if position.sequence == server.seen_sequence {
            return Ok(());
        }
        let (shipper, router, reads) = (&mut self.shipper, &mut self.router, &mut self.reads);
        let ahead_max = self.config.tuning.shipped_ahead_bytes;
        if shipper.tracker().log_ahead_bytes() >= ahead_max {
            return Ok(());
        }
        let before = shipper.last_shipped();
        let mut told = Told { router, reads, transactions: &mut server.transactions };
        let (cut, server_version) = (&mut server.cut, self.server_version);
        let fed = server.feed.read::<EngineError>(position.lsn, |fragment| {
            match fragment {
                Fragment::Record(record) => {
                    let groups = told.of(&record)?;
                    shipper.ship(record.span, groups, record.bytes);
                }
                Fragment::Piece(piece) => cut.ship(server_version, &piece, &mut told, shipper)?,
            }
            let ahead = shipper.tracker().log_ahead_bytes();
            Ok(if ahead >= ahead_max { Flow::Pause } else { Flow::More })
        })?;
        if fed == Fed::Everything {
            server.seen_sequence = position.sequence;
            shipper.decoded(position.sequence);
        }
        if shipper.last_shipped() != before {
            self.last_shipped_at = Instant::now();
        }
        Ok(())
    }

    /// Takes what the server asked for.
    pub(super) fn take_requests(&mut self) {
        let now = self.now();
        let Some(server) = &self.server else { return };
        let (reads, router) = (&mut self.reads, &mut self.read_router);
        let mut lines = ReadLines { peers: &mut self.peers, shipper: &self.shipper };
        let mut any = false;
        server.shm.take_pending(|slot, request| {
            any = true;
            reads.begin(slot, request, router, &mut lines, now);
        });
        server.shm.take_prefetch(|key| {
            any = true;
            reads.prefetch(key, router, &mut lines, now);
        });
        if any {
            self.answer_done();
            self.reads_due = self.reads.next_due();
        }
    }

    /// Hands answers to the server.
    pub(super) fn answer_done(&mut self) {
        let done = self.reads.take_done();
        let Some(server) = &self.server else { return };
        for (slot, answer) in done {
            complete(&server.shm, slot, &answer);
        }
    }

    pub(super) fn publish(&mut self) {
        invariant!("stopped-stream-rests", !self.stopped);
        let Some(server) = &mut self.server else { return };
        let durable = self.shipper.durable().end;
        if let Some(sequence) = self.shipper.take_publishable() {
            server.published_sequence = sequence;
        } else if durable.0 - server.published_durable.0 < PUBLISHED_BEHIND_BYTES_MAX {
            return;
        }
        server.published_durable = durable;
        server.shm.publish_oldest_open(server.transactions.oldest());
        server.shm.publish_durable(server.published_sequence, durable);
    }
}

/// Puts an answer into the server's slot.
fn complete(shm: &DriverSide, slot: SlotIndex, answer: &Answer) {
    static ZERO_PAGE: PageBytes = [0; PAGE_SIZE];
    let reply = match answer {
        Answer::Page(Some(bytes)) => match <&PageBytes>::try_from(bytes.as_slice()) {
            Ok(page) => borealis_shm::Reply::Page(page),
            Err(_) => borealis_shm::Reply::Error("a page of the wrong size"),
        },
        Answer::Page(None) => borealis_shm::Reply::Nonexistent,
        Answer::ZeroPage => borealis_shm::Reply::Page(&ZERO_PAGE),
        Answer::Size(size) => borealis_shm::Reply::RelationSize(*size),
        Answer::Relations(entries, next_cursor) => {
            borealis_shm::Reply::Relations { entries, next_cursor: *next_cursor }
        }
        Answer::SlruSegment(pages) => borealis_shm::Reply::SlruSegment(*pages),
        Answer::SlruSegments(entries, next_cursor) => {
            borealis_shm::Reply::SlruSegments { entries, next_cursor: *next_cursor }
        }
        Answer::Error(text) => borealis_shm::Reply::Error(text),
    };
    shm.complete(slot, reply);
}
