//! Redo in Rust against what PostgreSQL itself says every page must be.
//!
//! A server with `wal_consistency_checking = all` puts into each record the pages as they are after it. Every
//! record is applied to the version before it, and compared, as PostgreSQL's own recovery does. [`check_files`] reads
//! segment files, [`check_stream`] the log of a running server. `borealis redo-check` is these two with arguments.

mod check;
mod live;
mod program;
mod reader;
mod release;
mod report;
mod segments;
mod spill;

pub use check::{CheckError, Files, Memory, Progress, Stream, check_files, check_stream};
pub use release::Release;
pub use report::Report;
