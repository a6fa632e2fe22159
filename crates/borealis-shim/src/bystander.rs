//! Programs that the server starts and that are not `postgres`: a shell of `archive_command`, a program of `COPY`.
//!
//! They inherit the preloaded library. A cached file has holes where its blocks are still in storage, and such a
//! program would read them as zeros and believe them. It has no request slot and is no part of the server, so it is
//! not served but refused: opening a relation or a transaction-status file fails, and says why.
//!
//! What a program does that cannot be reached here (statically linked, set-user-id, reading through a mapping it
//! inherited) is beyond this library.

use std::ffi::CStr;
use std::sync::OnceLock;

use borealis_shm::ClientSide;
use borealis_shm::path::{Layout, PathClass};
use libc::{c_char, c_int};

use crate::real::set_errno;
use crate::shim::say;

static SERVER: OnceLock<ClientSide> = OnceLock::new();

/// From now on cached files of this server are refused to this program.
pub(crate) fn watch(server: ClientSide) {
    // A second load in one process would find it set, which is as good.
    let _ = SERVER.set(server);
}

/// Whether this program must not open the file; then `errno` is set.
///
/// # Safety
/// `path` is null or a C string, relative to `folder` as for `openat`.
pub(crate) unsafe fn refuses(folder: c_int, path: *const c_char) -> bool {
    let Some(server) = SERVER.get() else { return false };
    if path.is_null() {
        return false;
    }
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the caller's promise.
    let Some(real) = (unsafe { resolve(folder, CStr::from_ptr(path), &mut buffer) }) else { return false };
    if !is_cached(server, real.to_bytes()) {
        return false;
    }
    say(&[
        b"borealis: a program started by the server may not read ",
        real.to_bytes(),
        b": parts of it are in storage only and would look like zeros. Ask the server with SQL.",
    ]);
    set_errno(libc::EACCES);
    true
}

fn is_cached(server: &ClientSide, path: &[u8]) -> bool {
    let layout = Layout {
        data_directory: server.data_directory(),
        versions: server.versions(),
        wal_segment_size_bytes: server.wal_segment_size_bytes(),
    };
    matches!(layout.classify(path), PathClass::Relation { .. } | PathClass::Slru { .. })
}

/// The file's absolute path without links; `None` if it is not there.
fn resolve<'b>(
    folder: c_int,
    path: &CStr,
    buffer: &'b mut [u8; libc::PATH_MAX as usize],
) -> Option<&'b CStr> {
    let mut joined = [0u8; libc::PATH_MAX as usize];
    let path = if folder == libc::AT_FDCWD || path.to_bytes().starts_with(b"/") {
        path
    } else {
        let parts = [
            &b"/proc/self/fd/"[..],
            crate::shim::Digits::new(u64::try_from(folder).ok()?).as_bytes(),
            b"/",
            path.to_bytes(),
            b"\0",
        ]
        .concat();
        joined.get_mut(..parts.len())?.copy_from_slice(&parts);
        CStr::from_bytes_until_nul(&joined).ok()?
    };
    // SAFETY: the path is a C string and the buffer has room for the longest path.
    let found = unsafe { libc::realpath(path.as_ptr(), buffer.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    CStr::from_bytes_until_nul(buffer).ok()
}
