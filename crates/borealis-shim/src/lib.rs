//! The LD_PRELOAD library that puts stock PostgreSQL's relation files and WAL on Borealis.
