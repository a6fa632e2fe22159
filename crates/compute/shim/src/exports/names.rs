//! Files and folders by their names: looking, listing, removing, giving another name.

use std::ffi::CStr;

use borealis_shm::path::FolderClass;
use libc::{c_char, c_int, c_uint};

use super::{real_path, with_file};
use crate::real::set_errno;
use crate::{kept_files, local_file, real, replication, shim, tablespace, view};

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of unlink(2).
    unsafe {
        if view::refuses_change(libc::AT_FDCWD, path) { -1 } else { with_file(path, || real::unlink(path)) }
    }
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

/// `ALTER DATABASE … SET TABLESPACE` removes the old folder after its commit, and logs that in a transaction that nobody
/// waits for. A local folder is gone then, whatever becomes of the log; here the log is all there is, and without the
/// record the old folder would be back after a crash, whole, and in the way of the database's return.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of rmdir(2); a raw call, for nothing else needs the library's own.
    let status = unsafe { libc::syscall(libc::SYS_rmdir, path) as c_int };
    if status == 0
        && let Some(shim) = shim::get()
        // SAFETY: the call succeeded, so the path is a C string.
        && let FolderClass::Database(_) = shim.classify_folder(unsafe { CStr::from_ptr(path) })
    {
        shim.force_sync_commit();
    }
    status
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of rename(2).
    unsafe {
        if view::refuses_change(libc::AT_FDCWD, old) || view::refuses_change(libc::AT_FDCWD, new) {
            return -1;
        }
        if let Some(shim) = shim::get()
            && !old.is_null()
            && !new.is_null()
            && let Err(error) = kept_files::before_rename(shim, CStr::from_ptr(old), CStr::from_ptr(new))
        {
            set_errno(error);
            return -1;
        }
        with_file(old, || real::rename(old, new))
    }
}

/// PostgreSQL removes and renames by the functions above; `rm` and `mv` by these.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of unlinkat(2).
    unsafe {
        if view::refuses_change(folder, path) {
            return -1;
        }
        libc::syscall(libc::SYS_unlinkat, folder, path, flags) as c_int
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn renameat(
    old_folder: c_int,
    old: *const c_char,
    new_folder: c_int,
    new: *const c_char,
) -> c_int {
    // SAFETY: the same as renameat2 without flags.
    unsafe { renameat2(old_folder, old, new_folder, new, 0) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn renameat2(
    old_folder: c_int,
    old: *const c_char,
    new_folder: c_int,
    new: *const c_char,
    flags: c_uint,
) -> c_int {
    // SAFETY: the caller keeps the contract of renameat2(2).
    unsafe {
        if view::refuses_change(old_folder, old) || view::refuses_change(new_folder, new) {
            return -1;
        }
        libc::syscall(libc::SYS_renameat2, old_folder, old, new_folder, new, flags) as c_int
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn link(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of link(2).
    unsafe {
        if view::refuses_change(libc::AT_FDCWD, old) || view::refuses_change(libc::AT_FDCWD, new) {
            return -1;
        }
        with_file(old, || real::link(old, new))
    }
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
pub unsafe extern "C" fn fstat(descriptor: c_int, result: *mut libc::stat) -> c_int {
    // SAFETY: the caller keeps the contract of fstat(2), whose structure is the C library's on 64-bit systems.
    unsafe {
        let status = libc::syscall(libc::SYS_fstat, descriptor, result) as c_int;
        if status == 0 {
            view::show_original(descriptor, result);
        }
        status
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn fstat64(descriptor: c_int, result: *mut libc::stat) -> c_int {
    // SAFETY: the same function.
    unsafe { fstat(descriptor, result) }
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
            if replication::refuses_folder(name) {
                return std::ptr::null_mut();
            }
            let class = shim.classify_folder(name);
            // The postmaster lists every database's folder when it starts, for temporary files left behind,
            // of which a new data directory has none.
            if class != FolderClass::Other
                && !shim.in_postmaster()
                && let Err(error) = local_file::ensure_folder(shim, name, class)
            {
                set_errno(error);
                return std::ptr::null_mut();
            }
        }
        if !view::prepares_folder(path) {
            return std::ptr::null_mut();
        }
        real::opendir(path)
    }
}
