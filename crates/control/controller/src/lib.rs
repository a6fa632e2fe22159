//! The interface of the catalog that remembers the fleet, and its logic without I/O ([`catalog`]).
//!
//! Invariant: the catalog is a hint, never the truth. No step is safe *because* of what the catalog says.

pub mod catalog;
