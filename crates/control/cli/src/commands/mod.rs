//! One module for each group of commands.

pub mod backup;
mod backup_place;
mod backup_points;
pub mod bench;
pub mod chaos;
pub mod controller;
pub mod exec;
pub mod export;
mod export_wal;
pub mod fleet;
pub mod internal;
pub mod manual;
pub mod nodes;
pub mod parts;
pub mod psql;
pub mod rebalance;
pub mod redo_check;
pub mod replace;
pub mod restore;
pub mod serve;
pub mod status;
mod times;
pub mod up;
pub mod verify;
pub mod watch;
