//! The `borealis up` that serves in the foreground, on record: it watches over the cluster itself, and no supervisor is needed
//! beside it.

use std::io;
use std::path::{Path, PathBuf};

use crate::process::{self, ProcessIdentity};

const PROCESS_NAME: &str = "serving.process";

fn process_file(directory: &Path) -> PathBuf {
    directory.join(PROCESS_NAME)
}

/// Its process, if it runs.
#[must_use]
pub fn process(directory: &Path) -> Option<ProcessIdentity> {
    process::read_process_file(&process_file(directory))
}

/// On record as long as this exists.
#[derive(Debug)]
pub struct Serving {
    path: PathBuf,
}

impl Serving {
    /// Puts this process on record.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn begin(directory: &Path) -> io::Result<Serving> {
        let path = process_file(directory);
        process::record_own(&path)?;
        Ok(Serving { path })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // A process that has ended serves nothing, whatever the file says.
        let _ = process::remove_process_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_is_on_record_while_it_does() {
        let directory = tempfile::tempdir().expect("temporary folder");
        assert_eq!(process(directory.path()), None);
        let serving = Serving::begin(directory.path()).expect("recorded");
        assert_eq!(process(directory.path()), ProcessIdentity::of(std::process::id()));
        drop(serving);
        assert_eq!(process(directory.path()), None);
    }
}
