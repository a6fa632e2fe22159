//! Small files that outlive the server: their content goes into PostgreSQL's own log (see `borealis_types::kept_file`).
//!
//! * `ALTER SYSTEM` writes a temporary file and renames it. Before the rename, in the session's own process, the content is
//!   logged and the log is waited for. If that cannot be, nothing is renamed and the statement fails.
//! * What a person edits is noticed when the server reloads its settings, by the process that writes the log in the
//!   background: it reads the settings' files on every reload, as all do. What is no longer as it was is logged. Nobody
//!   waits for that.
//!
//! The file in the data directory is never newer than its value by more than a reload, and a value is never newer than
//! its file by more than a rename. A server that was fenced has log that nobody keeps, so it changes no value.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use borealis_types::kept_file::{KEPT_FILE_BYTES_MAX, KEPT_FILE_PREFIX, MESSAGE, MESSAGE_MANAGER};
use borealis_types::{KeptFile, PostgresVersion};
use libc::{c_char, c_int, c_void};

use crate::messages::{Digits, may_say, say};
use crate::real::{Errno, errno, set_errno};
use crate::shim::Shim;

/// Longest prefix of a message, with its zero byte.
const PREFIX_BYTES: usize = 64;
/// One byte more than a file may have says that it has too many.
const BUFFER_BYTES: usize = KEPT_FILE_BYTES_MAX + 1;

/// The files that a person edits. Not what `ALTER SYSTEM` writes: a content read before another session's would be logged
/// after it.
const EDITED: [KeptFile; 3] = [KeptFile::Authentication, KeptFile::UserMaps, KeptFile::Settings];

/// PostgreSQL's own functions and variables, by their names (`src/include/access/xloginsert.h`, `xlog.h`).
struct Log {
    begin: unsafe extern "C" fn(),
    register_data: unsafe extern "C" fn(data: *const c_char, length: c_int),
    insert: unsafe extern "C" fn(manager: u8, info: u8) -> u64,
    flush: unsafe extern "C" fn(position: u64),
    is_recovering: unsafe extern "C" fn() -> bool,
    /// `MyProc`: null in a process that has no place in PostgreSQL's shared memory, such as the postmaster.
    process: *const *const c_void,
    /// `MyAuxProcType`
    auxiliary_process: *const c_int,
}

// SAFETY: the pointers are to variables of the program, which live as long as the process and are set by its one thread.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

static LOG: OnceLock<Log> = OnceLock::new();

/// What the edited files' contents were when they were last looked at, as hashes. Children inherit what the postmaster saw
/// when it read its settings for the first time.
static SEEN: [AtomicU64; EDITED.len()] = [const { AtomicU64::new(0) }; EDITED.len()];
static HAS_SEEN: AtomicBool = AtomicBool::new(false);

/// The program's symbol, as whatever it is.
///
/// # Safety
/// `T` is a pointer to what the program has under this name.
unsafe fn symbol<T>(name: &CStr) -> Option<T> {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    // SAFETY: the name is a C string; looking a symbol up has no other precondition.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: the caller's promise; the sizes are the same.
    (!found.is_null()).then(|| unsafe { std::mem::transmute_copy(&found) })
}

/// From now on keeps files, in this process and its children. `None` if the program has not what that needs.
pub(crate) fn begin() -> Option<()> {
    // SAFETY: the program's functions and variables of these names have these types; a `bool` of C is one byte.
    let log = unsafe {
        Log {
            begin: symbol(c"XLogBeginInsert")?,
            register_data: symbol(c"XLogRegisterData")?,
            insert: symbol(c"XLogInsert")?,
            flush: symbol(c"XLogFlush")?,
            is_recovering: symbol(c"RecoveryInProgress")?,
            process: symbol(c"MyProc")?,
            auxiliary_process: symbol(c"MyAuxProcType")?,
        }
    };
    // A second load in one process would find it set, which is as good.
    let _ = LOG.set(log);
    Some(())
}

/// Before `old` becomes `new`: keeps the content if `new` is a file that the server writes and that outlives it.
///
/// # Errors
/// When it cannot be kept; then the rename must not happen.
pub(crate) fn before_rename(shim: &Shim, old: &CStr, new: &CStr) -> Result<(), Errno> {
    let Some(file @ KeptFile::SystemSettings) = shim.kept_file(new) else { return Ok(()) };
    let Some(log) = LOG.get().filter(|log| log.can_insert()) else { return Ok(()) };
    let content = Content::read(old)?;
    let bytes = content.within_bound().ok_or_else(|| say_too_long(file))?;
    log.keep(file, bytes);
    Ok(())
}

/// When a process opens a file of settings to read it: `postgresql.conf`, whenever settings are read, and what `ALTER SYSTEM` writes
/// after it, if it could be parsed. Looks whether a person has changed a file since the last time; `postgresql.conf` itself is
/// looked at only once it was parsed, the others also where it was not, for PostgreSQL then goes by them all the same.
pub(crate) fn settings_are_read(shim: &Shim, path: &CStr) {
    let is_due: fn(KeptFile) -> bool = match shim.kept_file(path) {
        Some(KeptFile::Settings) => |file| file != KeptFile::Settings,
        Some(KeptFile::SystemSettings) => |file| file == KeptFile::Settings,
        _ => return,
    };
    let Some(log) = LOG.get() else { return };
    let before = errno();
    if !HAS_SEEN.swap(true, Ordering::Relaxed) {
        for (file, seen) in EDITED.into_iter().zip(&SEEN) {
            if let Ok(content) = read_in(shim, file) {
                seen.store(hash(content.bytes()), Ordering::Relaxed);
            }
        }
    } else if log.is_wal_writer(shim) && log.can_insert() {
        for (file, seen) in EDITED.into_iter().zip(&SEEN).filter(|(file, _)| is_due(*file)) {
            look_at(shim, log, file, seen);
        }
    }
    set_errno(before);
}

fn look_at(shim: &Shim, log: &Log, file: KeptFile, seen: &AtomicU64) {
    // An editor may be about to put it back; the next reload sees it.
    let Ok(content) = read_in(shim, file) else { return };
    let now = hash(content.bytes());
    if seen.swap(now, Ordering::Relaxed) == now {
        return;
    }
    match content.within_bound() {
        Some(bytes) => {
            log.keep(file, bytes);
            if may_say() {
                say(&[b"borealis: kept ", file.name().as_bytes(), b" as it is now; it outlives this server"]);
            }
        }
        None => {
            say_too_long(file);
        }
    }
}

fn say_too_long(file: KeptFile) -> Errno {
    if may_say() {
        say(&[
            b"borealis: ",
            file.name().as_bytes(),
            b" is longer than ",
            Digits::new(KEPT_FILE_BYTES_MAX as u64).as_bytes(),
            b" bytes and is not kept; the next start of the instance has what was kept before. Make it shorter",
        ]);
    }
    libc::EFBIG
}

fn read_in(shim: &Shim, file: KeptFile) -> Result<Content, Errno> {
    let mut path = [0u8; crate::path_buffer::PATH_BYTES];
    let parts = [shim.client.data_directory(), b"/", file.name().as_bytes(), b"\0"];
    for (place, &byte) in path.iter_mut().zip(parts.into_iter().flatten()) {
        *place = byte;
    }
    Content::read(CStr::from_bytes_until_nul(&path).map_err(|_| libc::ENAMETOOLONG)?)
}

/// FNV-1a with 64 bits, enough to notice an edit.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

impl Log {
    /// Whether this process may write log now.
    fn can_insert(&self) -> bool {
        // SAFETY: a variable of the program, which its only thread changes; the function needs the shared memory that a
        // process with a place in it is attached to.
        unsafe { !self.process.read_volatile().is_null() && !(self.is_recovering)() }
    }

    fn is_wal_writer(&self, shim: &Shim) -> bool {
        let Some(version) = PostgresVersion::of_number(shim.client.versions().0) else { return false };
        // SAFETY: a variable of the program, which its only thread changes.
        unsafe { self.auxiliary_process.read_volatile() == version.facts().wal_writer_process }
    }

    /// Writes the content into the log and waits until it is durable.
    ///
    /// Should PostgreSQL report an error in here, it leaves this function by a long jump; nothing of ours is pending but
    /// the memory of the content.
    fn keep(&self, file: KeptFile, content: &[u8]) {
        let mut prefix = [0u8; PREFIX_BYTES];
        let parts = [KEPT_FILE_PREFIX.as_bytes(), file.name().as_bytes(), b"\0"];
        let prefix_bytes: usize = parts.iter().map(|part| part.len()).sum();
        for (place, &byte) in prefix.iter_mut().zip(parts.into_iter().flatten()) {
            *place = byte;
        }
        let header = file.message_header(content.len());
        // SAFETY: PostgreSQL's own way to write a record, in a process that may. The three parts are readable for their
        // lengths, each below 2^31, until the record is inserted; it copies them.
        unsafe {
            (self.begin)();
            (self.register_data)(header.as_ptr().cast(), header.len() as c_int);
            (self.register_data)(prefix.as_ptr().cast(), prefix_bytes.min(PREFIX_BYTES) as c_int);
            if !content.is_empty() {
                (self.register_data)(content.as_ptr().cast(), content.len() as c_int);
            }
            let end = (self.insert)(MESSAGE_MANAGER, MESSAGE);
            (self.flush)(end);
        }
    }
}

/// A file's content, in memory of its own: PostgreSQL's processes must not allocate in here.
struct Content {
    memory: *mut c_void,
    length: usize,
}

impl Content {
    /// Reads a file, up to one byte more than can be kept.
    fn read(path: &CStr) -> Result<Content, Errno> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the path is a C string. Raw calls, because this library replaces `open`, `read` and `close`; nobody else
        // knows the descriptor.
        unsafe {
            let descriptor = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0);
            if descriptor < 0 {
                return Err(errno());
            }
            let content = Content::read_from(descriptor);
            libc::syscall(libc::SYS_close, descriptor);
            content
        }
    }

    /// # Safety
    /// The descriptor is open.
    unsafe fn read_from(descriptor: libc::c_long) -> Result<Content, Errno> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, of nothing.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), BUFFER_BYTES, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(errno());
        }
        let mut content = Content { memory, length: 0 };
        while content.length < BUFFER_BYTES {
            // SAFETY: the rest of the mapping is writable.
            let read = unsafe {
                let rest = memory.cast::<u8>().add(content.length);
                libc::syscall(libc::SYS_read, descriptor, rest, BUFFER_BYTES - content.length)
            };
            match usize::try_from(read) {
                Ok(0) => break,
                Ok(bytes) => content.length += bytes,
                Err(_) if errno() == libc::EINTR => {}
                Err(_) => return Err(errno()),
            }
        }
        Ok(content)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has at least so many bytes, and nobody else knows it.
        unsafe { std::slice::from_raw_parts(self.memory.cast(), self.length) }
    }

    /// The content if it may be kept.
    fn within_bound(&self) -> Option<&[u8]> {
        Some(self.bytes()).filter(|bytes| bytes.len() <= KEPT_FILE_BYTES_MAX)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `read_from`, and nothing refers to it any more.
        unsafe { libc::munmap(self.memory, BUFFER_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_room_for_every_name() {
        for file in KeptFile::ALL {
            assert!(KEPT_FILE_PREFIX.len() + file.name().len() < PREFIX_BYTES, "{file:?}");
        }
    }

    #[test]
    fn a_file_is_kept_up_to_its_bound() {
        let folder = std::env::temp_dir().join(format!("borealis-kept-{}", std::process::id()));
        let name = std::ffi::CString::new(folder.to_str().expect("text")).expect("a name");
        let within = |bytes: usize| {
            std::fs::write(&folder, vec![b'#'; bytes]).expect("written");
            let content = Content::read(&name).expect("read");
            content.within_bound().map(<[u8]>::len)
        };
        for bytes in [0, 1, KEPT_FILE_BYTES_MAX] {
            assert_eq!(within(bytes), Some(bytes));
        }
        assert_eq!(within(KEPT_FILE_BYTES_MAX + 1), None);
        assert_eq!(within(2 * KEPT_FILE_BYTES_MAX), None);
        std::fs::remove_file(&folder).expect("removed");
        assert_eq!(Content::read(&name).err(), Some(libc::ENOENT));
        assert_ne!(hash(b"a"), hash(b"b"));
    }
}
