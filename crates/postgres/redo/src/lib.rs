//! PostgreSQL redo as pure functions from (page, record) to page.
//!
//! Invariant: pure. The new bytes of a page depend only on its old bytes and the record (invariant 4).
//! Invariant: bytes from outside, in the record or on the page, never panic.
//!
//! One module for each resource manager, named as PostgreSQL's, with up to three entry points: `redo_page` for
//! the blocks a record lists or implies and `redo_meta` for the small values it changes, which `apply.rs` calls, and
//! `mask` for what the oracle must not compare.

mod apply;
mod block;
mod brin;
mod btree;
mod bytes;
mod clog;
mod commit_ts;
pub mod counters;
mod database;
mod error;
mod fault;
mod generic;
mod gin;
mod gist;
mod hash;
mod heap;
mod kept_file;
mod multixact;
pub mod names;
mod native;
mod oracle;
mod page;
mod releases;
mod relmap;
mod sequence;
mod spgist;
mod storage;
mod tablespace;
#[cfg(test)]
mod test_record;
mod transaction;
mod transaction_id;
mod xlog;

pub use apply::{apply_meta, apply_page, meta_before};
pub use borealis_wal::layout::control_file;
pub use error::RedoError;
pub use oracle::{check, consistency};
