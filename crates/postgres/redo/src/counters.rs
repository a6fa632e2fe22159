//! The volume's counters: what a checkpoint record and `pg_control` hold, kept current by every record.
//!
//! A new instance starts from a shutdown checkpoint made up from them, so they must never be behind the redo:
//! an id that any record proves to be in use is never handed out again. The rules are recovery's
//! (`xlog_redo` in `src/backend/access/transam/xlog.c`, `ApplyWalRecord` in `xlogrecovery.c`, and the redo
//! functions of the other resource managers).

use borealis_types::{Lsn, RecordSpan, invariant};
use borealis_wal::layout::{
    CheckPointRecord, ClogTruncate, CommitTsTruncate, EndOfRecovery, INVALID_XID, MultiXactCreate,
    MultiXactTruncate, ParameterChange, RunningTransactions, TransactionEnd, control_file::ControlFile,
    multixact, slru, standby, transaction, xlog,
};
use borealis_wal::{Record, ResourceManager, highest_xid};

use crate::bytes::Reader;
use crate::error::RedoError;
use crate::fault::{Fault, Redo, expect};
use crate::transaction_id::{advance_full_past, circularly_precedes, precedes};

/// The first byte of the stored form; a change of the form changes it.
const ENCODING_VERSION: u8 = 1;

/// The value of `MetaKey::Counters`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Next transaction id, with its epoch in the high half.
    pub next_full_xid: u64,
    /// The OID handed out next.
    pub next_oid: u32,
    /// The multixact id handed out next.
    pub next_multi: u32,
    /// The multixact member offset handed out next.
    pub next_multi_offset: u32,
    /// Oldest `datfrozenxid` of the cluster.
    pub oldest_xid: u32,
    /// The database that has it.
    pub oldest_xid_database: u32,
    /// Oldest `datminmxid` of the cluster.
    pub oldest_multi: u32,
    /// The database that has it.
    pub oldest_multi_database: u32,
    /// Oldest transaction with a commit timestamp; zero if they are not kept.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction with a commit timestamp; zero if they are not kept.
    pub newest_commit_ts_xid: u32,
    /// Oldest transaction that was running at the last snapshot of running transactions; zero if unknown.
    pub oldest_active_xid: u32,
    /// The time line that records are written on.
    pub timeline: u32,
    /// The time line it came from, or itself.
    pub previous_timeline: u32,
    /// `full_page_writes`
    pub full_page_writes: bool,
    /// When the last checkpoint was, in seconds since 1970.
    pub checkpoint_time: i64,
    /// The settings that `pg_control` keeps.
    pub parameters: ParameterChange,
    /// The last record applied to the counters.
    pub last_record: RecordSpan,
}

impl Counters {
    /// The counters of a cluster that was shut down, from its `pg_control`.
    #[must_use]
    pub fn from_control_file(control_file: &ControlFile) -> Counters {
        let mut counters = Counters { parameters: control_file.parameters(), ..Counters::default() };
        counters.believe(&control_file.checkpoint_copy);
        counters
    }

    /// Takes every counter from a shutdown checkpoint.
    fn believe(&mut self, checkpoint: &CheckPointRecord) {
        *self = Counters {
            next_full_xid: checkpoint.next_full_xid,
            next_oid: checkpoint.next_oid,
            next_multi: checkpoint.next_multi,
            next_multi_offset: checkpoint.next_multi_offset,
            oldest_xid: checkpoint.oldest_xid,
            oldest_xid_database: checkpoint.oldest_xid_database,
            oldest_multi: checkpoint.oldest_multi,
            oldest_multi_database: checkpoint.oldest_multi_database,
            oldest_commit_ts_xid: checkpoint.oldest_commit_ts_xid,
            newest_commit_ts_xid: checkpoint.newest_commit_ts_xid,
            oldest_active_xid: checkpoint.oldest_active_xid,
            timeline: checkpoint.timeline,
            previous_timeline: checkpoint.previous_timeline,
            full_page_writes: checkpoint.full_page_writes,
            checkpoint_time: checkpoint.time,
            parameters: self.parameters,
            last_record: self.last_record,
        };
    }

    /// The shutdown checkpoint that an instance starts from, as if the cluster had been shut down right after
    /// the last record. `redo` is the start of the checkpoint record itself; `time` counts seconds since 1970.
    #[must_use]
    pub fn to_checkpoint(&self, redo: Lsn, time: i64) -> CheckPointRecord {
        CheckPointRecord {
            redo,
            timeline: self.timeline,
            previous_timeline: self.previous_timeline,
            full_page_writes: self.full_page_writes,
            next_full_xid: self.next_full_xid,
            next_oid: self.next_oid,
            next_multi: self.next_multi,
            next_multi_offset: self.next_multi_offset,
            oldest_xid: self.oldest_xid,
            oldest_xid_database: self.oldest_xid_database,
            oldest_multi: self.oldest_multi,
            oldest_multi_database: self.oldest_multi_database,
            time,
            oldest_commit_ts_xid: self.oldest_commit_ts_xid,
            newest_commit_ts_xid: self.newest_commit_ts_xid,
            // After a shutdown nothing runs.
            oldest_active_xid: INVALID_XID,
        }
    }

    /// Advances the counters past everything the record proves to be in use, whatever its resource manager.
    ///
    /// # Errors
    /// When the record's data breaks its layout.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), RedoError> {
        self.redo(record).map_err(|fault| RedoError::from_fault(fault, record, || "counters".to_owned()))
    }

    fn redo(&mut self, record: &Record<'_>) -> Redo {
        // A shutdown checkpoint is believed exactly, so it comes after what its predecessors proved.
        if let Some(xid) = highest_xid(record) {
            self.next_full_xid = advance_full_past(self.next_full_xid, xid);
        }
        match record.resource_manager {
            ResourceManager::Xlog => self.redo_xlog(record)?,
            ResourceManager::MultiXact if record.operation() == multixact::CREATE => {
                let create = MultiXactCreate::parse(record)?;
                let end = create.offset.wrapping_add(create.members().len() as u32);
                self.advance_next_multi(create.multi.wrapping_add(1), end);
            }
            ResourceManager::MultiXact if record.operation() == multixact::TRUNCATE => {
                let truncate = MultiXactTruncate::parse(record)?;
                self.oldest_multi = truncate.end_multi;
                self.oldest_multi_database = truncate.oldest_multi_database;
            }
            ResourceManager::Clog if record.operation() == slru::TRUNCATE => {
                // Recovery only notes that older statuses are gone and learns the limit itself from the next
                // checkpoint. A checkpoint made up here takes the place of that one.
                let truncate = ClogTruncate::parse(record)?;
                self.advance_oldest_xid(truncate.oldest_xid, truncate.oldest_xid_database);
            }
            ResourceManager::CommitTs if record.operation() == slru::TRUNCATE => {
                // `AdvanceOldestCommitTsXid`
                let truncate = CommitTsTruncate::parse(record)?;
                if self.oldest_commit_ts_xid != INVALID_XID
                    && precedes(self.oldest_commit_ts_xid, truncate.oldest_xid)
                {
                    self.oldest_commit_ts_xid = truncate.oldest_xid;
                }
            }
            ResourceManager::Standby if record.operation() == standby::RUNNING_TRANSACTIONS => {
                self.oldest_active_xid = RunningTransactions::parse(record)?.oldest_running_xid;
            }
            ResourceManager::Transaction
                if self.parameters.track_commit_timestamp
                    && matches!(
                        record.info & transaction::OPERATION_MASK,
                        transaction::COMMIT | transaction::COMMIT_PREPARED
                    ) =>
            {
                let end = TransactionEnd::parse(record)?;
                let newest = end.subxids().next_back().unwrap_or(end.xid);
                if precedes(self.newest_commit_ts_xid, newest) {
                    self.newest_commit_ts_xid = newest;
                }
            }
            _ => {}
        }
        self.last_record = record.span;
        Ok(())
    }

    fn redo_xlog(&mut self, record: &Record<'_>) -> Redo {
        match record.operation() {
            xlog::NEXT_OID => self.next_oid = xlog::next_oid(record)?,
            xlog::CHECKPOINT_SHUTDOWN => {
                let checkpoint = CheckPointRecord::parse(record)?;
                let (oldest_multi, oldest_multi_database) = (self.oldest_multi, self.oldest_multi_database);
                self.believe(&checkpoint);
                // All but the oldest multixact, which never goes back (`MultiXactAdvanceOldest`).
                if circularly_precedes(checkpoint.oldest_multi, oldest_multi) && oldest_multi != 0 {
                    self.oldest_multi = oldest_multi;
                    self.oldest_multi_database = oldest_multi_database;
                }
            }
            xlog::CHECKPOINT_ONLINE => {
                // The counters of an online checkpoint are from its start, so they are minima; its next OID may
                // be older than that of a record applied already and is not looked at.
                let checkpoint = CheckPointRecord::parse(record)?;
                self.next_full_xid = self.next_full_xid.max(checkpoint.next_full_xid);
                self.advance_next_multi(checkpoint.next_multi, checkpoint.next_multi_offset);
                if circularly_precedes(self.oldest_multi, checkpoint.oldest_multi) {
                    self.oldest_multi = checkpoint.oldest_multi;
                    self.oldest_multi_database = checkpoint.oldest_multi_database;
                }
                self.advance_oldest_xid(checkpoint.oldest_xid, checkpoint.oldest_xid_database);
                self.timeline = checkpoint.timeline;
                self.previous_timeline = checkpoint.previous_timeline;
                self.full_page_writes = checkpoint.full_page_writes;
                self.checkpoint_time = checkpoint.time;
                self.oldest_active_xid = checkpoint.oldest_active_xid;
            }
            xlog::PARAMETER_CHANGE => self.change_parameters(&ParameterChange::parse(record)?),
            xlog::FULL_PAGE_WRITES_CHANGE => self.full_page_writes = xlog::full_page_writes(record)?,
            xlog::END_OF_RECOVERY => {
                let end = EndOfRecovery::parse(record)?;
                self.timeline = end.timeline;
                self.previous_timeline = end.previous_timeline;
            }
            _ => {}
        }
        Ok(())
    }

    /// `MultiXactAdvanceNextMXact`
    fn advance_next_multi(&mut self, next_multi: u32, next_multi_offset: u32) {
        if circularly_precedes(self.next_multi, next_multi) {
            self.next_multi = next_multi;
        }
        if circularly_precedes(self.next_multi_offset, next_multi_offset) {
            self.next_multi_offset = next_multi_offset;
        }
    }

    fn advance_oldest_xid(&mut self, oldest_xid: u32, oldest_xid_database: u32) {
        if precedes(self.oldest_xid, oldest_xid) {
            self.oldest_xid = oldest_xid;
            self.oldest_xid_database = oldest_xid_database;
        }
    }

    fn change_parameters(&mut self, change: &ParameterChange) {
        let tracked = self.parameters.track_commit_timestamp;
        self.parameters = ParameterChange {
            wal_level: change.wal_level,
            wal_log_hints: change.wal_log_hints,
            max_connections: change.max_connections,
            max_worker_processes: change.max_worker_processes,
            max_wal_senders: change.max_wal_senders,
            max_prepared_transactions: change.max_prepared_transactions,
            max_locks_per_transaction: change.max_locks_per_transaction,
            track_commit_timestamp: change.track_commit_timestamp,
        };
        // `ActivateCommitTs` and `DeactivateCommitTs`
        if !change.track_commit_timestamp {
            self.oldest_commit_ts_xid = INVALID_XID;
            self.newest_commit_ts_xid = INVALID_XID;
        } else if !tracked && self.oldest_commit_ts_xid == INVALID_XID {
            // The low half of a full id is a transaction id by definition.
            self.oldest_commit_ts_xid = self.next_full_xid as u32;
            self.newest_commit_ts_xid = self.next_full_xid as u32;
        }
    }

    /// The stored form: a version byte, then every field in the order of the struct, little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::ENCODED_SIZE);
        bytes.push(ENCODING_VERSION);
        bytes.extend_from_slice(&self.next_full_xid.to_le_bytes());
        for word in [
            self.next_oid,
            self.next_multi,
            self.next_multi_offset,
            self.oldest_xid,
            self.oldest_xid_database,
            self.oldest_multi,
            self.oldest_multi_database,
            self.oldest_commit_ts_xid,
            self.newest_commit_ts_xid,
            self.oldest_active_xid,
            self.timeline,
            self.previous_timeline,
        ] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.push(u8::from(self.full_page_writes));
        bytes.extend_from_slice(&self.checkpoint_time.to_le_bytes());
        let parameters = &self.parameters;
        for number in [
            parameters.wal_level,
            i32::from(parameters.wal_log_hints),
            parameters.max_connections,
            parameters.max_worker_processes,
            parameters.max_wal_senders,
            parameters.max_prepared_transactions,
            parameters.max_locks_per_transaction,
            i32::from(parameters.track_commit_timestamp),
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.last_record.start.0.to_le_bytes());
        bytes.extend_from_slice(&self.last_record.end.0.to_le_bytes());
        assert_whole(&bytes);
        bytes
    }

    /// Bytes of the stored form; other lengths are refused when it is read.
    const ENCODED_SIZE: usize = 1 + 8 + 12 * 4 + 1 + 8 + 8 * 4 + 16;

    /// Reads the stored form; `None` if these are not counters.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Counters> {
        Counters::read(bytes).ok()
    }

    fn read(bytes: &[u8]) -> Redo<Counters> {
        expect(bytes.len() == Self::ENCODED_SIZE, "the counters have another size")?;
        let mut data = Reader::new(bytes);
        expect(data.u8()? == ENCODING_VERSION, "the counters are in an encoding of another version")?;
        let mut counters = Counters {
            next_full_xid: data.u64()?,
            next_oid: data.u32()?,
            next_multi: data.u32()?,
            next_multi_offset: data.u32()?,
            oldest_xid: data.u32()?,
            oldest_xid_database: data.u32()?,
            oldest_multi: data.u32()?,
            oldest_multi_database: data.u32()?,
            oldest_commit_ts_xid: data.u32()?,
            newest_commit_ts_xid: data.u32()?,
            oldest_active_xid: data.u32()?,
            timeline: data.u32()?,
            previous_timeline: data.u32()?,
            full_page_writes: data.u8()? != 0,
            checkpoint_time: data.u64()?.cast_signed(),
            ..Counters::default()
        };
        counters.parameters = ParameterChange {
            wal_level: data.u32()?.cast_signed(),
            wal_log_hints: data.u32()? != 0,
            max_connections: data.u32()?.cast_signed(),
            max_worker_processes: data.u32()?.cast_signed(),
            max_wal_senders: data.u32()?.cast_signed(),
            max_prepared_transactions: data.u32()?.cast_signed(),
            max_locks_per_transaction: data.u32()?.cast_signed(),
            track_commit_timestamp: data.u32()? != 0,
        };
        counters.last_record = RecordSpan { start: Lsn(data.u64()?), end: Lsn(data.u64()?) };
        Ok(counters)
    }
}

/// Whoever reads the counters refuses another length, and then the volume does not start.
fn assert_whole(bytes: &[u8]) {
    let length = bytes.len();
    invariant!("encoded-counters-are-whole", length == Counters::ENCODED_SIZE, "{length} bytes");
}

/// Applies any record to the counters. A volume's first record that matters to them is its import's, so before
/// it there are none.
pub(crate) fn redo_meta(record: &Record<'_>, value: Option<Vec<u8>>) -> Redo<Option<Vec<u8>>> {
    let mut counters = match value {
        Some(bytes) => Counters::decode(&bytes).ok_or(Fault::Failed("the stored counters do not decode"))?,
        None => Counters::default(),
    };
    counters.redo(record)?;
    Ok(Some(counters.encode()))
}

#[cfg(test)]
mod tests;
