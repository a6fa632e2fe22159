//! The node's log: one sequence of entries in numbered files, shared by all segments, so that one `fdatasync`
//! serves every group.
//!
//! An entry never spans two files. The next file is prepared ahead, filled with zeros or with what a released file
//! held, so that a sync seldom has to change a file's size or allocation (see `log/preparation.rs`). A sync of the
//! log syncs every file that has entries which are not known to be durable, oldest first. So a torn tail can begin in
//! any of those files; then nothing behind it was acknowledged, in that file or in a later one.

pub(crate) mod batch_locations;
pub(crate) mod entry;
pub(crate) mod files;
pub(crate) mod group_commit;
mod open;
pub(crate) mod payload;
pub(crate) mod position;
pub(crate) mod preparation;
pub(crate) mod record_reader;
mod reserve;
mod rewrite;
pub(crate) mod scan;
mod torn_tail;
pub(crate) mod writer;
