//! The interface of what keeps objects.
//!
//! It asks for little, so that much can be one: make an object if there is none of that name, read a part of one, list names in
//! order, delete. All implementations pass the same tests (`tests/conformance.rs`).

pub mod cloud;
pub mod folder;
pub mod memory;
pub mod retrying;

use std::fmt;
use std::ops::Range;

use borealis_archive::inventory::{Inventory, Stored};
use borealis_archive::name::Name;
use borealis_archive::object::OBJECT_BYTES_MAX;
use borealis_types::VolumeId;

use crate::location::Location;
use cloud::{CloudStore, CredentialSource, Timeouts};
use folder::FolderStore;

/// Names in one answer of an object store and of the memory store at most; a folder gives more.
pub const LIST_MAX: usize = 1000;

/// What went wrong, as far as it decides what to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ErrorKind {
    /// The store refuses: credentials are missing, wrong or not enough. It goes on refusing until somebody changes something.
    Denied,
    /// There is no such object, folder or bucket.
    Missing,
    /// There is no room. It may pass.
    Full,
    /// No answer in time, or the store asks for fewer requests. It passes.
    Slow,
    /// The store cannot be reached, or the connection broke. It passes.
    Down,
    /// Anything else: an answer that makes no sense, a damaged disk.
    Broken,
}

impl ErrorKind {
    /// Every kind, in order.
    pub const ALL: [ErrorKind; 6] = [
        ErrorKind::Denied,
        ErrorKind::Missing,
        ErrorKind::Full,
        ErrorKind::Slow,
        ErrorKind::Down,
        ErrorKind::Broken,
    ];

    /// The word for it in metrics and in what is printed.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ErrorKind::Denied => "denied",
            ErrorKind::Missing => "missing",
            ErrorKind::Full => "full",
            ErrorKind::Slow => "slow",
            ErrorKind::Down => "down",
            ErrorKind::Broken => "broken",
        }
    }

    /// Whether it may pass within seconds.
    #[must_use]
    pub fn is_worth_a_retry(self) -> bool {
        matches!(self, ErrorKind::Slow | ErrorKind::Down)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A request that a store did not fulfil.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} {key} in the backup's store ({kind}): {what}")]
pub struct ObjectStoreError {
    /// Its kind.
    pub kind: ErrorKind,
    /// What was tried.
    pub action: Action,
    /// The object or prefix.
    pub key: String,
    /// What the system or the store said. It never contains a credential.
    pub what: String,
}

impl ObjectStoreError {
    /// There is no such object.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.kind == ErrorKind::Missing
    }

    /// This object cannot be read, and others may: it is gone, too long, or on a damaged place of a disk.
    #[must_use]
    pub fn is_of_object(&self) -> bool {
        matches!(self.kind, ErrorKind::Missing | ErrorKind::Broken)
    }
}

/// A request, as a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// [`ObjectStore::put_new`].
    Make,
    /// [`ObjectStore::get`], [`ObjectStore::get_range`].
    Read,
    /// [`ObjectStore::list`].
    List,
    /// [`ObjectStore::delete`].
    Delete,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Make => "make",
            Action::Read => "read",
            Action::List => "list",
            Action::Delete => "delete",
        })
    }
}

/// What became of an object that was to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It is there now.
    Made,
    /// One of that name was there before. It was not touched, and nobody looked at its bytes.
    Exists,
}

/// An object as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// When it was made, by the store's clock, in milliseconds since 1970.
    pub modified_ms: u64,
}

/// A part of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// Objects in the order of their names, a bounded number.
    pub objects: Vec<Listed>,
    /// There are more: ask again after the last one.
    pub more: bool,
}

/// What keeps objects. Every call blocks until the store answered or a timeout is over.
pub trait ObjectStore: fmt::Debug + Send + Sync {
    /// Makes an object, unless there is one of that name. When this returns without an error, the object survives whatever the store
    /// survives.
    ///
    /// # Errors
    /// When it is not certain to be there. It may be all the same; never a part of it.
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError>;

    /// Bytes of an object; fewer than asked for if it ends before.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] if there is no such object.
    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError>;

    /// Objects whose names begin with `prefix` and come after `after`, in the order of their names.
    ///
    /// # Errors
    /// When the store does not say; a folder that is not there has no objects.
    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError>;

    /// Deletes an object; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When it is not certain to be gone.
    fn delete(&self, key: &str) -> Result<(), ObjectStoreError>;

    /// Whether of two who make the same object one is certain to be told that it exists. Without that, a duplicate replaces an object by
    /// another of the same name, which has the same bytes if the name follows from them; settings may get lost.
    fn refuses_duplicates(&self) -> bool;

    /// An object, all of it.
    ///
    /// # Errors
    /// As [`ObjectStore::get_range`]; [`ErrorKind::Broken`] if it is longer than any object of a backup.
    fn get(&self, key: &str) -> Result<Vec<u8>, ObjectStoreError> {
        let bytes = self.get_range(key, 0..OBJECT_BYTES_MAX + 1)?;
        if bytes.len() as u64 > OBJECT_BYTES_MAX {
            let what = format!("it is longer than {OBJECT_BYTES_MAX} bytes, as no object of a backup is");
            return Err(ObjectStoreError {
                kind: ErrorKind::Broken,
                action: Action::Read,
                key: key.to_owned(),
                what,
            });
        }
        Ok(bytes)
    }
}

impl<S: ObjectStore + ?Sized> ObjectStore for Box<S> {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        (**self).put_new(key, bytes)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        (**self).get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        (**self).list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        (**self).delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        (**self).refuses_duplicates()
    }
}

/// The store at a place, with the credentials that this process has. Nothing is asked of it yet: it may be down. A folder leaves room to nodes
/// with this watermark on its disk, to those with the usual one if there is none.
///
/// # Errors
/// When the thread that asks it cannot be started.
pub fn open(
    location: &Location,
    timeouts: Timeouts,
    node_watermark_bytes: Option<u64>,
) -> Result<Box<dyn ObjectStore>, ObjectStoreError> {
    Ok(match location {
        Location::Folder(folder) => Box::new(FolderStore::new(folder).beside_nodes(node_watermark_bytes)),
        Location::Cloud(cloud) => {
            Box::new(CloudStore::new(cloud.clone(), CredentialSource::of_process(), timeouts)?)
        }
    })
}

/// Every object of one volume.
///
/// # Errors
/// When the store does not say; what it said so far is worth nothing then.
pub fn inventory(store: &dyn ObjectStore, volume: VolumeId) -> Result<Inventory, ObjectStoreError> {
    Ok(Inventory::of(volume, list_all(store, &format!("{volume}/"), None)?))
}

/// Objects of a backup whose keys begin with `prefix` and come after `after`; what is no object of a backup is left out.
pub(crate) fn list_names(
    store: &dyn ObjectStore,
    prefix: &str,
    after: Option<String>,
) -> Result<Vec<(Name, Stored)>, ObjectStoreError> {
    let listed = list_all(store, prefix, after)?.into_iter();
    Ok(listed.filter_map(|(key, stored)| Some((Name::of_key(&key).ok()?.1, stored))).collect())
}

fn list_all(
    store: &dyn ObjectStore,
    prefix: &str,
    mut after: Option<String>,
) -> Result<Vec<(String, Stored)>, ObjectStoreError> {
    let mut found = Vec::new();
    loop {
        let part = store.list(prefix, after.as_deref())?;
        let last = part.objects.last().map(|listed| listed.key.clone());
        let stored =
            |listed: Listed| (listed.key, Stored { bytes: listed.bytes, modified_ms: listed.modified_ms });
        found.extend(part.objects.into_iter().map(stored));
        match last {
            Some(last) if part.more => after = Some(last),
            _ => return Ok(found),
        }
    }
}

/// A key that no store has to guess the meaning of: parts of letters, digits, `-`, `_` and `.`, divided by `/`, none beginning with `.`.
fn check_key(action: Action, key: &str) -> Result<(), ObjectStoreError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let good = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain);
    if key.len() <= 1000 && key.split('/').all(good) {
        return Ok(());
    }
    let what = "that cannot be the name of an object".to_owned();
    let key = key.chars().take(200).collect();
    Err(ObjectStoreError { kind: ErrorKind::Broken, action, key, what })
}
