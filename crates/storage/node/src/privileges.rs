//! A node that was started by root gives its rights up before it opens anything of its store.
//!
//! The cluster's directory may be where only root can reach (`/root`, or a folder of mode 0700). What the node needs is
//! therefore opened while it may: its own folder becomes the working directory, and the folder of the sockets is held
//! open and named by its descriptor.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use borealis_spec::{Endpoint, NodeConfig};
use nix::unistd::{User, initgroups, setgid, setuid};

/// What stays open from before the change of user, for as long as the node runs.
#[derive(Debug)]
#[must_use = "the sockets are named by the descriptor of this folder"]
pub struct HeldFolder {
    _folder: Option<File>,
}

/// Makes this process one of the system user `name`, for good, and changes the configuration to what that user can
/// reach. Call it before any thread starts.
///
/// # Errors
/// When there is no such user, a folder cannot be opened, or the system refuses. The process may have changed in part
/// then, and should end.
#[expect(clippy::disallowed_methods, reason = "no thread was started yet, as the caller has to see to")]
pub fn become_user(name: &str, config: &mut NodeConfig) -> anyhow::Result<HeldFolder> {
    let user = User::from_name(name).context("cannot look up the node's user")?;
    let user = user.with_context(|| format!("there is no system user `{name}` to run the node as"))?;
    let held = hold_sockets(config)?;
    std::env::set_current_dir(&config.directory)
        .with_context(|| format!("cannot work in {}", config.directory.display()))?;
    config.directory = PathBuf::from(".");
    let c_name = std::ffi::CString::new(name).context("a user's name has no zero byte")?;
    initgroups(&c_name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .with_context(|| format!("cannot become the system user `{name}`"))?;
    anyhow::ensure!(setuid(0.into()).is_err(), "the system user `{name}` can become root again");
    Ok(held)
}

/// Names every socket by its open folder. All of a local cluster are in one.
fn hold_sockets(config: &mut NodeConfig) -> anyhow::Result<HeldFolder> {
    // The files of a certificate are below the node's folder, or where its user can read them.
    let Endpoint::Unix(own) = &config.listen else { return Ok(HeldFolder { _folder: None }) };
    let Some(folder) = own.parent().map(Path::to_path_buf) else { return Ok(HeldFolder { _folder: None }) };
    let held = File::open(&folder).with_context(|| format!("cannot open {}", folder.display()))?;
    let by_descriptor = Path::new("/proc/self/fd").join(held.as_raw_fd().to_string());
    let peers = config.peers.iter_mut().map(|peer| &mut peer.address);
    for endpoint in peers.chain([&mut config.listen]) {
        if let Endpoint::Unix(path) = endpoint
            && path.parent() == Some(&folder)
            && let Some(name) = path.file_name()
        {
            *path = by_descriptor.join(name);
        }
    }
    Ok(HeldFolder { _folder: Some(held) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_spec::NodeAddress;
    use borealis_types::{AvailabilityZone, NodeId, Placement, VolumeId};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn sockets_are_reached_by_their_open_folder() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = |name: &str| Endpoint::Unix(folder.path().join(name));
        let (zone, placement) = (AvailabilityZone("az1".into()), Placement::new(1).unwrap());
        let mut config =
            NodeConfig::new("x".into(), VolumeId(1), NodeId(1), zone.clone(), 7, endpoint("1"), placement);
        config.peers = vec![NodeAddress { node: NodeId(2), zone, address: endpoint("2") }];
        let _held = hold_sockets(&mut config).unwrap();
        let (Endpoint::Unix(own), Endpoint::Unix(peer)) = (&config.listen, &config.peers[0].address) else {
            panic!("they are sockets");
        };
        assert!(own.starts_with("/proc/self/fd") && own.ends_with("1") && peer.ends_with("2"));
        let _listener = UnixListener::bind(own).unwrap();
        UnixStream::connect(folder.path().join("1")).unwrap();
    }
}
