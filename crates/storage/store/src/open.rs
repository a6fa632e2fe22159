//! Creating a store, and opening one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use borealis_quorum::segment::{Segment, SegmentCheckpoint};
use borealis_types::GroupId;
use borealis_wire::Refusal;

use crate::boots::{read_peer_boots, read_renounced};
use crate::checkpoint::{Checkpoint, CheckpointedSegment};
use crate::directory::{Directory, StoredIdentity};
use crate::disk::Descriptors;
use crate::log::group_commit::GroupCommit;
use crate::log::writer::Log;
use crate::maintenance::Maintenance;
use crate::metrics::Metrics;
use crate::pages::cache::PageCache;
use crate::redo_engine::RedoContext;
use crate::segment::hosted::HostedSegment;
use crate::segment::replay::replay;
use crate::segment::state::State;
use crate::segment::stay::{Homes, Stay};
use crate::synced_note::SyncedNote;
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
            stay: Stay::SINCE_CREATION,
            materialized: Arc::default(),
            refilled: None,
        });
        let checkpoint = Checkpoint {
            seal: identity.incarnation,
            replay_from: Log::first_position(),
            log_end: log.end(),
            segments: segments.collect(),
            absent: Vec::new(),
            files: Vec::new(),
        };
        checkpoint.write(&directory)?;
        Checkpoint::take(&directory)?;
        SyncedNote::create(&directory, identity.incarnation, log.end())?;
        drop(log);
        let seal = identity.incarnation;
        directory.write_identity(identity, seal)?;
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
        let disk = Descriptors::new(Arc::clone(&environment.disk), options.open_files_max);
        let directory = Directory::new(Arc::new(disk), path);
        let StoredIdentity { identity, seal } = directory.read_identity()?;
        let lock = directory.lock()?;
        let checkpoint = Checkpoint::read(&directory)?;
        if checkpoint.seal != seal {
            return Err(StoreError::directory(&directory.checkpoint(), "is of another store"));
        }
        let batch_locations = checkpoint.old_batch_locations();
        let Checkpoint { seal: _, replay_from, log_end, segments: stored, absent: stored_absent, files: _ } =
            checkpoint;
        // Replay begins at the file's first entry, so that peers can still be given the redo before the
        // checkpoint in that file.
        let replay_from = replay_from.file_start();
        let mut note = SyncedNote::open(&directory, seal)?;
        directory.sync_names()?;
        let log = Log::open(
            directory.disk(),
            &directory.log(),
            seal,
            options.log_file_bytes,
            replay_from,
            log_end.max(note.synced_through()),
        )?;
        let homes = Homes { directory: &directory, node: identity.node, seal };
        let (segments, absent) = restore_segments(homes, &identity, stored, stored_absent)?;
        let files = log.files();
        let mut state = State {
            log,
            segments,
            absent,
            left_folders: Vec::new(),
            batch_locations,
            replay_from,
            peer_floors: BTreeMap::new(),
            backup_floors: None,
            damaged_entries: BTreeMap::new(),
        };
        let context = RedoContext { redo: &*environment.redo, placement: identity.placement };
        replay(&mut state, context, homes, replay_from, log_end)?;
        check_folders(&state, &directory)?;
        // `Log::open` made durable whatever it found, so this is true, and acknowledged from here on.
        note.begin_boot(state.log.end())?;
        let (peer_boots, renounced) = (read_peer_boots(&directory), read_renounced(&directory));
        let commit = GroupCommit::new(state.log.end());
        let cache = PageCache::new(options.memory_limit_bytes / 4);
        let store = Store {
            identity,
            seal,
            options,
            directory,
            environment: environment.clone(),
            files,
            preparation: state.log.preparation(),
            state: Mutex::new(state),
            commit,
            maintenance: Maintenance::default(),
            joining: Mutex::default(),
            cache: Mutex::new(cache),
            assembling: Mutex::new(()),
            long_value: Mutex::new(None),
            counters: Metrics::default(),
            poison: renounced.map_or_else(OnceLock::new, OnceLock::from),
            note: Mutex::new(note),
            hindrances: Mutex::default(),
            peer_boots: Mutex::new(peer_boots),
            _lock: lock,
        };
        store.remove_unnamed();
        Ok(store)
    }
}

type Restored = (BTreeMap<GroupId, HostedSegment>, BTreeMap<GroupId, Segment>);

/// The segments as the checkpoint has them: those that are here, and what is left of others.
fn restore_segments(
    homes: Homes<'_>,
    identity: &Identity,
    stored: Vec<CheckpointedSegment>,
    stored_absent: Vec<SegmentCheckpoint>,
) -> Result<Restored, StoreError> {
    let mut segments = BTreeMap::new();
    for segment in stored {
        let hosted = restore_segment(homes, segment)?;
        segments.insert(hosted.group(), hosted);
    }
    let mut absent = BTreeMap::new();
    for chain in stored_absent {
        let segment = checkpoint::restore_chain(homes.directory, chain)?;
        absent.insert(segment.group(), segment);
    }
    // A segment that was made with the store leaves something, if it leaves.
    let is_known = |group: &GroupId| segments.contains_key(group) != absent.contains_key(group);
    let exists = |group: &GroupId| group.0 < identity.placement.group_count();
    if !identity.groups.iter().all(is_known) || !segments.keys().chain(absent.keys()).all(exists) {
        let what = "names other groups than `identity`";
        return Err(StoreError::directory(&homes.directory.checkpoint(), what));
    }
    Ok((segments, absent))
}

/// Fails unless the folder of every segment is there: each was made durable before the entry with which the segment came.
fn check_folders(state: &State, directory: &Directory) -> Result<(), StoreError> {
    let folders = state.segments.values().map(|hosted| directory.segment(hosted.group(), hosted.stay.joined));
    for folder in folders {
        if !directory.disk().exists(&folder) {
            let what = "is missing: the store is damaged; replace this node (`borealis node replace`)";
            return Err(StoreError::directory(&folder, what));
        }
    }
    Ok(())
}

/// A segment as its checkpoint has it.
fn restore_segment(homes: Homes<'_>, segment: CheckpointedSegment) -> Result<HostedSegment, StoreError> {
    let directory = homes.directory;
    let chain = checkpoint::restore_chain(directory, segment.chain)?;
    let (group, stay) = (chain.group(), segment.stay);
    let certain = chain.known_durable().volume.end.min(chain.minimum_read_point());
    if segment.materialized.lsn > certain {
        let what = format!(
            "group {group} is materialized through {}, where somebody may read or records may be truncated",
            segment.materialized.lsn
        );
        return Err(StoreError::corrupt(directory.checkpoint().display().to_string(), what));
    }
    let pages = homes.pages(group, stay);
    let refilled = segment.refilled.iter().flat_map(|refilled| refilled.state.extents.values());
    let extents = segment.materialized.extents.values().chain(refilled);
    pages.check_present(extents.map(|extent| extent.region))?;
    Ok(HostedSegment::new(chain, stay, segment.materialized, segment.refilled, pages))
}
