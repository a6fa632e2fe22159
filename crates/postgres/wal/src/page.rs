//! Headers of WAL pages (`src/include/access/xlog_internal.h`) and where pages and segment files begin.

use borealis_types::{Lsn, PostgresVersion};

use crate::bytes::Reader;

use crate::layout::common::wal_page::{ALL_FLAGS, FIRST_IS_CONTINUATION, LONG_HEADER, SHORT_HEADER_BYTES};
pub use crate::layout::common::wal_page::{
    DEFAULT_SEGMENT_BYTES, FIRST_IS_OVERWRITE, LONG_HEADER_BYTES, WAL_PAGE_BYTES,
};

/// What all pages of a stream have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalLayout {
    /// The version that writes them: its magic number is in each.
    pub version: PostgresVersion,
    /// Time line the pages are written on.
    pub timeline: u32,
    /// The cluster's identity, as in `pg_control`.
    pub system_identifier: u64,
    /// Size of a segment file: a power of two from 1 MiB to 1 GiB.
    pub segment_bytes: u32,
}

impl WalLayout {
    /// The size that `initdb` gives segment files unless told otherwise.
    pub const DEFAULT_SEGMENT_BYTES: u32 = DEFAULT_SEGMENT_BYTES;

    /// Bytes of the header of the page that begins at `page`.
    #[must_use]
    pub fn header_bytes(&self, page: Lsn) -> usize {
        if is_segment_start(page, self.segment_bytes) { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }

    /// The bytes of the header of the page at `page`, of which the first `continuation_bytes` after the
    /// header (and maybe more on later pages) are the rest of an earlier record.
    #[must_use]
    pub fn encode_header(&self, page: Lsn, continuation_bytes: u32) -> Vec<u8> {
        self.encode_header_with(page, continuation_bytes, 0)
    }

    /// As [`Self::encode_header`], with flags beyond those that follow from its place and from the continuation.
    #[must_use]
    pub fn encode_header_with(&self, page: Lsn, continuation_bytes: u32, mut flags: u16) -> Vec<u8> {
        let long = is_segment_start(page, self.segment_bytes);
        if long {
            flags |= LONG_HEADER;
        }
        if continuation_bytes > 0 {
            flags |= FIRST_IS_CONTINUATION;
        }
        let mut bytes = Vec::with_capacity(LONG_HEADER_BYTES);
        bytes.extend_from_slice(&page_magic(self.version).to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&self.timeline.to_le_bytes());
        bytes.extend_from_slice(&page.0.to_le_bytes());
        bytes.extend_from_slice(&continuation_bytes.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        if long {
            bytes.extend_from_slice(&self.system_identifier.to_le_bytes());
            bytes.extend_from_slice(&self.segment_bytes.to_le_bytes());
            bytes.extend_from_slice(&(WAL_PAGE_BYTES as u32).to_le_bytes());
        }
        bytes
    }
}

/// The first two bytes of each page of this version (`XLOG_PAGE_MAGIC`).
#[must_use]
pub fn page_magic(version: PostgresVersion) -> u16 {
    version.facts().wal_page_magic
}

/// Where the page that holds this position begins.
#[must_use]
pub fn page_start(position: Lsn) -> Lsn {
    Lsn(position.0 - position.0 % WAL_PAGE_BYTES)
}

/// Whether a segment file begins at this position.
#[must_use]
pub fn is_segment_start(position: Lsn, segment_bytes: u32) -> bool {
    position.0.is_multiple_of(u64::from(segment_bytes))
}

/// The position rounded up to the start of a segment file.
#[must_use]
pub fn segment_end(position: Lsn, segment_bytes: u32) -> Option<Lsn> {
    position.0.checked_next_multiple_of(u64::from(segment_bytes)).map(Lsn)
}

/// The name of the segment file that has this position (`XLogFileName`): time line, then the file's number in two parts.
#[must_use]
pub fn segment_file_name(timeline: u32, position: Lsn, segment_bytes: u32) -> String {
    let segment_bytes = u64::from(segment_bytes);
    let (segment, per_part) = (position.0 / segment_bytes, (1u64 << 32) / segment_bytes);
    format!("{timeline:08X}{:08X}{:08X}", segment / per_part, segment % per_part)
}

/// A page header as read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// `xlp_magic`
    pub magic: u16,
    /// `xlp_info`
    pub flags: u16,
    /// `xlp_tli`
    pub timeline: u32,
    /// `xlp_pageaddr`
    pub page_address: Lsn,
    /// `xlp_rem_len`: bytes of an earlier record still to come, this page's included.
    pub continuation_bytes: u32,
    /// What a long header adds.
    pub long: Option<LongHeader>,
}

/// What the header of a segment file's first page adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongHeader {
    /// `xlp_sysid`
    pub system_identifier: u64,
    /// `xlp_seg_size`
    pub segment_bytes: u32,
    /// `xlp_xlog_blcksz`
    pub page_bytes: u32,
}

impl PageHeader {
    /// Reads a header; `None` when the bytes are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<PageHeader> {
        let mut reader = Reader::new(bytes);
        let mut header = PageHeader {
            magic: reader.u16()?,
            flags: reader.u16()?,
            timeline: reader.u32()?,
            page_address: Lsn(reader.u64()?),
            continuation_bytes: reader.u32()?,
            long: None,
        };
        reader.take(4)?;
        if header.flags & LONG_HEADER != 0 {
            header.long = Some(LongHeader {
                system_identifier: reader.u64()?,
                segment_bytes: reader.u32()?,
                page_bytes: reader.u32()?,
            });
        }
        Some(header)
    }

    /// How many bytes of the page the header takes.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        if self.long.is_some() { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }

    /// Whether only flags that exist are set.
    #[must_use]
    pub fn flags_are_known(&self) -> bool {
        self.flags & !ALL_FLAGS == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_files_are_named_as_postgres_names_them() {
        assert_eq!(segment_file_name(1, Lsn(16 << 20), 16 << 20), "000000010000000000000001");
        assert_eq!(segment_file_name(1, Lsn((17 << 20) + 8), 16 << 20), "000000010000000000000001");
        assert_eq!(segment_file_name(10, Lsn(1 << 32), 16 << 20), "0000000A0000000100000000");
        assert_eq!(segment_file_name(1, Lsn((1 << 32) - 1), 1 << 20), "000000010000000000000FFF");
    }
}
