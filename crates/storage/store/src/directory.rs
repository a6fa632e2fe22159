//! The store's directory: its identity, its lock, and small files replaced as a whole.
//!
//! ```text
//! identity            who the store is; written last at creation, so that a half-created store never opens
//! lock                held while a process has the store open
//! checkpoint          the newest checkpoint
//! log/NNNNNNNNNN.log  the log
//! segments/<group>/pages.NNNN
//! ```
//!
//! A small file is `magic [8] | length u64 | crc32c u32 | body`, numbers little-endian, the checksum over
//! magic, length and body.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Identity, StoreError};

/// The last byte counts formats of a store as a whole: an older one is refused when it is opened.
const IDENTITY_MAGIC: [u8; 8] = *b"BORIDEN\x03";
const HEADER_BYTES: usize = 20;

/// Paths of a store.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(crate) fn new(root: &Path) -> Directory {
        Directory { root: root.to_owned() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    pub(crate) fn segment(&self, group: borealis_types::GroupId) -> PathBuf {
        self.root.join("segments").join(group.to_string())
    }

    fn identity(&self) -> PathBuf {
        self.root.join("identity")
    }

    /// Makes the folders of a new store; the directory must be empty or absent.
    pub(crate) fn create(&self, identity: &Identity) -> Result<(), StoreError> {
        fs::create_dir_all(&self.root).map_err(StoreError::io("create", &self.root))?;
        let mut inside = fs::read_dir(&self.root).map_err(StoreError::io("list", &self.root))?;
        if inside.next().is_some() {
            let what = if self.identity().exists() {
                "holds a store already; open it, or choose an empty directory"
            } else {
                "is not empty; choose an empty directory"
            };
            return Err(StoreError::directory(&self.root, what));
        }
        for folder in [self.log()].into_iter().chain(identity.groups.iter().map(|&group| self.segment(group)))
        {
            fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
            sync_folder(&folder)?;
        }
        let segments = self.root.join("segments");
        if segments.exists() {
            sync_folder(&segments)?;
        }
        Ok(())
    }

    pub(crate) fn write_identity(&self, identity: &Identity) -> Result<(), StoreError> {
        replace_file(&self.identity(), IDENTITY_MAGIC, &encode(identity))
    }

    pub(crate) fn read_identity(&self) -> Result<Identity, StoreError> {
        let path = self.identity();
        if !path.exists() {
            let what = "holds no store (its `identity` file is missing)";
            return Err(StoreError::directory(&self.root, what));
        }
        decode(&read_file(&path, IDENTITY_MAGIC)?, &path)
    }

    /// Takes the lock; it is released when the file is closed, also by the process dying.
    pub(crate) fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(self.root.clone())),
            Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &path)(source)),
        }
    }
}

/// Makes the folder's entries durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(StoreError::io("sync", folder))
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

/// Replaces a small file durably: after a crash either the old or the new one is there, whole.
pub(crate) fn replace_file(path: &Path, magic: [u8; 8], body: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("new");
    let mut header = magic.to_vec();
    header.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), body);
    header.extend_from_slice(&checksum.to_le_bytes());
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&header)?;
        file.write_all(body)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(StoreError::io("write", path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Reads what [`replace_file`] wrote.
pub(crate) fn read_file(path: &Path, magic: [u8; 8]) -> Result<Vec<u8>, StoreError> {
    let place = path.display().to_string();
    let mut bytes = fs::read(path).map_err(|source| {
        if source.kind() == std::io::ErrorKind::NotFound {
            StoreError::directory(path, "is missing: the store is damaged; rebuild this node from its peers")
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
