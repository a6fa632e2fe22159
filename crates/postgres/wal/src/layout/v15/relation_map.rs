//! `pg_filenode.map` (`RelMapFile` in `src/backend/utils/cache/relmapper.c`). Version 16 has room for more mappings.

/// `sizeof(RelMapFile)`
pub const FILE_BYTES: usize = 512;
/// `RELMAPPER_FILEMAGIC`
pub const FILE_MAGIC: u32 = 0x0059_2717;
/// `MAX_MAPPINGS`
pub const MAPPINGS_MAX: u32 = 62;
/// `num_mappings`
pub const MAPPING_COUNT_OFFSET: usize = 4;
/// `crc`: of everything before it.
pub const CRC_OFFSET: usize = 504;
