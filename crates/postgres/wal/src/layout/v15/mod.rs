//! Record layouts and operation codes of PostgreSQL 15, and its files that another version lays out differently.
//!
//! Field names follow PostgreSQL's structs, written out in words where that helps; each type names its source
//! file.

pub mod brin;
pub mod btree;
pub mod checkpoint;
pub mod control_file;
pub mod database;
pub mod generic;
pub mod gin;
pub mod gist;
pub mod hash;
pub mod heap;
pub mod heap2;
pub mod logical;
pub mod multixact;
pub mod relation_map;
pub mod sequence;
pub mod slru;
pub mod spgist;
pub mod standby;
pub mod storage;
pub mod transaction;
pub mod xlog;

pub use checkpoint::CheckPointRecord;
pub use database::{CreateDatabaseFileCopy, CreateDatabaseWalLog, DropDatabase, RelationMapUpdate};
pub use database::{CreateTablespace, DropTablespace};
pub use heap::{HeapInsert, HeapUpdate, HeapXmax};
pub use heap2::{HeapFreezePage, HeapFreezeTuple, HeapMultiInsert, HeapPrune, HeapVacuum, HeapVisible};
pub use multixact::{MultiXactCreate, MultiXactMember, MultiXactTruncate};
pub use slru::{ClogTruncate, CommitTsTruncate};
pub use standby::RunningTransactions;
pub use storage::{StorageCreate, StorageTruncate};
pub use transaction::{Assignment, Prepare, TransactionEnd};
pub use xlog::{EndOfRecovery, OverwriteContinuation, ParameterChange};
