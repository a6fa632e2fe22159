//! Ends of transactions (`RM_XACT_ID`).
//!
//! Redo: `xact_redo` in `src/backend/access/transam/xact.c`.

use borealis_types::{MetaKey, PageBytes, PageKey, SlruKind};
use borealis_wal::Record;
use borealis_wal::layout::transaction::{
    ABORT, ABORT_PREPARED, ASSIGNMENT, COMMIT, COMMIT_PREPARED, INVALIDATIONS, OPERATION_MASK, PREPARE,
};
use borealis_wal::layout::{Prepare, TransactionEnd};

use crate::clog::{self, Status};
use crate::commit_ts;
use crate::fault::{Fault, Redo, expect};

/// Applies a transaction record to a page of statuses or commit times.
pub(crate) fn redo_page(record: &Record<'_>, key: &PageKey, page: &mut PageBytes) -> Redo {
    let PageKey::Slru { kind, page: page_number } = *key else {
        return Err(Fault::Failed("a transaction record changes no block"));
    };
    match record.info & OPERATION_MASK {
        COMMIT | COMMIT_PREPARED | ABORT | ABORT_PREPARED => {}
        PREPARE | ASSIGNMENT | INVALIDATIONS => {
            return Err(Fault::Failed("the record ends no transaction, so it changes no page"));
        }
        _ => return Err(Fault::Unknown),
    }
    let end = TransactionEnd::parse(record)?;
    let xids = std::iter::once(end.xid).chain(end.subxids());
    match kind {
        SlruKind::Transactions => {
            let status = if end.committed { Status::Committed } else { Status::Aborted };
            clog::set_status(page, page_number, xids, status);
        }
        SlruKind::CommitTimestamps if end.committed => {
            let time_us = end.origin.map_or(end.time, |(_, time)| time);
            commit_ts::set_times(page, page_number, xids, time_us, record.origin.unwrap_or_default());
        }
        _ => return Err(Fault::Failed("a transaction record does not change such a page")),
    }
    Ok(())
}

/// Applies a transaction record to the state of a prepared transaction.
///
/// The value is what `RecreateTwoPhaseFile` (`src/backend/access/transam/twophase.c`) writes: the record's
/// data, then its checksum.
pub(crate) fn redo_meta(record: &Record<'_>, key: &MetaKey, value: Option<Vec<u8>>) -> Redo<Option<Vec<u8>>> {
    let MetaKey::PreparedTransaction(xid) = *key else {
        return Err(Fault::Failed("a transaction record does not change such a value"));
    };
    match record.info & OPERATION_MASK {
        PREPARE => {
            expect(Prepare::parse(record)?.xid == xid, "the record prepares another transaction")?;
            let mut file = record.main_data.to_vec();
            file.extend_from_slice(&crc32c::crc32c(record.main_data).to_le_bytes());
            Ok(Some(file))
        }
        COMMIT_PREPARED | ABORT_PREPARED => {
            expect(TransactionEnd::parse(record)?.xid == xid, "the record ends another transaction")?;
            Ok(None)
        }
        COMMIT | ABORT | ASSIGNMENT | INVALIDATIONS => Ok(value),
        _ => Err(Fault::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_record::record;
    use borealis_types::PAGE_SIZE;
    use borealis_wal::ResourceManager;
    use borealis_wal::layout::transaction::HAS_INFO;

    /// A commit of `xid` with subtransactions 100_001 and 100_002, as a commit of a prepared transaction.
    fn commit_prepared_data(xid: u32) -> Vec<u8> {
        // Database, subtransactions, dropped relations, prepared, origin, name.
        let present = 0b1011_0111;
        let mut data = 7_u64.to_le_bytes().to_vec();
        for word in [present, 5, 1663, 2, 100_001, 100_002, 1, 1663, 5, 16384, xid] {
            data.extend_from_slice(&word.to_le_bytes());
        }
        data.extend_from_slice(b"name\0");
        data.extend_from_slice(&9_u64.to_le_bytes());
        data.extend_from_slice(&0x0102_u64.to_le_bytes());
        data
    }

    #[test]
    fn a_commit_sets_the_status_of_the_whole_tree() {
        let data = commit_prepared_data(3);
        let record = record(ResourceManager::Transaction, COMMIT_PREPARED | HAS_INFO, &data);
        let mut page = [0; PAGE_SIZE];
        redo_page(&record, &PageKey::Slru { kind: SlruKind::Transactions, page: 0 }, &mut page).unwrap();
        assert_eq!(page[0], 0b0100_0000);
        assert!(page[1..].iter().all(|byte| *byte == 0), "the subtransactions are on page 3");
        redo_page(&record, &PageKey::Slru { kind: SlruKind::Transactions, page: 3 }, &mut page).unwrap();
        assert_eq!(page[(100_001 - 3 * 32_768) / 4], 0b0001_0100);
        let mut times = [0; PAGE_SIZE];
        redo_page(&record, &PageKey::Slru { kind: SlruKind::CommitTimestamps, page: 0 }, &mut times).unwrap();
        assert_eq!(times[30..40], [2, 1, 0, 0, 0, 0, 0, 0, 0, 0], "the time at the origin counts");
    }

    #[test]
    fn a_prepared_transaction_is_kept_with_a_checksum_until_it_ends() {
        let mut prepare = vec![0; 72];
        prepare[8..12].copy_from_slice(&77_u32.to_le_bytes());
        let prepared = record(ResourceManager::Transaction, PREPARE, &prepare);
        let key = MetaKey::PreparedTransaction(77);
        let file = redo_meta(&prepared, &key, None).unwrap().unwrap();
        assert_eq!(file[..72], prepare);
        assert_eq!(file[72..], crc32c::crc32c(&prepare).to_le_bytes());
        let data = commit_prepared_data(77);
        let committed = record(ResourceManager::Transaction, COMMIT_PREPARED | HAS_INFO, &data);
        assert_eq!(redo_meta(&committed, &key, Some(file)), Ok(None));
        assert!(redo_meta(&committed, &MetaKey::PreparedTransaction(78), None).is_err());
    }
}
