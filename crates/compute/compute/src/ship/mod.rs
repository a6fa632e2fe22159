//! The write path: from a record of PostgreSQL's log to four of six nodes of each of its groups.
//!
//! [`route`] decides which groups get a record, [`retained`] keeps it until every node has it, [`shipper`] gives each node
//! its batches and publishes what became durable.

pub mod retained;
pub mod route;
pub mod shipper;

pub use route::Router;
pub use shipper::{ShipCounters, Shipper, ShipperLimits, UnexpectedAcknowledgement};
