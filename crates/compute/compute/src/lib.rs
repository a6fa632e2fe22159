//! The compute side without its sockets: every decision of an instance about redo, pages and its cache.
//!
//! * [`ship`]: from a record of PostgreSQL's log to a durable one: which groups get it, which node has it, what the
//!   instance may tell PostgreSQL.
//! * [`read`]: from a miss in the cache to a page: whom to ask, at which position, which answer counts.
//! * [`cache`]: which cached page storage could give back as it is, so that it may be dropped.
//!
//! The driver moves the bytes (`borealis-driver`), the simulator runs the same code under faults (`borealis-sim`).
//!
//! Invariant: no I/O, no clock, no randomness, no iteration in hash order: events and `now` go in, what to send and what
//! to publish comes out.
//! Invariant: a node is known by its [`borealis_types::NodeId`], never by its position in a list.
//! Invariant: nothing is published as durable before the quorum tracker says so.

pub mod cache;
pub mod read;
pub mod ship;
