//! What this library is in the program that it was loaded into: the shim of a server, the view of a program of `borealis
//! exec`, the watch over a program that the server starts, or nothing.

use std::ffi::CStr;
use std::os::fd::RawFd;

use borealis_shm::path::CONTROL_FILE_NAME;
use borealis_shm::{AttachError, ClientSide, ServedDirectory, ShimMark};
use libc::c_int;

use crate::messages::say;
use crate::path_buffer::{PATH_BYTES, PathBuffer};
use crate::{bystander, kept_files, replication, shim, view};

/// Which build this library is of: the driver looks for it in the file.
#[used]
static MARK: ShimMark = ShimMark::of_this_build();

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
    if copy_environment(c"BOREALIS_VIEW", &mut [0u8; 32]).is_some() {
        let has_view = postmaster_pid.is_null() && view::begin(path, MARK.fingerprint()).is_some();
        if !has_view {
            say(&[
                b"borealis: `borealis exec` runs programs beside a running instance of its own build, ",
                b"and no second server; this is a server, or ",
                path.to_bytes(),
                b" cannot be used",
            ]);
            // SAFETY: ends the process without running anything else.
            unsafe { libc::_exit(1) }
        }
        return;
    }
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
    if replication::watch(client.data_directory()).is_none() {
        say(&[b"borealis: this postgres does not let a library refuse connections for physical replication"]);
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(1) }
    }
    if kept_files::begin().is_none() {
        say(&[b"borealis: this postgres has no function to keep small files by; what ALTER SYSTEM says would be lost"]);
        // SAFETY: ends the process without running anything else.
        unsafe { libc::_exit(1) }
    }
    let mut program = [0u8; PATH_BYTES];
    let (identity, path) = own_program(&mut program);
    client.announce_shim(identity, path);
    shim::begin(client, control_file, postmaster_pid);
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
