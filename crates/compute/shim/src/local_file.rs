//! Makes files that exist in storage exist in the data directory: sparse, of the right length, without content.
//!
//! Files are made nameless (`O_TMPFILE`) and linked into place when they are complete. So no half-made file is
//! ever visible, no stray name confuses a listing of the folder, and of two processes that make the same file
//! one wins and the other uses the winner's.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, BlockKey, DatabaseKey, Fork, PAGE_SIZE, RelationFork, RelationLocator, SlruKind,
};
use libc::{c_int, off_t};

use crate::messages::{Digits, report_file, report_request};
use crate::real::{Errno, errno};
use crate::shim::Shim;
use borealis_shm::path::{FolderClass, PathClass};

/// Longest path that is handled, with its zero byte.
const MAX_PATH: usize = 2048;

/// Whether the path exists in the data directory.
fn exists(path: &CStr) -> bool {
    // SAFETY: the path is a C string.
    unsafe { libc::syscall(libc::SYS_faccessat, libc::AT_FDCWD, path.as_ptr(), libc::F_OK) == 0 }
}

/// Makes the file exist locally if storage has it. `false` when neither has it.
///
/// # Errors
/// When storage cannot be asked, or the file cannot be made.
pub(crate) fn ensure(shim: &Shim, path: &CStr, class: PathClass) -> Result<bool, Errno> {
    match class {
        PathClass::Relation { .. } | PathClass::Slru { .. } if exists(path) => Ok(true),
        PathClass::Relation { fork, segment } => relation(shim, path, fork, segment),
        PathClass::Slru { kind, segment } => slru(shim, path, kind, segment),
        PathClass::Wal { .. } | PathClass::Other => Ok(false),
    }
}

fn relation(shim: &Shim, path: &CStr, fork: RelationFork, segment: u32) -> Result<bool, Errno> {
    if known_absent(fork, segment) {
        return Ok(false);
    }
    let size = shim
        .client
        .relation_size(&shim.slot, fork)
        .map_err(|error| report_request(path.to_bytes(), &error))?;
    // An unlogged relation's contents do not outlive the instance: what a new one has of it is its init
    // fork, of which the main fork is made, as PostgreSQL itself does after a crash.
    let made = match (size.has_init_fork, fork.fork) {
        (true, Fork::Main) if segment == 0 => return unlogged(shim, path, fork.locator),
        (true, Fork::Main | Fork::FreeSpaceMap | Fork::VisibilityMap) => None,
        _ => size.blocks.and_then(|blocks| segment_blocks(blocks, segment)),
    };
    match made {
        Some(blocks) => create(path, u64::from(blocks) * PAGE_SIZE as u64, |_| Ok(())),
        None => {
            remember_absent(fork, segment);
            // Without a main and an init fork there is no relation: the name is free, and PostgreSQL, which
            // is about to use it, will ask for the other forks in a moment.
            if fork.fork == Fork::Main && segment == 0 && !size.has_init_fork {
                for other in [Fork::FreeSpaceMap, Fork::VisibilityMap, Fork::Init] {
                    remember_absent(RelationFork { fork: other, ..fork }, 0);
                }
            }
            Ok(false)
        }
    }
}

/// Blocks in one segment file of a fork that has `blocks` in all; `None` when there is no such file. The first
/// one always exists.
fn segment_blocks(blocks: u32, segment: u32) -> Option<u32> {
    let start = segment.checked_mul(BLOCKS_PER_SEGMENT_FILE)?;
    if segment > 0 && blocks <= start {
        return None;
    }
    Some((blocks - start).min(BLOCKS_PER_SEGMENT_FILE))
}

/// Makes the main fork of an unlogged relation as a copy of its init fork.
fn unlogged(shim: &Shim, path: &CStr, locator: RelationLocator) -> Result<bool, Errno> {
    let init = RelationFork { locator, fork: Fork::Init };
    let report = |error| report_request(path.to_bytes(), &error);
    let size = shim.client.relation_size(&shim.slot, init).map_err(report)?;
    let blocks = size.blocks.unwrap_or(0).min(BLOCKS_PER_SEGMENT_FILE);
    create(path, 0, |descriptor| {
        let mut page = [0u8; PAGE_SIZE];
        for block in 0..blocks {
            let key = BlockKey { relation_fork: init, block };
            if !shim.client.read_block(&shim.slot, key, &mut page).map_err(report)? {
                return Err(report_file(&[b"borealis: the init fork is incomplete of ", path.to_bytes()]));
            }
            let offset = i64::from(block) * PAGE_SIZE as i64;
            // SAFETY: the buffer is readable for the length given.
            let written =
                unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, page.as_ptr(), PAGE_SIZE, offset) };
            if written != PAGE_SIZE as i64 {
                return Err(if written < 0 { errno() } else { libc::ENOSPC });
            }
        }
        Ok(())
    })
}

fn slru(shim: &Shim, path: &CStr, kind: SlruKind, segment: u32) -> Result<bool, Errno> {
    let pages = shim
        .client
        .slru_segment(&shim.slot, kind, segment)
        .map_err(|error| report_request(path.to_bytes(), &error))?;
    match pages {
        Some(pages) => create(path, u64::from(pages) * PAGE_SIZE as u64, |_| Ok(())),
        None => Ok(false),
    }
}

/// Makes a sparse file of `length_bytes`, lets `fill` write into it, and gives it its name. `false` when the
/// folder does not exist (the database was dropped here).
fn create(
    path: &CStr,
    length_bytes: u64,
    fill: impl FnOnce(c_int) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let mut folder = [0u8; MAX_PATH];
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|&byte| byte == b'/').ok_or(libc::ENOENT)?;
    let parent = bytes.get(..end).filter(|parent| !parent.is_empty()).ok_or(libc::ENOENT)?;
    folder.get_mut(..parent.len()).ok_or(libc::ENAMETOOLONG)?.copy_from_slice(parent);
    if parent.len() >= MAX_PATH {
        return Err(libc::ENAMETOOLONG);
    }

    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // Before the mask PostgreSQL sets, which leaves what it gives its own files.
    let mode = 0o666;
    // SAFETY: the folder's name ends with a zero byte. A raw call, because this library replaces `open`.
    let descriptor = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, folder.as_ptr(), flags, mode) };
    let descriptor = match c_int::try_from(descriptor) {
        Ok(descriptor) if descriptor >= 0 => descriptor,
        _ if errno() == libc::ENOENT => return Ok(false),
        _ => return Err(errno()),
    };
    let result = finish(descriptor, path, length_bytes, fill);
    // SAFETY: the descriptor was opened above and nobody else knows it.
    unsafe { libc::syscall(libc::SYS_close, descriptor) };
    result
}

fn finish(
    descriptor: c_int,
    path: &CStr,
    length_bytes: u64,
    fill: impl FnOnce(c_int) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let length = off_t::try_from(length_bytes).map_err(|_| libc::EFBIG)?;
    // SAFETY: no memory is involved.
    if length > 0 && unsafe { libc::syscall(libc::SYS_ftruncate, descriptor, length) } != 0 {
        return Err(errno());
    }
    fill(descriptor)?;

    let mut source = [0u8; 40];
    let number = Digits::new(u64::try_from(descriptor).unwrap_or(0));
    let text = b"/proc/self/fd/".iter().chain(number.as_bytes());
    for (place, &byte) in source.iter_mut().zip(text) {
        *place = byte;
    }
    let flags = libc::AT_SYMLINK_FOLLOW;
    // SAFETY: both paths end with a zero byte; the source's buffer is longer than any descriptor's name.
    let status = unsafe {
        libc::syscall(libc::SYS_linkat, libc::AT_FDCWD, source.as_ptr(), libc::AT_FDCWD, path.as_ptr(), flags)
    };
    match status {
        0 => Ok(true),
        _ => match errno() {
            // Another process was faster.
            libc::EEXIST => Ok(true),
            libc::ENOENT => Ok(false),
            error => Err(error),
        },
    }
}

/// Makes everything that storage has of a folder exist locally, before the folder is listed.
///
/// # Errors
/// When storage cannot be asked, or a file cannot be made.
pub(crate) fn ensure_folder(shim: &Shim, path: &CStr, class: FolderClass) -> Result<(), Errno> {
    match class {
        // A folder that is not there has no content; storage may still know a database that was dropped here.
        FolderClass::Database(_) | FolderClass::Slru(_) if !exists(path) => Ok(()),
        FolderClass::Database(database) => database_folder(shim, path, database),
        FolderClass::Slru(kind) => slru_folder(shim, path, kind),
        FolderClass::Other => Ok(()),
    }
}

fn database_folder(shim: &Shim, path: &CStr, database: DatabaseKey) -> Result<(), Errno> {
    let mut page = [0u8; PAGE_SIZE];
    let mut cursor = 0;
    loop {
        let (entries, next) = shim
            .client
            .list_relations(&shim.slot, database, cursor, &mut page)
            .map_err(|error| report_request(path.to_bytes(), &error))?;
        for entry in entries {
            let locator = RelationLocator {
                tablespace: database.tablespace,
                database: database.database,
                relation: entry.relation,
            };
            if entry.has_init_fork {
                if entry.fork == Fork::Init {
                    let init = RelationFork { locator, fork: Fork::Init };
                    in_folder(shim, path, init, 0, Some(entry.blocks))?;
                    in_folder(shim, path, RelationFork { locator, fork: Fork::Main }, 0, None)?;
                }
                continue;
            }
            let fork = RelationFork { locator, fork: entry.fork };
            let segments = entry.blocks.div_ceil(BLOCKS_PER_SEGMENT_FILE).max(1);
            for segment in 0..segments {
                in_folder(shim, path, fork, segment, Some(entry.blocks))?;
            }
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Makes one relation file of a folder; with its fork's size where that is known already.
fn in_folder(
    shim: &Shim,
    folder: &CStr,
    fork: RelationFork,
    segment: u32,
    blocks: Option<u32>,
) -> Result<(), Errno> {
    let mut path = [0u8; MAX_PATH];
    let relation = Digits::new(u64::from(fork.locator.relation));
    let number = Digits::new(u64::from(segment));
    let suffix = fork.fork.file_suffix().as_bytes();
    let (dot, number): (&[u8], &[u8]) = if segment == 0 { (b"", b"") } else { (b".", number.as_bytes()) };
    let path = join(&mut path, &[folder.to_bytes(), b"/", relation.as_bytes(), suffix, dot, number])?;
    if exists(path) {
        return Ok(());
    }
    match blocks.and_then(|blocks| segment_blocks(blocks, segment)) {
        Some(blocks) => create(path, u64::from(blocks) * PAGE_SIZE as u64, |_| Ok(())).map(|_| ()),
        None => self::relation(shim, path, fork, segment).map(|_| ()),
    }
}

fn slru_folder(shim: &Shim, path: &CStr, kind: SlruKind) -> Result<(), Errno> {
    let mut page = [0u8; PAGE_SIZE];
    let mut cursor = 0;
    loop {
        let (entries, next) = shim
            .client
            .list_slru_segments(&shim.slot, kind, cursor, &mut page)
            .map_err(|error| report_request(path.to_bytes(), &error))?;
        for entry in entries {
            // Four upper-case hexadecimal digits, more only when four are not enough.
            let digits: [u8; 6] = std::array::from_fn(|i| {
                let digit = entry.segment >> (20 - 4 * i as u32) & 0xF;
                b"0123456789ABCDEF".get(digit as usize).copied().unwrap_or(b'0')
            });
            let first = digits.iter().take(2).take_while(|&&digit| digit == b'0').count();
            let mut buffer = [0u8; MAX_PATH];
            let file = join(&mut buffer, &[path.to_bytes(), b"/", digits.get(first..).unwrap_or(&[])])?;
            if !exists(file) {
                create(file, u64::from(entry.pages) * PAGE_SIZE as u64, |_| Ok(()))?;
            }
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// The parts one after the other, with a zero byte.
fn join<'b>(buffer: &'b mut [u8; MAX_PATH], parts: &[&[u8]]) -> Result<&'b CStr, Errno> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    if length >= MAX_PATH {
        return Err(libc::ENAMETOOLONG);
    }
    for (place, &byte) in buffer.iter_mut().zip(parts.iter().copied().flatten().chain(b"\0")) {
        *place = byte;
    }
    CStr::from_bytes_until_nul(buffer).map_err(|_| libc::ENAMETOOLONG)
}

/// Files this process knows to be absent from storage.
///
/// That never changes: from then on such a file comes into being only through PostgreSQL, here, and then it
/// exists locally. A forgotten entry costs one more request. Each place holds the words of one file; the last
/// one, written last, is a check sum of the others, so that a half-written place is no match.
static ABSENT: [[AtomicU64; 3]; 1024] = [const { [const { AtomicU64::new(0) }; 3] }; 1024];
/// How many entries were made; zero says that the table need not be looked at.
static ABSENT_ENTRIES: AtomicU32 = AtomicU32::new(0);

fn absent_words(fork: RelationFork, segment: u32) -> [u64; 3] {
    let locator = fork.locator;
    let first = u64::from(locator.tablespace) << 32 | u64::from(locator.database);
    let second = u64::from(locator.relation) << 32 | u64::from(segment) << 2 | fork.fork as u64;
    // Never zero, so an unused place is no match.
    let check = PathClass::Relation { fork, segment }.hash() | 1;
    [first, second, check]
}

fn absent_place(words: [u64; 3]) -> &'static [AtomicU64; 3] {
    &ABSENT[(words[2] >> 20) as usize % ABSENT.len()]
}

fn known_absent(fork: RelationFork, segment: u32) -> bool {
    if ABSENT_ENTRIES.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let words = absent_words(fork, segment);
    absent_place(words).iter().zip(words).all(|(place, word)| place.load(Ordering::Relaxed) == word)
}

fn remember_absent(fork: RelationFork, segment: u32) {
    let words = absent_words(fork, segment);
    for (place, word) in absent_place(words).iter().zip(words) {
        place.store(word, Ordering::Relaxed);
    }
    ABSENT_ENTRIES.store(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(relation: u32, fork: Fork) -> RelationFork {
        RelationFork { locator: RelationLocator { tablespace: 1663, database: 5, relation }, fork }
    }

    #[test]
    fn a_fork_is_cut_into_segment_files() {
        assert_eq!(segment_blocks(0, 0), Some(0));
        assert_eq!(segment_blocks(0, 1), None);
        assert_eq!(segment_blocks(7, 0), Some(7));
        assert_eq!(segment_blocks(BLOCKS_PER_SEGMENT_FILE, 0), Some(BLOCKS_PER_SEGMENT_FILE));
        assert_eq!(segment_blocks(BLOCKS_PER_SEGMENT_FILE, 1), None);
        assert_eq!(segment_blocks(BLOCKS_PER_SEGMENT_FILE + 3, 1), Some(3));
        assert_eq!(segment_blocks(u32::MAX, u32::MAX), None);
    }

    #[test]
    fn absence_is_remembered_for_exactly_the_file_it_was_said_of() {
        let absent = fork(4_000_000_000, Fork::VisibilityMap);
        assert!(!known_absent(absent, 3));
        remember_absent(absent, 3);
        assert!(known_absent(absent, 3));
        assert!(!known_absent(absent, 4));
        assert!(!known_absent(fork(4_000_000_000, Fork::Main), 3));
        assert!(!known_absent(fork(4_000_000_001, Fork::VisibilityMap), 3));
    }
}
