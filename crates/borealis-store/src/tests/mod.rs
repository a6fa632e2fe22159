//! Tests that look inside: a model of the whole store, damage, and group commit.

mod damage;
mod model;
mod records;
