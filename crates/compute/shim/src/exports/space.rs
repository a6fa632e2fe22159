//! The length of a file, and the space it takes.

use borealis_shm::path::PathClass;
use libc::{c_char, c_int, off_t};

use super::{is_cached, ours, ours_open, with_file};
use crate::descriptors::{OpenFile, WRITABLE};
use crate::real::{errno, set_errno};
use crate::{blocks, real, view};

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate(descriptor: c_int, length: off_t) -> c_int {
    match ours_open(descriptor) {
        Some((shim, file)) if is_cached(file) => blocks::ftruncate(shim, descriptor, file, length),
        // SAFETY: the caller keeps the contract of ftruncate(2).
        _ => unsafe { real::ftruncate(descriptor, length) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate64(descriptor: c_int, length: off_t) -> c_int {
    // SAFETY: the same function.
    unsafe { ftruncate(descriptor, length) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn truncate(path: *const c_char, length: off_t) -> c_int {
    // SAFETY: the caller keeps the contract of truncate(2).
    unsafe {
        match ours(path) {
            // Through a descriptor, so that lengthening and concurrent fills are minded.
            Some((shim, _, class @ (PathClass::Relation { .. } | PathClass::Slru { .. }))) => {
                let flags = libc::O_RDWR | libc::O_CLOEXEC;
                let descriptor = with_file(path, || real::open(path, flags, 0));
                if descriptor < 0 {
                    return -1;
                }
                let file = OpenFile { class, flags: WRITABLE };
                let status = blocks::ftruncate(shim, descriptor, file, length);
                let error = errno();
                real::close(descriptor);
                set_errno(error);
                status
            }
            _ if view::refuses_change(libc::AT_FDCWD, path) => -1,
            _ => real::truncate(path, length),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn truncate64(path: *const c_char, length: off_t) -> c_int {
    // SAFETY: the same function.
    unsafe { truncate(path, length) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_fallocate(descriptor: c_int, offset: off_t, length: off_t) -> c_int {
    match ours_open(descriptor) {
        Some((shim, file)) if is_cached(file) => {
            blocks::posix_fallocate(shim, descriptor, file, offset, length)
        }
        // SAFETY: the caller keeps the contract of posix_fallocate(3).
        _ => unsafe { real::posix_fallocate(descriptor, offset, length) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_fallocate64(descriptor: c_int, offset: off_t, length: off_t) -> c_int {
    // SAFETY: the same function.
    unsafe { posix_fallocate(descriptor, offset, length) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_fadvise(
    descriptor: c_int,
    offset: off_t,
    length: off_t,
    advice: c_int,
) -> c_int {
    match ours_open(descriptor) {
        Some((shim, file)) if is_cached(file) => {
            if advice == libc::POSIX_FADV_WILLNEED {
                blocks::will_need(shim, descriptor, file, offset, length);
            }
            0
        }
        // SAFETY: the caller keeps the contract of posix_fadvise(2).
        _ => unsafe { real::posix_fadvise(descriptor, offset, length, advice) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_fadvise64(
    descriptor: c_int,
    offset: off_t,
    length: off_t,
    advice: c_int,
) -> c_int {
    // SAFETY: the same function.
    unsafe { posix_fadvise(descriptor, offset, length, advice) }
}
