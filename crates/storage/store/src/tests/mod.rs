//! Tests that look inside: a model of the whole store, damage, and the taking of redo.

mod abandoned;
mod damage;
mod invariants;
mod model;
mod pace;
mod records;
mod redo;
