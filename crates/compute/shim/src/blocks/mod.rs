//! Reading and writing cached files: relations and transaction-status stores.
//!
//! The file system's allocation map says which blocks are present. A block that PostgreSQL wrote, or that was
//! fetched before, is data; a hole inside the file's length is a block that is in storage alone, because nobody
//! read it yet or because the driver dropped it to make room. A hole reads as zeros, so only a page that begins
//! with zeros, or has a piece of the file system's size that is all zeros, needs a second look: no page PostgreSQL
//! initialised begins with 24 of them (`pd_upper` is never zero), and a page of real zeros was written and is
//! data.
//!
//! For that to hold nothing of ours may leave a hole that is not "still in storage":
//!
//! * A write beyond the end of the file leaves no gap: it is filled with zeros first, as data. (Hash indexes
//!   extend so.)
//! * The same for a file that is lengthened.
//! * A write that stopped half-way through an absent block, because memory ran out, is taken back.

#![allow(clippy::result_large_err)] // A boxed error would allocate inside PostgreSQL; the paths are cold.

mod read;
mod write;

use borealis_shm::CachedBlock;
use borealis_shm::path::PathClass;
use borealis_types::PAGE_SIZE;
use libc::c_int;

use crate::descriptors::OpenFile;
use crate::shim::Shim;

pub(crate) use read::{fill_all, pread, preadv, read, will_need};
pub(crate) use write::{ftruncate, posix_fallocate, pwrite, pwritev, write};

const PAGE: i64 = PAGE_SIZE as i64;

/// The file system allocates in pages of its own, of which a block has several.
const ALLOCATION: usize = 4096;

/// `lseek` without changing where the descriptor stands: `copydir` reads with `read`.
fn seek(descriptor: c_int, offset: i64, whence: c_int) -> Option<i64> {
    // SAFETY: no memory is involved.
    unsafe {
        let before = libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_CUR);
        let found = libc::syscall(libc::SYS_lseek, descriptor, offset, whence);
        if before >= 0 {
            libc::syscall(libc::SYS_lseek, descriptor, before, libc::SEEK_SET);
        }
        (found >= 0).then_some(found)
    }
}

/// Whether the block at this offset is (wholly or partly) a hole inside the file.
///
/// Asks for data, not for a hole: looking for a hole walks over all the data behind the offset, which takes
/// milliseconds in a file of some hundred MiB, while looking for data in data ends at once.
fn is_absent(descriptor: c_int, offset: i64) -> bool {
    // Beyond the end there is no block, so none is absent.
    if file_size(descriptor).is_none_or(|size| offset >= size) {
        return false;
    }
    let mut part = offset;
    while part < offset.saturating_add(PAGE) {
        if seek(descriptor, part, libc::SEEK_DATA) != Some(part) {
            return true;
        }
        part += ALLOCATION as i64;
    }
    false
}

fn file_size(descriptor: c_int) -> Option<i64> {
    // SAFETY: `stat` is plain data, for which zeros are valid; it is writable and outlives the call.
    unsafe {
        let mut result: libc::stat = std::mem::zeroed();
        (libc::fstat(descriptor, &mut result) == 0).then_some(result.st_size)
    }
}

/// Whether the file has lost its name: its relation was dropped while it was open.
fn is_unlinked(descriptor: c_int) -> bool {
    // SAFETY: as in `file_size`.
    unsafe {
        let mut result: libc::stat = std::mem::zeroed();
        libc::fstat(descriptor, &mut result) == 0 && result.st_nlink == 0
    }
}

fn cached_block(file: OpenFile, block_offset: i64) -> CachedBlock {
    CachedBlock {
        file_hash: file.class.hash(),
        block: u32::try_from(block_offset / PAGE).unwrap_or(u32::MAX),
    }
}

/// A block that was read lately stays in the cache when others are dropped.
fn note_use(shim: &Shim, file: OpenFile, block_offset: i64) {
    if matches!(file.class, PathClass::Relation { .. }) {
        shim.client.cache().using(cached_block(file, block_offset));
    }
}

/// Makes a block a hole again.
fn punch(descriptor: c_int, block_offset: i64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_fallocate, descriptor, mode, block_offset, PAGE) };
}
