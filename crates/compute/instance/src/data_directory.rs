//! A fresh data directory at a recovery point.
//!
//! It holds what PostgreSQL must find before it can ask the shim for anything: folders, configuration, the relation
//! maps, prepared transactions, and one WAL segment with one shutdown checkpoint record. Beside it stands
//! `pg_control` in state "shut down". Relation files, visibility maps and transaction-status pages are not there; the
//! shim makes them appear when they are first opened.
//!
//! What it consists of is decided by [`crate::directory_plan`], which is pure; here it is written.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use borealis_types::RecordSpan;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;

use crate::directory_plan::{Contents, DirectoryPlan, Planned, SynthesizedCheckpoint};
use crate::{InstanceError, OperatingSystemUser, on, untrusted};

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
    let directory = Directory::make(path, user)?;
    for (name, planned) in &plan.entries {
        let written = match planned {
            Planned::Folder => directory.make_folder(name),
            Planned::File(bytes) => directory.write(name, |file| (&*file).write_all(bytes)),
            Planned::Sparse { bytes, pages } => directory.write(name, |file| {
                file.set_len(*bytes)?;
                pages.iter().try_for_each(|(offset, page)| file.write_all_at(&page[..], *offset))
            }),
        };
        written.map_err(|error| on("cannot write", &path.join(name))(error))?;
    }
    write_control_file(control_file, user, &plan.control_file).map_err(on("cannot write", control_file))?;
    directory.give_top().map_err(on("cannot give to the server's user", path))?;
    Ok(plan.checkpoint)
}

fn write_control_file(path: &Path, user: &OperatingSystemUser, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    give(&file, user)
}

/// Gives an open file or folder to the server's user.
pub(crate) fn give(file: impl AsFd, user: &OperatingSystemUser) -> io::Result<()> {
    if user.switch { fchown(file, Some(user.user_id), Some(user.group_id)) } else { Ok(()) }
}

/// The data directory while it is written. It stands in a folder that belongs to the server's user, of whom a process may
/// be left: so it is root's to the end, when nobody else can get into it, and found by its descriptor, not by its name.
pub(crate) struct Directory<'u> {
    top: OwnedFd,
    user: &'u OperatingSystemUser,
}

impl<'u> Directory<'u> {
    fn make(path: &Path, user: &'u OperatingSystemUser) -> Result<Directory<'u>, InstanceError> {
        let failed = |error| on("cannot create", path)(error);
        fs::DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
        Directory::open(path, user)
    }

    /// The folder that we have made.
    pub(crate) fn open(path: &Path, user: &'u OperatingSystemUser) -> Result<Directory<'u>, InstanceError> {
        let failed = |error| on("cannot create", path)(error);
        let top = fs::File::from(untrusted::open_folder(path).map_err(failed)?);
        if top.metadata().map_err(failed)?.uid() != nix::unistd::geteuid().as_raw() {
            return Err(failed(io::Error::other("somebody has put another folder in its place")));
        }
        Ok(Directory { top: top.into(), user })
    }

    pub(crate) fn make_folder(&self, name: &str) -> io::Result<()> {
        mkdirat(&self.top, name, Mode::S_IRWXU)?;
        self.give_folder(name)
    }

    /// Makes a folder and those above it, as far as they are not there.
    pub(crate) fn make_way(&self, name: &str) -> io::Result<()> {
        let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
        for end in ends {
            match self.make_folder(&name[..end]) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        Ok(())
    }

    /// Makes a symbolic link.
    pub(crate) fn link(&self, to: &Path, name: &str) -> io::Result<()> {
        Ok(symlinkat(to, &self.top, name)?)
    }

    fn give_folder(&self, name: &str) -> io::Result<()> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        give(openat(&self.top, name, flags, Mode::empty())?, self.user)
    }

    /// Opens a file that was written, to write more.
    pub(crate) fn open_file(&self, name: &str) -> io::Result<fs::File> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.top, name, flags, Mode::empty())?.into())
    }

    pub(crate) fn give_top(&self) -> io::Result<()> {
        give(&self.top, self.user)
    }

    pub(crate) fn write(
        &self,
        name: &str,
        write: impl FnOnce(&fs::File) -> io::Result<()>,
    ) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = fs::File::from(openat(&self.top, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        write(&file)?;
        give(&file, self.user)
    }
}
