//! Multixact records (`src/include/access/multixact.h`) and where the two stores keep what
//! (`src/backend/access/transam/multixact.c`).

use crate::bytes::Reader;
use crate::layout::common::slru::{FIRST_MULTIXACT, MEMBERS_PER_PAGE, MULTIXACTS_PER_PAGE};
use crate::record::parsed;
use crate::{Record, RecordError};

/// `XLOG_MULTIXACT_ZERO_OFF_PAGE`
pub const ZERO_OFFSETS_PAGE: u8 = 0x00;
/// `XLOG_MULTIXACT_ZERO_MEM_PAGE`
pub const ZERO_MEMBERS_PAGE: u8 = 0x10;
/// `XLOG_MULTIXACT_CREATE_ID`
pub const CREATE: u8 = 0x20;
/// `XLOG_MULTIXACT_TRUNCATE_ID`
pub const TRUNCATE: u8 = 0x30;

/// Bytes of a `MultiXactMember`.
const MEMBER_BYTES: usize = 8;

/// The offsets page that holds a multixact.
#[must_use]
pub fn offsets_page(multi: u32) -> u32 {
    multi / MULTIXACTS_PER_PAGE
}

/// The members page that holds a member.
#[must_use]
pub fn members_page(offset: u32) -> u32 {
    offset / MEMBERS_PER_PAGE
}

/// The multixact after this one: zero is never used.
#[must_use]
pub fn next_multixact(multi: u32) -> u32 {
    multi.wrapping_add(1).max(FIRST_MULTIXACT)
}

/// The multixact before this one (`PreviousMultiXactId`).
#[must_use]
pub fn previous_multixact(multi: u32) -> u32 {
    if multi == FIRST_MULTIXACT { u32::MAX } else { multi.wrapping_sub(1) }
}

/// One member of a multixact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MultiXactMember {
    /// The member (sub)transaction.
    pub xid: u32,
    /// `MultiXactStatus`.
    pub status: u32,
}

/// A multixact comes into being (`xl_multixact_create`).
#[derive(Clone, Copy, Debug)]
pub struct MultiXactCreate<'a> {
    /// The id of the new multixact.
    pub multi: u32,
    /// The offset of its first member; the others follow, wrapping around.
    pub offset: u32,
    members: &'a [u8],
}

impl<'a> MultiXactCreate<'a> {
    /// Reads the main data of an `XLOG_MULTIXACT_CREATE_ID` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'a>) -> Result<MultiXactCreate<'a>, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            let multi = reader.u32()?;
            Some(MultiXactCreate { multi, offset: reader.u32()?, members: reader.counted(MEMBER_BYTES)? })
        };
        parsed(record, read(), "multixact creation is cut short")
    }

    /// Its members, the first at `offset`.
    pub fn members(&self) -> impl ExactSizeIterator<Item = MultiXactMember> + Clone + 'a {
        self.members.as_chunks::<MEMBER_BYTES>().0.iter().map(|bytes| {
            let [x0, x1, x2, x3, s0, s1, s2, s3] = *bytes;
            MultiXactMember {
                xid: u32::from_le_bytes([x0, x1, x2, x3]),
                status: u32::from_le_bytes([s0, s1, s2, s3]),
            }
        })
    }
}

/// Old multixacts go (`xl_multixact_truncate`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MultiXactTruncate {
    /// The database that still needs the oldest one left.
    pub oldest_multi_database: u32,
    /// The oldest multixact there was.
    pub start_multi: u32,
    /// The oldest multixact that stays.
    pub end_multi: u32,
    /// The oldest member there was.
    pub start_offset: u32,
    /// The oldest member that stays.
    pub end_offset: u32,
}

impl MultiXactTruncate {
    /// Reads the main data of an `XLOG_MULTIXACT_TRUNCATE_ID` record.
    ///
    /// # Errors
    /// When the data is too short.
    pub fn parse(record: &Record<'_>) -> Result<MultiXactTruncate, RecordError> {
        let mut reader = Reader::new(record.main_data);
        let mut read = || {
            Some(MultiXactTruncate {
                oldest_multi_database: reader.u32()?,
                start_multi: reader.u32()?,
                end_multi: reader.u32()?,
                start_offset: reader.u32()?,
                end_offset: reader.u32()?,
            })
        };
        parsed(record, read(), "truncation of multixacts is cut short")
    }
}
