//! A store that is asked again when what failed may pass within seconds: for who reads a backup and would rather wait than begin anew.
//! The uploader does not use it: it has a way of its own to wait.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Listing, ObjectStore, ObjectStoreError, Put};
use crate::pace::Pauses;

/// A store with patience.
#[derive(Debug)]
pub struct Retrying<S> {
    store: S,
    attempts: u32,
    pauses_ms: (u64, u64),
    /// Another one for each request.
    seed: AtomicU64,
    /// Waits so many milliseconds.
    wait: fn(u64),
}

impl<S: ObjectStore> Retrying<S> {
    /// Asks `store` up to `attempts` times, with pauses of `pauses_ms.0` at first and `pauses_ms.1` at most between; `wait` waits that many
    /// milliseconds.
    #[must_use]
    pub fn new(store: S, attempts: u32, pauses_ms: (u64, u64), seed: u64, wait: fn(u64)) -> Retrying<S> {
        Retrying { store, attempts, pauses_ms, seed: AtomicU64::new(seed), wait }
    }

    /// The store itself.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.store
    }

    fn ask<T>(&self, request: impl Fn(&S) -> Result<T, ObjectStoreError>) -> Result<T, ObjectStoreError> {
        let (first_ms, most_ms) = self.pauses_ms;
        let mut pauses = Pauses::new(first_ms, most_ms, self.seed.fetch_add(1, Ordering::Relaxed));
        loop {
            match request(&self.store) {
                Err(error) if error.kind.is_worth_a_retry() && pauses.failures() + 1 < self.attempts => {
                    (self.wait)(pauses.after_failure());
                }
                other => return other,
            }
        }
    }
}

impl<S: ObjectStore> ObjectStore for Retrying<S> {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        // An attempt whose answer was lost may have made it: then it exists, and that is as good.
        self.ask(|store| store.put_new(key, bytes))
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.ask(|store| store.get_range(key, range.clone()))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        self.ask(|store| store.list(prefix, after))
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.ask(|store| store.delete(key))
    }

    fn refuses_duplicates(&self) -> bool {
        self.store.refuses_duplicates()
    }
}
