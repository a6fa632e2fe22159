//! The pages that redo made: where they are on disk, and those kept in memory.

pub(crate) mod cache;
pub(crate) mod held;
pub(crate) mod materialized_state;
pub(crate) mod page_files;
pub(crate) mod refilled;
pub(crate) mod region;
pub(crate) mod shared_state;
