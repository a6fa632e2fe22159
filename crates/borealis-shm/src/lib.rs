//! The shared memory between the driver and the shim inside each PostgreSQL process.
