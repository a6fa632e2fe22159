//! The storage node process: receives, persists and acknowledges redo, gossips with peers, serves pages.
//!
//! * [`node`]: a running node and how it starts and stops; [`run`] is the whole process.
//! * [`config`]: reads the file `node.json`.
//! * [`privileges`]: giving root's rights up.
//! * [`metrics`]: what is counted, and under which name.
//!
//! `backup` uploads redo to where the backup is kept, if there is one.
//!
//! `members` is the one owner of who the members of the groups are, and where nodes are.
//!
//! [`node`] puts the parts together, and no part knows the node as a whole: `connections` (serving callers) and `catch_up`
//! (taking from peers what is missing) take the store, `open_connections`, the `materializer` and what else they need.
//!
//! Blocking threads, one for each connection and each peer: the number of both is bounded and small, and the
//! append path never hands a frame to another thread.
//!
//! Invariant: an answer leaves the node only after the store has made durable what it tells of. A node whose
//! store failed goes on answering, but only to say so.

mod backup;
mod catch_up;
pub mod config;
mod connections;
mod descriptors;
mod durability;
mod exposition;
mod group;
mod housekeeping;
mod line_throttle;
mod materializer;
mod members;
pub mod metrics;
pub mod node;
mod open_connections;
pub mod privileges;
mod process;
mod refusals;
mod scrubber;
mod standing;

pub use borealis_store::{SegmentSource, abort_on_panic};
pub use node::{Node, create, gather};
pub use process::run;
