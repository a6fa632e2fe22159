//! The compute side: ships redo, tracks quorums, recovers, serves pages to the shim, runs `postgres`.
//!
//! * [`supervise`]: the life of an instance. [`recover`] opens the volume ([`rescue`]: without members that are lost for
//!   good), [`release`] asks which PostgreSQL runs next, [`contents`] reads what a data directory needs, [`instance_socket`] is the local socket.
//! * [`memberships`]: who the members of each group are, as this instance knows it from one start to the next.
//! * [`engine`]: the event loop that owns everything while the server runs. It moves bytes; what they mean is
//!   decided by the machines without I/O of [`borealis_compute`]: which groups get a record, who has which record, what
//!   is durable, whom to ask for a page, which answer counts. [`wal_feed`] reads the server's log.
//!
//! * [`shim_library`] is checked and put where the server can load it; [`shim_gate`]: no server is served without it.
//!
//! * [`evict`]: a thread that keeps the local page cache within its limit.
//!
//! Invariant: the driver never says that something is durable before the quorum tracker does.
//! Invariant: an answer to a read is as of a position at or after the moment it was asked for.

#[cfg(feature = "broken-durability")]
mod broken_durability;
pub mod config;
pub mod contents;
mod descriptors;
pub mod engine;
pub mod evict;
mod exposition;
#[cfg(test)]
mod fake_nodes;
mod import_state;
pub mod instance_socket;
pub mod memberships;
pub mod recover;
pub mod release;
pub mod rescue;
pub mod shim_gate;
pub mod shim_library;
pub mod supervise;
pub mod wal_feed;

pub use config::{Configured, DriverConfig};
pub use supervise::{DriverError, EXIT_FENCED, run};
