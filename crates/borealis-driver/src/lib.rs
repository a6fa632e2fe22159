//! The compute-side driver: ships redo, tracks quorums, recovers, serves pages to the shim, runs postgres.
