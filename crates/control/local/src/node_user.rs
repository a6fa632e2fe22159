//! Whose a node's files are. Started by root, nodes run as the server's user; their stores are that user's, and the rest of
//! their folders is root's, so that nobody but root decides what root reads, writes and signals there.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::{Context, bail};
use borealis_instance::OperatingSystemUser;
use nix::fcntl::OFlag;

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
        give(path, user)?;
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
    give_all(&store, user)
}

fn give_all(path: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    let kind =
        fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.file_type();
    if !kind.is_dir() && !kind.is_file() {
        bail!("{} is neither a file nor a folder, which no store has; nothing was started", path.display());
    }
    give(path, user)?;
    if kind.is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        for entry in entries {
            give_all(&entry?.path(), user)?;
        }
    }
    Ok(())
}

/// Gives one file or folder of root's to the user. The user may have put it there, so it is looked at through the open
/// file, and one with a second name is left alone: that may be a file of root's somewhere else.
fn give(path: &Path, user: &OperatingSystemUser) -> anyhow::Result<()> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let metadata = file.metadata()?;
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
    fchown(&file, Some(user.user_id), Some(user.group_id))
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
