//! Reading and writing through a descriptor.

use borealis_types::PAGE_SIZE;
use libc::{c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};

use super::{is_cached, ours_open};
use crate::{blocks, real, wal};

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
