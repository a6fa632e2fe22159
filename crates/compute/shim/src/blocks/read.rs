//! Reading cached files: what is still in storage is fetched, and put into its file where that may be done.

use borealis_shm::RequestError;
use borealis_shm::path::PathClass;
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, BlockKey, Lsn, PAGE_HEADER_BYTES, PAGE_SIZE, PageBytes, SLRU_PAGES_PER_SEGMENT,
};
use libc::{c_int, c_void, iovec, off_t, size_t, ssize_t};

use super::{ALLOCATION, PAGE, cached_block, file_size, is_absent, is_unlinked, note_use, punch, seek};
use crate::descriptors::{self, OpenFile, WRITABLE};
use crate::messages::{Digits, report_file, report_request};
use crate::real::{self, Errno, errno, set_errno};
use crate::shim::Shim;

/// `pread` on a cached file.
///
/// # Safety
/// `buffer` is writable for `count` bytes.
pub(crate) unsafe fn pread(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    buffer: *mut c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller's promise.
    let read = unsafe { real::pread(descriptor, buffer, count, offset) };
    let Ok(length) = usize::try_from(read) else { return read };
    if length == 0 {
        return read;
    }
    // SAFETY: the call above initialised this many bytes of the caller's buffer.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    match complete(shim, descriptor, file, bytes, offset, count == PAGE_SIZE) {
        Ok(()) => read,
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}

/// `preadv` on a cached file, buffer by buffer.
///
/// # Safety
/// That of `preadv`.
pub(crate) unsafe fn preadv(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    let mut done: ssize_t = 0;
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the caller's vector has `count` elements, each a writable buffer of its length.
        let read = unsafe {
            let part = *vector.add(index);
            pread(shim, descriptor, file, part.iov_base, part.iov_len, offset.saturating_add(done as off_t))
                as i64
        };
        if read < 0 {
            return if done > 0 { done } else { -1 };
        }
        done = done.saturating_add(read as ssize_t);
        // SAFETY: as above.
        if read as usize != unsafe { (*vector.add(index)).iov_len } {
            break;
        }
    }
    done
}

/// `read` on a cached file.
///
/// # Safety
/// `buffer` is writable for `count` bytes.
pub(crate) unsafe fn read(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    buffer: *mut c_void,
    count: size_t,
) -> ssize_t {
    // SAFETY: no memory is involved.
    let offset = unsafe { libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_CUR) };
    // SAFETY: the caller's promise.
    let read = unsafe { real::read(descriptor, buffer, count) };
    let Ok(length) = usize::try_from(read) else { return read };
    if length == 0 || offset < 0 {
        return read;
    }
    // SAFETY: the call above initialised this many bytes of the caller's buffer.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    match complete(shim, descriptor, file, bytes, offset, false) {
        Ok(()) => read,
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}

/// Puts what is still in storage into bytes that were read at `offset`. A read of one whole block is
/// PostgreSQL filling a buffer, and fills the file too; others (base backups, copies) leave the file as it is.
fn complete(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    bytes: &mut [u8],
    offset: i64,
    may_fill: bool,
) -> Result<(), Errno> {
    let fill = may_fill && bytes.len() == PAGE_SIZE && offset % PAGE == 0;
    let mut position = 0;
    while position < bytes.len() {
        let at = offset.saturating_add(position as i64);
        let block_offset = at - at.rem_euclid(PAGE);
        let inside = (at - block_offset) as usize;
        let end = bytes.len().min(position + (PAGE_SIZE - inside));
        let Some(part) = bytes.get_mut(position..end) else { break };
        // A part may have zeros by right; the allocation map knows.
        if looks_absent(part, inside)
            && let Some(absent) = read_present(shim, descriptor, file, block_offset, inside, part)?
        {
            fetch(shim, descriptor, file, absent, inside, part, fill)?;
        }
        note_use(shim, file, block_offset);
        position = end;
    }
    Ok(())
}

/// Whether the bytes, which begin `inside` a page, may be of a block that is absent, or was while they were read:
/// they begin with zeros, or one of the block's pieces is all zeros. The file system copies, fills and drops such
/// pieces one by one, so a block that is dropped under a reader's eyes can look half present.
fn looks_absent(part: &[u8], inside: usize) -> bool {
    if part.iter().take(PAGE_HEADER_BYTES).all(|&byte| byte == 0) {
        return true;
    }
    let mut rest = part;
    let mut place = inside;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(ALLOCATION - place % ALLOCATION));
        // From the end, where a page that is in use has its first tuple or its special space.
        if piece.iter().rev().all(|&byte| byte == 0) {
            return true;
        }
        place += piece.len();
        rest = after;
    }
    false
}

/// A block that was found to be absent.
#[derive(Clone, Copy)]
struct Absent {
    block_offset: i64,
    /// Up to where the log reached when it was last written, at that moment.
    written_at: Lsn,
}

/// Reads a part of a block again while nobody can fill or drop it, unless it is absent. Fewer bytes are there only
/// when the file was cut meanwhile; then what the first read saw stands.
fn read_present(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    block_offset: i64,
    inside: usize,
    part: &mut [u8],
) -> Result<Option<Absent>, Errno> {
    let absent = || {
        // Before the look: a write after this moment, and a drop after the write, are noticed when the block is filled.
        let written_at = shim.client.cache().written_at(cached_block(file, block_offset));
        is_absent(descriptor, block_offset).then_some(Absent { block_offset, written_at })
    };
    // Without a lock at first, so that many readers of a cold table do not keep each other from filling it.
    if let Some(absent) = absent() {
        return Ok(Some(absent));
    }
    // Writers do not exclude each other; what they exclude is fillers, and who drops blocks.
    let _guard = shim.client.lock_for_write(&shim.slot, file.class.hash());
    if let Some(absent) = absent() {
        return Ok(Some(absent));
    }
    reread(descriptor, block_offset + inside as i64, part).map(|()| None)
}

fn reread(descriptor: c_int, offset: i64, part: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the slice is writable for its length.
    let read = unsafe { real::pread(descriptor, part.as_mut_ptr().cast(), part.len(), offset) };
    if read < 0 { Err(errno()) } else { Ok(()) }
}

/// Fetches an absent block and copies the wanted part of it.
fn fetch(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    absent: Absent,
    inside: usize,
    part: &mut [u8],
    fill: bool,
) -> Result<(), Errno> {
    let Absent { block_offset, written_at } = absent;
    let mut page: PageBytes = [0; PAGE_SIZE];
    let number = u32::try_from(block_offset / PAGE).map_err(|_| libc::EFBIG)?;
    let book = shim.client.cache();
    let block = cached_block(file, block_offset);
    if !request(shim, descriptor, file, number, &mut page).map_err(|error| describe(file, number, &error))? {
        // A relation that was dropped or cut while a backup reads it; anything else would be a lost block.
        if read_present(shim, descriptor, file, block_offset, inside, part)?.is_none() {
            return Ok(());
        }
        if is_unlinked(descriptor) {
            part.fill(0);
            return Ok(());
        }
        let digits = Digits::new(u64::from(number));
        let what = name(file);
        return Err(report_file(&[
            b"borealis: storage has no block ",
            digits.as_bytes(),
            b" of ",
            what.as_bytes(),
        ]));
    }

    // Between the look and here somebody may have filled or written the block; then the file is right and the
    // fetched page may be older.
    let guard = shim.client.lock_for_fill(&shim.slot, file.class.hash());
    if !is_absent(descriptor, block_offset) {
        return reread(descriptor, block_offset + inside as i64, part);
    }
    // Nor may it be filled with a page from before it was written and dropped again.
    let unwritten = book.written_at(block) == written_at;
    if fill && unwritten && file.flags & WRITABLE != 0 && !book.is_full() {
        // SAFETY: the buffer is readable for the length given.
        let written =
            unsafe { libc::syscall(libc::SYS_pwrite64, descriptor, page.as_ptr(), PAGE_SIZE, block_offset) };
        // No memory left: the block stays absent, and PostgreSQL has it in its buffer.
        if written == PAGE {
            book.grown();
            note_use(shim, file, block_offset);
        } else {
            punch(descriptor, block_offset);
        }
    }
    drop(guard);
    if let Some(wanted) = page.get(inside..inside + part.len()) {
        part.copy_from_slice(wanted);
    }
    Ok(())
}

fn request(
    shim: &Shim,
    descriptor: c_int,
    file: OpenFile,
    number: u32,
    page: &mut PageBytes,
) -> Result<bool, RequestError> {
    match file.class {
        PathClass::Relation { fork, segment } => {
            let first = segment.saturating_mul(BLOCKS_PER_SEGMENT_FILE);
            ask_ahead(shim, descriptor, file, number);
            let key = BlockKey { relation_fork: fork, block: first.saturating_add(number) };
            shim.client.read_block(&shim.slot, key, page)
        }
        PathClass::Slru { kind, segment } => {
            let first = segment.saturating_mul(SLRU_PAGES_PER_SEGMENT);
            shim.client.read_slru_page(&shim.slot, kind, first.saturating_add(number), page)
        }
        PathClass::Wal { .. } | PathClass::Other => Ok(false),
    }
}

/// PostgreSQL 15 leaves reading ahead of a sequential scan to the kernel; here the kernel has nothing to read.
fn ask_ahead(shim: &Shim, descriptor: c_int, file: OpenFile, number: u32) {
    let PathClass::Relation { fork, segment } = file.class else { return };
    let range = descriptors::look_ahead(descriptor, number);
    if range.is_empty() {
        return;
    }
    let Some(size) = file_size(descriptor) else { return };
    let next_data = seek(descriptor, i64::from(range.start) * PAGE, libc::SEEK_DATA).unwrap_or(size);
    let end = u32::try_from(next_data.min(size) / PAGE).unwrap_or(0).min(range.end);
    let first = segment.saturating_mul(BLOCKS_PER_SEGMENT_FILE);
    for block in range.start..end {
        let key = BlockKey { relation_fork: fork, block: first.saturating_add(block) };
        shim.client.prefetch(&shim.slot, key);
    }
}

/// PostgreSQL's own announcement of blocks it will read soon (`POSIX_FADV_WILLNEED`).
pub(crate) fn will_need(shim: &Shim, descriptor: c_int, file: OpenFile, offset: i64, length: i64) {
    /// One call announces one block in PostgreSQL; more would be a stranger's.
    const MAX_BLOCKS: u32 = 128;
    let PathClass::Relation { fork, segment } = file.class else { return };
    let (Ok(first), Ok(last)) =
        (u32::try_from(offset / PAGE), u32::try_from(offset.saturating_add(length).saturating_sub(1) / PAGE))
    else {
        return;
    };
    let base = segment.saturating_mul(BLOCKS_PER_SEGMENT_FILE);
    for block in (first..=last).take(MAX_BLOCKS as usize) {
        if is_absent(descriptor, i64::from(block) * PAGE) {
            let key = BlockKey { relation_fork: fork, block: base.saturating_add(block) };
            shim.client.prefetch(&shim.slot, key);
        }
    }
}

/// Fills every absent block, for a reader that this library does not see (`fopen`).
pub(crate) fn fill_all(shim: &Shim, descriptor: c_int, file: OpenFile) -> Result<(), Errno> {
    let blocks = file_size(descriptor).ok_or_else(errno)? / PAGE;
    let mut page: PageBytes = [0; PAGE_SIZE];
    for block in 0..blocks {
        let offset = block * PAGE;
        if let Some(absent) = read_present(shim, descriptor, file, offset, 0, &mut page)? {
            fetch(shim, descriptor, file, absent, 0, &mut page, true)?;
        }
    }
    Ok(())
}

/// The name a message gives to a file: `1663/5/16384_vm` or `pg_xact`.
struct Name {
    bytes: [u8; 64],
    used: usize,
}

impl Name {
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&[])
    }
}

fn name(file: OpenFile) -> Name {
    use std::io::Write;
    let mut bytes = [0; 64];
    let mut rest = bytes.as_mut_slice();
    // Longer than the buffer cannot be: three numbers of ten digits and a suffix.
    let _ = match file.class {
        PathClass::Relation { fork, .. } => write!(rest, "relation {fork}"),
        PathClass::Slru { kind, .. } => write!(rest, "{}", kind.folder()),
        PathClass::Wal { .. } | PathClass::Other => write!(rest, "a file"),
    };
    let used = 64 - rest.len();
    Name { bytes, used }
}

fn describe(file: OpenFile, number: u32, error: &RequestError) -> Errno {
    let mut text = [0u8; 96];
    let mut used = 0;
    let block = Digits::new(u64::from(number));
    let what = name(file);
    let parts: [&[u8]; 4] = [b"block ", block.as_bytes(), b" of ", what.as_bytes()];
    for (place, &byte) in text.iter_mut().zip(parts.into_iter().flatten()) {
        *place = byte;
        used += 1;
    }
    report_request(text.get(..used).unwrap_or(&[]), error)
}
