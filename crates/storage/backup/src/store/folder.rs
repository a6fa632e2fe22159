//! A folder as a store: on a disk, or whatever is mounted there.
//!
//! An object is written to a temporary file beside its place, synced, renamed to its name if that is free, and the folder synced.
//! Until the rename nobody sees it; after the last sync it survives a loss of power. A failed sync is not repeated: the file is removed, and the
//! next attempt writes another. Temporary files begin with a dot, which no object's name does; listings pass over them and remove those
//! that a process left a day ago.
//!
//! Folders have mode 0700 and files 0600: a backup is the database.
//!
//! The disk may be that of the nodes, which take no more redo when it is nearly full. So an object is refused, as by a disk that is full, long
//! before: a backup that stands still harms nobody. That is so of redo and pages alone; by marks the time goes on, and what is old goes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use borealis_archive::name::Name;
use borealis_types::disk_room::{kept_free_bytes, node_watermark_bytes};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::statvfs::statvfs;

use super::{Action, ErrorKind, Listed, Listing, ObjectStore, ObjectStoreError, Put, check_key};

/// A temporary file that is older was left by a process that is gone.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Begins the name of every temporary file.
const TEMPORARY_PREFIX: &str = ".new-";

/// Read from a file at a time.
const READ_BYTES: usize = 1 << 20;

/// A folder that keeps objects.
#[derive(Debug)]
pub struct FolderStore {
    root: PathBuf,
    /// Names of one answer to a listing at most: each answer reads whole folders.
    list_max: usize,
    /// Tells temporary files of one process apart.
    next: AtomicU64,
    /// The watermark of nodes that may be on the disk; `None` for the usual one.
    node_watermark_bytes: Option<u64>,
}

fn kind_of(error: &io::Error) -> ErrorKind {
    if error.kind() == io::ErrorKind::StorageFull {
        return ErrorKind::Full;
    }
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => ErrorKind::Denied,
        Some(Errno::ENOENT) => ErrorKind::Missing,
        Some(Errno::EDQUOT | Errno::EFBIG) => ErrorKind::Full,
        // What is mounted is on another machine.
        Some(Errno::ETIMEDOUT) => ErrorKind::Slow,
        Some(
            Errno::ESTALE | Errno::EHOSTDOWN | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENOTCONN,
        ) => ErrorKind::Down,
        _ => ErrorKind::Broken,
    }
}

fn failed(action: Action, key: &str, error: &io::Error) -> ObjectStoreError {
    ObjectStoreError { kind: kind_of(error), action, key: key.to_owned(), what: error.to_string() }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

impl FolderStore {
    /// The store in a folder, which is made with the first object if it is not there. Nothing is read or written yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> FolderStore {
        FolderStore {
            root: root.into(),
            list_max: 100_000,
            next: AtomicU64::new(0),
            node_watermark_bytes: None,
        }
    }

    /// The same, on a disk whose nodes have this watermark; the usual one if there is none.
    #[must_use]
    pub fn beside_nodes(self, node_watermark_bytes: Option<u64>) -> FolderStore {
        FolderStore { node_watermark_bytes, ..self }
    }

    /// Refuses what would leave less of the disk free than it should.
    fn check_room(&self, folder: &Path, key: &str, bytes: usize) -> io::Result<()> {
        if !matches!(Name::of_key(key), Ok((_, Name::Redo(_) | Name::Pages(_)))) {
            return Ok(());
        }
        let found = statvfs(folder)?;
        let size = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        let available = size(found.blocks_available());
        let watermark =
            self.node_watermark_bytes.unwrap_or_else(|| node_watermark_bytes(size(found.blocks())));
        let kept = kept_free_bytes(watermark);
        if available >= kept.saturating_add(bytes as u64) {
            return Ok(());
        }
        let what = format!(
            "{} MiB of the disk are free, where {} are kept free; make room there, have points stay for a shorter time \
             (`borealis backup retention --days N`), or give the backup another place (`borealis up --backup URL`)",
            available >> 20,
            kept >> 20
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, what))
    }

    /// Makes a folder and those above it, each durable in the one that it is in.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        let above = folder.parent().unwrap_or(Path::new("/"));
        self.make_folder(above)?;
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        sync_folder(above)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> io::Result<Put> {
        let place = &*self.root.join(key);
        let folder = place.parent().unwrap_or(&self.root);
        self.make_folder(folder)?;
        if place.exists() {
            return confirm(place, folder);
        }
        self.check_room(folder, key, bytes.len())?;
        let (temporary, mut file) = self.temporary_file(folder)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let made = written.and_then(|()| rename_new(&temporary, place));
        if !matches!(made, Ok(Put::Made)) {
            // What cannot be removed now is removed as abandoned.
            let _ = fs::remove_file(&temporary);
        }
        match made? {
            Put::Made => sync_folder(folder).map(|()| Put::Made),
            Put::Exists => confirm(place, folder),
        }
    }

    /// A file that nobody else writes: not an earlier process with this number, nor one of another host that shares the folder.
    fn temporary_file(&self, folder: &Path) -> io::Result<(PathBuf, File)> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{TEMPORARY_PREFIX}{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return Ok((path, opened?)),
            }
        }
    }

    fn read(&self, key: &str, range: &Range<u64>) -> io::Result<Vec<u8>> {
        let file = File::open(self.root.join(key))?;
        let end = range.end.min(file.metadata()?.len());
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < end {
            let have = bytes.len();
            let step = READ_BYTES.min(usize::try_from(end - at).unwrap_or(READ_BYTES));
            bytes.resize(have + step, 0);
            let read = file.read_at(&mut bytes[have..], at)?;
            bytes.truncate(have + read);
            if read == 0 {
                break;
            }
            at += read as u64;
        }
        Ok(bytes)
    }

    /// Collects what is in a folder whose objects' names begin with `at`; `true` once there are more than fit.
    fn walk(&self, at: &str, prefix: &str, after: Option<&str>, found: &mut Vec<Listed>) -> io::Result<bool> {
        let entries = match fs::read_dir(self.root.join(at)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        // A folder's objects come where its name with a slash does: `a-b` is before `a/c`.
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let is_folder = entry.file_type()?.is_dir();
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                remove_if_abandoned(&entry.path(), &name);
                continue;
            }
            names.push((format!("{at}{name}{}", if is_folder { "/" } else { "" }), is_folder));
        }
        names.sort_unstable();
        for (name, is_folder) in names {
            let is_wanted = name.starts_with(prefix) || (is_folder && prefix.starts_with(&name));
            let is_past = after.is_none_or(|after| *name > *after || (is_folder && after.starts_with(&name)));
            if !is_wanted || !is_past {
                continue;
            }
            if is_folder {
                if self.walk(&name, prefix, after, found)? {
                    return Ok(true);
                }
                continue;
            }
            let metadata = match fs::metadata(self.root.join(&name)) {
                // Deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if found.len() == self.list_max {
                return Ok(true);
            }
            let age = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            found.push(Listed { key: name, bytes: metadata.len(), modified_ms: age.as_millis() as u64 });
        }
        Ok(false)
    }
}

/// Gives a file its name, unless that is taken.
fn rename_new(from: &Path, to: &Path) -> io::Result<Put> {
    let renamed = match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // A file system that does not know how to: a second name says the same.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            return match fs::hard_link(from, to) {
                Ok(()) => fs::remove_file(from).map(|()| Put::Made),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
                Err(error) => Err(error),
            };
        }
        other => other,
    };
    match renamed {
        Ok(()) => Ok(Put::Made),
        Err(Errno::EEXIST) => Ok(Put::Exists),
        Err(error) => Err(error.into()),
    }
}

/// Sees that an object which somebody else made survives: that one may have died before its last sync.
fn confirm(place: &Path, folder: &Path) -> io::Result<Put> {
    File::open(place)?.sync_all()?;
    sync_folder(folder)?;
    Ok(Put::Exists)
}

fn remove_if_abandoned(path: &Path, name: &str) {
    let modified = || fs::symlink_metadata(path)?.modified();
    let Ok(modified) = modified() else { return };
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    if name.starts_with(TEMPORARY_PREFIX) && age > ABANDONED_AFTER {
        // Another who lists may have been quicker.
        let _ = fs::remove_file(path);
    }
}

impl ObjectStore for FolderStore {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        check_key(Action::Make, key)?;
        self.write(key, bytes).map_err(|error| failed(Action::Make, key, &error))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        check_key(Action::Read, key)?;
        self.read(key, &range).map_err(|error| failed(Action::Read, key, &error))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        let mut objects = Vec::new();
        let more = self.walk("", prefix, after, &mut objects);
        let more = more.map_err(|error| failed(Action::List, prefix, &error))?;
        Ok(Listing { objects, more })
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        check_key(Action::Delete, key)?;
        let place = self.root.join(key);
        let removed = match fs::remove_file(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.and_then(|()| sync_folder(place.parent().unwrap_or(&self.root))),
        };
        removed.map_err(|error| failed(Action::Delete, key, &error))
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use borealis_archive::name::RedoName;
    use borealis_archive::object::Digest;
    use borealis_types::{GroupId, Lsn, NodeId, VolumeEpoch, VolumeId};

    use super::*;

    #[test]
    fn a_file_that_somebody_else_writes_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let others = folder.path().join(format!("{TEMPORARY_PREFIX}{}-0", std::process::id()));
        fs::write(&others, "half of what another host writes").unwrap();
        let store = FolderStore::new(folder.path());
        assert_eq!(store.put_new("object", b"whole").unwrap(), Put::Made);
        assert_eq!(store.get("object").unwrap(), b"whole");
        assert_eq!(fs::read(&others).unwrap(), b"half of what another host writes");
    }

    #[test]
    fn a_backup_does_not_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let keeping = |watermark| FolderStore::new(folder.path()).beside_nodes(watermark);
        let redo = RedoName {
            group: GroupId(3),
            last_end: Lsn(16),
            previous_end: Lsn(8),
            epoch: VolumeEpoch(1),
            complete_through: Lsn(16),
            node: NodeId(1),
            digest: Digest([7; 16]),
        };
        let (redo, mark) = (Name::Redo(redo).key(VolumeId(7)), format!("{}/marks/one", VolumeId(7)));
        assert!(matches!(Name::of_key(&redo), Ok((_, Name::Redo(_)))), "{redo}");
        let refused = keeping(Some(u64::MAX)).put_new(&redo, b"little").unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Full);
        assert!(refused.what.contains("MiB of the disk are free"), "{}", refused.what);
        assert_eq!(keeping(Some(u64::MAX)).put_new(&mark, b"time goes on"), Ok(Put::Made));
        assert_eq!(keeping(Some(0)).put_new(&redo, b"little"), Ok(Put::Made));
        assert_eq!(keeping(Some(u64::MAX)).put_new(&redo, b"little"), Ok(Put::Exists), "it is there");
    }

    #[test]
    fn errors_of_the_system_have_their_kinds() {
        let kinds = [
            (Errno::EACCES, ErrorKind::Denied),
            (Errno::EROFS, ErrorKind::Denied),
            (Errno::ENOENT, ErrorKind::Missing),
            (Errno::ENOSPC, ErrorKind::Full),
            (Errno::EDQUOT, ErrorKind::Full),
            (Errno::ETIMEDOUT, ErrorKind::Slow),
            (Errno::ESTALE, ErrorKind::Down),
            (Errno::EIO, ErrorKind::Broken),
        ];
        for (errno, kind) in kinds {
            assert_eq!(kind_of(&io::Error::from(errno)), kind, "{errno}");
        }
    }

    #[test]
    fn what_a_dead_process_left_is_passed_over_and_removed_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::new(folder.path().join("backup"));
        store.put_new("v/one", b"1").unwrap();
        let left = folder.path().join("backup/v/.new-1-0");
        fs::write(&left, b"half").unwrap();
        let names = |listing: Listing| listing.objects.into_iter().map(|o| o.key).collect::<Vec<_>>();
        assert_eq!(names(store.list("", None).unwrap()), ["v/one"]);
        assert!(left.exists(), "it may be in use");
        let old = SystemTime::now() - ABANDONED_AFTER - Duration::from_secs(60);
        File::options().write(true).open(&left).unwrap().set_modified(old).unwrap();
        assert_eq!(names(store.list("", None).unwrap()), ["v/one"]);
        assert!(!left.exists());
    }

    #[test]
    fn a_listing_in_parts_is_the_whole_listing() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore { list_max: 3, ..FolderStore::new(folder.path()) };
        let names: Vec<String> = (0..10).map(|number| format!("v/{}/{number}", number / 4)).collect();
        names.iter().for_each(|name| assert_eq!(store.put_new(name, b""), Ok(Put::Made)));
        let (mut found, mut after, mut parts) = (Vec::new(), None, 0);
        loop {
            let part = store.list("v/", after.as_deref()).unwrap();
            found.extend(part.objects.into_iter().map(|object| object.key));
            after = found.last().cloned();
            parts += 1;
            if !part.more {
                break;
            }
        }
        assert_eq!((found, parts), (names, 4));
    }

    #[test]
    fn nothing_temporary_stays_and_nobody_else_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::new(folder.path().join("backup"));
        for _ in 0..2 {
            store.put_new("v/a/one", b"1").unwrap();
        }
        let inside = folder.path().join("backup/v/a");
        let names: Vec<_> = fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["one"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inside), mode(&inside.join("one"))), (0o700, 0o600));
    }
}
