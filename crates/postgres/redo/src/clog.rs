//! Transaction status pages (`RM_CLOG_ID`, `pg_xact`): two bits for each transaction.
//!
//! Layout and redo: `src/backend/access/transam/clog.c`.

use borealis_types::{PageBytes, PageKey, SlruKind};
use borealis_wal::Record;
use borealis_wal::layout::slru::{
    BITS_PER_TRANSACTION, STATUS_ABORTED, STATUS_COMMITTED, TRANSACTIONS_PER_BYTE, TRANSACTIONS_PER_PAGE,
    TRUNCATE, ZERO_PAGE, transaction_page, zeroed_page,
};

use crate::fault::{Fault, Redo, expect};

/// How a transaction ended, as its two bits say it. Redo never leaves a subtransaction in the third state,
/// "committed if its parent is", because the record that commits the parent names it too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Status {
    /// `TRANSACTION_STATUS_COMMITTED`
    Committed = STATUS_COMMITTED,
    /// `TRANSACTION_STATUS_ABORTED`
    Aborted = STATUS_ABORTED,
}

/// Applies a record of this resource manager to a status page.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    match (record.operation(), key) {
        (ZERO_PAGE, PageKey::Slru { kind: SlruKind::Transactions, page: number }) => {
            zero_page(record, *number, page)
        }
        (ZERO_PAGE, _) => Err(Fault::Failed("the record zeroes another page")),
        (TRUNCATE, _) => Err(Fault::Failed("a truncation of pg_xact changes no page")),
        _ => Err(Fault::Unknown),
    }
}

/// A record that starts a new page of a status store and holds nothing but the page's number.
pub(crate) fn zero_page(record: &Record<'_>, page_number: u32, page: &mut PageBytes) -> Redo {
    expect(zeroed_page(record)? == page_number, "the record zeroes another page")?;
    page.fill(0);
    Ok(())
}

/// `TransactionIdSetStatusBit` for those of `xids` that are on the page with this number.
pub(crate) fn set_status(
    page: &mut PageBytes,
    page_number: u32,
    xids: impl Iterator<Item = u32>,
    status: Status,
) {
    for xid in xids.filter(|xid| transaction_page(*xid) == page_number) {
        let byte = &mut page[(xid % TRANSACTIONS_PER_PAGE / TRANSACTIONS_PER_BYTE) as usize];
        let shift = xid % TRANSACTIONS_PER_BYTE * BITS_PER_TRANSACTION;
        *byte = *byte & !(3 << shift) | (status as u8) << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::PAGE_SIZE;

    #[test]
    fn status_bits_are_set_on_their_own_page_only() {
        let mut page = [0; PAGE_SIZE];
        let first = 5 * TRANSACTIONS_PER_PAGE;
        set_status(&mut page, 5, [first + 1, first + 3, first - 1].into_iter(), Status::Committed);
        assert_eq!(page[0], 0b0100_0100);
        set_status(&mut page, 5, [first + 1].into_iter(), Status::Aborted);
        assert_eq!(page[0], 0b0100_1000);
        assert!(page[1..].iter().all(|byte| *byte == 0));
        set_status(&mut page, 5, [first + TRANSACTIONS_PER_PAGE - 1].into_iter(), Status::Committed);
        assert_eq!(page[PAGE_SIZE - 1], 0b0100_0000);
    }
}
