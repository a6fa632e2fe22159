//! The read path: from a question of PostgreSQL to one node's answer.
//!
//! [`reads`] asks and waits, [`answer`] puts the groups' parts together, [`prefetch`] keeps what was fetched ahead.

pub mod answer;
pub mod prefetch;
pub mod reads;

pub use answer::Answer;
pub use reads::{ReadCounters, Reads, Transport};
