//! Which file a program is, to see whether a process runs the one that was looked at.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A program's file. A package upgrade puts another file in its place; a build that writes into the same one
/// changes its size or its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramFile {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl ProgramFile {
    /// The file at `path`, links followed.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(path: &Path) -> io::Result<ProgramFile> {
        path.metadata().map(|metadata| ProgramFile::of(&metadata))
    }

    /// From device, inode, size, and the seconds and nanoseconds of the last change, as the shim reports its own
    /// program. The driver could not look at it everywhere: root in a container may not look at another user's processes.
    #[must_use]
    pub fn reported([device, inode, size_bytes, seconds, nanoseconds]: [u64; 5]) -> ProgramFile {
        ProgramFile {
            device,
            inode,
            size_bytes,
            modified: (seconds.cast_signed(), nanoseconds.cast_signed()),
        }
    }

    fn of(metadata: &Metadata) -> ProgramFile {
        ProgramFile {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_put_in_the_place_of_another_is_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("sleep");
        std::fs::copy("/bin/sleep", &program).expect("copied");
        let looked_at = ProgramFile::at(&program).expect("it is there");
        let metadata = program.metadata().expect("it is there");
        let reported = [
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime() as u64,
            metadata.mtime_nsec() as u64,
        ];
        assert_eq!(ProgramFile::reported(reported), looked_at);
        // As a package manager does it: the new file is renamed over the old one.
        let new = folder.path().join("sleep.new");
        std::fs::copy("/bin/sleep", &new).expect("copied");
        std::fs::rename(&new, &program).expect("renamed");
        assert_ne!(ProgramFile::at(&program).expect("it is there"), looked_at);
    }
}
