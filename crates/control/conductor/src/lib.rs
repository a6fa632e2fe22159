//! What a controller does, round after round: it asks every node ([`questions`]), makes one picture of the answers
//! ([`observation`]), decides by [`borealis_controller::reconcile`], and carries the decisions out ([`change`], [`conductor`]).
//!
//! It may be killed at any moment: whoever takes over asks again and decides anew. What it wrote to the catalog, and what it
//! has got accepted by segments, are steps that another one carries through or finds done.
//!
//! What only the host of some parts can do or know, such as starting a node's process, is behind [`host::Host`].
//!
//! Invariant: never on the commit path or the read path; whom to believe about a group's members is decided by the segments.

pub mod change;
pub mod conductor;
pub mod counts;
pub mod host;
pub mod nodes;
pub mod observation;
pub mod questions;

pub use conductor::{Conductor, Options};
pub use host::{Host, NoHost, Witness};
pub use nodes::{Connections, NoAnswer, Nodes};
