//! The C functions this library replaces.
//!
//! Each looks its descriptor up in the table, or classifies its path, and passes everything that is not of ours
//! on to the C library's function. Names ending in `64` are the same on 64-bit systems; extensions use them.
//!
//! # Safety
//! Every function here has the contract of the C function of its name: it is called by code that believes to
//! call that one.
#![allow(clippy::missing_safety_doc)] // Said once, above.

use std::ffi::CStr;

use borealis_types::PAGE_SIZE;
use libc::{c_char, c_int, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t};

use crate::descriptors::{self, OpenFile, SYNCHRONOUS, WRITABLE};
use crate::real::{errno, set_errno};
use crate::shim::{self, Shim};
use crate::{blocks, bystander, materialise, real, tablespace, wal};
use borealis_shm::path::{FolderClass, PathClass};

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
        _ => path,
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
        set_errno(libc::ENOENT);
        return result;
    };
    match materialise::ensure(shim, path, class) {
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

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps the contract of open(2).
    unsafe {
        let Some((shim, name, class)) = ours(path) else {
            if bystander::refuses(libc::AT_FDCWD, path) {
                return -1;
            }
            let descriptor = real::open(real_path(path), flags, mode);
            // A stale entry would be one of a descriptor that was closed behind this library's back.
            descriptors::clear(descriptor);
            return descriptor;
        };
        // Before a file is created, storage has its say whether it exists already.
        if flags & libc::O_CREAT != 0
            && let Err(error) = materialise::ensure(shim, name, class)
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

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn read(descriptor: c_int, buffer: *mut c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller keeps the contract of read(2).
    unsafe {
        match ours_open(descriptor) {
            Some((shim, file)) if is_cached(file) => blocks::read(shim, descriptor, file, buffer, count),
            _ => real::read(descriptor, buffer, count),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pread(
    descriptor: c_int,
    buffer: *mut c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of pread(2).
    unsafe {
        match ours_open(descriptor) {
            Some((shim, file)) if is_cached(file) => {
                blocks::pread(shim, descriptor, file, buffer, count, offset)
            }
            _ => real::pread(descriptor, buffer, count, offset),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pread64(
    descriptor: c_int,
    buffer: *mut c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the same function.
    unsafe { pread(descriptor, buffer, count, offset) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn preadv(
    descriptor: c_int,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of preadv(2).
    unsafe {
        match ours_open(descriptor) {
            Some((shim, file)) if is_cached(file) => {
                blocks::preadv(shim, descriptor, file, vector, count, offset)
            }
            _ => real::preadv(descriptor, vector, count, offset),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn preadv64(
    descriptor: c_int,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the same function.
    unsafe { preadv(descriptor, vector, count, offset) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn write(descriptor: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the caller keeps the contract of write(2).
    unsafe {
        match ours_open(descriptor) {
            Some((shim, file)) if is_cached(file) => blocks::write(shim, descriptor, file, buffer, count),
            Some((shim, file)) => {
                let offset = libc::lseek(descriptor, 0, libc::SEEK_CUR);
                wal::write(shim, file, offset, || real::write(descriptor, buffer, count))
            }
            None => real::write(descriptor, buffer, count),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite(
    descriptor: c_int,
    buffer: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of pwrite(2).
    unsafe {
        match ours_open(descriptor) {
            Some((shim, file)) if is_cached(file) => {
                blocks::pwrite(shim, descriptor, file, buffer, count, offset)
            }
            Some((shim, file)) => {
                wal::write(shim, file, offset, || real::pwrite(descriptor, buffer, count, offset))
            }
            None => real::pwrite(descriptor, buffer, count, offset),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite64(
    descriptor: c_int,
    buffer: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the same function.
    unsafe { pwrite(descriptor, buffer, count, offset) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pwritev(
    descriptor: c_int,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of pwritev(2).
    unsafe {
        match ours_open(descriptor) {
            Some((shim, file)) if is_cached(file) => {
                blocks::pwritev(shim, descriptor, file, vector, count, offset)
            }
            Some((shim, file)) => {
                wal::write(shim, file, offset, || real::pwritev(descriptor, vector, count, offset))
            }
            None => real::pwritev(descriptor, vector, count, offset),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pwritev64(
    descriptor: c_int,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the same function.
    unsafe { pwritev(descriptor, vector, count, offset) }
}

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
            _ => real::truncate(path, length),
        }
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn truncate64(path: *const c_char, length: off_t) -> c_int {
    // SAFETY: the same function.
    unsafe { truncate(path, length) }
}

/// Each server process asks the kernel to be told of the postmaster's death by a signal that only sets a flag, and
/// looks at the flag when it next waits for input. A process that waits for a lock instead, held by one that
/// ended because the driver is gone, would wait for ever, and its client with it. An instance without its
/// postmaster is of no use to anyone, so the signal becomes the one that ends a server process at once.
///
/// The C declaration is variadic; on the processors Borealis runs on, integer arguments are passed alike.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn prctl(
    option: c_int,
    second: libc::c_ulong,
    third: libc::c_ulong,
    fourth: libc::c_ulong,
    fifth: libc::c_ulong,
) -> c_int {
    let second = match shim::get() {
        Some(_) if option == libc::PR_SET_PDEATHSIG && second != 0 => libc::SIGQUIT as libc::c_ulong,
        _ => second,
    };
    // SAFETY: the caller keeps the contract of prctl(2).
    unsafe { libc::syscall(libc::SYS_prctl, option, second, third, fourth, fifth) as c_int }
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

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn copy_file_range(
    source: c_int,
    source_offset: *mut off_t,
    target: c_int,
    target_offset: *mut off_t,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of copy_file_range(2).
    unsafe {
        if ours_open(source).is_none() && ours_open(target).is_none() {
            return real::copy_file_range(source, source_offset, target, target_offset, length, flags);
        }
        // The kernel would copy holes as zeros. A caller must be ready for a short copy.
        let mut buffer = [0u8; 4 * PAGE_SIZE];
        let wanted = length.min(buffer.len());
        let copied = if source_offset.is_null() {
            read(source, buffer.as_mut_ptr().cast(), wanted)
        } else {
            pread(source, buffer.as_mut_ptr().cast(), wanted, *source_offset)
        };
        let Ok(count) = usize::try_from(copied) else { return copied };
        let written = if target_offset.is_null() {
            write(target, buffer.as_ptr().cast(), count)
        } else {
            pwrite(target, buffer.as_ptr().cast(), count, *target_offset)
        };
        if written < 0 {
            return written;
        }
        if !source_offset.is_null() {
            *source_offset = (*source_offset).saturating_add(written as off_t);
        } else if written < copied {
            libc::lseek(source, (written - copied) as off_t, libc::SEEK_CUR);
        }
        if !target_offset.is_null() {
            *target_offset = (*target_offset).saturating_add(written as off_t);
        }
        written
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of unlink(2).
    unsafe { with_file(path, || real::unlink(path)) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn symlink(target: *const c_char, path: *const c_char) -> c_int {
    if let Some(shim) = shim::get()
        && !target.is_null()
        && !path.is_null()
    {
        // SAFETY: both are C strings, as symlink(2) wants.
        let (target, path) = unsafe { (CStr::from_ptr(target), CStr::from_ptr(path)) };
        if let Some(status) = tablespace::symlink(shim, target, path) {
            return status;
        }
    }
    // SAFETY: the caller keeps the contract of symlink(2).
    unsafe { libc::syscall(libc::SYS_symlink, target, path) as c_int }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of rename(2).
    unsafe { with_file(old, || real::rename(old, new)) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn link(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of link(2).
    unsafe { with_file(old, || real::link(old, new)) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn stat(path: *const c_char, result: *mut libc::stat) -> c_int {
    // SAFETY: the caller keeps the contract of stat(2).
    unsafe { with_file(path, || real::stat(real_path(path), result)) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn stat64(path: *const c_char, result: *mut libc::stat) -> c_int {
    // SAFETY: the same function; the structures are the same on 64-bit systems.
    unsafe { stat(path, result) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn lstat(path: *const c_char, result: *mut libc::stat) -> c_int {
    // SAFETY: the caller keeps the contract of lstat(2).
    unsafe { with_file(path, || real::lstat(real_path(path), result)) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn lstat64(path: *const c_char, result: *mut libc::stat) -> c_int {
    // SAFETY: the same function.
    unsafe { lstat(path, result) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of access(2).
    unsafe { with_file(path, || real::access(real_path(path), mode)) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn opendir(path: *const c_char) -> *mut libc::DIR {
    // SAFETY: the caller keeps the contract of opendir(3).
    unsafe {
        if let Some(shim) = shim::get()
            && !path.is_null()
        {
            let name = CStr::from_ptr(path);
            let class = shim.classify_folder(name);
            // The postmaster lists every database's folder when it starts, for temporary files left behind,
            // of which a new data directory has none.
            if class != FolderClass::Other
                && !shim.in_postmaster()
                && let Err(error) = materialise::ensure_folder(shim, name, class)
            {
                set_errno(error);
                return std::ptr::null_mut();
            }
        }
        real::opendir(path)
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: the caller keeps the contract of fopen(3).
    unsafe {
        if let Some((shim, _, class @ (PathClass::Relation { .. } | PathClass::Slru { .. }))) = ours(path) {
            // The stream reads inside the C library, unseen; so everything is fetched before.
            let flags = libc::O_RDWR | libc::O_CLOEXEC;
            let descriptor = with_file(path, || real::open(path, flags, 0));
            if descriptor >= 0 {
                let file = OpenFile { class, flags: WRITABLE };
                let filled = blocks::fill_all(shim, descriptor, file);
                real::close(descriptor);
                if let Err(error) = filled {
                    set_errno(error);
                    return std::ptr::null_mut();
                }
            }
        }
        if bystander::refuses(libc::AT_FDCWD, path) {
            return std::ptr::null_mut();
        }
        real::fopen(real_path(path), mode)
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: the same function.
    unsafe { fopen(path, mode) }
}

/// PostgreSQL reopens its own log only, which is an ordinary file.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn freopen(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut libc::FILE,
) -> *mut libc::FILE {
    // SAFETY: the caller keeps the contract of freopen(3).
    unsafe {
        if bystander::refuses(libc::AT_FDCWD, path) {
            // As freopen(3) does when it fails.
            libc::fclose(stream);
            return std::ptr::null_mut();
        }
        real::freopen(path, mode, stream)
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn freopen64(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut libc::FILE,
) -> *mut libc::FILE {
    // SAFETY: the same function.
    unsafe { freopen(path, mode, stream) }
}
