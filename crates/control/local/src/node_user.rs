//! Whose a node's files are. Started by root, nodes run as the server's user; their stores are that user's, and the rest of
//! their folders is root's, so that nobody but root decides what root reads, writes and signals there.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use borealis_instance::{OperatingSystemUser, untrusted};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// For folders that only their owner looks into.
const PRIVATE: u32 = 0o700;
/// For a node's own folder: its user passes through to the store, and reads or writes nothing beside it.
const PASSAGE: u32 = 0o711;

/// Makes a folder that nobody but its owner looks into, `user` if root made it.
///
/// # Errors
/// When it cannot be made, or is somebody else's.
pub(crate) fn private_folder(path: &Path, user: Option<&OperatingSystemUser>) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    if let Some(user) = user {
        let opened =
            untrusted::open_folder(path).with_context(|| format!("cannot open {}", path.display()))?;
        let folder = File::from(opened);
        give(&folder, &folder.metadata()?, path, user)?;
    }
    set_mode(path, PRIVATE)
}

/// Prepares a node's folder: closed but for the way to the store, which becomes the user's with all that is in it and is
/// root's. `None`: we are not root, and everything is ours.
///
/// # Errors
/// When something in the store belongs to a third user, or cannot be given away.
pub(crate) fn prepare_node_folder(
    folder: &Path,
    store: &Path,
    user: Option<&OperatingSystemUser>,
) -> anyhow::Result<()> {
    let Some(user) = user else { return set_mode(folder, PRIVATE) };
    set_mode(folder, PASSAGE)?;
    let store = store.canonicalize().with_context(|| format!("cannot find {}", store.display()))?;
    give_all(AT_FDCWD, &store, &store, user)
}

/// Lets the node's user read its certificate and key in `folder`, which stays root's: nobody else puts anything there.
///
/// # Errors
/// When the key is a third user's, or cannot be given away.
pub(crate) fn give_certificate(
    folder: &Path,
    key: &Path,
    user: Option<&OperatingSystemUser>,
) -> anyhow::Result<()> {
    let Some(user) = user else { return set_mode(folder, PRIVATE) };
    set_mode(folder, PASSAGE)?;
    let file = File::open(key).with_context(|| format!("cannot open {}", key.display()))?;
    give(&file, &file.metadata()?, key, user)
}

/// Gives what is called `name` in `folder` to the user, and all that is in it. The user may change what is there meanwhile:
/// so each folder is read and entered by its descriptor, and through no link. `path` is for messages.
fn give_all(folder: impl AsFd, name: &Path, path: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ELOOP | Errno::ENXIO) => return Err(neither(path)),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let metadata = file.metadata()?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(neither(path));
    }
    give(&file, &metadata, path, user)?;
    if metadata.is_dir() {
        let failed = || format!("cannot read {}", path.display());
        let mut names = Vec::new();
        for entry in Dir::from_fd(file.try_clone()?.into()).with_context(failed)?.iter() {
            let name = OsStr::from_bytes(entry.with_context(failed)?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        for name in names {
            give_all(&file, Path::new(&name), &path.join(&name), user)?;
        }
    }
    Ok(())
}

fn neither(path: &Path) -> anyhow::Error {
    anyhow!("{} is neither a file nor a folder, which no store has; nothing was started", path.display())
}

/// Gives one open file or folder of root's to the user. The user may have put it there, so one with a second name is left
/// alone: that may be a file of root's somewhere else.
fn give(file: &File, metadata: &Metadata, path: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    if metadata.uid() == user.user_id {
        return Ok(());
    }
    if metadata.uid() != 0 {
        bail!(
            "{} belongs to user {}, and the storage nodes run as `{}`; nothing was started. Give the store to that user with \
             `chown -R {} {}`, or run the command as the user it belongs to",
            path.display(),
            metadata.uid(),
            user.name,
            user.name,
            path.display()
        );
    }
    if metadata.is_file() && metadata.nlink() > 1 {
        bail!("{} is root's and has a second name somewhere; nothing was started", path.display());
    }
    fchown(file, Some(user.user_id), Some(user.group_id))
        .with_context(|| format!("cannot give {} to the user `{}`", path.display(), user.name))
}

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> OperatingSystemUser {
        OperatingSystemUser { name: "nobody".to_owned(), user_id: 65534, group_id: 65534, switch: true }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o777
    }

    #[test]
    fn folders_are_closed() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let sockets = folder.path().join("sockets");
        fs::create_dir(&sockets).expect("made");
        set_mode(&sockets, 0o755).expect("opened");
        private_folder(&sockets, None).expect("closed");
        assert_eq!(mode(&sockets), 0o700);
    }

    #[test]
    fn a_store_is_given_away_and_nothing_else() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("temporary folder");
        let node = folder.path().join("3");
        fs::create_dir_all(node.join("store/log")).expect("made");
        for file in ["node.json", "store/log/1", "store/identity"] {
            fs::write(node.join(file), "").expect("written");
        }
        prepare_node_folder(&node, &node.join("store"), Some(&nobody())).expect("given");
        let owner = |path: &str| fs::metadata(node.join(path)).expect("there").uid();
        assert_eq!(["store", "store/log", "store/log/1", "store/identity"].map(owner), [65534; 4]);
        assert_eq!([".", "node.json"].map(owner), [0; 2]);
        assert_eq!(mode(&node), 0o711);
        // What its user could have put there is not followed.
        let outside = folder.path().join("outside");
        fs::write(&outside, "").expect("written");
        let planted = node.join("store/planted");
        fs::hard_link(&outside, &planted).expect("linked");
        let said = prepare_node_folder(&node, &node.join("store"), Some(&nobody())).expect_err("two names");
        assert!(said.to_string().contains("second name"), "{said}");
        fs::remove_file(&planted).expect("removed");
        std::os::unix::fs::symlink(&outside, &planted).expect("linked");
        let said = prepare_node_folder(&node, &node.join("store"), Some(&nobody())).expect_err("a link");
        assert!(said.to_string().contains("neither a file nor a folder"), "{said}");
        assert_eq!(fs::metadata(&outside).expect("there").uid(), 0);
        fs::remove_file(&planted).expect("removed");
        std::os::unix::fs::chown(node.join("store/log"), Some(4711), None).expect("given");
        let said =
            prepare_node_folder(&node, &node.join("store"), Some(&nobody())).expect_err("a third user");
        assert!(said.to_string().contains("belongs to user 4711"), "{said}");
    }
}
