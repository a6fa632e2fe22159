//! The functions behind the ones this library replaces.
//!
//! Looked up with `dlsym(RTLD_NEXT, …)`, so that other preloaded libraries stay in the chain. All are looked up
//! when the library is loaded; a call that comes even earlier looks its own up.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_char, c_int, c_void, iovec, mode_t, off_t, size_t, ssize_t};

/// An `errno` to fail with.
pub(crate) type Errno = c_int;

/// Sets this thread's `errno`.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: the location of this thread's errno is always writable.
    unsafe { *libc::__errno_location() = value };
}

/// The error of this thread's last failed call.
pub(crate) fn errno() -> c_int {
    // SAFETY: the location of this thread's errno is always readable.
    unsafe { *libc::__errno_location() }
}

fn find(cache: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = cache.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name is a C string; looking a symbol up has no other precondition.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    cache.store(found, Ordering::Relaxed);
    found
}

macro_rules! real_functions {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, or $failure:expr;)*) => {
        $(
            /// The C library's function of this name; `ENOSYS` if it has none.
            ///
            /// # Safety
            /// That of the C function.
            pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
                let found = find(&cache::$name, symbol::$name);
                if found.is_null() {
                    set_errno(libc::ENOSYS);
                    return $failure;
                }
                // SAFETY: the symbol is the C function of this name, which has these parameter types on the
                // 64-bit Linux platforms this library is built for (variadic arguments are passed like named
                // ones there). The caller keeps the function's own contract.
                unsafe {
                    let function: unsafe extern "C" fn($($type),*) -> $result = std::mem::transmute(found);
                    function($($argument),*)
                }
            }
        )*

        #[allow(non_upper_case_globals)]
        mod cache {
            use super::{AtomicPtr, c_void};
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());)*
        }

        #[allow(non_upper_case_globals)]
        mod symbol {
            use std::ffi::CStr;
            $(
                pub(super) const $name: &CStr =
                    match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("an identifier contains no zero byte"),
                    };
            )*
        }

        /// Looks every function up now, so that none is looked up inside a signal handler.
        pub(crate) fn find_all() {
            $(find(&cache::$name, symbol::$name);)*
        }
    };
}

real_functions! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, or -1;
    openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int, or -1;
    close(descriptor: c_int) -> c_int, or -1;
    dup(descriptor: c_int) -> c_int, or -1;
    dup2(old: c_int, new: c_int) -> c_int, or -1;
    read(descriptor: c_int, buffer: *mut c_void, count: size_t) -> ssize_t, or -1;
    write(descriptor: c_int, buffer: *const c_void, count: size_t) -> ssize_t, or -1;
    pread(descriptor: c_int, buffer: *mut c_void, count: size_t, offset: off_t) -> ssize_t, or -1;
    pwrite(descriptor: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t, or -1;
    preadv(descriptor: c_int, vector: *const iovec, count: c_int, offset: off_t) -> ssize_t, or -1;
    pwritev(descriptor: c_int, vector: *const iovec, count: c_int, offset: off_t) -> ssize_t, or -1;
    fsync(descriptor: c_int) -> c_int, or -1;
    fdatasync(descriptor: c_int) -> c_int, or -1;
    ftruncate(descriptor: c_int, length: off_t) -> c_int, or -1;
    truncate(path: *const c_char, length: off_t) -> c_int, or -1;
    unlink(path: *const c_char) -> c_int, or -1;
    rename(old: *const c_char, new: *const c_char) -> c_int, or -1;
    link(old: *const c_char, new: *const c_char) -> c_int, or -1;
    stat(path: *const c_char, result: *mut libc::stat) -> c_int, or -1;
    lstat(path: *const c_char, result: *mut libc::stat) -> c_int, or -1;
    access(path: *const c_char, mode: c_int) -> c_int, or -1;
    posix_fadvise(descriptor: c_int, offset: off_t, length: off_t, advice: c_int) -> c_int, or libc::ENOSYS;
    posix_fallocate(descriptor: c_int, offset: off_t, length: off_t) -> c_int, or libc::ENOSYS;
    sync_file_range(descriptor: c_int, offset: off_t, length: off_t, flags: libc::c_uint) -> c_int, or -1;
    copy_file_range(
        source: c_int, source_offset: *mut off_t, target: c_int, target_offset: *mut off_t,
        length: size_t, flags: libc::c_uint
    ) -> ssize_t, or -1;
    opendir(path: *const c_char) -> *mut libc::DIR, or std::ptr::null_mut();
    fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE, or std::ptr::null_mut();
    freopen(path: *const c_char, mode: *const c_char, stream: *mut libc::FILE) -> *mut libc::FILE, or std::ptr::null_mut();
}
