//! The right to read a server's log by physical replication, which the server refuses to everybody else.
//!
//! The pass lies in the memory directory, where the server finds it. That belongs to the server's user, who may put a link
//! to any file under the pass's name: what is there is removed, and the pass is always a new file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use anyhow::Context;
use borealis_instance::untrusted;
use borealis_shm::path::REPLICATION_PASS_NAME;
use borealis_types::InstanceId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::cluster::Cluster;

/// Lets whoever asks for it receive the log of an instance while this process runs and the pass exists. Only for a program
/// that knows where this log begins and does not keep it.
#[derive(Debug)]
pub struct ReplicationPass {
    folder: OwnedFd,
}

impl ReplicationPass {
    /// Takes the pass for this process. There is one: whoever takes it later has it.
    ///
    /// # Errors
    /// When there is no such instance or it does not run.
    pub fn take(cluster: &Cluster, instance: InstanceId) -> anyhow::Result<ReplicationPass> {
        let folder = cluster.memory_directory(cluster.instance(instance)?);
        ReplicationPass::put(&folder).with_context(|| {
            format!("cannot write {}; does the instance run?", folder.join(REPLICATION_PASS_NAME).display())
        })
    }

    fn put(folder: &Path) -> io::Result<ReplicationPass> {
        let folder = File::from(untrusted::open_folder(folder)?);
        let owner = folder.metadata()?;
        remove(&folder)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut file = File::from(openat(&folder, REPLICATION_PASS_NAME, flags, mode)?);
        file.write_all(std::process::id().to_string().as_bytes())?;
        if nix::unistd::geteuid().is_root() {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok(ReplicationPass { folder: folder.into() })
    }
}

fn remove(folder: impl std::os::fd::AsFd) -> io::Result<()> {
    match unlinkat(folder, REPLICATION_PASS_NAME, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Drop for ReplicationPass {
    fn drop(&mut self) {
        // The instance may have stopped meanwhile, and its folder is gone. A process that has ended has no pass anyway.
        let _ = remove(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    #[test]
    fn a_link_in_place_of_the_pass_is_not_followed() {
        let place = tempfile::tempdir().expect("temporary folder");
        let (precious, memory) = (place.path().join("precious"), place.path().join("memory"));
        fs::write(&precious, "kept").expect("written");
        fs::create_dir(&memory).expect("made");
        let is_root = nix::unistd::geteuid().is_root();
        if is_root {
            chown(&memory, Some(65534), Some(65534)).expect("given");
        }
        let pass = memory.join(REPLICATION_PASS_NAME);
        symlink(&precious, &pass).expect("linked");
        let held = ReplicationPass::put(&memory).expect("taken");
        assert_eq!(fs::read_to_string(&precious).expect("read"), "kept");
        assert_eq!(fs::read_to_string(&pass).expect("read"), std::process::id().to_string());
        let state = fs::symlink_metadata(&pass).expect("there");
        assert_eq!(state.mode() & 0o7777, 0o600);
        assert!(!is_root || state.uid() == 65534, "the server could not read it");
        drop(held);
        assert!(!pass.exists() && precious.exists());
    }
}
