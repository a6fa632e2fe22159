//! Every entry of a segment's chain that is not in page images, and where in the log it is.
//!
//! Whatever the chain has above the materialized LSN is in the index, or a piece of a record, or among the records that
//! could not be applied. Nothing else may happen to it: what is in none of these is not missed when its place in the
//! log is given up.

use std::collections::BTreeMap;

use borealis_types::Lsn;

use crate::log::position::{LogPosition, RecordRef};
use crate::segment::hosted::HostedSegment;

impl HostedSegment {
    /// The chain's entries above the materialized LSN, in order; what waits for a predecessor is in `pending`.
    pub(crate) fn chain_entries(&self) -> Vec<RecordRef> {
        // A record in pieces is in the index as one, and each of its pieces is an entry.
        let whole =
            self.index.all_records(Lsn::ZERO, Lsn::MAX).iter().filter(|record| !record.part.is_piece());
        let mut entries: Vec<RecordRef> =
            whole.chain(self.cut.entries()).chain(&self.unapplied).copied().collect();
        entries.sort_unstable_by_key(|entry| entry.span.start);
        entries
    }

    /// Notes that the bytes of some entries are elsewhere in the log now.
    pub(crate) fn repoint(&mut self, moved: &BTreeMap<LogPosition, LogPosition>) {
        self.index.repoint(moved);
        self.cut.repoint(moved);
        for reference in self.pending.values_mut().chain(&mut self.unapplied) {
            reference.repoint(moved);
        }
        // Whoever looked up where a record was must look again.
        self.version += 1;
    }
}
