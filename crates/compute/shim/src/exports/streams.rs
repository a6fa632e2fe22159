//! Streams of the C library, which read and write where this library does not see it.

use std::ffi::CStr;

use borealis_shm::path::PathClass;
use libc::c_char;

use super::{ours, real_path, with_file};
use crate::descriptors::{OpenFile, WRITABLE};
use crate::real::set_errno;
use crate::{blocks, bystander, kept_files, real, shim, view};

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
        let writes =
            !mode.is_null() && CStr::from_ptr(mode).to_bytes().iter().any(|byte| b"wa+".contains(byte));
        let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY };
        if let Some(opened) = view::open(libc::AT_FDCWD, path, flags) {
            return if opened < 0 { std::ptr::null_mut() } else { libc::fdopen(opened, mode) };
        }
        if bystander::refuses(libc::AT_FDCWD, path) {
            return std::ptr::null_mut();
        }
        if let Some(shim) = shim::get()
            && !path.is_null()
            && !writes
        {
            kept_files::settings_are_read(shim, CStr::from_ptr(path));
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
