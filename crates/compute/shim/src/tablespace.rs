//! User tablespaces.
//!
//! PostgreSQL makes `pg_tblspc/<oid>` a link to the user's folder, and relation files of the tablespace would go
//! to that folder's disk. Here they live in storage like all others, so a folder on the memory file system takes
//! the link's place; PostgreSQL accepts one ("in-place tablespace"). The user's folder stays empty.

use std::ffi::CStr;

use libc::c_int;

use crate::messages::Digits;
use crate::real::{errno, set_errno};
use crate::shim::Shim;

/// Longest path made here; PostgreSQL's own limit is 1024 bytes (`MAXPGPATH`).
const MAX_PATH: usize = 1024;

/// `symlink(target, path)` for a tablespace's link; `None` if `path` is no such link.
pub(crate) fn symlink(shim: &Shim, target: &CStr, path: &CStr) -> Option<c_int> {
    if !shim.is_tablespace_link(path) {
        return None;
    }
    let (major, catalog) = shim.client.versions();
    let (major, catalog) = (Digits::new(u64::from(major)), Digits::new(u64::from(catalog)));
    let version: [&[u8]; 4] = [b"/PG_", major.as_bytes(), b"_", catalog.as_bytes()];
    let status = make(&[path.to_bytes()]).and_then(|()| {
        let [a, b, c, d] = version;
        make(&[path.to_bytes(), a, b, c, d])
    });
    if let Err(error) = status {
        set_errno(error);
        return Some(-1);
    }
    // PostgreSQL has just made it there; left behind, it would make the folder look used.
    let [a, b, c, d] = version;
    if let Some(buffer) = join(&[target.to_bytes(), a, b, c, d]) {
        // SAFETY: the name ends with a zero byte. A raw call, because this library replaces some of the others.
        unsafe { libc::syscall(libc::SYS_rmdir, buffer.as_ptr()) };
    }
    Some(0)
}

fn make(parts: &[&[u8]]) -> Result<(), c_int> {
    let buffer = join(parts).ok_or(libc::ENAMETOOLONG)?;
    // SAFETY: the name ends with a zero byte.
    match unsafe { libc::syscall(libc::SYS_mkdir, buffer.as_ptr(), 0o700) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// The parts one after the other, with a zero byte.
fn join(parts: &[&[u8]]) -> Option<[u8; MAX_PATH]> {
    let mut buffer = [0; MAX_PATH];
    if parts.iter().map(|part| part.len()).sum::<usize>() >= MAX_PATH {
        return None;
    }
    for (place, &byte) in buffer.iter_mut().zip(parts.iter().copied().flatten()) {
        *place = byte;
    }
    Some(buffer)
}
