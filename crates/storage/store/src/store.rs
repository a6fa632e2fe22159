//! The store itself: its parts, appending log entries, and group commit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use borealis_quorum::segment::Segment;
use borealis_types::{GroupId, Lsn};
use borealis_wire::Refusal;

use crate::boots::PeerBoots;
use crate::directory::Directory;
use crate::disk::DiskLock;
use crate::hindrances::Hindrances;
use crate::log::entry::EntryKind;
use crate::log::files::LogFiles;
use crate::log::group_commit::GroupCommit;
use crate::log::position::LogPosition;
use crate::log::preparation::Preparation;
use crate::maintenance::Maintenance;
use crate::metrics::{Metrics, count};
use crate::pages::cache::PageCache;
use crate::read::long_value::LongValue;
use crate::redo_engine::RedoContext;
use crate::segment::state::State;
use crate::synced_note::SyncedNote;
use crate::{Environment, Identity, Options, StoreError};

/// One node's durable data: a shared log, and page files for each of its segments. All methods may be called
/// from any thread.
pub struct Store {
    pub(crate) identity: Identity,
    /// What its log entries and pages are sealed with; see [`crate::directory::StoredIdentity`].
    pub(crate) seal: u128,
    pub(crate) options: Options,
    pub(crate) directory: Directory,
    pub(crate) environment: Environment,
    pub(crate) files: Arc<LogFiles>,
    pub(crate) preparation: Arc<Preparation>,
    pub(crate) state: Mutex<State>,
    pub(crate) commit: GroupCommit,
    /// Held by whoever changes materialized states.
    pub(crate) maintenance: Maintenance,
    /// Held by whoever makes the folder of a segment that comes.
    pub(crate) joining: Mutex<()>,
    pub(crate) cache: Mutex<PageCache>,
    /// Held by whoever has a record in memory that came in pieces: such records are long.
    pub(crate) assembling: Mutex<()>,
    /// A value that a client reads in parts.
    pub(crate) long_value: Mutex<Option<LongValue>>,
    pub(crate) counters: Metrics,
    pub(crate) poison: OnceLock<String>,
    /// The boots that peers were last heard in.
    pub(crate) peer_boots: Mutex<PeerBoots>,
    /// What keeps it from some of its work for now.
    pub(crate) hindrances: Mutex<Hindrances>,
    /// How far the log is known to be durable, outside of the log, and how often the store was opened.
    pub(crate) note: Mutex<SyncedNote>,
    /// Releases the directory when the store is dropped.
    pub(crate) _lock: DiskLock,
}

/// The log's end after something was appended, for [`Store::sync`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sequence(pub(crate) LogPosition);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Store {
    /// The node and volume that this store belongs to. Which groups have a segment here now, [`Store::groups`] says.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The folder that the store lies in.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.root()
    }

    pub(crate) fn context(&self) -> RedoContext<'_> {
        RedoContext { redo: &*self.environment.redo, placement: self.identity.placement }
    }

    /// Returns when everything before `sequence` is durable. Concurrent callers share one `fdatasync`.
    ///
    /// # Errors
    /// When a write or sync failed, now or earlier: nothing may be acknowledged then.
    pub fn sync(&self, sequence: Sequence) -> Result<(), StoreError> {
        self.check_poison()?;
        self.commit.wait(sequence.0, || {
            self.check_poison()?;
            let ((older, active), end) = {
                let state = self.lock();
                (state.log.to_sync(), state.log.end())
            };
            for file in older.iter().chain([&active]) {
                count(&self.counters.log_syncs, 1);
                file.sync().map_err(|error| self.poisoned(&error))?;
            }
            if !older.is_empty() {
                self.lock().log.note_synced_before(active.number);
                older.iter().for_each(|file| self.files.only_read(file));
            }
            Ok(end)
        })
    }

    /// As [`Store::sync`], for what holds a promise: damage to it will not pass for a torn tail, either.
    pub(crate) fn sync_promise(&self, sequence: Sequence) -> Result<(), StoreError> {
        self.sync(sequence)?;
        self.note_synced()
    }

    /// Notes durably, outside of the log, how far the log is durable (see `synced_note.rs`). Without news it costs
    /// nothing. To be called from time to time, and before the store is closed: damage to entries that were synced since
    /// looks like a tail that was never synced, and the next opening writes them again.
    ///
    /// # Errors
    /// When the note cannot be written. The one before stands, and nothing else is wrong with the store.
    pub fn note_synced(&self) -> Result<(), StoreError> {
        let mut note = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        note.write(self.commit.durable())
    }

    /// How often the store was opened, this time included.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.note.lock().unwrap_or_else(PoisonError::into_inner).boot()
    }

    /// Prepares each next log file in time, so that appends need not wait for it; returns when
    /// [`Store::end_materialization`] is called. Without it everything works, and appends wait now and then.
    pub fn prepare_log_files(&self) {
        // Not into the room that is kept free: what is written there ahead serves nobody.
        self.preparation.run(|| self.has_ample_space());
    }

    /// Appends an entry to the log.
    pub(crate) fn append_entry(
        &self,
        state: &mut State,
        kind: EntryKind,
        payload: &[&[u8]],
    ) -> Result<LogPosition, StoreError> {
        let bytes: usize = payload.iter().map(|part| part.len()).sum();
        count(&self.counters.log_entries, 1);
        count(&self.counters.log_bytes, bytes as u64);
        let appended = state.log.append(kind, self.commit.durable(), payload);
        appended.map_err(|error| self.poisoned(&error))
    }

    /// Reads one segment's chain, for instance with `plan_gossip` or `gap`.
    ///
    /// # Errors
    /// [`Refusal::NoSegment`].
    pub fn with_segment<T>(&self, group: GroupId, look: impl FnOnce(&Segment) -> T) -> Result<T, StoreError> {
        let state = self.lock();
        let hosted = state.segments.get(&group).ok_or(Refusal::NoSegment(group))?;
        Ok(look(&hosted.segment))
    }

    /// Notes the SCL of a group's slowest peer. Log above it is kept, within the retention limit.
    pub fn set_peer_floor(&self, group: GroupId, lsn: Lsn) {
        let mut state = self.lock();
        if state.segments.contains_key(&group) {
            state.peer_floors.insert(group, lsn);
        }
    }

    /// Notes to where a backup has the redo of each group; nothing of a group that is missing here. Log above it is kept, within the
    /// retention limit.
    pub fn set_backup_floors(&self, floors: BTreeMap<GroupId, Lsn>) {
        self.lock().backup_floors = Some(floors);
    }

    /// Named counters and gauges: what [`crate`] counts, and memory and log in use, in bytes.
    #[must_use]
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.counters.list();
        // The note is held while it is synced: nobody waits for that who holds the state.
        let boot = self.boot();
        let state = self.lock();
        let bases: u64 = state.segments.values().map(|hosted| hosted.materialized.memory_bytes()).sum();
        let unapplied = state.segments.values().map(|hosted| hosted.index.record_bytes).sum();
        let held = state.segments.values().map(|hosted| hosted.segment.held_count() as u64).sum();
        let extents = state.segments.values().map(|hosted| hosted.materialized.extents.len() as u64).sum();
        list.extend([
            ("index_memory_bytes", state.memory_bytes()),
            ("catalog_memory_bytes", state.batch_locations.memory_bytes()),
            ("base_memory_bytes", bases),
            ("cache_memory_bytes", self.cache.lock().unwrap_or_else(PoisonError::into_inner).memory_bytes()),
            ("unapplied_record_bytes", unapplied),
            ("records_held", held),
            ("segments", state.segments.len() as u64),
            ("extents", extents),
            ("boot", boot),
            (
                "pages_in_trouble",
                state.segments.values().map(|hosted| hosted.troubles.pages.len() as u64).sum(),
            ),
            (
                "quarantine_bytes",
                state.segments.values().map(|hosted| hosted.materialized.held_bytes()).sum(),
            ),
            ("log_entries_damaged", state.damaged_entries.len() as u64),
            ("log_files", self.files.numbers().len() as u64),
            ("log_file_bytes", self.files.total_bytes()),
        ]);
        list
    }
}
