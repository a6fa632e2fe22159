//! A store in memory, for tests and rehearsals: it loses everything with its process, and its clock is set by hand.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Action, ErrorKind, LIST_MAX, Listed, Listing, ObjectStore, ObjectStoreError, Put, check_key};

/// Objects, by name, each with the time at which it was made.
type Objects = BTreeMap<String, (Vec<u8>, u64)>;

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<Objects>,
    clock_ms: AtomicU64,
}

impl MemoryStore {
    /// Sets the clock that says when an object was made.
    pub fn set_clock_ms(&self, now_ms: u64) {
        self.clock_ms.store(now_ms, Ordering::Relaxed);
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        // A map is whole whatever its users did.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObjectStore for MemoryStore {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        check_key(Action::Make, key)?;
        let modified_ms = self.clock_ms.load(Ordering::Relaxed);
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Ok(Put::Exists);
        }
        objects.insert(key.to_owned(), (bytes.to_vec(), modified_ms));
        Ok(Put::Made)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        check_key(Action::Read, key)?;
        let objects = self.objects();
        let Some((bytes, _)) = objects.get(key) else {
            let (action, what) = (Action::Read, "there is no such object".to_owned());
            return Err(ObjectStoreError { kind: ErrorKind::Missing, action, key: key.to_owned(), what });
        };
        let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes.get(at(range.start)..at(range.end)).unwrap_or_default().to_vec())
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        let objects = self.objects();
        let first = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut names = objects
            .range::<str, _>((first, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (bytes, modified_ms))| Listed {
                key: key.clone(),
                bytes: bytes.len() as u64,
                modified_ms: *modified_ms,
            });
        let objects = names.by_ref().take(LIST_MAX).collect();
        Ok(Listing { objects, more: names.next().is_some() })
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        check_key(Action::Delete, key)?;
        self.objects().remove(key);
        Ok(())
    }

    fn refuses_duplicates(&self) -> bool {
        true
    }
}
