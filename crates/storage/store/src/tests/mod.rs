//! Tests that look inside: a model of the whole store, damage, and the taking of redo.

mod abandoned;
mod damage;
mod gather;
mod invariants;
mod log_repair;
mod memberships;
mod mend;
mod model;
mod pace;
mod passing;
mod pieces;
mod records;
mod redo;
mod refill;
