//! The write path: from a record of PostgreSQL's log to four of six nodes of each of its groups.
//!
//! [`greeting`] decides whether a node may be shipped to, [`route`] which groups get a record, [`retained`] keeps it until every node has it, [`shipper`] gives each node
//! its batches and publishes what became durable, [`standstill`] notices when nothing does. [`tenure`] knows when this writer
//! no longer is the volume's.

pub mod greeting;
pub mod retained;
pub mod route;
pub mod shipper;
pub mod standstill;
pub mod tenure;

pub use greeting::{Greeted, greet};
pub use route::{Router, body_matters};
pub use shipper::{ShipCounters, Shipper, ShipperLimits, UnexpectedAcknowledgement};
pub use standstill::{Standstill, Word};
pub use tenure::{Tenure, TenureEnd, TenureLimits};
