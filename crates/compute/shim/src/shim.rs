//! The library's state inside one process.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use borealis_shm::path::{CONTROL_FILE_NAME, FolderClass, Layout, PathClass};
use borealis_shm::{AttachError, ClientSide, ClientSlot, ServedDirectory, ShimMark};
use libc::c_int;

use crate::bystander;
use crate::messages::say;

/// Everything a call needs. Made once, when the library is loaded; inherited by every child.
pub(crate) struct Shim {
    pub client: ClientSide,
    pub slot: ClientSlot,
    control_file: PathBuffer,
    /// PostgreSQL's variable `PostmasterPid`: the postmaster's process number, in it and in its children;
    /// zero in a stand-alone server. Never null.
    postmaster_pid: *const c_int,
    insert_position: Option<InsertPosition>,
    /// PostgreSQL's function `ForceSyncCommit`.
    force_sync_commit: Option<unsafe extern "C" fn()>,
}

/// PostgreSQL's function `GetXLogInsertRecPtr`: where the next record of the log will be inserted.
type InsertPosition = unsafe extern "C" fn() -> u64;

// SAFETY: the pointer is to a variable of the program, which lives as long as the process; PostgreSQL sets it
// once, before it has children.
unsafe impl Send for Shim {}
// SAFETY: as above.
unsafe impl Sync for Shim {}

static SHIM: OnceLock<Shim> = OnceLock::new();

/// Which build this library is of: the driver looks for it in the file.
#[used]
static MARK: ShimMark = ShimMark::of_this_build();

/// Longest path this library makes up, with its zero byte.
const PATH_BYTES: usize = 4096;

/// A path made at loading: PostgreSQL's processes must not allocate in here.
pub(crate) struct PathBuffer([u8; PATH_BYTES]);

impl PathBuffer {
    /// The file of this name beside the folder; `None` if that is too long.
    fn beside(folder: &[u8], name: &str) -> Option<PathBuffer> {
        let parent = folder.get(..=folder.iter().rposition(|&byte| byte == b'/')?)?;
        let mut buffer = PathBuffer([0; PATH_BYTES]);
        let end = parent.len() + name.len();
        buffer.0.get_mut(..parent.len())?.copy_from_slice(parent);
        buffer.0.get_mut(parent.len()..end)?.copy_from_slice(name.as_bytes());
        (end < PATH_BYTES).then_some(buffer)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// The state; `None` in a process this library has no business in.
#[inline]
pub(crate) fn get() -> Option<&'static Shim> {
    SHIM.get()
}

impl Shim {
    fn layout(&self) -> Layout<'_> {
        Layout {
            data_directory: self.client.data_directory(),
            versions: self.client.versions(),
            wal_segment_size_bytes: self.client.wal_segment_size_bytes(),
        }
    }

    /// Whether this process is the postmaster.
    pub(crate) fn in_postmaster(&self) -> bool {
        // SAFETY: the program's `int` of this name; nobody changes it while this thread reads it.
        let postmaster = unsafe { self.postmaster_pid.read_volatile() };
        u32::try_from(postmaster) == Ok(std::process::id())
    }

    /// Where PostgreSQL's log ends now, written or not. Call it only in a process that has attached to
    /// PostgreSQL's shared memory, as every process that writes relation blocks has.
    ///
    /// Beyond all log when the program does not export its function: then nothing it writes counts as durable,
    /// and the cache keeps it.
    pub(crate) fn insert_lsn(&self) -> u64 {
        match self.insert_position {
            // SAFETY: the program's function of this name, which takes nothing, returns an `XLogRecPtr`, and needs
            // the shared memory the caller is attached to. It holds a spin lock for two loads and calls nobody.
            Some(function) if !self.in_postmaster() => unsafe { function() },
            _ => u64::MAX,
        }
    }

    /// Makes this process wait for the log at the end of its transaction, whatever the transaction did.
    pub(crate) fn force_sync_commit(&self) {
        if let Some(function) = self.force_sync_commit {
            // SAFETY: the program's function of this name sets a variable of its process, which the next transaction's
            // start resets; it takes nothing, returns nothing and calls nobody.
            unsafe { function() }
        }
    }

    pub(crate) fn classify(&self, path: &CStr) -> PathClass {
        self.layout().classify(path.to_bytes())
    }

    /// Where a file really is: PostgreSQL's control file stands outside the data directory, so that a server without
    /// this library does not find it ([`borealis_shm::path::control_file`]).
    pub(crate) fn real_path<'a>(&'a self, path: &'a CStr) -> &'a CStr {
        if self.layout().is_control_file(path.to_bytes()) { self.control_file.as_c_str() } else { path }
    }

    pub(crate) fn is_tablespace_link(&self, path: &CStr) -> bool {
        self.layout().is_tablespace_link(path.to_bytes())
    }

    pub(crate) fn classify_folder(&self, path: &CStr) -> FolderClass {
        self.layout().classify_folder(path.to_bytes())
    }
}

/// Copies an environment variable into `buffer`, with its zero byte. PostgreSQL writes its process title over
/// the memory `getenv` points into.
fn copy_environment<'b>(name: &CStr, buffer: &'b mut [u8]) -> Option<&'b CStr> {
    // SAFETY: the name is a C string, and this runs before the program's own code, so nobody changes the
    // environment meanwhile. The result is a C string.
    let value = unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value)
    };
    let bytes = value.to_bytes_with_nul();
    buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
    CStr::from_bytes_until_nul(buffer).ok()
}

/// PostgreSQL's variable `PostmasterPid`, which its server program exports for extensions; null in every other
/// program, such as the shell of an `archive_command`, which inherits the preloaded library. The program's name would
/// not tell: some distributions rename it.
fn postmaster_pid() -> *const c_int {
    // SAFETY: the name is a C string; looking a symbol up has no other precondition.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"PostmasterPid".as_ptr()).cast() }
}

/// Decides whether the library is active in this process, and prepares it.
///
/// A `postgres` that was told to use the shared memory and cannot must not run: it would acknowledge commits
/// that nothing keeps.
pub(crate) fn load() {
    let mut buffer = [0u8; PATH_BYTES];
    let Some(path) = copy_environment(c"BOREALIS_SHM", &mut buffer) else { return };
    let postmaster_pid = postmaster_pid();
    if postmaster_pid.is_null() {
        if let Some(served) = ServedDirectory::read(path, MARK.fingerprint()) {
            bystander::watch(served);
        }
        return;
    }
    let mut number = [0u8; 32];
    let event_fd = copy_environment(c"BOREALIS_EVENT_FD", &mut number)
        .and_then(|text| text.to_str().ok())
        .and_then(|text| text.parse::<RawFd>().ok());
    let attached = event_fd.ok_or(AttachError::Unusable).and_then(|event_fd| {
        // The shell of an archive_command needs no share in it.
        // SAFETY: no memory is involved; a descriptor that is not open is an error, which is caught.
        let status = unsafe { libc::fcntl(event_fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        if status != 0 {
            return Err(AttachError::Unusable);
        }
        ClientSide::attach(path, event_fd, MARK.fingerprint())
    });
    let client = match attached {
        Ok(client) => client,
        Err(error) => refuse_to_run(path, error),
    };
    let Some(control_file) = PathBuffer::beside(client.data_directory(), CONTROL_FILE_NAME) else {
        refuse_to_run(path, AttachError::Unusable)
    };
    let mut program = [0u8; PATH_BYTES];
    let (identity, path) = own_program(&mut program);
    client.announce_shim(identity, path);
    // SAFETY: the name is a C string; looking a symbol up has no other precondition.
    let insert_position = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GetXLogInsertRecPtr".as_ptr()) };
    // SAFETY: the program's function of this name has this type in every version (`access/xlog.h`); a null pointer
    // becomes `None`.
    let insert_position =
        unsafe { std::mem::transmute::<*mut libc::c_void, Option<InsertPosition>>(insert_position) };
    // SAFETY: the name is a C string; looking a symbol up has no other precondition.
    let force_sync_commit = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"ForceSyncCommit".as_ptr()) };
    // SAFETY: the program's function of this name has this type in every version (`access/xact.h`); a null pointer
    // becomes `None`.
    let force_sync_commit = unsafe {
        std::mem::transmute::<*mut libc::c_void, Option<unsafe extern "C" fn()>>(force_sync_commit)
    };
    let slot = ClientSlot::new();
    let shim = Shim { client, slot, control_file, postmaster_pid, insert_position, force_sync_commit };
    // A second load in one process would find it set, which is as good.
    let _ = SHIM.set(shim);
}

/// The file this process executes, as [`borealis_shm::ShimReport`] has it, and its path. Zeros and nothing where the
/// system does not say.
fn own_program(buffer: &mut [u8; PATH_BYTES]) -> ([u64; 5], &[u8]) {
    const LINK: &CStr = c"/proc/self/exe";
    // SAFETY: all zeros is a value of the structure.
    let mut status = unsafe { std::mem::zeroed::<libc::stat>() };
    // SAFETY: the path is a C string, the structure and the buffer are writable for their lengths.
    let length = unsafe {
        if crate::real::stat(LINK.as_ptr(), &raw mut status) != 0 {
            return ([0; 5], &[]);
        }
        libc::readlink(LINK.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    };
    let path = usize::try_from(length).ok().and_then(|length| buffer.get(..length)).unwrap_or(&[]);
    let identity = [
        status.st_dev,
        status.st_ino,
        status.st_size.cast_unsigned(),
        status.st_mtime.cast_unsigned(),
        status.st_mtime_nsec.cast_unsigned(),
    ];
    (identity, path)
}

fn refuse_to_run(path: &CStr, error: AttachError) -> ! {
    match error {
        AttachError::OtherBuild => say(&[
            b"borealis: this shim library and the driver are of different builds; install or build both together",
        ]),
        AttachError::Unusable => say(&[
            b"borealis: cannot use the shared memory ",
            path.to_bytes(),
            b" (BOREALIS_SHM) with the descriptor in BOREALIS_EVENT_FD; start postgres with the driver",
        ]),
    }
    // SAFETY: ends the process without running anything else.
    unsafe { libc::_exit(1) }
}

/// Gives the process's request slot back. The slots of killed processes are found by their dead owner.
pub(crate) fn unload() {
    if let Some(shim) = get() {
        shim.client.release_slot(&shim.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beside_a_folder_is_named() {
        let beside = |folder: &str| PathBuffer::beside(folder.as_bytes(), "pg_control");
        assert_eq!(
            beside("/dev/shm/b/data").map(|path| path.as_c_str().to_owned()),
            Some(c"/dev/shm/b/pg_control".into())
        );
        assert!(beside("data").is_none());
        let long = format!("/{}/data", "x".repeat(PATH_BYTES - 12));
        assert!(beside(&long).is_none(), "no room for the zero byte");
        assert!(
            beside(&long[1..].replacen('x', "/", 1))
                .is_some_and(|path| path.as_c_str().to_bytes().len() == PATH_BYTES - 1)
        );
    }
}
