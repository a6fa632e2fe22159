//! A fresh data directory at a recovery point.
//!
//! It holds what PostgreSQL must find before it can ask the shim for anything: folders, configuration, the relation
//! maps, prepared transactions, and one WAL segment with one shutdown checkpoint record. Beside it stands
//! `pg_control` in state "shut down". Relation files, visibility maps and transaction-status pages are not there; the
//! shim makes them appear when they are first opened.
//!
//! What it consists of is decided by [`crate::directory_plan`], which is pure; here it is written.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use borealis_types::RecordSpan;

use crate::directory_plan::{Contents, DirectoryPlan, Planned, SynthesizedCheckpoint};
use crate::{InstanceError, OperatingSystemUser, on};

/// Writes the data directory `path`, which must not exist, as of `last` (the last record of the volume), and
/// PostgreSQL's control file apart from it, where only the shim finds it.
///
/// # Errors
/// When a file cannot be written (the memory file system is full, for one), or the volume's values are not
/// what this version of Borealis writes. Then nothing is made.
pub fn write(
    path: &Path,
    control_file: &Path,
    user: &OperatingSystemUser,
    contents: &Contents,
    last: RecordSpan,
) -> Result<SynthesizedCheckpoint, InstanceError> {
    let now_seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed());
    let plan = DirectoryPlan::new(contents, last, now_seconds)?;
    let directory = Directory { root: path.to_path_buf(), user: user.clone() };
    directory.make("")?;
    for (name, planned) in &plan.entries {
        match planned {
            Planned::Folder => directory.make(name)?,
            Planned::File(bytes) => directory.write(name, bytes)?,
            Planned::Sparse { bytes, pages } => {
                directory.write(name, b"")?;
                let path = directory.root.join(name);
                let file = fs::File::options().write(true).open(&path).map_err(on("cannot write", &path))?;
                file.set_len(*bytes).map_err(on("cannot write", &path))?;
                for (offset, page) in pages {
                    file.write_all_at(&page[..], *offset).map_err(on("cannot write", &path))?;
                }
            }
        }
    }
    directory.write_at(control_file, &plan.control_file)?;
    Ok(plan.checkpoint)
}

struct Directory {
    root: PathBuf,
    user: OperatingSystemUser,
}

impl Directory {
    fn make(&self, name: &str) -> Result<(), InstanceError> {
        let path = self.root.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(on("cannot create", &path))?;
        self.give(&path)
    }

    fn give(&self, path: &Path) -> Result<(), InstanceError> {
        if self.user.switch {
            chown(path, Some(self.user.user_id), Some(self.user.group_id))
                .map_err(on("cannot give to the server's user", path))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), InstanceError> {
        self.write_at(&self.root.join(name), bytes)
    }

    fn write_at(&self, path: &Path, bytes: &[u8]) -> Result<(), InstanceError> {
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(on("cannot write", path))?;
        file.write_all(bytes).map_err(on("cannot write", path))?;
        self.give(path)
    }
}
