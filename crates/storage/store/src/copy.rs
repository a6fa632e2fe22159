//! Copying a store, for a node that takes the place of one that is lost for good.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use borealis_wire::Refusal;

use crate::boots::read_renounced;
use crate::directory::{Directory, StoredIdentity};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::{Environment, Identity, Store, StoreError};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// What is zero in blocks of this size is not written, so that a copy takes no more space than its original.
const BLOCK_BYTES: usize = 64 << 10;

impl Store {
    /// Copies the store in `from`, which nobody may have open, into the empty or absent folder `to`, as the store of
    /// `identity`: another node of the same volume, with the same groups. What the original promised, the copy promises
    /// too. Durable on return; a copy that was interrupted never opens.
    ///
    /// # Errors
    /// When the original is in use or damaged, belongs to another volume or hosts other groups; when `to` is not empty;
    /// or when a file cannot be read or written.
    pub fn copy(from: &Path, to: &Path, identity: Identity) -> Result<(), StoreError> {
        Store::copy_in(&Environment::default(), from, to, identity)
    }

    /// [`Store::copy`] on another disk.
    ///
    /// # Errors
    /// As [`Store::copy`].
    pub fn copy_in(
        environment: &Environment,
        from: &Path,
        to: &Path,
        identity: Identity,
    ) -> Result<(), StoreError> {
        let disk = &environment.disk;
        let (source, target) = (Directory::new(Arc::clone(disk), from), Directory::new(Arc::clone(disk), to));
        let StoredIdentity { identity: original, seal } = source.read_identity()?;
        let same = (original.volume, original.version, original.placement, &original.groups)
            == (identity.volume, identity.version, identity.placement, &identity.groups);
        if !same {
            let what = "is of another volume, or hosts other groups, than the node that is to get a copy";
            return Err(StoreError::directory(from, what));
        }
        if (original.node, original.incarnation) == (identity.node, identity.incarnation) {
            return Err(Refusal::Misuse("a copy of a store needs an identity of its own".to_owned()).into());
        }
        if let Some(why) = read_renounced(&source) {
            let what = format!("may not vote, and a copy would: {why}");
            return Err(StoreError::directory(from, what));
        }
        let _lock = source.lock()?;
        target.create(&identity)?;
        for (from, to) in files_to_copy(disk, &source, &target)? {
            copy_file(disk, &from, &to)?;
        }
        for folder in
            [target.log()].into_iter().chain(identity.groups.iter().map(|&group| target.segment(group)))
        {
            disk.sync_folder(&folder).map_err(StoreError::io("sync", &folder))?;
        }
        // Last, and with the folder's other names.
        target.write_identity(identity, seal)
    }
}

/// Every file of a store but its lock and its identity, with the name that its copy has.
fn files_to_copy(
    disk: &Arc<dyn Disk>,
    source: &Directory,
    target: &Directory,
) -> Result<Vec<(PathBuf, PathBuf)>, StoreError> {
    let list = |folder: &Path| disk.list(folder).map_err(StoreError::io("list", folder));
    let is_folder = |name: &str| matches!(name, "log" | "segments");
    let mut files = Vec::new();
    for name in list(source.root())? {
        if !is_folder(&name) && !matches!(name.as_str(), "lock" | "identity") {
            files.push(PathBuf::from(name));
        }
    }
    // The spare holds nothing, and a copy of it could not be filled ahead: it would have holes.
    let of_log = list(&source.log())?.into_iter().filter(|name| name != "spare");
    files.extend(of_log.map(|name| Path::new("log").join(name)));
    let segments = source.root().join("segments");
    for group in list(&segments)? {
        let folder = Path::new("segments").join(group);
        files.extend(list(&source.root().join(&folder))?.into_iter().map(|name| folder.join(name)));
    }
    Ok(files.into_iter().map(|file| (source.root().join(&file), target.root().join(&file))).collect())
}

fn copy_file(disk: &Arc<dyn Disk>, from: &Path, to: &Path) -> Result<(), StoreError> {
    let source = disk.open(from, OpenMode::Read).map_err(StoreError::io("open", from))?;
    let target = disk.open(to, OpenMode::CreateEmpty).map_err(StoreError::io("create", to))?;
    let size_bytes = source.size_bytes().map_err(StoreError::io("read", from))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < size_bytes {
        let read = source.read_at(&mut chunk, at).map_err(StoreError::io("read", from))?;
        if read == 0 {
            let what = format!("it ends at {at}, and was {size_bytes} bytes long");
            return Err(StoreError::corrupt(from.display().to_string(), what));
        }
        write_blocks(&*target, &chunk[..read], at).map_err(StoreError::io("write", to))?;
        at += read as u64;
    }
    if let Some(last) = size_bytes.checked_sub(1) {
        // A file that ends with zeros is as long as its original.
        let read = source.read_at(&mut chunk[..1], last).map_err(StoreError::io("read", from))?;
        target.write_at(&chunk[..read], last).map_err(StoreError::io("write", to))?;
    }
    target.sync_all().map_err(StoreError::io("sync", to))
}

/// Writes the blocks that are not zero.
fn write_blocks(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let mut at = offset;
    for block in bytes.chunks(BLOCK_BYTES) {
        if block.iter().any(|&byte| byte != 0) {
            file.write_at(block, at)?;
        }
        at += block.len() as u64;
    }
    Ok(())
}
