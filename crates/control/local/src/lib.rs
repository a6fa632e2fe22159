//! Catalog and process supervision of a local cluster.
//!
//! A cluster is a directory: `cluster.json` (what exists), `nodes/<id>/` and `instances/<id>/`. Every process
//! runs detached with its process id beside its data, so that any later command can find, stop or restart it. A
//! supervisor starts again what dies; nothing else needs it, and no process of this crate has to stay alive.
//!
//! Invariant: never on the commit path or the read path. If every process of this crate is gone, the database
//! keeps working.

pub mod catalog;
pub mod cluster;
pub mod driver_socket;
pub mod embedded_catalog;
pub mod fleet_records;
pub mod local_host;
pub mod log;
mod node_user;
pub mod ports;
pub mod probe;
pub mod process;
pub mod replication_pass;
pub mod status;
pub mod supervision;
mod whole_file;

pub use catalog::{Catalog, CatalogError, InstanceEntry, NodeEntry};
pub use cluster::{Cluster, CreateOptions};
