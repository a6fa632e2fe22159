//! The node's log: one sequence of entries in numbered files, shared by all segments, so that one `fdatasync`
//! serves every group.
//!
//! Entries never cross files. A file is zero-filled a stretch ahead of its end, and a file that is no longer
//! needed becomes the next one, so that a sync seldom has to change the file's size or allocation. The file
//! before is synced before a new one begins.

pub(crate) mod batch_locations;
pub(crate) mod entry;
pub(crate) mod files;
pub(crate) mod group_commit;
mod open;
pub(crate) mod payload;
pub(crate) mod position;
pub(crate) mod record_reader;
pub(crate) mod scan;
mod torn_tail;
pub(crate) mod writer;
