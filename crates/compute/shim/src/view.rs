//! A program of an operator's that sees the server's files as the server does (`borealis exec`), and changes none.
//!
//! It is not part of the server, and nothing is known of it: it may map a file, look for its holes, or read it inside the
//! C library. So a cached file is not opened for it. It gets a copy instead, in memory, with everything that was still in
//! storage, of the moment of the opening. PostgreSQL's control file is found where PostgreSQL expects it, and a folder
//! lists all files that storage knows. Opening a file of the data directory for writing, removing it or giving it another
//! name fails: the server runs on it.
//!
//! Names are understood as the program gives them: absolute, or relative to its working directory or to an open folder,
//! links apart. What a link leads to is refused by [`crate::bystander`] instead of served.
//!
//! Programs have threads, and the place in the shared memory is a process's: one file is fetched at a time.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use borealis_shm::path::{FolderClass, PathClass, WAKE_PIPE_NAME};
use borealis_shm::{ClientSide, ServedDirectory};
use borealis_types::PAGE_SIZE;
use libc::{c_char, c_int};

use crate::descriptors::OpenFile;
use crate::messages::{Digits, may_say, say};
use crate::path_buffer::PathBuffer;
use crate::real::{self, Errno, errno, set_errno};
use crate::shim::Shim;
use crate::{blocks, bystander, local_file};

/// The longest name, with its zero byte.
const PATH_BYTES: usize = 4096;
/// Read at once; no single page, which would be put into the cache.
const CHUNK_BYTES: usize = 4 * PAGE_SIZE;

struct View {
    shim: Shim,
    /// The pipe that wakes the driver, and which file it is: the program may close it and open another.
    wake: RawFd,
    wake_file: (libc::dev_t, libc::ino_t),
    /// Held while a file is fetched.
    fetching: Mutex<()>,
}

static VIEW: OnceLock<View> = OnceLock::new();

type Name = [u8; PATH_BYTES];

/// Gives this program the view. `None` when it cannot have it, and then it must not run: it would take holes for zeros.
pub(crate) fn begin(shared_memory: &CStr, fingerprint: u64) -> Option<()> {
    let served = ServedDirectory::read(shared_memory, fingerprint)?;
    let pipe = PathBuffer::beside(served.data_directory(), WAKE_PIPE_NAME)?;
    bystander::watch(served);
    let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string. The raw call, because this library replaces `open`.
    let wake = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, pipe.as_c_str().as_ptr(), flags, 0) };
    let wake = RawFd::try_from(wake).ok().filter(|&wake| wake >= 0)?;
    let wake_file = file_of(wake)?;
    let client = ClientSide::attach(shared_memory, wake, fingerprint).ok()?;
    let shim = Shim::of_a_view(client)?;
    // A second load in one process would find it set, which is as good.
    let _ = VIEW.set(View { shim, wake, wake_file, fetching: Mutex::new(()) });
    Some(())
}

/// Gives the process's request slot back.
pub(crate) fn end() {
    if let Some(view) = VIEW.get() {
        view.shim.client.release_slot(&view.shim.slot);
    }
}

fn file_of(descriptor: RawFd) -> Option<(libc::dev_t, libc::ino_t)> {
    // SAFETY: `stat` is plain data, for which zeros are valid; it is writable and outlives the call.
    unsafe {
        let mut result: libc::stat = std::mem::zeroed();
        (libc::fstat(descriptor, &mut result) == 0).then_some((result.st_dev, result.st_ino))
    }
}

/// Opens a file as the view has it. `None` when the program may open it itself.
///
/// # Safety
/// `path` is null or a C string, relative to `folder` as for `openat`.
pub(crate) unsafe fn open(folder: c_int, path: *const c_char, flags: c_int) -> Option<c_int> {
    let view = VIEW.get()?;
    let mut buffer: Name = [0; PATH_BYTES];
    // SAFETY: the caller's promise.
    let name = unsafe { view.place(folder, path, &mut buffer)? };
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    if writes {
        view.refuse_change(name);
        return Some(-1);
    }
    let real = view.shim.real_path(name);
    if real != name {
        // SAFETY: the name is a C string.
        return Some(unsafe { real::open(real.as_ptr(), flags, 0) });
    }
    let opened = match view.shim.classify(name) {
        class @ (PathClass::Relation { .. } | PathClass::Slru { .. }) => view.copy(name, class, flags),
        _ => view.list(name).err().map(Err)?,
    };
    Some(opened.unwrap_or_else(|error| {
        set_errno(error);
        -1
    }))
}

/// Before a folder is listed, makes everything that storage has of it exist. `false` when that failed; `errno` is set.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn prepares_folder(path: *const c_char) -> bool {
    let Some(view) = VIEW.get() else { return true };
    let mut buffer: Name = [0; PATH_BYTES];
    // SAFETY: the caller's promise.
    let Some(name) = (unsafe { view.place(libc::AT_FDCWD, path, &mut buffer) }) else { return true };
    view.list(name).map_err(set_errno).is_ok()
}

/// Whether the program would change a file of the data directory; then `errno` is set.
///
/// # Safety
/// `path` is null or a C string, relative to `folder` as for `openat`.
pub(crate) unsafe fn refuses_change(folder: c_int, path: *const c_char) -> bool {
    let Some(view) = VIEW.get() else { return false };
    let mut buffer: Name = [0; PATH_BYTES];
    // SAFETY: the caller's promise.
    match unsafe { view.place(folder, path, &mut buffer) } {
        Some(name) => {
            view.refuse_change(name);
            true
        }
        None => false,
    }
}

/// The control file's real place, if the path is its name in the data directory.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn control_file(path: *const c_char) -> Option<*const c_char> {
    let view = VIEW.get()?;
    let mut buffer: Name = [0; PATH_BYTES];
    // SAFETY: the caller's promise.
    let name = unsafe { view.place(libc::AT_FDCWD, path, &mut buffer)? };
    let real = view.shim.real_path(name);
    (real != name).then_some(real.as_ptr())
}

/// Makes a file that storage has and that is not there yet; whether it is there now.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn makes(path: *const c_char) -> bool {
    let Some(view) = VIEW.get() else { return false };
    let mut buffer: Name = [0; PATH_BYTES];
    // SAFETY: the caller's promise.
    let Some(name) = (unsafe { view.place(libc::AT_FDCWD, path, &mut buffer) }) else { return false };
    let made = view.fetch().and_then(|_held| local_file::ensure(&view.shim, name, view.shim.classify(name)));
    made == Ok(true)
}

impl View {
    /// The absolute name of a file of the data directory; `None` for every other.
    ///
    /// # Safety
    /// `path` is null or a C string.
    unsafe fn place<'b>(&self, folder: c_int, path: *const c_char, buffer: &'b mut Name) -> Option<&'b CStr> {
        if path.is_null() {
            return None;
        }
        let before = errno();
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(path) }.to_bytes();
        let base = match path.first() {
            Some(b'/') => Some(0),
            _ if folder == libc::AT_FDCWD => working_directory(buffer),
            _ => folder_name(folder, buffer),
        };
        set_errno(before);
        let length = append(buffer, base?, path)?;
        let name = buffer.get(..length)?;
        let rest = name.strip_prefix(self.shim.client.data_directory())?;
        if !rest.is_empty() && rest.first() != Some(&b'/') {
            return None;
        }
        CStr::from_bytes_until_nul(buffer).ok()
    }

    /// Fetches for one thread at a time, with the pipe that wakes the driver.
    fn fetch(&self) -> Result<MutexGuard<'_, ()>, Errno> {
        if file_of(self.wake) != Some(self.wake_file) {
            if may_say() {
                say(&[b"borealis: the program has closed a descriptor of the view that `borealis exec` gave it; ",
                    b"the server's files cannot be read any more"]);
            }
            return Err(libc::EBADF);
        }
        // What it guards is in the shared memory and is made anew by each request.
        Ok(self.fetching.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse_change(&self, name: &CStr) {
        if may_say() {
            say(&[b"borealis: `borealis exec` shows the server's files and changes none: ", name.to_bytes()]);
        }
        set_errno(libc::EROFS);
    }

    fn list(&self, name: &CStr) -> Result<(), Errno> {
        match self.shim.classify_folder(name) {
            FolderClass::Other => Ok(()),
            class => {
                let _held = self.fetch()?;
                local_file::ensure_folder(&self.shim, name, class)
            }
        }
    }

    /// A descriptor of a copy of the file, for reading.
    fn copy(&self, name: &CStr, class: PathClass, flags: c_int) -> Result<c_int, Errno> {
        let _held = self.fetch()?;
        if !local_file::ensure(&self.shim, name, class)? {
            return Err(libc::ENOENT);
        }
        // SAFETY: the name is a C string; the descriptors are this function's own until they are closed.
        unsafe {
            let source = real::open(name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0);
            if source < 0 {
                return Err(errno());
            }
            let mut buffer = [0; COPY_NAME_BYTES];
            let copy = match file_of(source).and_then(|file| copy_name(file, &mut buffer)) {
                Some(name) => libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC),
                None => -1,
            };
            if copy < 0 {
                let error = errno();
                real::close(source);
                return Err(error);
            }
            let result = fill(&self.shim, source, OpenFile { class, flags: 0 }, copy)
                .and_then(|()| read_only(copy, flags & libc::O_CLOEXEC));
            real::close(source);
            real::close(copy);
            result
        }
    }
}

/// What a copy is called, before the file that it is a copy of.
const COPY_NAME: &[u8] = b"borealis-view-";
/// Room for a copy's name, with two numbers, and for what the kernel puts around it.
const COPY_NAME_BYTES: usize = 96;

/// The name of a copy of a file: it says which file that is, to every program that inherits the descriptor.
fn copy_name(
    (device, inode): (libc::dev_t, libc::ino_t),
    buffer: &mut [u8; COPY_NAME_BYTES],
) -> Option<&CStr> {
    let (device, inode) = (Digits::new(device), Digits::new(inode));
    let text = COPY_NAME.iter().chain(device.as_bytes()).chain(b"-").chain(inode.as_bytes());
    buffer.fill(0);
    for (place, &byte) in buffer.iter_mut().zip(text) {
        *place = byte;
    }
    CStr::from_bytes_until_nul(buffer).ok()
}

/// Which file it is a copy of, from a copy's name as the kernel tells it.
fn original_in(link: &[u8]) -> Option<(libc::dev_t, libc::ino_t)> {
    let name = link.strip_prefix(b"/memfd:")?.strip_prefix(COPY_NAME)?;
    let mut numbers = name.strip_suffix(b" (deleted)").unwrap_or(name).split(|&byte| byte == b'-');
    let mut number = || std::str::from_utf8(numbers.next()?).ok()?.parse().ok();
    Some((number()?, number()?))
}

/// Shows a copy as the file that it is a copy of: programs compare what they have opened with what they looked for (`cp`).
///
/// # Safety
/// `result` is what `fstat` has written for the descriptor.
pub(crate) unsafe fn show_original(descriptor: c_int, result: *mut libc::stat) {
    // SAFETY: the caller's promise.
    let is_file = unsafe { (*result).st_mode & libc::S_IFMT == libc::S_IFREG };
    if VIEW.get().is_none() || !is_file {
        return;
    }
    let before = errno();
    let (mut name, mut link) = ([0u8; 40], [0u8; COPY_NAME_BYTES]);
    if let Some(name) = descriptor_name(descriptor, &mut name) {
        // SAFETY: the name is a C string and the buffer is writable for its length.
        let length = unsafe { libc::readlink(name.as_ptr(), link.as_mut_ptr().cast(), link.len()) };
        let link = usize::try_from(length).ok().and_then(|length| link.get(..length));
        if let Some((device, inode)) = link.and_then(original_in) {
            // SAFETY: the caller's promise.
            unsafe { ((*result).st_dev, (*result).st_ino) = (device, inode) };
        }
    }
    set_errno(before);
}

/// Copies the file, with what is still in storage.
///
/// # Safety
/// Both descriptors are open.
unsafe fn fill(shim: &Shim, source: c_int, file: OpenFile, copy: c_int) -> Result<(), Errno> {
    let mut chunk = [0u8; CHUNK_BYTES];
    let mut offset: i64 = 0;
    loop {
        // SAFETY: the buffer is writable for its length.
        let read =
            unsafe { blocks::pread(shim, source, file, chunk.as_mut_ptr().cast(), chunk.len(), offset) };
        let length = usize::try_from(read).map_err(|_| errno())?;
        if length == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is readable for the length, which the call above returned.
        let written = unsafe { real::pwrite(copy, chunk.as_ptr().cast(), length, offset) };
        if written != read {
            return Err(if written < 0 { errno() } else { libc::ENOSPC });
        }
        offset += read as i64;
    }
}

/// Another descriptor of the same file, from its beginning, that cannot write.
fn read_only(descriptor: c_int, close_on_exec: c_int) -> Result<c_int, Errno> {
    let mut buffer = [0u8; 40];
    let name = descriptor_name(descriptor, &mut buffer).ok_or(libc::EBADF)?;
    // SAFETY: the name is a C string.
    let opened = unsafe { real::open(name.as_ptr(), libc::O_RDONLY | close_on_exec, 0) };
    if opened < 0 { Err(errno()) } else { Ok(opened) }
}

/// `/proc/self/fd/<descriptor>`.
fn descriptor_name(descriptor: c_int, buffer: &mut [u8; 40]) -> Option<&CStr> {
    let number = Digits::new(u64::try_from(descriptor).ok()?);
    let text = b"/proc/self/fd/".iter().chain(number.as_bytes());
    buffer.fill(0);
    for (place, &byte) in buffer.iter_mut().zip(text) {
        *place = byte;
    }
    CStr::from_bytes_until_nul(buffer).ok()
}

/// Where an open folder is, into the buffer; its length.
fn folder_name(folder: c_int, buffer: &mut Name) -> Option<usize> {
    let mut name = [0u8; 40];
    let name = descriptor_name(folder, &mut name)?;
    // SAFETY: the name is a C string and the buffer is writable for its length.
    let length = unsafe { libc::readlink(name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(length).ok().filter(|&length| length < buffer.len())
}

/// The working directory, into the buffer; its length.
fn working_directory(buffer: &mut Name) -> Option<usize> {
    // SAFETY: the buffer is writable for its length.
    let found = unsafe { libc::getcwd(buffer.as_mut_ptr().cast(), buffer.len()) };
    if found.is_null() { None } else { buffer.iter().position(|&byte| byte == 0) }
}

/// Appends a path's parts to the first `length` bytes, which are an absolute name, without `.` and `..`, and ends it with
/// a zero byte; its length.
fn append(buffer: &mut Name, length: usize, path: &[u8]) -> Option<usize> {
    let mut used = if buffer.get(..length)? == b"/" { 0 } else { length };
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => used = buffer.get(..used)?.iter().rposition(|&byte| byte == b'/').unwrap_or(0),
            part => {
                let end = used + 1 + part.len();
                *buffer.get_mut(used)? = b'/';
                buffer.get_mut(used + 1..end)?.copy_from_slice(part);
                used = end;
            }
        }
    }
    *buffer.get_mut(used)? = 0;
    Some(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &str, path: &str) -> String {
        let mut buffer: Name = [0; PATH_BYTES];
        buffer[..base.len()].copy_from_slice(base.as_bytes());
        let length = append(&mut buffer, base.len(), path.as_bytes()).expect("it fits");
        assert_eq!(buffer[length], 0);
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    }

    #[test]
    fn a_copy_is_known_by_its_name() {
        let mut buffer = [0; COPY_NAME_BYTES];
        for file in [(25, 4711), (0, 0), (u64::MAX, u64::MAX)] {
            let name = copy_name(file, &mut buffer).expect("room").to_str().expect("text").to_owned();
            let link = format!("/memfd:{name} (deleted)");
            assert!(link.len() < COPY_NAME_BYTES);
            assert_eq!(original_in(link.as_bytes()), Some(file));
        }
        for other in
            ["/memfd:borealis-shim (deleted)", "/memfd:borealis-view-1 (deleted)", "/tmp/borealis-view-1-2"]
        {
            assert_eq!(original_in(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_name_is_absolute_and_plain() {
        assert_eq!(joined("", "/dev//shm/./b/../c"), "/dev/shm/c");
        assert_eq!(joined("/data/base", "5/1259"), "/data/base/5/1259");
        assert_eq!(joined("/data/base", "../global/pg_control"), "/data/global/pg_control");
        assert_eq!(joined("/", "data"), "/data");
        assert_eq!(joined("/a", "../../.."), "");
        let mut buffer: Name = [0; PATH_BYTES];
        assert!(append(&mut buffer, 0, &[b'x'; PATH_BYTES]).is_none(), "no room for the zero byte");
    }
}
