//! Programs that the server starts and that are not `postgres`: a shell of `archive_command`, a program of `COPY`.
//!
//! They inherit the preloaded library. A cached file has holes where its blocks are still in storage, and such a
//! program would read them as zeros and believe them. It has no request slot and is no part of the server, so it is
//! not served but refused: opening a relation or a transaction-status file fails, and says why.
//!
//! What this library is not loaded into cannot be reached (static and set-user-id programs, `env -i`), nor can a file
//! be recognised that was given another name by a link or a rename.
//!
//! Nothing here allocates or needs much stack: `open` is called from signal handlers, too.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use borealis_shm::path::PathClass;
use borealis_shm::{MAX_PATH_BYTES, ServedDirectory};
use libc::{c_char, c_int};

use crate::messages::{Digits, may_say, say};
use crate::real::{errno, set_errno};

/// The longest path of a cached file: the data directory, and what is below it.
const CACHED_PATH_BYTES: usize = MAX_PATH_BYTES + 128;

struct Server {
    directory: ServedDirectory,
    /// The file system it is on: a look at a file's device settles most questions.
    device: libc::dev_t,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// From now on cached files of this server are refused to this program.
pub(crate) fn watch(directory: ServedDirectory) {
    let mut path = [0u8; MAX_PATH_BYTES + 1];
    let bytes = directory.data_directory();
    let Some(place) = path.get_mut(..bytes.len()) else { return };
    place.copy_from_slice(bytes);
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the path ends with a zero byte, and the structure is writable.
    let found = unsafe { crate::real::stat(path.as_ptr().cast(), status.as_mut_ptr()) };
    if found == 0 {
        // SAFETY: the call has filled it.
        let device = unsafe { status.assume_init() }.st_dev;
        // A second load in one process would find it set, which is as good.
        let _ = SERVER.set(Server { directory, device });
    }
}

/// Whether this program must not open the file; then `errno` is set.
///
/// # Safety
/// `path` is null or a C string, relative to `folder` as for `openat`.
pub(crate) unsafe fn refuses(folder: c_int, path: *const c_char) -> bool {
    let Some(server) = SERVER.get() else { return false };
    let before = errno();
    let mut buffer = [0u8; CACHED_PATH_BYTES];
    // SAFETY: the caller's promise.
    let refused = match unsafe { real_path(server, folder, path, &mut buffer) } {
        Some(real) if is_cached(server, real) => {
            if may_say() {
                say(&[
                    b"borealis: a program started by the server may not read ",
                    real,
                    b": parts of it are in storage only and would look like zeros. Ask the server with SQL.",
                ]);
            }
            true
        }
        _ => false,
    };
    set_errno(if refused { libc::EACCES } else { before });
    refused
}

fn is_cached(server: &Server, path: &[u8]) -> bool {
    matches!(server.directory.layout().classify(path), PathClass::Relation { .. } | PathClass::Slru { .. })
}

/// Where the file is that the name leads to, over all links, if it is on the server's file system.
///
/// # Safety
/// As [`refuses`].
unsafe fn real_path<'b>(
    server: &Server,
    folder: c_int,
    path: *const c_char,
    buffer: &'b mut [u8; CACHED_PATH_BYTES],
) -> Option<&'b [u8]> {
    if path.is_null() {
        return None;
    }
    // A descriptor for the file itself, which opens nothing.
    // SAFETY: the caller's promise. The raw call, because this library replaces `openat`.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_openat, folder, path, libc::O_PATH | libc::O_CLOEXEC, 0) };
    let descriptor = c_int::try_from(descriptor).ok().filter(|&descriptor| descriptor >= 0)?;
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the structure is writable; all zeros is a value of it, should the call fail.
    let device = unsafe {
        libc::fstat(descriptor, status.as_mut_ptr());
        status.assume_init().st_dev
    };
    let length = if device == server.device { link_target(descriptor, buffer) } else { None };
    // SAFETY: the descriptor was made above and nobody else knows it.
    unsafe { libc::syscall(libc::SYS_close, descriptor) };
    buffer.get(..length?)
}

/// Reads `/proc/self/fd/<descriptor>`; `None` if the path is too long for a cached file's.
fn link_target(descriptor: c_int, buffer: &mut [u8; CACHED_PATH_BYTES]) -> Option<usize> {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    let mut name = [0u8; 40];
    let digits = Digits::new(u64::try_from(descriptor).ok()?);
    name.get_mut(..PREFIX.len())?.copy_from_slice(PREFIX);
    name.get_mut(PREFIX.len()..PREFIX.len() + digits.as_bytes().len())?.copy_from_slice(digits.as_bytes());
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    // SAFETY: the name is a C string and the buffer is writable for the length given.
    let length = unsafe { libc::readlink(name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(length).ok().filter(|&length| length < buffer.len())
}
