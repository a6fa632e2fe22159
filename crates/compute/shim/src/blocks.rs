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

use borealis_shm::{CachedBlock, RequestError};
use borealis_types::{
    BLOCKS_PER_SEGMENT_FILE, BlockKey, Lsn, PAGE_HEADER_BYTES, PAGE_SIZE, PageBytes, SLRU_PAGES_PER_SEGMENT,
};
use libc::{c_int, c_void, iovec, off_t, size_t, ssize_t};

use crate::descriptors::{self, OpenFile, WRITABLE};
use crate::materialise::Errno;
use crate::real::{self, errno, set_errno};
use crate::shim::{Digits, Shim, report_file, report_request};
use borealis_shm::path::PathClass;

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

/// Makes a block a hole again.
fn punch(descriptor: c_int, block_offset: i64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_fallocate, descriptor, mode, block_offset, PAGE) };
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
