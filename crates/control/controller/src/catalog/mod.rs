//! The catalog: what a controller remembers of the fleet, behind one interface.
//!
//! It is a small map from keys to JSON values. Every transaction that changes something gets the next *revision*; an entry
//! has the revision that wrote it, and a transaction may demand that what it was computed from is still there. What the
//! values mean is in [`records`].
//!
//! The interface is what etcd offers and no more, so that a second implementation is a translation: a transaction is etcd's
//! `Txn` with comparisons of `mod_revision`; [`Catalog::news`] is a watch from a revision; a lease is a key attached to one of
//! etcd's leases. [`conformance`] is the one suite that every implementation passes; [`table::Table`] is the logic of those
//! that keep everything in memory, without the file around it.

pub mod conformance;
pub mod records;
pub mod table;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use serde_json::Value;

/// The most conditions, and the most changes, of one transaction: etcd's default for `--max-txn-ops`.
pub const TRANSACTION_PARTS_MAX: usize = 128;
/// The most bytes of one value: a transaction of full length then stays below etcd's default for `--max-request-bytes`.
pub const VALUE_BYTES_MAX: usize = 8192;
/// Where the keys of leases begin; no transaction writes there.
pub const LEASES: &str = "leases/";

const KEY_BYTES_MAX: usize = 128;

/// The name of an entry: words of small letters, digits and `-`, with `/` between them, such as `nodes/3`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Key(String);

impl Key {
    /// A key.
    ///
    /// # Errors
    /// If it is empty, longer than 128 bytes, or has other characters.
    pub fn new(text: impl Into<String>) -> Result<Key, CatalogError> {
        let text = text.into();
        let is_word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if text.len() > KEY_BYTES_MAX || !text.split('/').all(is_word) {
            return Err(CatalogError::Misuse(format!("`{text}` is no key of the catalog")));
        }
        Ok(Key(text))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a lease's.
    #[must_use]
    pub fn is_lease(&self) -> bool {
        self.0.starts_with(LEASES)
    }
}

impl TryFrom<String> for Key {
    type Error = CatalogError;

    fn try_from(text: String) -> Result<Key, CatalogError> {
        Key::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many changes there were before, and with, a state of the catalog. Zero is before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and the revision that wrote it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What was written.
    pub value: Value,
    /// The transaction that wrote it.
    pub revision: Revision,
}

/// Some entries as of one revision.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Listing {
    /// The revision of the whole catalog when they were read.
    pub revision: Revision,
    /// The entries, in key order.
    pub entries: BTreeMap<Key, Entry>,
}

/// What must hold for a transaction to be carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// There is no entry of this key.
    Absent(Key),
    /// The entry is the one that this revision wrote. Of a lease's key: the lease is still held.
    Unchanged(Key, Revision),
}

impl Condition {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Condition::Absent(key) | Condition::Unchanged(key, _) => key,
        }
    }
}

/// One write of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The entry gets this value, whether or not there was one.
    Put(Key, Value),
    /// There is no such entry any more, whether or not there was one.
    Delete(Key),
}

impl Change {
    /// The key that it writes.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Change::Put(key, _) | Change::Delete(key) => key,
        }
    }
}

/// Changes that are made all or not at all, if all conditions hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Transaction {
    /// At most [`TRANSACTION_PARTS_MAX`].
    pub conditions: Vec<Condition>,
    /// At most [`TRANSACTION_PARTS_MAX`], each of another key, none of a lease's.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// Whether it is within the limits that every implementation keeps.
    ///
    /// # Errors
    /// Says which it breaks.
    pub fn check(&self) -> Result<(), CatalogError> {
        let refuse = |what: String| Err(CatalogError::Misuse(what));
        if self.conditions.len().max(self.changes.len()) > TRANSACTION_PARTS_MAX {
            return refuse(format!("a transaction has more than {TRANSACTION_PARTS_MAX} parts"));
        }
        let mut written = std::collections::BTreeSet::new();
        for change in &self.changes {
            let key = change.key();
            if key.is_lease() {
                return refuse(format!("a transaction writes `{key}`, which is a lease's"));
            }
            if !written.insert(key) {
                return refuse(format!("a transaction writes `{key}` twice"));
            }
            if let Change::Put(_, value) = change
                && value.to_string().len() > VALUE_BYTES_MAX
            {
                return refuse(format!("the value of `{key}` has more than {VALUE_BYTES_MAX} bytes"));
            }
        }
        Ok(())
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was carried out, and this is the catalog's revision now: a new one if it changed something.
    Committed(Revision),
    /// A condition did not hold; nothing was changed. Read again what it was computed from.
    Conflict,
}

/// What changed since a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// Each entry that changed, as it is now; what was overwritten in between is left out.
    Changes {
        /// The revision up to which these are all changes; ask from here next time.
        revision: Revision,
        /// Entries that were written, and `None` for those that are gone.
        entries: BTreeMap<Key, Option<Entry>>,
    },
    /// The catalog no longer knows what was deleted that long ago: list everything anew.
    TooOld,
}

/// A name that one holder has for a time. It tells controllers which of them should act; whether what they do is safe is never
/// decided by it, for a holder may be paused and go on after its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Its key, below [`LEASES`].
    pub key: Key,
    /// Who has it.
    pub holder: String,
    /// The revision that gave it: [`Condition::Unchanged`] with it makes a transaction fail once the lease is lost.
    pub revision: Revision,
}

impl Lease {
    /// The condition that it is still held.
    #[must_use]
    pub fn is_held(&self) -> Condition {
        Condition::Unchanged(self.key.clone(), self.revision)
    }
}

/// The answer to who wants a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Acquisition {
    /// The caller has it now.
    Acquired(Lease),
    /// Another one has it.
    HeldBy(String),
}

/// Why the catalog did not do it. What its conditions forbid is no error: see [`Outcome::Conflict`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CatalogError {
    /// It cannot be reached, read or written now. A transaction may or may not have been carried out.
    #[error("the catalog cannot be used: {0}. The volume goes on without it; repairs wait until it is back")]
    Unavailable(String),
    /// What is stored is not what this version writes.
    #[error("the catalog cannot be read: {0}. Nothing was changed")]
    Damaged(String),
    /// The caller asked for what no catalog does.
    #[error("a mistake in the use of the catalog: {0}")]
    Misuse(String),
}

/// What a controller remembers of the fleet.
///
/// Every call sees all that any call before it did, whoever made it (etcd's linearizable reads).
pub trait Catalog {
    /// The entries whose keys begin with `prefix`; an empty one is the beginning of all.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn list(&mut self, prefix: &str) -> Result<Listing, CatalogError>;

    /// Carries out a transaction, durably before it returns.
    ///
    /// # Errors
    /// When the catalog cannot be used, or the transaction breaks a limit.
    fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, CatalogError>;

    /// What has changed below `prefix` since `since`, without waiting.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    fn news(&mut self, prefix: &str, since: Revision) -> Result<News, CatalogError>;

    /// Takes the lease of this name for `ttl_ms`, if nobody has it. Who has it already under the same holder's name does not
    /// get it twice: two processes that call themselves the same are still two.
    ///
    /// # Errors
    /// When the catalog cannot be used, or the name is no key.
    fn acquire(&mut self, name: &str, holder: &str, ttl_ms: u64) -> Result<Acquisition, CatalogError>;

    /// Keeps a lease for as long again as it was taken for; false if it is lost.
    ///
    /// # Errors
    /// When the catalog cannot be used. The lease may then be lost in time.
    fn keep(&mut self, lease: &Lease) -> Result<bool, CatalogError>;

    /// Gives a lease back; nothing happens if it is lost.
    ///
    /// # Errors
    /// When the catalog cannot be used.
    fn release(&mut self, lease: &Lease) -> Result<(), CatalogError>;
}
