//! The node's part in the backup: a thread that uploads redo as it becomes durable, and one that deletes what nobody can need any more.
//!
//! Nobody waits for it. It takes redo from the log as a peer does, an object at a time, and has the store keep log that the backup lacks, within
//! the retention limit. Now and then it takes a group's pages beside that, as of one position that the store keeps for it under a lease. What it knows of the backup, others read in [`Backup::metrics`] and [`Backup::trouble`].
//!
//! A request to an object store may hang for as long as its timeout, and one to a folder for ever (a dead network file system). When the node
//! stops, no further request is made, and a thread that hangs in one is left behind: it holds nothing of the node.

mod retention;
mod source;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use borealis_archive::duty::Duty;
use borealis_archive::sealing::Sealing;
use borealis_backup::key::KeySource;
use borealis_backup::location::Location;
use borealis_backup::pace::Pauses;
use borealis_backup::store::cloud::Timeouts;
use borealis_backup::store::{self, Action, ErrorKind, Listing, ObjectStore, ObjectStoreError, Put};
use borealis_backup::upload::{Now, Options, Status, Uploader};
use borealis_spec::{BackupConfig, NodeConfig};
use borealis_store::Store;
use borealis_types::{GroupId, Lsn};

use self::retention::Deletions;
use self::source::NodeRedo;
use crate::catch_up::Known;
use crate::materializer::lower_priority;
use crate::members::Members;

/// How much less of a busy processor it gets than those who answer.
const NICENESS: i32 = 10;
/// Until a key is asked for again that nobody had, at first.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// As [`OPEN_AGAIN_AFTER`], at most: a command may ask a service that others need too.
const OPEN_AGAIN_AFTER_MAX: Duration = Duration::from_secs(60);
/// How long a node that stops waits for a request that is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// A node's part in the backup.
#[derive(Debug)]
pub(crate) struct Backup {
    location: Location,
    config: BackupConfig,
    /// Below so many free bytes the node takes no redo; the usual watermark if absent.
    node_watermark_bytes: Option<u64>,
    options: Options,
    /// How often it is looked for what can be deleted.
    deletion_interval: Duration,
    seed: u64,
    started: Instant,
    redo: NodeRedo,
    /// How objects are encrypted, once that is known: a command is asked until it said so, and not again.
    sealing: OnceLock<Sealing>,
    stopping: Arc<AtomicBool>,
    state: Mutex<State>,
    changed: Condvar,
}

/// One uploads, one deletes.
const THREADS: u32 = 2;

#[derive(Debug, Default)]
struct State {
    threads_ended: u32,
    status: Status,
    /// When the status was noted.
    noted: Option<Now>,
    /// Why the store of the backup cannot be opened, and since when.
    unopened: Option<(String, u64)>,
    deletions: Deletions,
}

impl Backup {
    /// The part of a node that has one; `None` if it has none.
    ///
    /// # Errors
    /// When the URL does not say where the backup is kept.
    pub(crate) fn of(
        config: &NodeConfig,
        store: &Arc<Store>,
        known: &Arc<Known>,
        members: &Arc<Members>,
    ) -> anyhow::Result<Option<Arc<Backup>>> {
        let Some(backup) = &config.backup else { return Ok(None) };
        let location: Location = backup
            .url
            .parse::<Location>()
            .with_context(|| format!("see `backup` in {}", config.file().display()))?;
        let redo = NodeRedo::new(config.node, store, known, members);
        // From the beginning: who looks for log to release may be faster than the thread.
        redo.keep_log(BTreeMap::new());
        let mut options = Options::new(config.volume, config.placement, config.postgres_version, config.node);
        options.snapshot_rule.redo_bytes = config.backup_snapshot_bytes;
        Ok(Some(Arc::new(Backup {
            location,
            config: backup.clone(),
            node_watermark_bytes: config.free_space_min_bytes,
            options,
            deletion_interval: retention::interval(config.backup_deletion_seconds),
            seed: config.incarnation as u64 ^ u64::from(config.node.0),
            started: Instant::now(),
            redo,
            sealing: OnceLock::new(),
            stopping: Arc::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    fn now(&self) -> Now {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { steady_ms: ms(self.started.elapsed()), wall_ms: ms(wall) }
    }

    /// Makes [`Backup::run_until_stopped`] and [`Backup::delete_until_stopped`] return after the request that is under way.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Whoever is about to wait has either looked, and waits by now, or looks after this.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until both threads have ended, but not for long; false if they have not.
    pub(crate) fn wait_for_end(&self) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), STOP_PATIENCE, |state| state.threads_ended < THREADS);
        waited.expect("nothing panics while it holds this lock").0.threads_ended == THREADS
    }

    /// Waits for this long; false when stopping.
    fn wait(&self, pause: Duration) -> bool {
        let is_on = |_: &mut State| !self.stopping.load(Ordering::Acquire);
        drop(self.changed.wait_timeout_while(self.lock(), pause, is_on));
        !self.stopping.load(Ordering::Acquire)
    }

    /// The body of the thread that uploads.
    pub(crate) fn run_until_stopped(&self) {
        lower_priority(NICENESS);
        self.upload_until_stopped();
        self.end_of_thread();
    }

    fn end_of_thread(&self) {
        self.lock().threads_ended += 1;
        self.changed.notify_all();
    }

    fn upload_until_stopped(&self) {
        let ms = |pause: Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let mut pauses = Pauses::new(ms(OPEN_AGAIN_AFTER), ms(OPEN_AGAIN_AFTER_MAX), self.seed);
        let (store, sealing) = loop {
            match self.open() {
                Ok(opened) => break opened,
                Err(error) => self.note_unopened(&format!("{error:#}")),
            }
            if !self.wait(Duration::from_millis(pauses.after_failure())) {
                return;
            }
        };
        self.lock().unopened = None;
        let store = Ending { store, stopping: Arc::clone(&self.stopping) };
        let options = Options { sealing, ..self.options.clone() };
        let mut uploader = Uploader::new(options, self.now(), self.seed);
        let mut pause_ms = 0;
        while self.wait(Duration::from_millis(pause_ms)) {
            pause_ms = uploader.step(self.now(), &self.redo, &store);
            let now = self.now();
            let status = uploader.status(now);
            let floors: BTreeMap<GroupId, Lsn> =
                status.groups.iter().map(|group| (group.group, group.uploaded)).collect();
            self.redo.keep_log(floors);
            let mut state = self.lock();
            (state.status, state.noted) = (status, Some(now));
        }
    }

    fn open(&self) -> anyhow::Result<(Box<dyn ObjectStore>, Sealing)> {
        let sealing = match self.sealing.get() {
            Some(sealing) => sealing.clone(),
            None => {
                let key = KeySource::of(self.config.key_file.as_deref(), self.config.key_command.as_deref())?;
                let sealing = key.sealing(&|| !self.stopping.load(Ordering::Acquire))?;
                self.sealing.get_or_init(|| sealing).clone()
            }
        };
        let store = store::open(&self.location, Timeouts::default(), self.node_watermark_bytes)?;
        Ok((store, sealing))
    }

    fn note_unopened(&self, what: &str) {
        let mut state = self.lock();
        let earlier = state.unopened.as_ref().map(|(_, since_ms)| *since_ms);
        if earlier.is_none() {
            tracing::warn!("this node uploads nothing to {} for now: {what}", self.location);
        }
        state.unopened = Some((what.to_owned(), earlier.unwrap_or_else(|| self.now().wall_ms)));
    }

    /// Counters and gauges, by name.
    fn counts(&self) -> [u64; NAMES.len()] {
        let state = self.lock();
        let (now, status) = (self.now(), &state.status);
        // The thread may hang in a request, also in its first.
        let noted_ms = state.noted.map_or(0, |noted| noted.steady_ms);
        let silent_ms = now.steady_ms.saturating_sub(noted_ms);
        let uploaded_here = || status.groups.iter().filter(|group| group.duty == Some(Duty::Upload));
        let behind_ms = uploaded_here()
            .filter(|group| group.uploaded < group.durable || silent_ms > 1_000)
            .map(|group| group.behind_ms + silent_ms)
            .max();
        let failing = state.unopened.as_ref().map(|(_, since_ms)| *since_ms);
        let failing = failing.or(status.last_failure.as_ref().map(|failure| failure.since_ms));
        [
            uploaded_here().count() as u64,
            behind_ms.unwrap_or(0),
            // Never zero while it fails.
            failing.map_or(0, |since_ms| now.wall_ms.saturating_sub(since_ms).max(1)),
            status.gaps.len() as u64,
            status.objects,
            status.bytes,
            status.failures.values().sum(),
            status.snapshots,
            state.deletions.objects(),
        ]
    }

    /// What keeps it from uploading, for a person; `None` if nothing does.
    pub(crate) fn trouble(&self) -> Option<String> {
        let state = self.lock();
        let what = match (&state.unopened, &state.status.last_failure) {
            (Some((what, since_ms)), _) => Some((what, *since_ms)),
            (None, Some(failure)) => Some((&failure.what, failure.since_ms)),
            (None, None) => None,
        };
        let seconds = |since_ms: u64| self.now().wall_ms.saturating_sub(since_ms) / 1000;
        let nothing = what.map(|(what, since_ms)| {
            format!("it has uploaded nothing to the backup for {} s: {what}", seconds(since_ms))
        });
        let of_snapshot = state.status.snapshot_trouble.as_ref().map(|(group, what)| {
            format!("the backup's next snapshot of group {group} does not get to its end: {what}")
        });
        let of_deletion = || {
            let what = state.deletions.trouble()?;
            Some(format!("what is old is not deleted from the backup: {what}"))
        };
        nothing.or(of_snapshot).or_else(of_deletion)
    }
}

/// What the metrics of a backup are called.
const NAMES: [&str; 9] = [
    "backup_groups",
    "backup_behind_ms",
    "backup_failing_ms",
    "backup_gaps",
    "backup_objects",
    "backup_bytes",
    "backup_failures",
    "backup_snapshots",
    "backup_deleted",
];

/// Counters and gauges of a node's backup; all are zero if it has none.
pub(crate) fn metrics(backup: Option<&Backup>) -> impl Iterator<Item = (String, u64)> {
    let counts = backup.map(Backup::counts).unwrap_or_default();
    NAMES.into_iter().map(str::to_owned).zip(counts)
}

/// A store that nothing more is asked of once the node stops.
#[derive(Debug)]
struct Ending {
    store: Box<dyn ObjectStore>,
    stopping: Arc<AtomicBool>,
}

impl Ending {
    fn check(&self, action: Action, key: &str) -> Result<(), ObjectStoreError> {
        if !self.stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        let (key, what) = (key.to_owned(), "the node stops".to_owned());
        Err(ObjectStoreError { kind: ErrorKind::Down, action, key, what })
    }
}

impl ObjectStore for Ending {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Put, ObjectStoreError> {
        self.check(Action::Make, key)?;
        self.store.put_new(key, bytes)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ObjectStoreError> {
        self.check(Action::Read, key)?;
        self.store.get_range(key, range)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Listing, ObjectStoreError> {
        self.check(Action::List, prefix)?;
        self.store.list(prefix, after)
    }

    fn delete(&self, key: &str) -> Result<(), ObjectStoreError> {
        self.check(Action::Delete, key)?;
        self.store.delete(key)
    }

    fn refuses_duplicates(&self) -> bool {
        self.store.refuses_duplicates()
    }
}
