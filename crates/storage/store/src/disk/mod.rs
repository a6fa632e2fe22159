//! The disk under a store: everything it asks of a file system, and nothing else does I/O.
//!
//! [`FileSystem`] is the machine's. A simulation brings a disk of its own, in which writes that were never synced can be
//! lost, and operations can fail. What every disk must do is in `disk/conformance.rs`.
//!
//! Calls go through a table of functions. That is some nanoseconds for each system call; `examples/store_speed.rs` does
//! not see it.

mod descriptors;
mod file_system;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub(crate) use descriptors::Descriptors;
pub use file_system::FileSystem;

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Reading; the file must exist.
    Read,
    /// Reading and writing; the file must exist.
    Write,
    /// Reading and writing; an absent file is created, a present one keeps its bytes.
    Create,
    /// Reading and writing; an absent file is created, a present one is truncated to nothing.
    CreateEmpty,
}

/// The room that a file system has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Bytes that a process without privileges may still write.
    pub available_bytes: u64,
    /// Size of the whole file system, in bytes.
    pub size_bytes: u64,
}

/// Held until it is dropped, or the process ends.
pub type DiskLock = Box<dyn Send + Sync>;

/// Files in folders, by path. A new or changed name is durable after [`Disk::sync_folder`] only.
pub trait Disk: Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when it must exist and does not; whatever else the system says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// As [`Disk::open`], for a file that is one of many and keeps its name for as long as it is used: it may be closed
    /// between two operations, and is opened again by its name.
    ///
    /// # Errors
    /// As [`Disk::open`].
    fn open_one_of_many(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path, mode)
    }

    /// Whether a file or folder has this name.
    fn exists(&self, path: &Path) -> bool;

    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// When it is no folder, or cannot be read.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Creates a folder and the folders it is in, as far as they are absent.
    ///
    /// # Errors
    /// Any other error of the system.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;

    /// Gives a file another name in the same folder, in the place of the file that had it.
    ///
    /// # Errors
    /// When there is no such file; whatever else the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name. Whoever has the file open goes on reading it.
    ///
    /// # Errors
    /// When there is no such file; whatever else the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder's name.
    ///
    /// # Errors
    /// When there is no such folder, or something is in it; whatever else the system says.
    fn remove_folder(&self, folder: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// After an error it is unknown which are.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// How much room the file system has that a folder is in.
    ///
    /// # Errors
    /// Any error of the system.
    fn space(&self, folder: &Path) -> io::Result<Space>;

    /// Takes the lock that belongs to a file, which is created if it is absent; `None` if somebody else has it.
    ///
    /// # Errors
    /// Any other error of the system.
    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>>;
}

/// An open file. What was written is durable after a sync only.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads at an offset until `bytes` is full or the file ends, and returns how many bytes were read.
    ///
    /// # Errors
    /// Any other error of the system.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at an offset; a file that is shorter grows, with zeros in between.
    ///
    /// # Errors
    /// After an error it is unknown how much was written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the bytes durable, and the file's size (`fdatasync`).
    ///
    /// # Errors
    /// After an error nothing is known of what was written since the last sync, and a later sync that succeeds does not
    /// make it durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes the bytes and everything else about the file durable (`fsync`).
    ///
    /// # Errors
    /// As [`DiskFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// Where the file ends, in bytes.
    ///
    /// # Errors
    /// Any other error of the system.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Frees the space of a part of the file, which reads as zeros afterwards. The size stays.
    ///
    /// # Errors
    /// When the file system cannot.
    fn punch_hole(&self, offset: u64, size_bytes: u64) -> io::Result<()>;
}

/// Fills `bytes` from an offset.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the file ends before.
pub(crate) fn read_exact_at(file: &dyn DiskFile, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let read = file.read_at(bytes, offset)?;
    if read < bytes.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod memory;
