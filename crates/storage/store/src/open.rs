//! Creating a store, and opening one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use borealis_quorum::segment::Segment;
use borealis_wire::Refusal;

use crate::checkpoint::{Checkpoint, CheckpointedSegment};
use crate::directory::Directory;
use crate::log::group_commit::GroupCommit;
use crate::log::writer::Log;
use crate::maintenance::Maintenance;
use crate::metrics::Metrics;
use crate::pages::cache::PageCache;
use crate::pages::page_files::PageFiles;
use crate::redo_engine::RedoContext;
use crate::segment::hosted::HostedSegment;
use crate::segment::replay::replay;
use crate::segment::state::State;
use crate::{Environment, Identity, Options, Store, StoreError, checkpoint};

impl Store {
    /// Creates an empty store in an empty or absent directory and opens it.
    ///
    /// # Errors
    /// When the directory is not empty, or cannot be written.
    pub fn create(path: &Path, identity: Identity, options: Options) -> Result<Store, StoreError> {
        Store::create_in(&Environment::default(), path, identity, options)
    }

    /// [`Store::create`] on another disk, clock or redo engine.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn create_in(
        environment: &Environment,
        path: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<Store, StoreError> {
        let ascending = identity.groups.windows(2).all(|pair| pair[0] < pair[1]);
        let known = identity.groups.iter().all(|group| group.0 < identity.placement.group_count());
        if !ascending || !known {
            return Err(Refusal::Misuse("the groups of a store must ascend and exist".to_owned()).into());
        }
        let directory = Directory::new(Arc::clone(&environment.disk), path);
        directory.create(&identity)?;
        let log =
            Log::create(directory.disk(), &directory.log(), identity.incarnation, options.log_file_bytes)?;
        let segments = identity.groups.iter().map(|&group| CheckpointedSegment {
            chain: Segment::new(group).checkpoint(),
            materialized: Arc::default(),
        });
        let checkpoint = Checkpoint {
            incarnation: identity.incarnation,
            replay_from: Log::first_position(),
            log_end: log.end(),
            segments: segments.collect(),
            files: Vec::new(),
        };
        checkpoint.write(&directory)?;
        Checkpoint::take(&directory)?;
        drop(log);
        directory.write_identity(&identity)?;
        Store::open_in(environment, path, options)
    }

    /// Opens a store and replays its log.
    ///
    /// # Errors
    /// When the directory is in use, holds no store of this format, or is damaged.
    pub fn open(path: &Path, options: Options) -> Result<Store, StoreError> {
        Store::open_in(&Environment::default(), path, options)
    }

    /// [`Store::open`] on another disk, clock or redo engine.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(environment: &Environment, path: &Path, options: Options) -> Result<Store, StoreError> {
        let directory = Directory::new(Arc::clone(&environment.disk), path);
        let identity = directory.read_identity()?;
        let lock = directory.lock()?;
        let checkpoint = Checkpoint::read(&directory)?;
        if checkpoint.incarnation != identity.incarnation {
            return Err(StoreError::directory(&directory.checkpoint(), "is of another store"));
        }
        let batch_locations = checkpoint.old_batch_locations();
        let Checkpoint { incarnation, replay_from, log_end, segments: stored, files: _ } = checkpoint;
        // Replay begins at the file's first entry, so that peers can still be given the redo before the
        // checkpoint in that file.
        let replay_from = replay_from.file_start();
        let log =
            Log::open(directory.disk(), &directory.log(), incarnation, options.log_file_bytes, replay_from)?;
        if log.end() < log_end {
            let what = format!("it ends at {:?}, and the checkpoint knows it to {log_end:?}", log.end());
            return Err(StoreError::corrupt(directory.log().display().to_string(), what));
        }
        let mut segments = BTreeMap::new();
        for segment in stored {
            let chain = checkpoint::restore_chain(&directory, segment.chain)?;
            let group = chain.group();
            let certain = chain.known_durable().volume.end.min(chain.minimum_read_point());
            if segment.materialized.lsn > certain {
                let what = format!(
                    "group {group} is materialized through {}, where somebody may read or records may be truncated",
                    segment.materialized.lsn
                );
                return Err(StoreError::corrupt(directory.checkpoint().display().to_string(), what));
            }
            let pages = PageFiles::new(
                Arc::clone(directory.disk()),
                directory.segment(group),
                identity.node,
                group,
                incarnation,
            );
            pages.check_present(segment.materialized.extents.values().map(|extent| extent.region))?;
            segments.insert(group, HostedSegment::new(chain, segment.materialized, pages));
        }
        if !segments.keys().eq(&identity.groups) {
            return Err(StoreError::directory(&directory.checkpoint(), "names other groups than `identity`"));
        }
        let files = log.files();
        let mut state = State { log, segments, batch_locations, replay_from, peer_floors: BTreeMap::new() };
        let context = RedoContext { redo: &*environment.redo, placement: identity.placement };
        replay(&mut state, context, incarnation, replay_from, log_end)?;
        // The entries just read may never have been synced before the crash, and are acknowledged from here
        // on.
        let (older, active) = state.log.to_sync();
        for file in older.iter().chain([&active]) {
            file.file.sync_data().map_err(StoreError::io("sync", &file.path))?;
        }
        state.log.note_synced_before(active.number);
        let commit = GroupCommit::new(state.log.end());
        let cache = PageCache::new(options.memory_limit_bytes / 4);
        Ok(Store {
            identity,
            options,
            directory,
            environment: environment.clone(),
            files,
            preparation: state.log.preparation(),
            state: Mutex::new(state),
            commit,
            maintenance: Maintenance::default(),
            cache: Mutex::new(cache),
            counters: Metrics::default(),
            poison: OnceLock::new(),
            held_up: Mutex::default(),
            damage: OnceLock::new(),
            _lock: lock,
        })
    }
}
