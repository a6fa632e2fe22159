//! Deterministic simulation of the quorum protocol under faults.
