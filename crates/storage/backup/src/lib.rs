//! Where a backup is kept, and how it gets there.
//!
//! * [`store`]: one small interface of what keeps objects ([`store::ObjectStore`]), and its implementations: a folder, S3 and what speaks like
//!   it, Google's and Azure's stores, memory. What an object is, is none of its business: that is `borealis_archive`.
//! * [`location`]: the URL that says where; [`key`]: the key that objects are encrypted with, from a file ([`key_file`]) or a command
//!   ([`key_command`]).
//! * [`pace`]: retries with growing pauses, and a bound on the rate.
//! * [`contents`]: reading a backup, and proving it; [`retention`]: deleting what nobody can need, and what people said of that.
//! * [`upload`]: a node uploads its redo as it becomes durable.
//! * [`restore`]: a store with everything as of one point is made of what was uploaded; [`log`]: the volume's log, record by record.
//!
//! Everything here blocks, and waits for a network that may be down for days. It runs on threads of its own, never on one that a commit or a
//! read waits for. What is asynchronous stays on the one thread of [`store::cloud`].
//!
//! Invariant: an object is there whole or not at all, and is never changed once it is there.

pub mod contents;
pub mod control_file;
pub mod key;
pub mod key_command;
pub mod key_file;
mod listing;
pub mod location;
pub mod log;
pub mod pace;
pub mod restore;
pub mod retention;
pub mod store;
pub mod upload;
