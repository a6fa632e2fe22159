//! Writing cached files, and changing their length, so that no hole is left that is not "still in storage".

use borealis_shm::path::PathClass;
use borealis_types::PAGE_SIZE;
use libc::{c_int, c_void, iovec, off_t, size_t, ssize_t};

use super::{PAGE, cached_block, file_size, is_absent, punch};
use crate::descriptors::OpenFile;
use crate::real::{self, Errno, errno, set_errno};
use crate::shim::Shim;

/// Notes for each block of a write how much log there is: what is dropped later must be in storage up to there.
/// (Not every change of a page raises its LSN.)
fn note_write(shim: &Shim, file: OpenFile, offset: i64, length: usize) {
    if !matches!(file.class, PathClass::Relation { .. }) || length == 0 {
        return;
    }
    let insert_lsn = shim.insert_lsn();
    let end = offset.saturating_add(i64::try_from(length).unwrap_or(i64::MAX));
    let mut block_offset = offset - offset.rem_euclid(PAGE);
    while block_offset < end {
        shim.client.cache().writing(cached_block(file, block_offset), insert_lsn);
        block_offset = block_offset.saturating_add(PAGE);
    }
}

/// Runs a write of `length` bytes at `offset` so that it leaves no hole and no half-written block behind, and says that
/// the blocks were written.
fn guarded_write(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    offset: i64,
    length: usize,
    write: impl FnOnce() -> ssize_t,
) -> ssize_t {
    let guard = shim.client.lock_for_write(&shim.slot, file.class.hash());
    if let Err(error) = write_gap(descriptor, offset) {
        drop(guard);
        set_errno(error);
        return -1;
    }
    note_write(shim, file, offset, length);
    let written = write();
    if let Ok(done) = usize::try_from(written)
        && done < length
    {
        let end = offset.saturating_add(done as i64);
        let block_offset = end - end.rem_euclid(PAGE);
        let error = errno();
        if block_offset < end && is_absent(descriptor, block_offset) {
            punch(descriptor, block_offset);
        }
        set_errno(error);
    }
    written
}

/// Writes zeros from the end of the file up to `offset`, if that lies behind it.
fn write_gap(descriptor: c_int, offset: i64) -> Result<(), Errno> {
    static ZEROS: [u8; 16 * PAGE_SIZE] = [0; 16 * PAGE_SIZE];
    let mut end = file_size(descriptor).ok_or_else(errno)?;
    while end < offset {
        let length = (offset - end).min(ZEROS.len() as i64);
        // SAFETY: the buffer is readable for the length given.
        let written = unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, ZEROS.as_ptr(), length, end) };
        match written {
            1.. => end += written,
            0 => return Err(libc::ENOSPC),
            _ if errno() == libc::EINTR => {}
            _ => return Err(errno()),
        }
    }
    Ok(())
}

/// `pwrite` on a cached file.
///
/// # Safety
/// `buffer` is readable for `count` bytes.
pub(crate) unsafe fn pwrite(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    buffer: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller's promise.
    let write = || unsafe { real::pwrite(descriptor, buffer, count, offset) };
    guarded_write(shim, descriptor, file, offset, count, write)
}

/// `pwritev` on a cached file.
///
/// # Safety
/// That of `pwritev`.
pub(crate) unsafe fn pwritev(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    let length = (0..usize::try_from(count).unwrap_or(0))
        // SAFETY: the caller's vector has `count` elements.
        .map(|index| unsafe { (*vector.add(index)).iov_len })
        .fold(0usize, usize::saturating_add);
    // SAFETY: the caller's promise.
    let write = || unsafe { real::pwritev(descriptor, vector, count, offset) };
    guarded_write(shim, descriptor, file, offset, length, write)
}

/// `write` on a cached file.
///
/// # Safety
/// `buffer` is readable for `count` bytes.
pub(crate) unsafe fn write(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    buffer: *const c_void,
    count: size_t,
) -> ssize_t {
    // SAFETY: no memory is involved.
    let offset = unsafe { libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_CUR) };
    // SAFETY: the caller's promise.
    let write = || unsafe { real::write(descriptor, buffer, count) };
    guarded_write(shim, descriptor, file, offset.max(0), count, write)
}

/// `ftruncate` on a cached file.
pub(crate) fn ftruncate(shim: &Shim, descriptor: c_int, file: OpenFile, length: off_t) -> c_int {
    let guard = shim.client.lock_for_write(&shim.slot, file.class.hash());
    let gap = write_gap(descriptor, length);
    // SAFETY: no memory is involved.
    let status = gap.map(|()| unsafe { real::ftruncate(descriptor, length) });
    drop(guard);
    status.unwrap_or_else(|error| {
        set_errno(error);
        -1
    })
}

/// `posix_fallocate` on a cached file: space that is allocated and never written would look absent, so zeros
/// are written. Returns an error number, as that function does.
pub(crate) fn posix_fallocate(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    offset: off_t,
    length: off_t,
) -> c_int {
    let Some(end) = offset.checked_add(length) else { return libc::EFBIG };
    let _guard = shim.client.lock_for_write(&shim.slot, file.class.hash());
    write_gap(descriptor, end).err().unwrap_or(0)
}
