//! Which transactions have logged something and are not over.
//!
//! A page that such a transaction changed must not be fetched from storage again: command ids, and the tokens of
//! speculative insertions, are in the page and not in its redo. PostgreSQL has the page's LSN at or after the
//! transaction's first record, so knowing where the oldest one began is enough.

use std::collections::{BTreeSet, VecDeque};

use borealis_types::{Lsn, invariant};
use borealis_wal::layout::FIRST_NORMAL_XID;
use borealis_wal::{Record, ended_transactions, oldest_running_transaction, xid_precedes};

/// Entries of transactions that are over, beyond as many as are open, that may wait for the next clearing.
const COMPACT_BEYOND: usize = 1024;

/// See the module. Subtransactions count on their own: they are over with their own end or with their parent's.
#[derive(Debug, Default)]
pub struct OpenTransactions {
    /// By the end of their first record. Those that are over leave when they come to the front.
    begun: VecDeque<(Lsn, u32)>,
    open: BTreeSet<u32>,
    /// The last one seen, which the next record is most often of too.
    last_seen: u32,
}

impl OpenTransactions {
    /// Takes a transaction that logs a record whose first piece ends at `end`. The whole record is seen too, unless it ends
    /// nothing.
    pub fn begin(&mut self, xid: u32, end: Lsn) {
        if xid >= FIRST_NORMAL_XID && xid != self.last_seen {
            self.last_seen = xid;
            if self.open.insert(xid) {
                self.begun.push_back((end, xid));
            }
        }
    }

    /// Takes the next record of the log.
    pub fn see(&mut self, record: &Record<'_>) {
        self.begin(record.xid, record.span.end);
        let (open, last_seen) = (&mut self.open, &mut self.last_seen);
        ended_transactions(record, |over| {
            open.remove(&over);
            if *last_seen == over {
                *last_seen = 0;
            }
        });
        if let Some(oldest) = oldest_running_transaction(record) {
            // Whatever ended without a trace.
            self.open.retain(|&open| !xid_precedes(open, oldest));
            self.last_seen = 0;
        }
        // One that stays open for long must not keep all those after it here.
        if self.begun.len() > 2 * self.open.len() + COMPACT_BEYOND {
            let open = &self.open;
            self.begun.retain(|(_, xid)| open.contains(xid));
        }
        while self.begun.front().is_some_and(|(_, xid)| !self.open.contains(xid)) {
            self.begun.pop_front();
        }
        // One that is open and has no beginning here would let a page go that it changed.
        invariant!(
            "open-transaction-has-a-beginning",
            self.open.len() <= self.begun.len(),
            "{} are open, {} have begun",
            self.open.len(),
            self.begun.len()
        );
    }

    /// The end of the first record of the oldest open transaction; [`Lsn::MAX`] without one. A page whose LSN is
    /// below was changed by none of them.
    #[must_use]
    pub fn oldest(&self) -> Lsn {
        self.begun.front().map_or(Lsn::MAX, |(first, _)| *first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{RecordSpan, ServerVersion};
    use borealis_wal::ResourceManager;
    use borealis_wal::encode::RecordBuilder;
    use borealis_wal::layout::{standby, transaction};

    fn see(open: &mut OpenTransactions, end: u64, xid: u32, manager: ResourceManager, info: u8, data: &[u8]) {
        let bytes = RecordBuilder::new(manager, info).xid(xid).main_data(data).finish();
        let span = RecordSpan { start: Lsn(end - 8), end: Lsn(end) };
        open.see(&Record::parse(ServerVersion::NEWEST_TESTED, span, &bytes).expect("a record made here"));
    }

    fn change(open: &mut OpenTransactions, end: u64, xid: u32) {
        see(open, end, xid, ResourceManager::Heap, 0, &[0; 3]);
    }

    /// A commit or abort, with these subtransactions.
    fn ends(open: &mut OpenTransactions, end: u64, xid: u32, info: u8, subxids: &[u32]) {
        let mut data = 0i64.to_le_bytes().to_vec();
        data.extend(transaction::HAS_SUBXIDS.to_le_bytes());
        data.extend((subxids.len() as u32).to_le_bytes());
        data.extend(subxids.iter().flat_map(|xid| xid.to_le_bytes()));
        see(open, end, xid, ResourceManager::Transaction, info | transaction::HAS_INFO, &data);
    }

    #[test]
    fn the_oldest_open_transaction_is_the_one_that_logged_first() {
        let mut open = OpenTransactions::default();
        assert_eq!(open.oldest(), Lsn::MAX);
        change(&mut open, 100, 12);
        change(&mut open, 200, 11);
        change(&mut open, 300, 12);
        assert_eq!(open.oldest(), Lsn(100));
        ends(&mut open, 400, 12, transaction::COMMIT, &[]);
        assert_eq!(open.oldest(), Lsn(200));
        ends(&mut open, 500, 11, transaction::ABORT, &[]);
        assert_eq!(open.oldest(), Lsn::MAX);
        // A transaction whose only record is its end was never open.
        ends(&mut open, 600, 13, transaction::COMMIT, &[]);
        assert_eq!(open.oldest(), Lsn::MAX);
        assert!(open.open.is_empty() && open.begun.is_empty());
    }

    #[test]
    fn subtransactions_end_with_themselves_or_with_their_parent() {
        let mut open = OpenTransactions::default();
        change(&mut open, 100, 20);
        change(&mut open, 200, 21);
        change(&mut open, 300, 22);
        ends(&mut open, 400, 21, transaction::ABORT, &[]);
        ends(&mut open, 500, 20, transaction::COMMIT, &[22]);
        assert_eq!(open.oldest(), Lsn::MAX);
    }

    #[test]
    #[should_panic(
        expected = "invariant open-transaction-has-a-beginning is broken: 1 are open, 0 have begun"
    )]
    fn a_beginning_that_was_lost_is_noticed() {
        let mut open = OpenTransactions::default();
        change(&mut open, 100, 12);
        open.begun.clear();
        change(&mut open, 200, 12);
    }

    #[test]
    fn a_prepared_transaction_stays_open() {
        let mut open = OpenTransactions::default();
        change(&mut open, 100, 30);
        see(&mut open, 200, 30, ResourceManager::Transaction, transaction::PREPARE, &[0; 8]);
        assert_eq!(open.oldest(), Lsn(100));
    }

    #[test]
    fn an_old_transaction_does_not_keep_the_younger_ones() {
        let mut open = OpenTransactions::default();
        change(&mut open, 8, 3);
        for xid in 4..20_000 {
            change(&mut open, u64::from(xid) * 16, xid);
            ends(&mut open, u64::from(xid) * 16 + 8, xid, transaction::COMMIT, &[]);
        }
        assert_eq!(open.oldest(), Lsn(8));
        assert!(open.begun.len() <= COMPACT_BEYOND + 3, "{} entries", open.begun.len());
    }

    #[test]
    fn what_a_snapshot_does_not_list_is_over() {
        let mut open = OpenTransactions::default();
        change(&mut open, 100, 40);
        change(&mut open, 200, 44);
        let words = [0u32, 0, 0, 50, 44, 43];
        let data: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        see(&mut open, 300, 0, ResourceManager::Standby, standby::RUNNING_TRANSACTIONS, &data);
        assert_eq!(open.oldest(), Lsn(200));
    }
}
