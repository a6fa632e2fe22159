//! Commit timestamps (`RM_COMMIT_TS_ID`, `pg_commit_ts`).
//!
//! Layout and redo: `src/backend/access/transam/commit_ts.c`. Times themselves come with commit records.

use borealis_types::{PageBytes, PageKey, SlruKind};
use borealis_wal::Record;
use borealis_wal::layout::slru::{COMMIT_TIMESTAMP_BYTES, COMMIT_TIMESTAMPS_PER_PAGE, TRUNCATE, ZERO_PAGE};

use crate::clog::zero_page;
use crate::fault::{Fault, Redo};

/// Applies a record of this resource manager to a page of commit timestamps.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    match (record.operation(), key) {
        (ZERO_PAGE, PageKey::Slru { kind: SlruKind::CommitTimestamps, page: number }) => {
            zero_page(record, *number, page)
        }
        (ZERO_PAGE, _) => Err(Fault::Failed("the record zeroes another page")),
        (TRUNCATE, _) => Err(Fault::Failed("a truncation of pg_commit_ts changes no page")),
        _ => Err(Fault::Unknown),
    }
}

/// `TransactionIdSetCommitTs` for those of `xids` that are on the page with this number.
///
/// `time_us` counts microseconds from 2000-01-01 00:00 UTC; `origin` is zero for local transactions.
pub(crate) fn set_times(
    page: &mut PageBytes,
    page_number: u32,
    xids: impl Iterator<Item = u32>,
    time_us: i64,
    origin: u16,
) {
    for xid in xids.filter(|xid| xid / COMMIT_TIMESTAMPS_PER_PAGE == page_number) {
        let at = (xid % COMMIT_TIMESTAMPS_PER_PAGE) as usize * COMMIT_TIMESTAMP_BYTES;
        page[at..at + 8].copy_from_slice(&time_us.to_le_bytes());
        page[at + 8..at + COMMIT_TIMESTAMP_BYTES].copy_from_slice(&origin.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::PAGE_SIZE;

    #[test]
    fn times_go_to_the_transactions_of_the_page() {
        let mut page = [0; PAGE_SIZE];
        set_times(&mut page, 1, [818, 819, 820, 1638].into_iter(), 0x0102, 7);
        assert_eq!(page[..10], [2, 1, 0, 0, 0, 0, 0, 0, 7, 0]);
        assert_eq!(page[10..20], page[..10].to_vec());
        assert!(page[20..].iter().all(|byte| *byte == 0), "818 and 1638 are on other pages");
    }
}
