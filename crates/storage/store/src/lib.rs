//! A storage node's log, page versions, checkpoints and garbage collection.
//!
//! A [`Store`] is everything one node keeps on disk: one log shared by its segments, and for each segment the
//! pages that redo made. Taking redo is [`Store::append`], then [`Store::sync`], then the acknowledgement.
//! [`Store::materialize`] folds redo that nobody reads below into pages and lets go of the log.
//!
//! Invariant: nothing is acknowledged that a crash could take back; after a failed write or sync nothing is
//! acknowledged any more. Invariant: a page is served only if every byte it was made from matched its
//! checksum and was what it should be.
//!
//! Formats: [`log`](self) entries in `log/entry.rs`, page slots in `pages.rs`, small files in `directory.rs`,
//! the checkpoint in `checkpoint.rs`.

mod append;
mod checkpoint;
mod directory;
mod disk;
mod environment;
mod error;
mod log;
mod maintenance;
mod materialize;
mod metrics;
mod open;
mod options;
mod pages;
mod poison;
mod promises;
mod read;
mod redo_engine;
mod segment;
mod store;

pub use append::Appended;
pub use append::offer::Origin;
pub use disk::{Disk, DiskFile, DiskLock, FileSystem, OpenMode};
pub use environment::{Clock, Environment, SystemClock};
pub use error::StoreError;
pub use materialize::{Policy, Progress};
pub use options::{Identity, Options};
pub use read::tail::Tail;
pub use redo_engine::{CountersReplay, PostgresRedo, RedoEngine};
pub use store::{Sequence, Store};

#[cfg(test)]
mod tests;
