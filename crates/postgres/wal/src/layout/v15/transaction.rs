//! Transaction records (`src/include/access/xact.h`).

use borealis_types::{DatabaseKey, Lsn, RelationLocator};

use crate::bytes::{Reader, u32s};
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_XACT_COMMIT`
pub const COMMIT: u8 = 0x00;
/// `XLOG_XACT_PREPARE`
pub const PREPARE: u8 = 0x10;
/// `XLOG_XACT_ABORT`
pub const ABORT: u8 = 0x20;
/// `XLOG_XACT_COMMIT_PREPARED`
pub const COMMIT_PREPARED: u8 = 0x30;
/// `XLOG_XACT_ABORT_PREPARED`
pub const ABORT_PREPARED: u8 = 0x40;
/// `XLOG_XACT_ASSIGNMENT`
pub const ASSIGNMENT: u8 = 0x50;
/// `XLOG_XACT_INVALIDATIONS`
pub const INVALIDATIONS: u8 = 0x60;
/// `XLOG_XACT_OPMASK`: the bits of `info` that tell the operation.
pub const OPERATION_MASK: u8 = 0x70;
/// `XLOG_XACT_HAS_INFO`: the record has an `xinfo` word.
pub const HAS_INFO: u8 = 0x80;

/// `XACT_XINFO_HAS_DBINFO`, in `xinfo`
pub const HAS_DATABASE: u32 = 1 << 0;
/// `XACT_XINFO_HAS_SUBXACTS`, in `xinfo`
pub const HAS_SUBXIDS: u32 = 1 << 1;
/// `XACT_XINFO_HAS_RELFILENODES`, in `xinfo`
pub const HAS_RELATIONS: u32 = 1 << 2;
/// `XACT_XINFO_HAS_INVALS`, in `xinfo`
pub const HAS_INVALIDATIONS: u32 = 1 << 3;
/// `XACT_XINFO_HAS_TWOPHASE`, in `xinfo`
pub const HAS_TWO_PHASE: u32 = 1 << 4;
/// `XACT_XINFO_HAS_ORIGIN`, in `xinfo`
pub const HAS_ORIGIN: u32 = 1 << 5;
/// `XACT_XINFO_HAS_GID`, in `xinfo`
pub const HAS_GID: u32 = 1 << 7;
/// `XACT_XINFO_HAS_DROPPED_STATS`, in `xinfo`
pub const HAS_DROPPED_STATISTICS: u32 = 1 << 8;

/// `sizeof(RelFileNode)`
pub const LOCATOR_BYTES: usize = 12;
/// `sizeof(xl_xact_stats_item)`
pub const STATISTIC_BYTES: usize = 12;
/// `sizeof(SharedInvalidationMessage)`
pub const INVALIDATION_BYTES: usize = 16;

/// A commit or abort, prepared or not (`xl_xact_parsed_commit`, `xl_xact_parsed_abort`).
#[derive(Clone, Copy, Debug)]
pub struct TransactionEnd<'a> {
    /// The transaction that ends: the prepared one if there is one, else the record's own.
    pub xid: u32,
    /// It commits; else it aborts.
    pub committed: bool,
    /// It was prepared before, so that its state has a file.
    pub prepared: bool,
    /// When it ended, in PostgreSQL's timestamp (microseconds since 2000).
    pub time: i64,
    /// The `xinfo` word; zero if the record has none.
    pub flags: u32,
    /// The database it ran in.
    pub database: Option<DatabaseKey>,
    /// Name of the prepared transaction, without its terminating zero.
    pub gid: Option<&'a [u8]>,
    /// Position and time at the replication origin.
    pub origin: Option<(Lsn, i64)>,
    subxids: &'a [u8],
    relations: &'a [u8],
    /// `SharedInvalidationMessage`s, 16 bytes each (commits only).
    pub invalidations: &'a [u8],
}

impl<'a> TransactionEnd<'a> {
    /// Reads the main data of a commit, abort, commit-prepared or abort-prepared record.
    ///
    /// # Errors
    /// When the record is of another operation, malformed, or ends no transaction.
    pub fn parse(record: &Record<'a>) -> Result<TransactionEnd<'a>, RecordError> {
        let operation = record.info & OPERATION_MASK;
        let (committed, prepared) = match operation {
            COMMIT => (true, false),
            COMMIT_PREPARED => (true, true),
            ABORT => (false, false),
            ABORT_PREPARED => (false, true),
            _ => return parsed(record, None, "not the end of a transaction"),
        };
        let has_info = record.info & HAS_INFO != 0;
        let end = TransactionEnd::read(record.main_data, record.xid, has_info, committed, prepared);
        let end = parsed(record, end, "end of a transaction is cut short")?;
        parsed(record, (end.xid != 0).then_some(end), "a transaction ends that has no id")
    }

    fn read(
        data: &'a [u8],
        own_xid: u32,
        has_info: bool,
        committed: bool,
        prepared: bool,
    ) -> Option<TransactionEnd<'a>> {
        let mut reader = Reader::new(data);
        let time = reader.i64()?;
        let flags = if has_info { reader.u32()? } else { 0 };
        let has = |flag: u32| flags & flag != 0;
        let mut end = TransactionEnd {
            xid: own_xid,
            committed,
            prepared,
            time,
            flags,
            database: None,
            gid: None,
            origin: None,
            subxids: &[],
            relations: &[],
            invalidations: &[],
        };
        if has(HAS_DATABASE) {
            let database = reader.u32()?;
            end.database = Some(DatabaseKey { tablespace: reader.u32()?, database });
        }
        if has(HAS_SUBXIDS) {
            end.subxids = reader.counted(4)?;
        }
        if has(HAS_RELATIONS) {
            end.relations = reader.counted(LOCATOR_BYTES)?;
        }
        if has(HAS_DROPPED_STATISTICS) {
            // What statistics go with it is PostgreSQL's own affair; only their length matters.
            reader.counted(STATISTIC_BYTES)?;
        }
        if committed && has(HAS_INVALIDATIONS) {
            end.invalidations = reader.counted(INVALIDATION_BYTES)?;
        }
        if has(HAS_TWO_PHASE) {
            let xid = reader.u32()?;
            if prepared {
                end.xid = xid;
            }
            if has(HAS_GID) {
                let length = reader.rest().iter().position(|&byte| byte == 0)?;
                end.gid = Some(reader.take(length)?);
                reader.take(1)?;
            }
        } else if prepared {
            return None;
        }
        if has(HAS_ORIGIN) {
            end.origin = Some((Lsn(reader.u64()?), reader.i64()?));
        }
        Some(end)
    }

    /// The committed or aborted subtransactions.
    pub fn subxids(&self) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + Clone + 'a {
        u32s(self.subxids)
    }

    /// The relations that go away with the transaction's end.
    pub fn dropped_relations(&self) -> impl Iterator<Item = RelationLocator> + 'a {
        locators(self.relations)
    }
}

/// The `RelFileNode`s in `bytes`.
fn locators(bytes: &[u8]) -> impl Iterator<Item = RelationLocator> + '_ {
    bytes.chunks_exact(LOCATOR_BYTES).filter_map(|chunk| Reader::new(chunk).locator())
}

/// `PREPARE TRANSACTION`: the header of the record's main data, which is the prepared state file's content
/// without its checksum (`xl_xact_prepare`, `TwoPhaseFileHeader`).
#[derive(Clone, Copy, Debug)]
pub struct Prepare<'a> {
    /// `TWOPHASE_MAGIC`.
    pub magic: u32,
    /// Length of the state file, checksum included.
    pub total_bytes: u32,
    /// Id of the top-level transaction.
    pub xid: u32,
    /// OID of the database it ran in.
    pub database: u32,
    /// When it was prepared, in microseconds since 2000.
    pub prepared_at: i64,
    /// Role OID of its owner.
    pub owner: u32,
    /// Its name, with the terminating zero.
    pub gid: &'a [u8],
    /// Position and time at the replication origin; zero if there is none.
    pub origin: (Lsn, i64),
    subxids: &'a [u8],
    commit_relations: &'a [u8],
    abort_relations: &'a [u8],
}

impl<'a> Prepare<'a> {
    /// Reads the main data of an `XLOG_XACT_PREPARE` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<Prepare<'a>, RecordError> {
        let prepare = Prepare::read(record.main_data);
        parsed(record, prepare, "prepared transaction is cut short")
    }

    fn read(data: &'a [u8]) -> Option<Prepare<'a>> {
        let mut reader = Reader::new(data);
        let mut prepare = Prepare {
            magic: reader.u32()?,
            total_bytes: reader.u32()?,
            xid: reader.u32()?,
            database: reader.u32()?,
            prepared_at: reader.i64()?,
            owner: reader.u32()?,
            gid: &[],
            origin: (Lsn::ZERO, 0),
            subxids: &[],
            commit_relations: &[],
            abort_relations: &[],
        };
        let mut count = || usize::try_from(reader.i32()?).ok();
        let subxids = count()?;
        let commit_relations = count()?;
        let abort_relations = count()?;
        // Statistics entries of commit and abort, then invalidation messages: nothing here needs them.
        reader.take(3 * 4)?;
        // `initfileinval` and a byte of padding.
        reader.take(2)?;
        let gid_bytes = usize::from(reader.u16()?);
        prepare.origin = (Lsn(reader.u64()?), reader.i64()?);

        // Each array starts at a multiple of eight bytes (`MAXALIGN`).
        let mut array = |bytes: usize| {
            let taken = reader.take(bytes)?;
            reader.take(bytes.next_multiple_of(8) - bytes)?;
            Some(taken)
        };
        prepare.gid = array(gid_bytes)?;
        prepare.subxids = array(subxids.checked_mul(4)?)?;
        prepare.commit_relations = array(commit_relations.checked_mul(LOCATOR_BYTES)?)?;
        prepare.abort_relations = array(abort_relations.checked_mul(LOCATOR_BYTES)?)?;
        Some(prepare)
    }

    /// Its subtransactions, in the order it began them.
    pub fn subxids(&self) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + Clone + 'a {
        u32s(self.subxids)
    }

    /// Relations that go away if it commits.
    pub fn commit_relations(&self) -> impl Iterator<Item = RelationLocator> + 'a {
        locators(self.commit_relations)
    }

    /// Relations that go away if it aborts.
    pub fn abort_relations(&self) -> impl Iterator<Item = RelationLocator> + 'a {
        locators(self.abort_relations)
    }
}

/// Which subtransactions belong to a transaction (`xl_xact_assignment`).
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// Id of the top-level transaction.
    pub top_level_xid: u32,
    subxids: &'a [u8],
}

impl<'a> Assignment<'a> {
    /// Reads the main data of an `XLOG_XACT_ASSIGNMENT` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<Assignment<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || Some(Assignment { top_level_xid: reader.u32()?, subxids: reader.counted(4)? });
        parsed(record, read(), "transaction assignment is cut short")
    }

    /// The subtransactions that belong to it.
    pub fn subxids(&self) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + Clone + 'a {
        u32s(self.subxids)
    }
}
