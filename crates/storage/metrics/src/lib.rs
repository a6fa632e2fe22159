//! What nodes and drivers show to Prometheus: one list of metrics ([`list`]), their text ([`exposition`]), and a server that
//! answers `GET /metrics` ([`server`]).
//!
//! Nothing here is on the path of a commit or a read: counters are counted where they always were, and read when somebody asks.
//!
//! Invariant: one slow or hostile caller costs the others a bounded wait, and the process nothing.

pub mod exposition;
pub mod list;
pub mod server;
