//! The C functions this library replaces.
//!
//! Each looks its descriptor up in the table, or classifies its path, and passes everything that is not of ours
//! on to the C library's function. Names ending in `64` are the same on 64-bit systems; extensions use them.
//!
//! # Safety
//! Every function here has the contract of the C function of its name: it is called by code that believes to
//! call that one.
#![allow(clippy::missing_safety_doc)] // Said once, above.

mod names;
mod open;
mod process;
mod space;
mod streams;
mod sync;
mod transfer;

use std::ffi::CStr;

use borealis_shm::path::PathClass;
use libc::{c_char, c_int};

use crate::descriptors::{self, OpenFile};
use crate::real::{errno, set_errno};
use crate::shim::{self, Shim};
use crate::{local_file, view};

/// The state and the path's class, when the library is active and the path is of ours.
///
/// # Safety
/// `path` is null or a C string that outlives the result.
unsafe fn ours<'p>(path: *const c_char) -> Option<(&'static Shim, &'p CStr, PathClass)> {
    let shim = shim::get()?;
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    match shim.classify(path) {
        PathClass::Other => None,
        class => Some((shim, path, class)),
    }
}

/// The state and the file, when the library is active and the descriptor is of ours.
#[inline]
fn ours_open(descriptor: c_int) -> Option<(&'static Shim, OpenFile)> {
    let file = descriptors::get(descriptor)?;
    Some((shim::get()?, file))
}

/// Whether the file is cached blocks (and not WAL).
fn is_cached(file: OpenFile) -> bool {
    matches!(file.class, PathClass::Relation { .. } | PathClass::Slru { .. })
}

/// Where a path really leads ([`Shim::real_path`]).
///
/// # Safety
/// `path` is null or a C string that outlives the result.
unsafe fn real_path(path: *const c_char) -> *const c_char {
    match shim::get() {
        // SAFETY: the caller's promise.
        Some(shim) if !path.is_null() => shim.real_path(unsafe { CStr::from_ptr(path) }).as_ptr(),
        // SAFETY: as above.
        _ => unsafe { view::control_file(path) }.unwrap_or(path),
    }
}

/// Calls a function that takes a path. If the file is absent and storage has it, makes it and calls again.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn with_file(path: *const c_char, call: impl Fn() -> c_int) -> c_int {
    let result = call();
    if result >= 0 || errno() != libc::ENOENT {
        return result;
    }
    // SAFETY: the caller's promise.
    let Some((shim, path, class)) = (unsafe { ours(path) }) else {
        // SAFETY: as above.
        if unsafe { view::makes(path) } {
            return call();
        }
        set_errno(libc::ENOENT);
        return result;
    };
    match local_file::ensure(shim, path, class) {
        Ok(true) => call(),
        Ok(false) => {
            set_errno(libc::ENOENT);
            -1
        }
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}
