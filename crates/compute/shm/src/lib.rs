//! The shared memory between the driver and the shim inside each PostgreSQL process.
//!
//! One file on a memory file system, mapped by the driver ([`DriverSide`]) and by every PostgreSQL process
//! of one instance ([`ClientSide`]). Through it the shim
//!
//! * publishes that write-ahead log was written and waits until it is durable,
//! * asks for pages, relation sizes and listings, one request at a time in a slot of its own,
//! * hints which blocks it will ask for soon,
//! * remembers what must be known of a cached block before it may be dropped ([`CacheBook`]), and
//! * keeps two processes from filling and writing one cached file at the same time ([`ClientSide::lock_for_write`]).
//!
//! Invariant: a wait for durability ends successfully only after the driver said so; a dead driver, a fenced
//! or a poisoned instance ends it with an error.
//!
//! Invariant: a client whose build is not the driver's never gets a handle.
//!
//! Invariant: nothing on the client's side allocates, panics on what the driver wrote, or keeps a lock that a
//! signal handler could need, because it runs inside somebody else's program.
#![allow(unsafe_code)] // Shared memory, futexes and eventfd have no safe interface in the standard library.

mod build;
mod cache;
mod client;
mod driver;
mod fill_lock;
mod futex;
mod layout;
mod liveness;
mod mapping;
pub mod path;
mod probe;
mod request;
mod served;

pub use borealis_types::server_request::{
    MAX_RELATION_ENTRIES, MAX_SLRU_ENTRIES, RelationEntry, RelationSize, Request, SlruEntry,
};
pub use build::{BUILD_FINGERPRINT, ShimMark, fingerprint_in};
pub use cache::{CacheBook, CachedBlock};
pub use client::{AttachError, ClientSide, ClientSlot, RequestError, WaitError};
pub use driver::{DriverSide, ShimReport, ShmError, SlotIndex, WalPosition};
pub use fill_lock::{FillGuard, WriteGuard};
pub use layout::{Config, InstanceState, MAX_MESSAGE_BYTES, MAX_PATH_BYTES, MAX_SLOTS};
pub use probe::{ProbeError, probe_memory_file_system};
pub use request::{Message, Reply};
pub use served::ServedDirectory;

/// Environment variable with the path of the shared memory file. The shim is inactive without it.
pub const ENVIRONMENT_SHM: &str = "BOREALIS_SHM";

/// Environment variable that gives a program which is no server the server's view of its files; its value does not matter.
pub const ENVIRONMENT_VIEW: &str = "BOREALIS_VIEW";

/// Environment variable with the number of the inherited eventfd that wakes the driver.
pub const ENVIRONMENT_EVENT_FD: &str = "BOREALIS_EVENT_FD";
