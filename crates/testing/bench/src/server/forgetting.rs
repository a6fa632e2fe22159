//! Making the operating system forget files, so that a read really is one of the disk.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Between rounds of forgetting.
const INTERVAL: Duration = Duration::from_millis(250);

/// Drops every file below a folder from the operating system's cache; what is not on the disk yet stays.
pub fn forget_files(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            forget_files(&path);
        } else if let Ok(file) = File::open(&path) {
            forget_file(&file);
        }
    }
}

/// Drops a file from the operating system's cache; what is not on the disk yet stays.
pub fn forget_file(file: &File) {
    // A file system may not know the advice; then the file stays as it is.
    let _ = posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Forgets files again and again.
#[derive(Debug)]
pub struct Forgetting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forgetting {
    /// Begins with what is below `folder`.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start(folder: PathBuf) -> anyhow::Result<Forgetting> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("forget-files".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                forget_files(&folder);
                std::thread::sleep(INTERVAL);
            }
        })?;
        Ok(Forgetting { stop, thread: Some(thread) })
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
