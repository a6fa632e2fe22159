//! The store itself: opening, group commit, promises and histories.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use borealis_quorum::segment::Segment;
use borealis_quorum::{DurablePoint, Promise};
use borealis_types::{EpochHistory, GroupId, Lsn, WriterId};
use borealis_wire::{GroupTail, Refusal, SegmentSummary};

use crate::cache::PageCache;
use crate::checkpoint::{self, Checkpoint, CheckpointedSegment};
use crate::commit::GroupCommit;
use crate::directory::{Directory, encode};
use crate::hosted::HostedSegment;
use crate::log::entry::EntryKind;
use crate::log::{Log, LogFiles, LogPosition};
use crate::metrics::{Counters, count};
use crate::pace::Maintenance;
use crate::pages::PageFiles;
use crate::rules::{PostgresRules, RedoRules};
use crate::state::{AdoptEntry, InstallEntry, RedoContext, State};
use crate::{Identity, Options, Origin, StoreError};

/// One node's durable data: a shared log and a page store for each of its segments. All methods may be called
/// from any thread.
pub struct Store {
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) directory: Directory,
    pub(crate) rules: Arc<dyn RedoRules>,
    pub(crate) files: Arc<LogFiles>,
    pub(crate) state: Mutex<State>,
    pub(crate) commit: GroupCommit,
    /// Held by whoever materializes or otherwise changes bases.
    pub(crate) maintenance: Maintenance,
    pub(crate) cache: Mutex<PageCache>,
    pub(crate) counters: Counters,
    poison: OnceLock<String>,
    /// The first damage found in what is on disk.
    damage: OnceLock<String>,
    /// Releases the directory when the store is dropped.
    _lock: File,
}

/// How far the log reached when something was appended; give it to [`Store::sync`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sequence(pub(crate) LogPosition);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Store {
    /// Creates an empty store in an empty or absent directory and opens it.
    ///
    /// # Errors
    /// When the directory is not empty, or cannot be written.
    pub fn create(path: &Path, identity: Identity, options: Options) -> Result<Store, StoreError> {
        Store::create_with_rules(path, identity, options, Arc::new(PostgresRules))
    }

    /// [`Store::create`] with other rules of redo, for tests.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_with_rules(
        path: &Path,
        identity: Identity,
        options: Options,
        rules: Arc<dyn RedoRules>,
    ) -> Result<Store, StoreError> {
        let ascending = identity.groups.windows(2).all(|pair| pair[0] < pair[1]);
        let known = identity.groups.iter().all(|group| group.0 < identity.placement.group_count());
        if !ascending || !known {
            return Err(Refusal::Misuse("the groups of a store must ascend and exist".to_owned()).into());
        }
        let directory = Directory::new(path);
        directory.create(&identity)?;
        let log = Log::create(&directory.log(), identity.incarnation, options.log_file_bytes)?;
        let segments = identity.groups.iter().map(|&group| CheckpointedSegment {
            chain: Segment::new(group).checkpoint(),
            base: Arc::default(),
        });
        let checkpoint = Checkpoint {
            incarnation: identity.incarnation,
            replay_from: Log::first_position(),
            log_end: log.end(),
            segments: segments.collect(),
            files: Vec::new(),
        };
        checkpoint.write(&directory)?;
        drop(log);
        directory.write_identity(&identity)?;
        Store::open_with_rules(path, options, rules)
    }

    /// Opens a store and replays its log.
    ///
    /// # Errors
    /// When the directory is in use, holds no store of this format, or is damaged.
    pub fn open(path: &Path, options: Options) -> Result<Store, StoreError> {
        Store::open_with_rules(path, options, Arc::new(PostgresRules))
    }

    /// [`Store::open`] with other rules of redo, for tests.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with_rules(
        path: &Path,
        options: Options,
        rules: Arc<dyn RedoRules>,
    ) -> Result<Store, StoreError> {
        let directory = Directory::new(path);
        let identity = directory.read_identity()?;
        let lock = directory.lock()?;
        let checkpoint = Checkpoint::read(&directory)?;
        if checkpoint.incarnation != identity.incarnation {
            return Err(StoreError::directory(&directory.checkpoint(), "is of another store"));
        }
        let catalog = checkpoint.old_catalog();
        let Checkpoint { incarnation, replay_from, log_end, segments: stored, files: _ } = checkpoint;
        // From the file's beginning, so that peers can still be given what is before it in there.
        let replay_from = replay_from.file_start();
        let log = Log::open(&directory.log(), incarnation, options.log_file_bytes, replay_from)?;
        if log.end() < log_end {
            let what = format!("it ends at {:?}, and the checkpoint knows it to {log_end:?}", log.end());
            return Err(StoreError::corrupt(directory.log().display().to_string(), what));
        }
        let mut segments = BTreeMap::new();
        for segment in stored {
            let chain = checkpoint::restore_chain(&directory, segment.chain)?;
            let group = chain.group();
            let pages = PageFiles::new(directory.segment(group), identity.node, group, incarnation);
            pages.check_present(segment.base.extents.values().map(|extent| extent.region))?;
            segments.insert(group, HostedSegment::new(chain, segment.base, pages));
        }
        if !segments.keys().eq(&identity.groups) {
            return Err(StoreError::directory(&directory.checkpoint(), "names other groups than `identity`"));
        }
        let files = log.files();
        let mut state = State { log, segments, catalog, peer_floors: BTreeMap::new() };
        let context = RedoContext { rules: &*rules, placement: identity.placement };
        checkpoint::replay(&mut state, context, incarnation, replay_from, log_end)?;
        // What was read back may never have been synced; from here on it is acknowledged.
        let active = state.log.active();
        active.file.sync_data().map_err(StoreError::io("sync", &active.path))?;
        let commit = GroupCommit::new(state.log.end());
        let cache = PageCache::new(options.memory_limit_bytes / 4);
        Ok(Store {
            identity,
            options,
            directory,
            rules,
            files,
            state: Mutex::new(state),
            commit,
            maintenance: Maintenance::default(),
            cache: Mutex::new(cache),
            counters: Counters::default(),
            poison: OnceLock::new(),
            damage: OnceLock::new(),
            _lock: lock,
        })
    }

    /// Whose store this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.root()
    }

    pub(crate) fn context(&self) -> RedoContext<'_> {
        RedoContext { rules: &*self.rules, placement: self.identity.placement }
    }

    /// The state, for looking.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the state was changed leaves it half changed; `lock_to_change` refuses then, and
        // looking shows what is there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for promising anything.
    pub(crate) fn lock_to_change(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock().map_err(|_| {
            self.poisoned(&StoreError::Poisoned("a thread died while it changed the store".to_owned()))
        })?;
        self.check_poison()?;
        Ok(state)
    }

    pub(crate) fn check_poison(&self) -> Result<(), StoreError> {
        self.poison.get().map_or(Ok(()), |reason| Err(StoreError::Poisoned(reason.clone())))
    }

    /// Notes that a write or sync failed: nothing is promised from here on, because what a failed sync left on
    /// the disk is unknown and a second one would not tell.
    pub(crate) fn poisoned(&self, error: &StoreError) -> StoreError {
        let reason = match error {
            StoreError::Poisoned(reason) => reason.clone(),
            other => other.to_string(),
        };
        let reason = self.poison.get_or_init(|| {
            tracing::error!(node = self.identity.node.0, reason, "the store stopped");
            reason
        });
        StoreError::Poisoned(reason.clone())
    }

    /// Notes damage to what is on disk, for [`Store::failure`].
    pub(crate) fn note_damage(&self, error: &StoreError) {
        if matches!(error, StoreError::Corrupt { .. } | StoreError::Io { .. }) {
            self.damage.get_or_init(|| {
                tracing::error!(node = self.identity.node.0, %error, "the store is damaged");
                error.to_string()
            });
        }
    }

    /// Why the store no longer keeps its promises, if it does not: a failed write, or redo that cannot be
    /// applied.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if let Some(reason) = self.poison.get().or_else(|| self.damage.get()) {
            return Some(reason.clone());
        }
        let state = self.lock();
        state.segments.values().find_map(|hosted| {
            let failure = hosted.failure.as_ref()?;
            let group = hosted.group();
            Some(StoreError::Redo { group, lsn: failure.lsn, reason: failure.reason.clone() }.to_string())
        })
    }

    /// Returns when everything up to `sequence` is durable. Callers share syncs.
    ///
    /// # Errors
    /// When a write or sync failed, now or ever: nothing may be acknowledged then.
    pub fn sync(&self, sequence: Sequence) -> Result<(), StoreError> {
        self.check_poison()?;
        self.commit.wait(sequence.0, || {
            self.check_poison()?;
            let (active, end) = {
                let state = self.lock();
                (state.log.active(), state.log.end())
            };
            count(&self.counters.log_syncs, 1);
            // Files before the active one were synced when it began.
            let synced = active.file.sync_data().map_err(StoreError::io("sync", &active.path));
            synced.map_err(|error| self.poisoned(&error))?;
            Ok(end)
        })
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

    /// Promises every segment to a writer; durable on return.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] when a newer or another writer was promised; then nothing changed.
    pub fn fence(&self, promise: Promise) -> Result<Vec<SegmentSummary>, StoreError> {
        let (summaries, sequence) = {
            let mut state = self.lock_to_change()?;
            let standing = state.segments.values().map(|hosted| hosted.segment.promise());
            let newest =
                standing.clone().find(|&standing| standing != promise && standing.epoch >= promise.epoch);
            if let Some(newest) = newest {
                return Err(Refusal::Fenced(newest.epoch).into());
            }
            if standing.clone().any(|standing| standing != promise) {
                self.append_entry(&mut state, EntryKind::Fence, &[&encode(&promise)])?;
                for hosted in state.segments.values_mut() {
                    hosted.segment.fence(promise).map_err(|error| Refusal::Fenced(error.current.epoch))?;
                }
            }
            (summaries(&state), Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(summaries)
    }

    /// Records the outcome of a recovery in every segment: cuts what the history does not admit, and accepts
    /// its writer. `tails` is where each group ends at the newest opening; a group that is not listed is
    /// readable only once the writer has said where it ends. Durable on return.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] when a newer writer was promised; [`StoreError::Install`] when the history cannot
    /// be of this volume.
    pub fn install(
        &self,
        writer: WriterId,
        history: &EpochHistory,
        tails: &[GroupTail],
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        let Some(newest) = history.newest().copied() else {
            return Err(Refusal::Misuse("a history without any opening opens no epoch".to_owned()).into());
        };
        let items = self.identity.groups.iter().map(|&group| {
            let tail = tails.iter().find(|tail| tail.group == group);
            // Not listed: no record ends above the opening, so a chain that ends there is complete, and
            // for any other chain it is not known.
            let group_tail = tail.map_or(newest.last.end, |tail| tail.last_end);
            let durable = DurablePoint { volume: newest.last, group_tail };
            InstallEntry { group, writer: Some(writer), history: history.clone(), durable }
        });
        self.install_items(items.collect())
    }

    /// Takes a newer history from a peer of one group (see `borealis_quorum::segment::GossipPlan`). Durable on
    /// return.
    ///
    /// # Errors
    /// As [`Store::install`].
    pub fn install_from_peer(
        &self,
        group: GroupId,
        history: &EpochHistory,
        durable: DurablePoint,
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        self.install_items(vec![InstallEntry { group, writer: None, history: history.clone(), durable }])
    }

    fn install_items(&self, items: Vec<InstallEntry>) -> Result<Vec<SegmentSummary>, StoreError> {
        let (summaries, sequence, failed) = {
            let mut state = self.lock_to_change()?;
            let mut failed = None;
            let mut changed = Vec::new();
            for item in items {
                let group = item.group;
                let Some(hosted) = state.segments.get_mut(&group) else { continue };
                match hosted.segment.install(item.writer, &item.history, item.durable) {
                    Ok(installed) if installed.changed => changed.push((item, installed)),
                    Ok(_) => {}
                    Err(error) => failed = failed.or(Some(StoreError::Install { group, error })),
                }
            }
            if !changed.is_empty() {
                let entries: Vec<_> = changed.iter().map(|(item, _)| item).collect();
                self.append_entry(&mut state, EntryKind::Install, &[&encode(&entries)])?;
            }
            for (item, installed) in &changed {
                let entered = state.after_install(self.context(), &self.files, item.group, installed);
                entered.map_err(|error| self.poisoned(&error))?;
                self.forget_cached(&state, item.group);
            }
            (summaries(&state), Sequence(state.log.end()), failed)
        };
        self.sync(sequence)?;
        failed.map_or(Ok(summaries), Err)
    }

    /// Takes records that the recovery which holds the promise decided to keep into one group's segment, after
    /// adopting the history they are admitted by. Durable on return.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] when the promise is another's; otherwise as [`Store::install`] and
    /// [`Store::append`].
    pub fn repair(
        &self,
        promise: Promise,
        group: GroupId,
        history: &EpochHistory,
        batches: &[Vec<u8>],
    ) -> Result<Vec<SegmentSummary>, StoreError> {
        self.adopt_for_recovery(promise, group, history)?;
        for batch in batches {
            self.append(batch, Origin::Recovery(promise, group))?;
        }
        self.summaries()
    }

    fn adopt_for_recovery(
        &self,
        promise: Promise,
        group: GroupId,
        history: &EpochHistory,
    ) -> Result<(), StoreError> {
        let mut state = self.lock_to_change()?;
        let hosted = state.segments.get_mut(&group).ok_or(Refusal::NoSegment(group))?;
        let installed = hosted.segment.adopt_for_recovery(promise, history);
        let installed = installed.map_err(|error| StoreError::Install { group, error })?;
        if installed.changed {
            let entry = AdoptEntry { group, promise, history: history.clone() };
            self.append_entry(&mut state, EntryKind::Adopt, &[&encode(&entry)])?;
            let entered = state.after_install(self.context(), &self.files, group, &installed);
            entered.map_err(|error| self.poisoned(&error))?;
            self.forget_cached(&state, group);
        }
        Ok(())
    }

    /// What every segment promises and holds. Everything in it is durable on return.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn summaries(&self) -> Result<Vec<SegmentSummary>, StoreError> {
        let (summaries, sequence) = {
            let state = self.lock_to_change()?;
            (summaries(&state), Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(summaries)
    }

    /// The same in the words of `borealis-quorum`, for gossip and recovery. Durable on return.
    ///
    /// # Errors
    /// When the store is poisoned.
    pub fn chain_summaries(&self) -> Result<Vec<borealis_quorum::segment::SegmentSummary>, StoreError> {
        let (summaries, sequence) = {
            let state = self.lock_to_change()?;
            let summaries = state.segments.values().map(|hosted| hosted.segment.summary()).collect();
            (summaries, Sequence(state.log.end()))
        };
        self.sync(sequence)?;
        Ok(summaries)
    }

    /// Looks at one segment's chain: for instance `plan_gossip`, `gap`, `check_read`.
    ///
    /// # Errors
    /// [`Refusal::NoSegment`].
    pub fn with_segment<T>(&self, group: GroupId, look: impl FnOnce(&Segment) -> T) -> Result<T, StoreError> {
        let state = self.lock();
        let hosted = state.segments.get(&group).ok_or(Refusal::NoSegment(group))?;
        Ok(look(&hosted.segment))
    }

    /// Notes what the slowest peer of a group has: log above it is kept, within the retention limit.
    pub fn set_peer_floor(&self, group: GroupId, lsn: Lsn) {
        self.lock().peer_floors.insert(group, lsn);
    }

    /// Named counters and gauges: what [`crate`] counts, and memory and log in use, in bytes.
    #[must_use]
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.counters.list();
        let state = self.lock();
        let bases: u64 = state.segments.values().map(|hosted| hosted.base.memory_bytes()).sum();
        let unapplied = state.segments.values().map(|hosted| hosted.index.record_bytes).sum();
        let held = state.segments.values().map(|hosted| hosted.segment.held_count() as u64).sum();
        let extents = state.segments.values().map(|hosted| hosted.base.extents.len() as u64).sum();
        list.extend([
            ("index_memory_bytes", state.memory_bytes()),
            ("catalog_memory_bytes", state.catalog.memory_bytes()),
            ("base_memory_bytes", bases),
            ("cache_memory_bytes", self.cache.lock().unwrap_or_else(PoisonError::into_inner).memory_bytes()),
            ("unapplied_record_bytes", unapplied),
            ("records_held", held),
            ("extents", extents),
            ("log_files", self.files.numbers().len() as u64),
            ("log_file_bytes", self.files.total_bytes()),
        ]);
        list
    }

    fn forget_cached(&self, state: &State, group: GroupId) {
        if let Some(hosted) = state.segments.get(&group) {
            let through = hosted.indexed_through;
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).forget_above(group, through);
        }
    }
}

fn summaries(state: &State) -> Vec<SegmentSummary> {
    let summary = |hosted: &HostedSegment| {
        let segment = &hosted.segment;
        SegmentSummary {
            group: hosted.group(),
            promised_epoch: segment.promise().epoch,
            promised_writer: segment.promise().writer,
            history: segment.history().clone(),
            segment_complete_lsn: segment.segment_complete_lsn(),
            known_durable: segment.known_durable().volume,
            known_durable_tail: segment.known_durable().group_tail,
            readable_through: segment.readable_through(),
            minimum_read_point: segment.minimum_read_point(),
            materialized_lsn: hosted.base.materialized,
        }
    };
    state.segments.values().map(summary).collect()
}
