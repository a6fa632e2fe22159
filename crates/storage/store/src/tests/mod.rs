//! Tests that look inside: a model of the whole store, damage, and the taking of redo.

mod damage;
mod invariants;
mod mend;
mod model;
mod pace;
mod records;
mod redo;
