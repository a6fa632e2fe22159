//! The identity of a store, and its limits.

use borealis_types::{AvailabilityZone, GroupId, NodeId, Placement, PostgresVersion, VolumeId};
use serde::{Deserialize, Serialize};

/// Whose data a directory holds. Written once, when the store is created.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The volume that the store has segments of.
    pub volume: VolumeId,
    /// The number of the node that the store belongs to.
    pub node: NodeId,
    /// The availability zone the node is in.
    pub zone: AvailabilityZone,
    /// The major version of PostgreSQL whose redo it applies.
    pub version: PostgresVersion,
    /// Which pages belong to which group.
    pub placement: Placement,
    /// The groups whose segments the store was made with, ascending; none for a node that waits to be given some. Segments
    /// may have come and left since.
    pub groups: Vec<GroupId>,
    /// Random at creation: tells a directory that lost its contents, and was created anew, from the one that
    /// made the promises (hazard 27).
    pub incarnation: u128,
}

/// The limits of a store. They may change from one opening to the next.
#[derive(Clone, Debug)]
pub struct Options {
    /// About how much memory the record index and the page cache may take.
    pub memory_limit_bytes: u64,
    /// Size of a log file; an entry that does not fit gets a larger file of its own. At most 2 GiB.
    pub log_file_bytes: u64,
    /// Most log kept for lagging peers, in bytes. A peer that needs older log takes pages instead.
    pub log_retention_bytes: u64,
    /// Most bytes that records of pages in quarantine may take, those whose redo fails. They are kept in the
    /// checkpoint, which each round writes.
    pub quarantine_limit_bytes: u64,
    /// Materialization is due when this many bytes of records are not applied.
    pub materialize_after_bytes: u64,
    /// Most page files and old log files that are open at a time.
    pub open_files_max: usize,
    /// Below this much free space on the file system no redo is taken; `None` for 1 GiB, or a twentieth of the file
    /// system if that is less; zero for no such limit.
    pub free_space_min_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            memory_limit_bytes: 256 << 20,
            log_file_bytes: 64 << 20,
            log_retention_bytes: 2 << 30,
            quarantine_limit_bytes: 64 << 20,
            materialize_after_bytes: 128 << 20,
            open_files_max: 128,
            free_space_min_bytes: None,
        }
    }
}
