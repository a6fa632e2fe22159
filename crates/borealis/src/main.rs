//! The `borealis` command line.
fn main() {}
