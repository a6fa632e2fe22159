//! A look at a server's configuration from a program that is no part of the server.

use std::ffi::CStr;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::RawFd;

use crate::layout::{FixedConfig, GREETING_SINCE, Greeting, Header, LAYOUT_VERSION, MAGIC};
use crate::path::Layout;

/// What a bystander knows of a server: where its files are. A copy, so that nothing it does can reach the memory.
pub struct ServedDirectory {
    config: FixedConfig,
}

impl ServedDirectory {
    /// Reads it from the shared memory's file. `None` when it is not there, unfinished or of another build.
    ///
    /// Neither allocates nor maps anything, and tells the driver nothing.
    #[must_use]
    pub fn read(path: &CStr, fingerprint: u64) -> Option<ServedDirectory> {
        // SAFETY: the path is a C string. The raw call, because this code runs inside the library that replaces
        // `open`.
        let descriptor = unsafe {
            libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC)
        };
        let descriptor = RawFd::try_from(descriptor).ok().filter(|&descriptor| descriptor >= 0)?;
        let served = Self::read_from(descriptor, fingerprint);
        // SAFETY: the descriptor was opened above and nobody else knows it.
        unsafe { libc::syscall(libc::SYS_close, descriptor) };
        served
    }

    fn read_from(descriptor: RawFd, fingerprint: u64) -> Option<ServedDirectory> {
        let greeting: Greeting = read_at(descriptor, offset_of!(Header, greeting))?;
        let is_ours = greeting.magic.into_inner() == MAGIC
            && (GREETING_SINCE..=LAYOUT_VERSION).contains(&greeting.layout_version.into_inner())
            && greeting.driver_fingerprint.into_inner() == fingerprint;
        is_ours
            .then(|| read_at(descriptor, offset_of!(Header, config)))?
            .map(|config| ServedDirectory { config })
    }

    /// The absolute path of PostgreSQL's data directory.
    #[must_use]
    pub fn data_directory(&self) -> &[u8] {
        let bytes = self.config.data_directory_bytes as usize;
        self.config.data_directory.get(..bytes).unwrap_or(&[])
    }

    /// What its paths depend on.
    #[must_use]
    pub fn layout(&self) -> Layout<'_> {
        Layout {
            data_directory: self.data_directory(),
            versions: (self.config.major_version, self.config.catalog_version),
            wal_segment_size_bytes: self.config.wal_segment_size_bytes.max(1),
        }
    }
}

/// Types that every pattern of bytes is a value of.
///
/// # Safety
/// Only for such types.
unsafe trait PlainBytes {}
// SAFETY: integers and arrays of them.
unsafe impl PlainBytes for FixedConfig {}
// SAFETY: atomic integers.
unsafe impl PlainBytes for Greeting {}

fn read_at<T: PlainBytes>(descriptor: RawFd, offset: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the buffer has room for as many bytes as are asked for. The raw call, as above.
    let count = unsafe {
        libc::syscall(
            libc::SYS_pread64,
            descriptor,
            value.as_mut_ptr(),
            size_of::<T>(),
            offset as libc::off_t,
        )
    };
    // SAFETY: every pattern of bytes is a value, and all of them are set.
    (usize::try_from(count) == Ok(size_of::<T>())).then(|| unsafe { value.assume_init() })
}
