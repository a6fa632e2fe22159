//! The `LD_PRELOAD` library that puts stock PostgreSQL's relation files and WAL on Borealis.
//!
//! The whole data directory lives on a memory file system. Relation files and transaction-status files in it
//! are the local page cache: they appear, sparse, when PostgreSQL first touches them, and their blocks when it
//! first reads them. WAL files are real; writing them tells the driver, syncing them waits until storage has
//! them. Every other file passes through untouched. A program that the server starts and that is not
//! `postgres` is kept from reading cached files, whose holes it would take for zeros (see `bystander`). Physical
//! replication and base backups are refused (see `replication`). Small files with a user's settings outlive the server (see
//! `kept_files`). A program of
//! `borealis exec` sees the files as the server does (see `view`).
//!
//! Invariant: a sync of the log succeeds only after the driver said that what was written before it is durable.
//!
//! Invariant: a server without this library does not start, because it does not find its control file.
//!
//! Invariant: no panic, no allocation after loading, no thread, no lock that a signal handler could need.
//!
//! Invariant: a hole inside a cached file means "still in storage" and nothing else (see `blocks`).
//!
//! Activated by the environment variables of `borealis_shm` ([`borealis_shm::ENVIRONMENT_SHM`] and
//! [`borealis_shm::ENVIRONMENT_EVENT_FD`]).
#![allow(unsafe_code)]
// Replacing C functions is unsafe by nature; every block says why it is right.
// A unit test program keeps its own file functions: nothing is exported there, so nothing is called.
#![cfg_attr(test, allow(dead_code))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the shim replaces the C library's functions of 64-bit Linux");

mod blocks;
mod bystander;
mod descriptors;
mod exports;
mod kept_files;
mod loading;
mod local_file;
mod messages;
mod path_buffer;
mod real;
mod replication;
mod shim;
mod tablespace;
mod view;
mod wal;

/// Runs when the library is loaded, before the program.
extern "C" fn loaded() {
    real::find_all();
    loading::load();
}

/// Runs when a process ends in an orderly way.
extern "C" fn unloaded() {
    shim::unload();
    view::end();
}

// The section names are the ELF standard's for functions that run at loading and at exit.
#[used]
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

#[used]
#[unsafe(link_section = ".fini_array")]
static UNLOADED: extern "C" fn() = unloaded;
