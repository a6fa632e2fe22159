//! The folder of an instance on a memory file system.
//!
//! A server that was killed leaves one full of cached pages, and giving gigabytes back takes the kernel a good part of a
//! second each. So a start only moves it aside, and removes it while the new server already works.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::server::closed_to;
use crate::{InstanceError, OperatingSystemUser, leftovers, on};

/// Room that the memory file system must have for an instance to start.
pub const NEEDED_MIB: u64 = 256;

/// Between a memory directory's name and what makes it unique, once it is set aside.
const ASIDE: &str = ".removed-";

/// Checks, before anything is made, that an instance's memory directory could be made in the folder `root`.
///
/// # Errors
/// When it is not on a memory file system, has not enough room, or the server's user cannot get there.
pub fn check_root(root: &Path, user: &OperatingSystemUser, needed_mib: u64) -> Result<(), InstanceError> {
    let available_mib = available_bytes(root)? >> 20;
    if available_mib < needed_mib {
        return Err(too_full(root, available_mib, needed_mib));
    }
    check_reachable(root, user)
}

fn too_full(folder: &Path, available_mib: u64, needed_mib: u64) -> InstanceError {
    let device = |folder: &Path| fs::metadata(folder).map(|metadata| metadata.dev()).ok();
    // The last folder on the way up that is on the same file system.
    let same = |above: &&Path| device(above) == device(folder);
    let mount_point = folder.ancestors().take_while(same).last().unwrap_or(folder).to_path_buf();
    InstanceError::MemoryFileSystemFull { path: folder.to_path_buf(), mount_point, available_mib, needed_mib }
}

/// What a memory file system has free.
fn available_bytes(folder: &Path) -> Result<u64, InstanceError> {
    let statistics = nix::sys::statfs::statfs(folder)
        .map_err(|error| on("cannot examine", folder)(io::Error::from(error)))?;
    if statistics.filesystem_type() != nix::sys::statfs::TMPFS_MAGIC {
        return Err(InstanceError::NotMemory(folder.to_path_buf()));
    }
    Ok(statistics.blocks_available() * statistics.block_size().unsigned_abs())
}

fn check_reachable(folder: &Path, user: &OperatingSystemUser) -> Result<(), InstanceError> {
    // Our own user may have got here by a group that its number does not tell of.
    let closed = if user.switch { closed_to(user, folder) } else { None };
    match closed {
        None => Ok(()),
        Some(closed) => Err(InstanceError::NotReachable {
            user: user.name.clone(),
            folder: closed,
            path: folder.to_path_buf(),
        }),
    }
}

/// Makes the memory directory of an instance anew and returns how many bytes its file system has to offer. What was
/// there before is removed meanwhile, by a thread of its own.
///
/// # Errors
/// When `path` is not on a memory file system, has not enough room, or cannot be made.
pub fn prepare(path: &Path, user: &OperatingSystemUser, needed_mib: u64) -> Result<u64, InstanceError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    available_bytes(parent)?;
    check_reachable(parent, user)?;
    set_aside(path)?;
    let aside = all_set_aside(path);
    let freed_soon_bytes: u64 = aside.iter().map(|folder| bytes_in(folder)).sum();
    let mut offered_bytes = available_bytes(parent)?;
    if offered_bytes >> 20 < needed_mib {
        // The room is needed first.
        remove_folders(&aside)?;
        offered_bytes = available_bytes(parent)?;
    } else if !aside.is_empty() {
        offered_bytes += freed_soon_bytes;
        let folders = aside.clone();
        let remove = move || {
            if let Err(error) = remove_folders(&folders) {
                tracing::warn!("memory of an earlier start is not given back: {error}");
            }
        };
        if std::thread::Builder::new().name("give back".to_owned()).spawn(remove).is_err() {
            remove_folders(&aside)?;
        }
    }
    let available_mib = offered_bytes >> 20;
    if available_mib < needed_mib {
        return Err(too_full(parent, available_mib, needed_mib));
    }
    fs::DirBuilder::new().mode(0o700).create(path).map_err(on("cannot create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(on("cannot create", path))?;
    if user.switch {
        chown(path, Some(user.user_id), Some(user.group_id))
            .map_err(on("cannot give to the server's user", path))?;
    }
    Ok(offered_bytes)
}

/// Moves the memory directory of an instance that no longer runs out of the way of the next one, after ending what a
/// killed server leaves behind: its orphaned processes, and a System V segment.
///
/// # Errors
/// When it is there and cannot be moved.
fn set_aside(path: &Path) -> Result<(), InstanceError> {
    leftovers::clear(path);
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{ASIDE}{}-{}", std::process::id(), since_1970.as_nanos()));
    match fs::rename(path, name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(on("cannot move aside", path)(error)),
        _ => Ok(()),
    }
}

/// Removes the memory directory of an instance that no longer runs, and everything else that is left of it.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<(), InstanceError> {
    set_aside(path)?;
    remove_folders(&all_set_aside(path))
}

fn all_set_aside(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name() else { return Vec::new() };
    let mut prefix = name.as_bytes().to_vec();
    prefix.extend_from_slice(ASIDE.as_bytes());
    let entries = path.parent().and_then(|parent| fs::read_dir(parent).ok());
    let folders = entries.into_iter().flatten().flatten();
    let aside = folders.filter(|entry| entry.file_name().as_bytes().starts_with(&prefix));
    aside.map(|entry| entry.path()).collect()
}

/// Removes them all, as far as possible: a stranger may have made a folder of such a name.
fn remove_folders(folders: &[PathBuf]) -> Result<(), InstanceError> {
    folders.iter().map(|folder| remove_folder(folder)).fold(Ok(()), Result::and)
}

/// Somebody else may be removing it, too.
fn remove_folder(path: &Path) -> Result<(), InstanceError> {
    loop {
        match fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(on("cannot remove", path)(error)),
        }
    }
}

/// What a folder takes on its file system, as far as it can be looked at.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A name on the memory file system that nobody else uses.
    fn unused(name: &str) -> PathBuf {
        Path::new("/dev/shm").join(format!("borealis-test-{name}-{}", std::process::id()))
    }

    fn fill(path: &Path) {
        fs::create_dir_all(path.join("data/base/5")).expect("made");
        fs::write(path.join("data/base/5/16384"), vec![1; 3 << 20]).expect("written");
    }

    #[test]
    fn what_was_there_is_out_of_the_way_at_once_and_gone_soon() {
        let Ok(user) = OperatingSystemUser::choose(None) else { return };
        let path = unused("aside");
        fill(&path);
        set_aside(&path).expect("moved");
        assert!(!path.exists());
        let aside = all_set_aside(&path);
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert!((3 << 20..4 << 20).contains(&bytes_in(&aside[0])));
        fill(&path);
        prepare(&path, &user, 1).expect("made anew");
        assert_eq!(fs::read_dir(&path).expect("a folder").count(), 0);
        let begun = Instant::now();
        while !all_set_aside(&path).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?} is still there", all_set_aside(&path));
            std::thread::sleep(Duration::from_millis(5));
        }
        fill(&path);
        remove(&path).expect("removed");
        assert!(!path.exists() && all_set_aside(&path).is_empty());
        remove(&path).expect("there is nothing to remove");
    }

    #[test]
    fn a_folder_that_two_remove_is_gone() {
        let path = unused("two");
        for number in 0..300 {
            fs::create_dir_all(path.join(format!("{number}"))).expect("made");
            fs::write(path.join(format!("{number}/file")), b"x").expect("written");
        }
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| remove_folder(&path).expect("removed"));
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn a_disk_is_not_taken_for_memory() {
        let user = OperatingSystemUser::choose(None);
        let Ok(user) = user else { return };
        let error = prepare(Path::new("/proc/borealis"), &user, 1).expect_err("not tmpfs");
        assert!(error.to_string().contains("--memory-dir"), "{error}");
    }

    #[test]
    fn too_little_memory_is_said_before_anything_starts() {
        let Ok(user) = OperatingSystemUser::choose(None) else { return };
        let path = unused("full");
        let error = prepare(&path, &user, 1 << 40).expect_err("nobody has that much");
        assert!(error.to_string().contains("MiB are needed"), "{error}");
        assert!(!path.exists());
    }
}
