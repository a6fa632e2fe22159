//! The storage node process: receives, persists and acknowledges redo, gossips with peers, serves pages.
//!
//! * [`node`]: a running node and how it starts and stops; [`run`] is the whole process.
//! * [`config`]: reads the file `node.json`.
//! * [`metrics`]: what is counted, and under which name.
//!
//! Blocking threads, one for each connection and each peer: the number of both is bounded and small, and the
//! append path has nobody to hand a frame to.
//!
//! Invariant: an answer leaves the node only after the store has made durable what it tells of. A node whose
//! store failed goes on answering, but only to say so.

mod background;
pub mod config;
mod connection;
mod connections;
mod gossip;
mod log_limit;
pub mod metrics;
pub mod node;
mod process;
mod receiver;
mod requests;

pub use node::{Node, create};
pub use process::run;
