//! The one vocabulary for PostgreSQL's records and pages: operations, flags, offsets and sizes, and the structures of
//! records. Effects, redo, the consistency oracle and the cache's eviction rule all take them from here;
//! `scripts/check-constants.py` proves that nothing is defined a second time elsewhere.
//!
//! [`common`] has what versions 15 to 18 lay out alike, a folder like [`v15`] what may differ with a major version. Code
//! uses neither by name, but a module of this file: one for each resource manager, with its pages and its records, and
//! one for each structure that several of them share. (The modules that take records apart and put them together use
//! `common` directly, because the records of `v15` are made of theirs.)
//!
//! What each version *is* (its number, its folder names, the magic numbers of its files) is in
//! [`borealis_types::MajorVersion`].
//!
//! ## Adding a major version
//!
//! 1. A variant of [`PostgresVersion`] with its [`borealis_types::MajorVersion`].
//! 2. A folder beside `v15` with the records that it lays out differently. A record whose structure changed gets a type
//!    here that has what redo needs of either, and whose `parse` asks `record.server_version.major()`: the callers of
//!    `parse` stay as they are.
//! 3. The assertion below stops the build until somebody has been through the modules of this file.

use borealis_types::PostgresVersion;

pub mod common;
pub mod v15;

const _: () = assert!(
    PostgresVersion::ALL.len() == 1,
    "the modules below have the records of the only version there is: dispatch what another one lays out differently"
);

pub use common::{
    free_space_map, heap_tuple, index_tuple, item_id, item_pointer, page, visibility_map, wal_page,
    wal_record,
};
pub use v15::{
    checkpoint, control_file, database, generic, heap, heap2, logical, multixact, relation_map, standby,
    storage, transaction, xlog,
};

/// B-trees: pages, tuples and records.
pub mod btree {
    pub use super::common::btree::*;
    pub use super::v15::btree::*;
}

/// Hash indexes: pages and records.
pub mod hash {
    pub use super::common::hash::*;
    pub use super::v15::hash::*;
}

/// Inverted indexes: pages and records.
pub mod gin {
    pub use super::common::gin::*;
    pub use super::v15::gin::*;
}

/// GiST indexes: pages and records.
pub mod gist {
    pub use super::common::gist::*;
    pub use super::v15::gist::*;
}

/// SP-GiST indexes: pages, tuples and records.
pub mod spgist {
    pub use super::common::spgist::*;
    pub use super::v15::spgist::*;
}

/// Block range indexes: pages and records.
pub mod brin {
    pub use super::common::brin::*;
    pub use super::v15::brin::*;
}

/// Sequences: the page and its records.
pub mod sequence {
    pub use super::common::sequence::*;
    pub use super::v15::sequence::*;
}

/// Transaction-status stores: pages and records.
pub mod slru {
    pub use super::common::slru::*;
    pub use super::v15::slru::*;
}

pub use common::transaction_id::{FIRST_NORMAL_OID, FIRST_NORMAL_XID, FROZEN_XID, INVALID_XID};
pub use v15::{
    Assignment, CheckPointRecord, ClogTruncate, CommitTsTruncate, CreateDatabaseFileCopy,
    CreateDatabaseWalLog, CreateTablespace, DropDatabase, DropTablespace, EndOfRecovery, HeapFreezePage,
    HeapFreezeTuple, HeapInsert, HeapMultiInsert, HeapPrune, HeapUpdate, HeapVacuum, HeapVisible, HeapXmax,
    MultiXactCreate, MultiXactMember, MultiXactTruncate, OverwriteContinuation, ParameterChange, Prepare,
    RelationMapUpdate, RunningTransactions, StorageCreate, StorageTruncate, TransactionEnd,
};
