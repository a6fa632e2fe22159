//! Making what was written durable: of the log by waiting for storage, of cached blocks never.

use libc::{c_int, c_uint, off_t};

use super::{is_cached, ours_open};
use crate::{real, wal};

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    match ours_open(descriptor) {
        // The cache is never durable: what matters is the log.
        Some((_, file)) if is_cached(file) => 0,
        Some((shim, _)) => wal::sync(shim),
        // SAFETY: the caller keeps the contract of fsync(2).
        None => unsafe { real::fsync(descriptor) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    match ours_open(descriptor) {
        Some((_, file)) if is_cached(file) => 0,
        Some((shim, _)) => wal::sync(shim),
        // SAFETY: the caller keeps the contract of fdatasync(2).
        None => unsafe { real::fdatasync(descriptor) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn sync_file_range(
    descriptor: c_int,
    offset: off_t,
    length: off_t,
    flags: c_uint,
) -> c_int {
    match ours_open(descriptor) {
        Some(_) => 0,
        // SAFETY: the caller keeps the contract of sync_file_range(2).
        None => unsafe { real::sync_file_range(descriptor, offset, length, flags) },
    }
}
