//! The parts of a WAL record (`src/include/access/xlogrecord.h`).

/// `SizeOfXLogRecord`: bytes of a record's fixed header.
pub const RECORD_HEADER_BYTES: usize = 24;
/// `xl_crc`: everything before it is covered by the checksum, after the rest of the record.
pub const CHECKSUM_OFFSET: usize = 20;
/// `XLogRecordMaxSize` (1020 MiB): the longest record anything here accepts.
pub const RECORD_BYTES_MAX: usize = 1020 * 1024 * 1024;
/// `XLR_MAX_BLOCK_ID`: the highest block id.
pub const BLOCK_ID_MAX: u8 = 32;

/// `RM_MIN_CUSTOM_ID` (`src/include/access/rmgr.h`), in `xl_rmid`: the first number PostgreSQL leaves to extensions.
pub const FIRST_CUSTOM_RESOURCE_MANAGER: u8 = 128;

/// `XLR_RMGR_INFO_MASK`: the bits of `xl_info` that a resource manager has for its operations.
pub const OPERATION_MASK: u8 = 0xF0;
/// `XLR_SPECIAL_REL_UPDATE`, in `xl_info`: the record changes relation files without listing blocks.
pub const SPECIAL_RELATION_UPDATE: u8 = 0x01;
/// `XLR_CHECK_CONSISTENCY`, in `xl_info`: the images are what each block must be after redo.
pub const CHECK_CONSISTENCY: u8 = 0x02;

/// `XLR_BLOCK_ID_DATA_SHORT`: main data with one byte of length follows.
pub const ID_DATA_SHORT: u8 = 255;
/// `XLR_BLOCK_ID_DATA_LONG`: main data with four bytes of length follows.
pub const ID_DATA_LONG: u8 = 254;
/// `XLR_BLOCK_ID_ORIGIN`: the replication origin follows.
pub const ID_ORIGIN: u8 = 253;
/// `XLR_BLOCK_ID_TOPLEVEL_XID`: the top-level transaction follows.
pub const ID_TOP_LEVEL_XID: u8 = 252;

/// `BKPBLOCK_FORK_MASK`, in `fork_flags`: the fork's number.
pub const BLOCK_FORK_MASK: u8 = 0x0F;
/// `BKPBLOCK_HAS_IMAGE`, in `fork_flags`
pub const BLOCK_HAS_IMAGE: u8 = 0x10;
/// `BKPBLOCK_HAS_DATA`, in `fork_flags`
pub const BLOCK_HAS_DATA: u8 = 0x20;
/// `BKPBLOCK_WILL_INIT`, in `fork_flags`: redo makes the page anew.
pub const BLOCK_WILL_INIT: u8 = 0x40;
/// `BKPBLOCK_SAME_REL`, in `fork_flags`: the relation is that of the block before.
pub const BLOCK_SAME_RELATION: u8 = 0x80;

/// `BKPIMAGE_HAS_HOLE`, in `bimg_info`
pub const IMAGE_HAS_HOLE: u8 = 0x01;
/// `BKPIMAGE_APPLY`, in `bimg_info`: the image is restored during redo.
pub const IMAGE_APPLY: u8 = 0x02;
/// `BKPIMAGE_COMPRESS_PGLZ`, in `bimg_info`
pub const IMAGE_PGLZ: u8 = 0x04;
/// `BKPIMAGE_COMPRESS_LZ4`, in `bimg_info`
pub const IMAGE_LZ4: u8 = 0x08;
/// `BKPIMAGE_COMPRESS_ZSTD`, in `bimg_info`
pub const IMAGE_ZSTD: u8 = 0x10;
