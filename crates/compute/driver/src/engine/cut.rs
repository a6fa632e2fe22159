//! Records that are shipped in pieces while the server still writes them.
//!
//! A piece goes out as soon as it is there, so the groups of all pieces are decided from the record's header
//! ([`Router::route_cut`]). Nothing of a piece is kept here. The one exception is a record whose body says what it changes or
//! which transactions it ends ([`body_matters`]): a commit with hundreds of thousands of subtransactions, say. It is put
//! together meanwhile, so that the pages fetched ahead and the open transactions are right after it; memory for that is
//! bounded by the record, and one server writes one record at a time.

use borealis_compute::cache::OpenTransactions;
use borealis_compute::read::Reads;
use borealis_compute::ship::{Router, Shipper, body_matters};
use borealis_shm::SlotIndex;
use borealis_types::{GroupSet, ServerVersion};
use borealis_wal::Record;
use borealis_wal::piece::Assembly;
use borealis_wal::stream::Piece;

use super::EngineError;

/// What is known of the record whose pieces are being shipped.
#[derive(Debug, Default)]
pub(super) struct CutRecords {
    groups: GroupSet,
    /// Its bytes so far, if anything here depends on them.
    body: Option<Assembly>,
}

/// What a record tells of, besides the nodes.
pub(super) struct Told<'a> {
    pub(super) router: &'a mut Router,
    pub(super) reads: &'a mut Reads<SlotIndex>,
    pub(super) transactions: &'a mut OpenTransactions,
}

impl Told<'_> {
    /// A whole record of the log. The groups that must have it.
    pub(super) fn of(&mut self, record: &Record<'_>) -> Result<GroupSet, EngineError> {
        let groups = self.router.route(record)?;
        self.reads.invalidate(self.router.last_effects(), record.span.end);
        self.transactions.see(record);
        Ok(groups)
    }
}

impl CutRecords {
    /// Ships the next piece.
    pub(super) fn ship(
        &mut self,
        server_version: ServerVersion,
        piece: &Piece<'_>,
        told: &mut Told<'_>,
        shipper: &mut Shipper,
    ) -> Result<(), EngineError> {
        if piece.part.begins_record() {
            self.groups = told.router.route_cut(&piece.record)?;
            self.body = body_matters(&piece.record).then(Assembly::default);
            told.transactions.begin(piece.record.xid, piece.span.end);
            let total_bytes = piece.record.total_bytes;
            tracing::info!(start = %piece.record.start, total_bytes, "a long log record is shipped in pieces");
        }
        if let Some(body) = &mut self.body
            && body.take(piece.span, piece.part, piece.content())
        {
            let (span, bytes) = body.record();
            told.of(&Record::parse(server_version, span, bytes)?)?;
            self.body = None;
        }
        shipper.ship_part(piece.span, piece.part, self.groups, piece.bytes);
        Ok(())
    }
}
