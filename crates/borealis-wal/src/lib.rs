//! PostgreSQL write-ahead log: pages to records to the pages they touch, and back.
//!
//! Invariant: pure. Bytes from outside never panic, never index out of bounds, never allocate without a bound.

pub mod effects;
pub mod record;

pub use effects::{Effect, EffectError, effects};
pub use record::{BlockImage, BlockReference, ImageCompression, Record, RecordError, ResourceManager};
