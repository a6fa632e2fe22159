//! The library's state inside one process.

use std::ffi::CStr;
use std::sync::OnceLock;

use borealis_shm::path::{CONTROL_FILE_NAME, FolderClass, Layout, PathClass};
use borealis_shm::{ClientSide, ClientSlot};
use borealis_types::KeptFile;
use libc::c_int;

use crate::path_buffer::PathBuffer;

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

/// The state; `None` in a process this library has no business in.
#[inline]
pub(crate) fn get() -> Option<&'static Shim> {
    SHIM.get()
}

/// What stands in for PostgreSQL's variable in a program that is no server.
static NO_POSTMASTER: c_int = 0;

impl Shim {
    /// For a program that reads the server's files and is no part of it; `None` if the data directory's name is too long.
    pub(crate) fn of_a_view(client: ClientSide) -> Option<Shim> {
        let control_file = PathBuffer::beside(client.data_directory(), CONTROL_FILE_NAME)?;
        let postmaster_pid = &raw const NO_POSTMASTER;
        let slot = ClientSlot::new();
        let (insert_position, force_sync_commit) = (None, None);
        Some(Shim { client, slot, control_file, postmaster_pid, insert_position, force_sync_commit })
    }

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

    /// The small file at this path, if it is one that outlives the server.
    pub(crate) fn kept_file(&self, path: &CStr) -> Option<KeptFile> {
        self.layout().kept_file(path.to_bytes())
    }

    pub(crate) fn is_tablespace_link(&self, path: &CStr) -> bool {
        self.layout().is_tablespace_link(path.to_bytes())
    }

    pub(crate) fn classify_folder(&self, path: &CStr) -> FolderClass {
        self.layout().classify_folder(path.to_bytes())
    }
}

/// From now on this process is served: it is the postmaster, which has attached to the shared memory.
pub(crate) fn begin(client: ClientSide, control_file: PathBuffer, postmaster_pid: *const c_int) {
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

/// Gives the process's request slot back. The slots of killed processes are found by their dead owner.
pub(crate) fn unload() {
    if let Some(shim) = get() {
        shim.client.release_slot(&shim.slot);
    }
}
