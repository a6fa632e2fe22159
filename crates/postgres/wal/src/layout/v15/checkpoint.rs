//! The body of checkpoint records and of the copy in `pg_control`.

use borealis_types::Lsn;

use crate::bytes::Reader;
use crate::record::parsed;
use crate::{Record, RecordError};

/// `CheckPoint` of `src/include/catalog/pg_control.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckPointRecord {
    /// Where recovery from this checkpoint starts to replay. For a shutdown checkpoint: its own start.
    pub redo: Lsn,
    /// `ThisTimeLineID`.
    pub timeline: u32,
    /// `PrevTimeLineID`.
    pub previous_timeline: u32,
    /// Whether `full_page_writes` was on.
    pub full_page_writes: bool,
    /// Next transaction id, with its epoch in the high half.
    pub next_full_xid: u64,
    /// The OID handed out next (`nextOid`).
    pub next_oid: u32,
    /// The multixact id handed out next (`nextMulti`).
    pub next_multi: u32,
    /// The member offset handed out next (`nextMultiOffset`).
    pub next_multi_offset: u32,
    /// Oldest `datfrozenxid` of the cluster.
    pub oldest_xid: u32,
    /// The database that has it.
    pub oldest_xid_database: u32,
    /// Oldest `datminmxid` of the cluster.
    pub oldest_multi: u32,
    /// The database that has it.
    pub oldest_multi_database: u32,
    /// When, in seconds since 1970.
    pub time: i64,
    /// Oldest transaction with a commit timestamp.
    pub oldest_commit_ts_xid: u32,
    /// Newest transaction with a commit timestamp.
    pub newest_commit_ts_xid: u32,
    /// Oldest running transaction; zero in a shutdown checkpoint.
    pub oldest_active_xid: u32,
}

impl CheckPointRecord {
    /// `sizeof(CheckPoint)`, padding included.
    pub const BYTES: usize = 88;

    /// Reads the main data of an `XLOG_CHECKPOINT_*` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<CheckPointRecord, RecordError> {
        parsed(record, CheckPointRecord::decode(record.main_data), "checkpoint is cut short")
    }

    /// Reads the struct; `None` when the bytes are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<CheckPointRecord> {
        let mut reader = Reader::new(bytes.get(..CheckPointRecord::BYTES)?);
        let redo = Lsn(reader.u64()?);
        let timeline = reader.u32()?;
        let previous_timeline = reader.u32()?;
        let full_page_writes = reader.flag()?;
        reader.take(7)?;
        let mut checkpoint = CheckPointRecord {
            redo,
            timeline,
            previous_timeline,
            full_page_writes,
            next_full_xid: reader.u64()?,
            next_oid: reader.u32()?,
            next_multi: reader.u32()?,
            next_multi_offset: reader.u32()?,
            oldest_xid: reader.u32()?,
            oldest_xid_database: reader.u32()?,
            oldest_multi: reader.u32()?,
            oldest_multi_database: reader.u32()?,
            ..CheckPointRecord::default()
        };
        reader.take(4)?;
        checkpoint.time = reader.i64()?;
        checkpoint.oldest_commit_ts_xid = reader.u32()?;
        checkpoint.newest_commit_ts_xid = reader.u32()?;
        checkpoint.oldest_active_xid = reader.u32()?;
        Some(checkpoint)
    }

    /// Writes the struct, padding zeroed.
    #[must_use]
    pub fn encode(&self) -> [u8; CheckPointRecord::BYTES] {
        let mut bytes = [0; CheckPointRecord::BYTES];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0, &self.redo.0.to_le_bytes());
        put(8, &self.timeline.to_le_bytes());
        put(12, &self.previous_timeline.to_le_bytes());
        put(16, &[u8::from(self.full_page_writes)]);
        put(24, &self.next_full_xid.to_le_bytes());
        put(32, &self.next_oid.to_le_bytes());
        put(36, &self.next_multi.to_le_bytes());
        put(40, &self.next_multi_offset.to_le_bytes());
        put(44, &self.oldest_xid.to_le_bytes());
        put(48, &self.oldest_xid_database.to_le_bytes());
        put(52, &self.oldest_multi.to_le_bytes());
        put(56, &self.oldest_multi_database.to_le_bytes());
        put(64, &self.time.to_le_bytes());
        put(72, &self.oldest_commit_ts_xid.to_le_bytes());
        put(76, &self.newest_commit_ts_xid.to_le_bytes());
        put(80, &self.oldest_active_xid.to_le_bytes());
        bytes
    }
}
