//! S3, what speaks like it, Google Cloud Storage and Azure Blob Storage as stores.
//!
//! Each is asked through the same interface of the same client library; what differs between them is in `client`. The client is asynchronous; it runs on one thread, named `backup-store`, that does nothing else. Callers hand it a job and block until it
//! answers or the time is up. It does not retry: whoever calls knows what else there is to do.

mod client;
mod credentials;
mod failure;

use std::future::Future;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

// Named for its features alone: object_store asks with it, over TLS by the provider that `start` installs.
use reqwest as _;

use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, ObjectMeta, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::sync::mpsc;

use client::Client;
pub use credentials::CredentialSource;

use super::{Action, ErrorKind, LIST_MAX, Listed, Listing, ObjectStore, ObjectStoreError, Put, check_key};
use crate::location::CloudLocation;

/// Jobs that wait for the thread at most; who has another one waits for room.
const WAITING_JOBS_MAX: usize = 64;

/// How long a store may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// To accept a connection.
    pub connect: Duration,
    /// To fulfil a request, the transfer of its bytes included.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { connect: Duration::from_secs(5), request: Duration::from_secs(60) }
    }
}

/// What the thread runs.
type Job = Box<dyn FnOnce() + Send>;

/// A place in a bucket.
#[derive(Debug)]
pub struct CloudStore {
    location: CloudLocation,
    credentials: CredentialSource,
    timeouts: Timeouts,
    jobs: mpsc::Sender<Job>,
    /// Made with the first request, and again after the store refused: credentials may be others by then.
    client: Mutex<Option<Client>>,
    /// What the probe found, once the store answered to it.
    refuses_duplicates: OnceLock<bool>,
}

impl CloudStore {
    /// The store at a place. Nothing is asked of it yet: it may be down.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(
        location: CloudLocation,
        credentials: CredentialSource,
        timeouts: Timeouts,
    ) -> Result<CloudStore, ObjectStoreError> {
        let (jobs, waiting) = mpsc::channel(WAITING_JOBS_MAX);
        let started = start(waiting);
        let store = CloudStore {
            location,
            credentials,
            timeouts,
            jobs,
            client: Mutex::new(None),
            refuses_duplicates: OnceLock::new(),
        };
        match started {
            Ok(()) => Ok(store),
            Err(error) => Err(store.failed(Action::List, "", ErrorKind::Broken, error.to_string())),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as what it is: this store failed")]
    fn failed(&self, action: Action, key: &str, kind: ErrorKind, what: String) -> ObjectStoreError {
        ObjectStoreError { kind, action, key: key.to_owned(), what }
    }

    fn connect(&self) -> Result<Client, object_store::Error> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(Client::clone(client));
        }
        Ok(client.insert(client::build(&self.location, &self.credentials, self.timeouts)?).clone())
    }

    /// Runs a request on the thread, and waits for what comes of it.
    fn call<T, F>(
        &self,
        action: Action,
        key: &str,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, ObjectStoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, object_store::Error>> + Send + 'static,
    {
        let fail = |error: &object_store::Error| {
            let (kind, what) = failure::of(error);
            if kind == ErrorKind::Denied {
                *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            self.failed(action, key, kind, what)
        };
        // Nothing was asked yet: it lacks credentials or a setting, or has ones that make no sense.
        let unusable =
            |error: object_store::Error| self.failed(action, key, ErrorKind::Denied, failure::of(&error).1);
        let asked = ask(self.connect().map_err(unusable)?);
        let (reply, answer): (SyncSender<_>, Receiver<_>) = sync_channel(1);
        let time = self.timeouts.connect + self.timeouts.request;
        let job: Job = Box::new(move || {
            tokio::spawn(async move {
                // Whoever asked waits as long as this runs.
                let _ = reply.send(tokio::time::timeout(time, asked).await);
            });
        });
        let gone = || self.failed(action, key, ErrorKind::Broken, "its thread ended".to_owned());
        self.jobs.blocking_send(job).map_err(|_| gone())?;
        match answer.recv().map_err(|_| gone())? {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(fail(&error)),
            Err(_) => {
                let what = format!("no answer within {} seconds", time.as_secs());
                Err(self.failed(action, key, ErrorKind::Slow, what))
            }
        }
    }

    fn path(&self, key: &str) -> Path {
        Path::from(self.full(key))
    }

    fn full(&self, key: &str) -> String {
        let prefix = &self.location.prefix;
        if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") }
    }

    fn put(&self, key: &str, bytes: &[u8], mode: PutMode) -> Result<Put, ObjectStoreError> {
        let (path, payload) = (self.path(key), PutPayload::from(bytes.to_vec()));
        let class = self.location.storage_class.iter();
        let attributes: Attributes =
            class.map(|class| (Attribute::StorageClass, AttributeValue::from(class.clone()))).collect();
        let options = PutOptions { attributes, ..PutOptions::from(mode) };
        let made = self.call(Action::Make, key, |client| async move {
            match client.put_opts(&path, payload, options).await {
                Ok(_) => Ok(Put::Made),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(Put::Exists)
                }
                Err(error) => Err(error),
            }
        })?;
        // A conflict with another who makes it at the same time is no proof that it will be there.
        if made == Put::Exists && !self.exists(key)? {
            let what = "another was making it, and it is not there".to_owned();
            return Err(self.failed(Action::Make, key, ErrorKind::Slow, what));
        }
        Ok(made)
    }

    fn exists(&self, key: &str) -> Result<bool, ObjectStoreError> {
        let path = self.path(key);
        self.call(Action::Read, key, |client| async move {
            match client.head(&path).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    /// Asks the store, once, whether it refuses to make what exists: not every server that speaks S3 does.
    ///
    /// # Errors
    /// When it does not answer; then it is asked again with the next object.
    pub fn probe(&self) -> Result<bool, ObjectStoreError> {
        if let Some(known) = self.refuses_duplicates.get() {
            return Ok(*known);
        }
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let key = format!("probe/{}-{clock}", std::process::id());
        self.put(&key, b"probe", PutMode::Create)?;
        let again = self.put(&key, b"probe", PutMode::Create);
        let deleted = self.delete(&key);
        let refuses = again? == Put::Exists;
        deleted?;
        if !refuses {
            tracing::warn!(
                "the store of the backup replaces objects that exist; settings that two change at once may get lost"
            );
        }
        Ok(*self.refuses_duplicates.get_or_init(|| refuses))
    }
}

fn start(mut waiting: mpsc::Receiver<Job>) -> std::io::Result<()> {
    // Whoever else chose a provider chose the same: there is no other in the program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        runtime.block_on(async {
            // Ends with the store, whose senders go with it.
            while let Some(job) = waiting.recv().await {
                job();
            }
        });
    };
    thread::Builder::new().name("backup-store".to_owned()).spawn(run).map(drop)
}

impl ObjectStore for CloudStore {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        check_key(Action::Make, key)?;
        if self.probe()? {
            return self.put(key, bytes, PutMode::Create);
        }
        if self.exists(key)? {
            return Ok(Put::Exists);
        }
        self.put(key, bytes, PutMode::Overwrite)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        check_key(Action::Read, key)?;
        if range.is_empty() {
            return if self.exists(key)? {
                Ok(Vec::new())
            } else {
                Err(self.failed(Action::Read, key, ErrorKind::Missing, "there is no such object".to_owned()))
            };
        }
        let path = self.path(key);
        self.call(Action::Read, key, |client| async move {
            match client.get_range(&path, range).await {
                Ok(bytes) => Ok(bytes.to_vec()),
                // It begins after the end.
                Err(error) if failure::status(&error.to_string()) == Some(416) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        let strip = if self.location.prefix.is_empty() { 0 } else { self.location.prefix.len() + 1 };
        let full_prefix = self.full(prefix);
        let offset = after.map(|after| self.full(after));
        let (provider, name) = (self.location.provider, full_prefix.clone());
        let after = offset.clone();
        let begins_after = move |object: &ObjectMeta| {
            after.as_ref().is_none_or(|after| object.location.as_ref() > after.as_str())
        };
        self.call(Action::List, prefix, |client| async move {
            let mut options =
                PaginatedListOptions { offset, max_keys: Some(LIST_MAX), ..PaginatedListOptions::default() };
            let mut found = client::named_as_prefix(provider, &*client, &name).await?;
            found.retain(&begins_after);
            // A part may be empty though more follows: Azure counts what it does not show, and a server that knows no offset begins at the front.
            let more = loop {
                let part = client.list_paginated(Some(&full_prefix), options.clone()).await?;
                found.extend(part.result.objects.into_iter().filter(&begins_after));
                match part.page_token {
                    Some(token) if found.is_empty() => options.page_token = Some(token),
                    token => break token.is_some(),
                }
            };
            let listed = found.into_iter().filter_map(|object| {
                let key = object.location.to_string().get(strip..)?.to_owned();
                let modified_ms = u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0);
                Some(Listed { key, bytes: object.size, modified_ms })
            });
            let mut objects: Vec<Listed> = listed.collect();
            objects.sort_by(|one, other| one.key.cmp(&other.key));
            Ok(Listing { objects, more })
        })
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        check_key(Action::Delete, key)?;
        let path = self.path(key);
        self.call(Action::Delete, key, |client| async move {
            match client.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn refuses_duplicates(&self) -> bool {
        self.refuses_duplicates.get().copied().unwrap_or(false)
    }
}
