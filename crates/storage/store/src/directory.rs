//! The store's directory: its identity, its lock, and small files replaced as a whole.
//!
//! ```text
//! identity            who the store is; written last at creation, so that a half-created store never opens
//! lock                held while a process has the store open
//! checkpoint          the newest checkpoint
//! synced              how far the log is durable, and how often the store was opened (`synced_note.rs`)
//! boots, renounced    what is known of peers' boots, and of a loss of this store (`boots.rs`)
//! log/NNNNNNNNNN.log  the log
//! segments/<group>/pages.PPP.NNNN           the pages of a segment that was made with the store
//! segments/<group>.<epoch>/pages.PPP.NNNN   of one that came later, with the membership of this epoch
//! ```
//!
//! A folder in `segments` that neither the checkpoint nor the log after it names is of a segment that has left, or was about
//! to come: an opening removes it.
//!
//! A small file is `magic [8] | length u64 | crc32c u32 | body`, numbers little-endian, the checksum over
//! magic, length and body.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use borealis_types::{GroupId, MembershipEpoch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskLock, OpenMode};
use crate::{Identity, StoreError};

/// The last byte is the format version of the whole store. A store of another version is refused when it is
/// opened.
const IDENTITY_MAGIC: [u8; 8] = *b"BORIDEN\x06";
const HEADER_BYTES: usize = 20;

/// What the identity file holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredIdentity {
    pub identity: Identity,
    /// What log entries, pages and the checkpoint are sealed with, so that none of another store is taken for one of this:
    /// the incarnation of the store that wrote them first. A copy keeps it and has an incarnation of its own.
    pub seal: u128,
}

/// The paths of a store, and the disk they are on.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

impl Directory {
    pub(crate) fn new(disk: Arc<dyn Disk>, root: &Path) -> Directory {
        Directory { disk, root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    pub(crate) fn boots(&self) -> PathBuf {
        self.root.join("boots")
    }

    pub(crate) fn renounced(&self) -> PathBuf {
        self.root.join("renounced")
    }

    pub(crate) fn synced(&self) -> PathBuf {
        self.root.join("synced")
    }

    fn segments_folder(&self) -> PathBuf {
        self.root.join("segments")
    }

    /// The folder of a segment that came with the membership of an epoch; zero if it was made with the store.
    pub(crate) fn segment(&self, group: GroupId, joined: MembershipEpoch) -> PathBuf {
        let name = match joined {
            MembershipEpoch(0) => group.to_string(),
            MembershipEpoch(epoch) => format!("{group}.{epoch}"),
        };
        self.segments_folder().join(name)
    }

    /// The folders that segments have, or had, or were about to have.
    pub(crate) fn segments(&self) -> Result<Vec<PathBuf>, StoreError> {
        let folder = self.segments_folder();
        let names = self.disk.list(&folder).map_err(StoreError::io("list", &folder))?;
        Ok(names.into_iter().map(|name| folder.join(name)).collect())
    }

    /// Makes the empty folder of a segment that is about to come, durably. What an attempt before it left there is removed.
    pub(crate) fn make_segment(&self, group: GroupId, joined: MembershipEpoch) -> Result<(), StoreError> {
        let folder = self.segment(group, joined);
        self.disk.create_folder(&folder).map_err(StoreError::io("create", &folder))?;
        self.empty(&folder)?;
        self.sync_folder(&folder)?;
        self.sync_folder(&self.segments_folder())
    }

    /// Removes a segment's folder with all that is in it, if it is there.
    pub(crate) fn remove_segment(&self, folder: &Path) -> Result<(), StoreError> {
        if !self.disk.exists(folder) {
            return Ok(());
        }
        self.empty(folder)?;
        self.disk.remove_folder(folder).map_err(StoreError::io("remove", folder))?;
        self.sync_folder(&self.segments_folder())
    }

    fn empty(&self, folder: &Path) -> Result<(), StoreError> {
        for name in self.disk.list(folder).map_err(StoreError::io("list", folder))? {
            let path = folder.join(name);
            self.disk.remove(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }

    fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    /// Makes the folders of a new store; the directory must be empty or absent.
    pub(crate) fn create(&self, identity: &Identity) -> Result<(), StoreError> {
        self.disk.create_folder(&self.root).map_err(StoreError::io("create", &self.root))?;
        let inside = self.disk.list(&self.root).map_err(StoreError::io("list", &self.root))?;
        if !inside.is_empty() {
            let what = if self.disk.exists(&self.identity()) {
                "holds a store already; open it, or choose an empty directory"
            } else {
                "is not empty; choose an empty directory"
            };
            return Err(StoreError::directory(&self.root, what));
        }
        let segments = identity.groups.iter().map(|&group| self.segment(group, MembershipEpoch(0)));
        for folder in [self.log()].into_iter().chain(segments).chain([self.segments_folder()]) {
            self.disk.create_folder(&folder).map_err(StoreError::io("create", &folder))?;
            self.sync_folder(&folder)?;
        }
        Ok(())
    }

    pub(crate) fn write_identity(&self, identity: Identity, seal: u128) -> Result<(), StoreError> {
        self.replace_file(&self.identity(), IDENTITY_MAGIC, &encode(&StoredIdentity { identity, seal }))
    }

    pub(crate) fn read_identity(&self) -> Result<StoredIdentity, StoreError> {
        let path = self.identity();
        if !self.disk.exists(&path) {
            let what = "holds no store (its `identity` file is missing)";
            return Err(StoreError::directory(&self.root, what));
        }
        decode(&self.read_file(&path, IDENTITY_MAGIC)?, &path)
    }

    /// Takes the lock; it is released when it is dropped, and when the process dies.
    pub(crate) fn lock(&self) -> Result<DiskLock, StoreError> {
        let path = self.root.join("lock");
        let lock = self.disk.lock(&path).map_err(StoreError::io("lock", &path))?;
        lock.ok_or_else(|| StoreError::InUse(self.root.clone()))
    }

    fn sync_folder(&self, folder: &Path) -> Result<(), StoreError> {
        self.disk.sync_folder(folder).map_err(StoreError::io("sync", folder))
    }

    /// Makes the names of all files durable: an earlier process may have made some, and failed to.
    pub(crate) fn sync_names(&self) -> Result<(), StoreError> {
        [self.root.clone(), self.log(), self.segments_folder()]
            .into_iter()
            .chain(self.segments()?)
            .try_for_each(|folder| self.sync_folder(&folder))
    }

    /// Replaces a small file durably. After a crash either the old or the new file is there, complete.
    ///
    /// # Errors
    /// [`StoreError::Io`] while the old one is certain to be in place, [`StoreError::Poisoned`] when it is not.
    pub(crate) fn replace_file(&self, path: &Path, magic: [u8; 8], body: &[u8]) -> Result<(), StoreError> {
        self.write_replacement(path, magic, body)?;
        self.take_replacement(path)
    }

    /// Writes what is to replace a small file beside it, durably. After an error nothing has changed.
    pub(crate) fn write_replacement(
        &self,
        path: &Path,
        magic: [u8; 8],
        body: &[u8],
    ) -> Result<(), StoreError> {
        let mut header = magic.to_vec();
        header.extend_from_slice(&(body.len() as u64).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), body);
        header.extend_from_slice(&checksum.to_le_bytes());
        let write = || -> std::io::Result<()> {
            let file = self.disk.open(&replacement(path), OpenMode::CreateEmpty)?;
            file.write_at(&header, 0)?;
            file.write_at(body, header.len() as u64)?;
            file.sync_all()
        };
        write().map_err(StoreError::io("write", path))
    }

    /// Puts what [`Directory::write_replacement`] wrote in the file's place, durably.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]: it is unknown which of the two a power loss would leave.
    pub(crate) fn take_replacement(&self, path: &Path) -> Result<(), StoreError> {
        self.disk.rename(&replacement(path), path).map_err(StoreError::lost("replace", path))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        self.disk.sync_folder(folder).map_err(StoreError::lost("sync", folder))
    }

    /// Reads a file that [`Directory::replace_file`] wrote, and verifies it.
    pub(crate) fn read_file(&self, path: &Path, magic: [u8; 8]) -> Result<Vec<u8>, StoreError> {
        let place = path.display().to_string();
        let read = || -> std::io::Result<Vec<u8>> {
            let file = self.disk.open(path, OpenMode::Read)?;
            let mut bytes = vec![0; file.size_bytes()? as usize];
            let read = file.read_at(&mut bytes, 0)?;
            bytes.truncate(read);
            Ok(bytes)
        };
        let mut bytes = read().map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                StoreError::directory(
                    path,
                    "is missing: the store is damaged; replace this node (`borealis node replace`)",
                )
            } else {
                StoreError::io("read", path)(source)
            }
        })?;
        let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(StoreError::corrupt(place, "it is cut short"));
        };
        if header[..7] != magic[..7] {
            return Err(StoreError::corrupt(place, "it is not a file of this kind"));
        }
        if header[7] != magic[7] {
            let what = format!(
                "has format version {}, this program knows {}: open it with the version of Borealis that made it, and \
                 move the data with pg_dump",
                header[7], magic[7]
            );
            return Err(StoreError::directory(path, what));
        }
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), body);
        if header[8..16] != (body.len() as u64).to_le_bytes() || header[16..20] != checksum.to_le_bytes() {
            return Err(StoreError::corrupt(place, "it fails its checksum"));
        }
        bytes.drain(..HEADER_BYTES);
        Ok(bytes)
    }
}

/// Where the next version of a small file is written.
fn replacement(path: &Path) -> PathBuf {
    path.with_extension("new")
}

pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes into a growing buffer")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, StoreError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(StoreError::corrupt(path.display().to_string(), "its contents do not decode")),
    }
}
