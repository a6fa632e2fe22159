//! Names and numbers every part of Borealis shares: LSNs, identities, page keys, placement.
//!
//! Invariant: no I/O, no clock, no randomness; every type is plain data.

pub mod bounded;
pub mod disk_room;
mod epoch_bounds;
mod history;
mod invariant;
pub mod kept_file;
mod key;
mod lsn;
pub mod membership;
mod part;
mod placement;
mod postgres_version;
mod read_point;
pub mod server_request;
mod server_version;
mod volume;

pub use epoch_bounds::{EPOCH_LIMIT, EPOCH_STEP_MAX, EpochOutOfBounds, check_epoch};
pub use history::{EpochHistory, EpochOpening, HistoryOrderError};
pub use kept_file::KeptFile;
pub use key::{
    BlockKey, BlockNumber, DatabaseKey, Fork, MetaKey, PageKey, RelationFork, RelationLocator, SlruKind,
    UnknownFork,
};
pub use lsn::{Lsn, ParseLsnError, RecordSpan};
pub use part::{Part, RecordForm};
pub use placement::{GroupSet, MAX_GROUPS, META_GROUP, Placement};
pub use postgres_version::{MajorVersion, PostgresVersion};
pub use read_point::ReadPoint;
pub use server_version::{ParseServerVersionError, ServerVersion, UnsupportedServerVersion};
pub use volume::{
    AvailabilityZone, GroupId, InstanceId, MembershipEpoch, NodeId, READ_QUORUM, SEGMENTS_PER_GROUP,
    VolumeEpoch, VolumeId, WRITE_QUORUM, WriterId,
};

/// PostgreSQL's block size. Borealis supports the default only and checks it when a volume is created.
pub const PAGE_SIZE: usize = 8192;

/// One page as PostgreSQL lays it out in memory and on disk.
pub type PageBytes = [u8; PAGE_SIZE];

/// Blocks per 1 GiB relation segment file (`RELSEG_SIZE`).
pub const BLOCKS_PER_SEGMENT_FILE: u32 = 131_072;

/// `SizeOfPageHeaderData` (`src/include/storage/bufpage.h`): where a page's line pointers start.
pub const PAGE_HEADER_BYTES: usize = 24;

/// `SLRU_PAGES_PER_SEGMENT` (`src/include/access/slru.h`): pages of one segment file of a transaction-status store. Stores
/// are truncated by whole segment files.
pub const SLRU_PAGES_PER_SEGMENT: u32 = 32;

/// The segment files of these pages of a transaction-status store, and how many pages each has, counted to its last one.
#[must_use]
pub fn slru_segments(pages: &[u32]) -> std::collections::BTreeMap<u32, u32> {
    let mut segments = std::collections::BTreeMap::new();
    for page in pages {
        let length: &mut u32 = segments.entry(page / SLRU_PAGES_PER_SEGMENT).or_default();
        *length = (*length).max(page % SLRU_PAGES_PER_SEGMENT + 1);
    }
    segments
}

/// `DEFAULTTABLESPACE_OID` (`pg_tablespace.dat`): the relations in `base`.
pub const DEFAULT_TABLESPACE: u32 = 1663;

/// `GLOBALTABLESPACE_OID` (`pg_tablespace.dat`): the relations in `global`, which all databases share.
pub const GLOBAL_TABLESPACE: u32 = 1664;
