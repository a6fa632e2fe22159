//! PostgreSQL write-ahead log: pages to records to the pages they touch, and back.
//!
//! Invariant: pure. Bytes from outside never panic, never index out of bounds, never allocate without a
//! bound.
//!
//! * [`stream`] finds records among WAL pages, [`Record::parse`] reads one, [`effects()`] tells what it
//!   changes;
//! * [`layout`] is the vocabulary of PostgreSQL's records and pages, [`highest_xid`] tells the transaction ids that a
//!   record proves in use;
//! * [`encode`] goes the other way, [`assemble`] makes the pages of segment files again from records, [`volume_log`] from a volume's, and [`native`] has the
//!   records that are Borealis's own.

pub mod assemble;
pub mod bytes;
pub mod custom;
pub mod effects;
pub mod encode;
mod image;
pub mod kept_file;
pub mod layout;
pub mod native;
pub mod page;
mod pglz;
pub mod piece;
pub mod record;
mod resource_manager;
pub mod stream;
mod transaction_id;
pub mod volume_log;

pub use effects::{Effect, EffectError, effects};
pub use record::{
    BlockImage, BlockList, BlockReference, ImageCompression, Record, RecordError, verify_checksum,
};
pub use resource_manager::ResourceManager;
pub use transaction_id::{ended_transactions, highest_xid, oldest_running_transaction, xid_precedes};
