//! Checks that a folder's file system can be the local page cache.
//!
//! Which blocks of a cached file are present is the file system's own allocation map: a block that was never
//! written is a hole, one that was is data, even when it is all zeros. That holds on `tmpfs` with pages of
//! 4 KiB. It does not hold where a write allocates more than it was given (`tmpfs` mounted with `huge=`), where
//! zeros are not stored, or where `SEEK_DATA` is only a guess.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use borealis_types::PAGE_SIZE;

/// The folder cannot hold a data directory.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The file system refused an operation that the cache needs.
    #[error("{action} in {}: {source}", directory.display())]
    System {
        /// The operation, for the message.
        action: &'static str,
        /// The folder that was to hold the data directory.
        directory: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file system works differently from what the cache relies on.
    #[error(
        "{} cannot hold the instance's data directory: {problem}; use a tmpfs mounted without huge pages, such as /dev/shm",
        directory.display()
    )]
    Unsuitable {
        /// The folder that was to hold the data directory.
        directory: PathBuf,
        /// The property that does not hold, in words.
        problem: &'static str,
    },
}

const PAGE: u64 = PAGE_SIZE as u64;

/// Proves, on a nameless file in `directory`, everything the local page cache relies on.
///
/// # Errors
/// When the file system is unsuitable or an operation fails.
pub fn probe_memory_file_system(directory: &Path) -> Result<(), ProbeError> {
    let system = |action: &'static str| {
        move |source| ProbeError::System { action, directory: directory.to_owned(), source }
    };
    let require = |holds: bool, problem: &'static str| {
        holds.then_some(()).ok_or_else(|| ProbeError::Unsuitable { directory: directory.to_owned(), problem })
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
        .map_err(system("creating a nameless file"))?;
    // Long enough for a huge page to show.
    let blocks = 1024u64;
    file.set_len(blocks * PAGE).map_err(system("making a sparse file"))?;
    require(first_data(&file, 0).is_none(), "a sparse file is not one hole")?;

    let mut page = [0xA5u8; PAGE_SIZE];
    file.read_exact_at(&mut page, 3 * PAGE).map_err(system("reading a hole"))?;
    require(page == [0; PAGE_SIZE], "a hole does not read as zeros")?;
    require(first_data(&file, 0).is_none(), "reading a hole fills it")?;

    file.write_all_at(&[0; PAGE_SIZE], 5 * PAGE).map_err(system("writing zeros"))?;
    require(first_data(&file, 0) == Some(5 * PAGE), "a written block of zeros does not count as data")?;
    require(first_hole(&file, 5 * PAGE) == Some(6 * PAGE), "writing a block allocates its neighbours")?;
    require(first_data(&file, 6 * PAGE).is_none(), "writing a block allocates its neighbours")?;

    file.set_len(5 * PAGE).map_err(system("shortening a file"))?;
    file.set_len(blocks * PAGE).map_err(system("making a sparse file"))?;
    require(first_data(&file, 0).is_none(), "a shortened file keeps its data when it grows again")?;

    file.write_all_at(&[1; PAGE_SIZE], 7 * PAGE).map_err(system("writing a block"))?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open; no memory is involved.
    let status =
        unsafe { libc::fallocate(file.as_raw_fd(), mode, (7 * PAGE) as libc::off_t, PAGE as libc::off_t) };
    require(status == 0 && first_data(&file, 0).is_none(), "a block cannot be made a hole again")
}

/// Offset of the first data at or after `offset`; `None` when there is only a hole.
fn first_data(file: &File, offset: u64) -> Option<u64> {
    seek(file, offset, libc::SEEK_DATA)
}

/// Offset of the first hole at or after `offset`; the end of the file counts.
fn first_hole(file: &File, offset: u64) -> Option<u64> {
    seek(file, offset, libc::SEEK_HOLE)
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> Option<u64> {
    let offset = libc::off_t::try_from(offset).ok()?;
    // SAFETY: the descriptor is open; no memory is involved.
    u64::try_from(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }).ok()
}
