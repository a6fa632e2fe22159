//! The write-ahead log: real files on a memory file system, whose writes are published and whose syncs wait.
//!
//! `pwrite` puts the bytes into the file and tells the driver. `fdatasync` waits until the driver says that
//! everything written before the call is durable in storage. Signals do not end the wait: a commit is either
//! reported after it is durable, or never reported.

use libc::{c_int, off_t, ssize_t};

use crate::descriptors::{OpenFile, SYNCHRONOUS};
use crate::messages::report_wait;
use crate::real::set_errno;
use crate::shim::Shim;
use borealis_shm::path::PathClass;

/// Runs a write to a WAL segment at `offset` and publishes it.
///
/// While too much log is on its way the write waits first: PostgreSQL must not run away from storage.
pub(crate) fn write(shim: &Shim, file: OpenFile, offset: off_t, write: impl FnOnce() -> ssize_t) -> ssize_t {
    let PathClass::Wal { segment_number } = file.class else { return write() };
    if let Err(error) = shim.client.wait_for_log_space() {
        set_errno(report_wait(&error));
        return -1;
    }
    let written = write();
    let (Ok(bytes), Ok(offset)) = (u64::try_from(written), u64::try_from(offset)) else { return written };
    if bytes == 0 {
        return written;
    }
    let start = segment_number.saturating_mul(shim.client.wal_segment_size_bytes());
    shim.client.wal_wrote(start.saturating_add(offset).saturating_add(bytes));
    // With wal_sync_method = open_datasync or open_sync nobody calls fdatasync.
    if file.flags & SYNCHRONOUS != 0 && sync(shim) != 0 {
        return -1;
    }
    written
}

/// Waits until everything written before is durable: zero, or -1 with `errno` set, upon which PostgreSQL
/// panics.
pub(crate) fn sync(shim: &Shim) -> c_int {
    match shim.client.wait_durable(shim.client.wal_sequence()) {
        Ok(()) => 0,
        Err(error) => {
            set_errno(report_wait(&error));
            -1
        }
    }
}
