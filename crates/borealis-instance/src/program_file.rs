//! Which file a program is, to see whether a process runs the one that was looked at.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

    /// The file a process executes, also after it was replaced or removed.
    ///
    /// # Errors
    /// When the process has ended, or is another user's.
    pub fn of_process(process_id: u32) -> io::Result<ProgramFile> {
        ProgramFile::at(&process_link(process_id))
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

/// The link to the file a process executes.
pub(crate) fn process_link(process_id: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process_id}/exe"))
}

/// What a process executes, for a message.
pub(crate) fn name_of_process(process_id: u32) -> String {
    match process_link(process_id).read_link() {
        Ok(path) => path.display().to_string(),
        Err(error) => format!("a program that cannot be named ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_runs_the_file_it_was_started_from_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("sleep");
        let install = |path: &Path| std::fs::copy("/bin/sleep", path).expect("copied");
        install(&program);
        let looked_at = ProgramFile::at(&program).expect("it is there");
        let mut process = Command::new(&program).arg("60").spawn().expect("started");
        let runs = || ProgramFile::of_process(process.id()).expect("it runs");
        assert_eq!(runs(), looked_at);
        // As a package manager does it: the new file is renamed over the old one.
        let new = folder.path().join("sleep.new");
        install(&new);
        std::fs::rename(&new, &program).expect("renamed");
        assert_eq!(runs(), looked_at, "the process keeps what it has");
        assert_ne!(runs(), ProgramFile::at(&program).expect("it is there"));
        process.kill().expect("ended");
        process.wait().expect("it ended");
        assert!(ProgramFile::of_process(process.id()).is_err());
    }
}
