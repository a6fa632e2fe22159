//! A storage node's log, page versions, checkpoints and garbage collection.
//!
//! A [`Store`] is everything one node keeps on disk: one log shared by its segments, and for each segment the
//! pages that redo made. Taking redo is [`Store::append`], then [`Store::sync`], then the acknowledgement.
//! [`Store::materialize`] applies redo below every reader's LSN to pages on disk, and releases the log that
//! is then not needed.
//!
//! Invariant: a crash loses nothing that was acknowledged, and after a failed write or sync nothing more is
//! acknowledged. Invariant: a page is served only if every byte it was made from passed its checksum in that
//! read and has the expected identity.
//!
//! Formats: log entries in `log/entry.rs` and `log/payload.rs`, page slots in `pages/page_files.rs`, small
//! files in `directory.rs`, the checkpoint in `checkpoint.rs`. Where to look: a torn tail is truncated in
//! `log/torn_tail.rs`; what happens when `fdatasync` fails stands in `poison.rs`; a read is admitted by
//! `Store::readable` in `read/mod.rs`, which asks `Segment::check_read`; what is kept for a peer that takes it is in
//! `pins.rs`, and how a segment takes it in `refill/`; how segments come and leave is in `memberships.rs`; all file I/O is in
//! `disk/`.

mod append;
mod boots;
#[cfg(feature = "broken-redo")]
mod broken_redo;
mod checkpoint;
mod directory;
mod disk;
mod environment;
mod error;
mod gather;
mod hindrances;
mod log;
mod log_repair;
mod maintenance;
mod materialize;
mod memberships;
mod metrics;
mod open;
mod options;
mod pages;
mod peer_boots;
mod pins;
mod poison;
mod promises;
mod read;
mod redo_engine;
mod redo_guard;
mod refill;
mod scrub;
mod segment;
mod space;
mod store;
mod synced_note;

pub use append::Appended;
pub use append::offer::Origin;
pub use disk::{Disk, DiskFile, DiskLock, FileSystem, OpenMode, Space};
pub use environment::{Clock, Environment, SystemClock};
pub use error::StoreError;
pub use gather::SegmentSource;
pub use log_repair::EntryToRepair;
pub use materialize::mend::PageToHeal;
pub use materialize::{Policy, Progress};
pub use options::{Identity, Options};
pub use pins::{PIN_LEASE_MAX, PinHolder};
pub use read::tail::Tail;
pub use redo_engine::{CountersReplay, PostgresRedo, RedoEngine};
pub use redo_guard::abort_on_panic;
pub use refill::Refill;
pub use scrub::{ScrubCursor, Scrubbed};
pub use store::{Sequence, Store};

#[cfg(test)]
mod tests;
