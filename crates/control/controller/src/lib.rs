//! The controller's two halves that decide nothing about I/O: what the fleet should do next ([`reconcile`]), and the
//! interface of the catalog that remembers the fleet ([`catalog`]).
//!
//! A controller watches, decides and proposes; it is never on the commit path or the read path. Any number may run. Which
//! one acts is a lease in the catalog, and that is advice: two that act at once propose to the same segments, which choose
//! one membership for each epoch by a quorum of their own. So nothing here keeps state between two calls. Whoever takes over
//! observes, calls [`reconcile::reconcile`], and goes on where the other one stopped.
//!
//! Invariant: the catalog is a hint, never the truth. No step is safe *because* of what the catalog says.

pub mod catalog;
pub mod fleet;
pub mod health;
pub mod reconcile;
