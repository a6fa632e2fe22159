//! Headers of WAL pages (`XLogPageHeaderData` in `src/include/access/xlog_internal.h`). The magic number in them is a
//! version's own: [`borealis_types::MajorVersion::wal_page_magic`].

/// `XLOG_BLCKSZ`: bytes of a WAL page. Borealis supports the default only.
pub const WAL_PAGE_BYTES: u64 = 8192;
/// `SizeOfXLogShortPHD`: bytes of a page header.
pub const SHORT_HEADER_BYTES: usize = 24;
/// `SizeOfXLogLongPHD`: bytes of the header of a segment file's first page.
pub const LONG_HEADER_BYTES: usize = 40;
/// `DEFAULT_XLOG_SEG_SIZE` (`src/include/pg_config_manual.h`)
pub const DEFAULT_SEGMENT_BYTES: u32 = 16 * 1024 * 1024;

/// `XLP_FIRST_IS_CONTRECORD`: the page's first bytes are the rest of a record of the page before.
pub const FIRST_IS_CONTINUATION: u16 = 0x0001;
/// `XLP_LONG_HEADER`: the header is a long one.
pub const LONG_HEADER: u16 = 0x0002;
/// `XLP_BKP_REMOVABLE`: full-page images of these records may be left out of an archive.
pub const BACKUP_REMOVABLE: u16 = 0x0004;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: instead of the rest of a record, the page begins with another one.
pub const FIRST_IS_OVERWRITE: u16 = 0x0008;
/// `XLP_ALL_FLAGS`: every flag there is.
pub const ALL_FLAGS: u16 = FIRST_IS_CONTINUATION | LONG_HEADER | BACKUP_REMOVABLE | FIRST_IS_OVERWRITE;
