//! The node's log: one sequence of entries in numbered files, shared by all segments, so that one `fdatasync`
//! serves every group.
//!
//! An entry never spans two files. Zeros are written ahead of the end, and a released file is reused as the
//! next one, so that a sync seldom has to change a file's size or allocation. A file is synced before the
//! next one begins, so only the last file can have a torn tail.

pub(crate) mod batch_locations;
pub(crate) mod entry;
pub(crate) mod files;
pub(crate) mod group_commit;
mod open;
pub(crate) mod payload;
pub(crate) mod position;
pub(crate) mod record_reader;
mod reserve;
mod rewrite;
pub(crate) mod scan;
mod torn_tail;
pub(crate) mod writer;
