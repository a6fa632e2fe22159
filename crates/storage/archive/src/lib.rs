//! What a backup of a volume consists of, and what follows from what is there.
//!
//! A backup is a folder of *objects* in some store. Objects are made once and never changed. Formats are documented where they
//! are defined:
//!
//! | Object | What it has | Module |
//! |---|---|---|
//! | redo | records of one group and epoch, each linked to the one before | [`redo`] |
//! | pages | page images of extents as of one LSN | [`pages`] |
//! | manifest | for every extent where its newest image is; sizes, values, counters. With it a snapshot is complete | [`manifest`] |
//! | history | what every recovery decided | [`history`] |
//! | marks | how far the volume and its groups were durable, against the clock | [`marks`] |
//! | volume, named snapshot, retention | what the volume is; points that stay; how long others do | [`settings`] |
//!
//! All have one envelope ([`object`]), and names that say what is in them ([`name`]): a listing of the store, the history and the marks
//! suffice to say which points can be restored ([`restorable`]), what a restore reads ([`plan`]), and what nobody can need any more
//! ([`retention`]). Who uploads follows from an order ([`duty`]), when a snapshot is made from what was uploaded since the last ([`due`]), and
//! what it consists of from the pages and the snapshot before it ([`snapshot`]). What a listing says is believed only until the bytes are there: each object is checked against its name
//! ([`verify`]), and each record against the one before it ([`chain`]).
//!
//! Invariant: no I/O, no clock; what the history does not keep is never part of a restore; nothing is deleted that a kept point needs,
//! however the deletion is interrupted.

pub mod chain;
pub mod due;
pub mod duty;
mod error;
pub mod history;
pub mod inventory;
pub mod known;
pub mod manifest;
pub mod marks;
pub mod name;
pub mod object;
pub mod pages;
pub mod plan;
pub mod ranges;
pub mod redo;
pub mod restorable;
pub mod retention;
pub mod sealing;
pub mod settings;
pub mod snapshot;
pub mod verify;

pub use error::{FormatError, Part};
