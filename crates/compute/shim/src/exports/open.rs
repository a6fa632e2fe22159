//! Opening, copying and closing descriptors.

use borealis_shm::path::PathClass;
use libc::{c_char, c_int, mode_t};

use super::{ours, real_path, with_file};
use crate::descriptors::{self, OpenFile, SYNCHRONOUS, WRITABLE};
use crate::real::set_errno;
use crate::{bystander, local_file, real, replication, view};

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps the contract of open(2).
    unsafe {
        let Some((shim, name, class)) = ours(path) else {
            if let Some(opened) = view::open(libc::AT_FDCWD, path, flags) {
                return opened;
            }
            if bystander::refuses(libc::AT_FDCWD, path) {
                return -1;
            }
            let descriptor = real::open(real_path(path), flags, mode);
            // A stale entry would be one of a descriptor that was closed behind this library's back.
            descriptors::clear(descriptor);
            return descriptor;
        };
        // Only for reading: a process that sends log also writes some, and a write that fails is the server's end.
        let reads_log = matches!(class, PathClass::Wal { .. }) && flags & libc::O_ACCMODE == libc::O_RDONLY;
        if reads_log && replication::refuses_log() {
            return -1;
        }
        // Before a file is created, storage has its say whether it exists already.
        if flags & libc::O_CREAT != 0
            && let Err(error) = local_file::ensure(shim, name, class)
        {
            set_errno(error);
            return -1;
        }
        let descriptor = with_file(path, || real::open(path, flags, mode));
        remember(descriptor, class, flags)
    }
}

/// Enters a newly opened descriptor into the table.
fn remember(descriptor: c_int, class: PathClass, flags: c_int) -> c_int {
    if descriptor < 0 {
        return descriptor;
    }
    let writable = if flags & libc::O_ACCMODE == libc::O_RDONLY { 0 } else { WRITABLE };
    let synchronous = if flags & (libc::O_DSYNC | libc::O_SYNC) == 0 { 0 } else { SYNCHRONOUS };
    if descriptors::set(descriptor, OpenFile { class, flags: writable | synchronous }) {
        return descriptor;
    }
    // A file of ours that the table does not know would be read and written as if it were an ordinary one.
    // SAFETY: the descriptor was opened a moment ago and the caller does not know it.
    unsafe { real::close(descriptor) };
    set_errno(libc::EMFILE);
    -1
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the same function.
    unsafe { open(path, flags, mode) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps the contract of openat(2).
    unsafe {
        if folder == libc::AT_FDCWD {
            return open(path, flags, mode);
        }
        if let Some(opened) = view::open(folder, path, flags) {
            return opened;
        }
        if bystander::refuses(folder, path) {
            return -1;
        }
        let descriptor = real::openat(folder, path, flags, mode);
        descriptors::clear(descriptor);
        descriptor
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the same function.
    unsafe { openat(folder, path, flags, mode) }
}

/// What a program calls for `open` that was compiled with `_FORTIFY_SOURCE`; it cannot create a file.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract, without a mode.
    unsafe { open(path, flags, 0) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract, without a mode.
    unsafe { open(path, flags, 0) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __openat_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract, without a mode.
    unsafe { openat(folder, path, flags, 0) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __openat64_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract, without a mode.
    unsafe { openat(folder, path, flags, 0) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same by definition.
    unsafe { open(path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn creat64(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same by definition.
    unsafe { creat(path, mode) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    descriptors::clear(descriptor);
    // SAFETY: the caller keeps the contract of close(2).
    unsafe { real::close(descriptor) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn dup(descriptor: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of dup(2).
    copied(descriptor, unsafe { real::dup(descriptor) })
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of dup2(2).
    let result = unsafe { real::dup2(old, new) };
    if old == new { result } else { copied(old, result) }
}

/// Gives a copy of a descriptor the same entry.
fn copied(old: c_int, new: c_int) -> c_int {
    if new >= 0 {
        match descriptors::get(old) {
            None => descriptors::clear(new),
            Some(file) => {
                if !descriptors::set(new, file) {
                    // SAFETY: the copy was made a moment ago and the caller does not know it.
                    unsafe { real::close(new) };
                    set_errno(libc::EMFILE);
                    return -1;
                }
            }
        }
    }
    new
}
