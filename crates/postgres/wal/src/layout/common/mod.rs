//! What versions 15 to 18 lay out alike: pages of relations and of the transaction-status stores, and the frame of WAL
//! pages and records.
//!
//! `pg_upgrade` takes the files of relations, of `pg_xact` and of `pg_multixact` over as they are, so a page means the
//! same to every version that can be upgraded to. What a *record* says of a page may change with any major version and
//! stands in that version's folder.

pub mod brin;
pub mod btree;
pub mod free_space_map;
pub mod gin;
pub mod gist;
pub mod hash;
pub mod heap_tuple;
pub mod index_tuple;
pub mod item_id;
pub mod item_pointer;
pub mod page;
pub mod sequence;
pub mod slru;
pub mod spgist;
pub mod transaction_id;
pub mod visibility_map;
pub mod wal_page;
pub mod wal_record;
