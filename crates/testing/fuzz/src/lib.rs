//! Hostile bytes for everything that reads bytes from outside.
//!
//! Each target is a function of arbitrary bytes that must return: it may find that the bytes are refused, and it
//! checks what must hold of those that are not. The same functions run in two ways: for a bounded time with
//! deterministic mutations of a committed corpus (`tests/bounded.rs`), and without end under libFuzzer (the
//! workspace in `fuzz/` at the top of the repository).
//!
//! Raw bytes would never pass a checksum, so most targets read their input as instructions: which record, on which
//! pages, with which bytes changed after the checksums were made or before.
//!
//! Invariant: a target depends on its input alone, so that a failure is reproduced by the bytes.

mod archive;
mod batch;
pub mod corpus;
mod input;
pub mod mutation;
mod pages;
mod path;
mod redo;
mod sample;
mod store;
mod store_seals;
mod stream;
mod values;
mod wire;

pub use archive::archive_object;
pub use input::Input;
pub use path::shim_path;
pub use redo::{Observation, record_effects, redo_record, redo_record_observed};
pub use sample::{Sample, SampleBlock, SampleImage};
pub use store::store_files;
pub use stream::wal_stream;
pub use values::{control_file, meta_value};
pub use wire::{proto_frame, redo_batch};

/// A target: its name, which is also that of its libFuzzer program, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 10] = [
    ("wal_stream", wal_stream),
    ("record_effects", record_effects),
    ("redo_record", redo_record),
    ("meta_value", meta_value),
    ("control_file", control_file),
    ("proto_frame", proto_frame),
    ("redo_batch", redo_batch),
    ("store_files", store_files),
    ("shim_path", shim_path),
    ("archive_object", archive_object),
];
