//! Making a store out of segments that other stores have, for a node that takes the place of one that is lost for good: the
//! nodes that are left have its groups between them, and perhaps none of them has all.
//!
//! A segment is taken with everything it promises, and with the membership of its group. Its pages are read, verified and written again, for each is sealed with
//! its store's seal; a page that is damaged there is held as damaged here, and peers heal it. Of the log it gets the records
//! that are not materialized. Older log, which only a peer that is behind would ask for, stays where it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use borealis_quorum::segment::Standing;
use borealis_types::{GroupId, GroupSet, PAGE_SIZE, PageKey};
use borealis_wire::{BatchReader, Refusal};

use crate::boots::read_renounced;
use crate::checkpoint::{Checkpoint, CheckpointedSegment};
use crate::directory::{Directory, StoredIdentity};
use crate::log::entry::EntryKind;
use crate::log::payload::BatchPrefix;
use crate::log::writer::Log;
use crate::pages::held::HeldPage;
use crate::pages::materialized_state::MaterializedState;
use crate::pages::page_files::{PageFiles, SlotRun};
use crate::segment::stay::{Homes, Stay};
use crate::synced_note::SyncedNote;
use crate::{Environment, Identity, Options, Store, StoreError};

/// Log read and written at a time.
const TAIL_BYTES: u32 = 1 << 20;

/// Segments to take from a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSource {
    /// The store's folder; nobody may have it open.
    pub store: PathBuf,
    /// The groups to take from it.
    pub groups: Vec<GroupId>,
}

impl Store {
    /// Makes a store of `identity` in the empty or absent folder `to`, with the segments that `sources` name: of the same
    /// volume, and each of the identity's groups once. What a segment promised, it promises here, too. `options` are the new store's. Durable on return;
    /// one that was interrupted never opens.
    ///
    /// # Errors
    /// When a source is in use or damaged beyond single pages, may not vote, belongs to another volume, has not the
    /// groups or knows the new store's node as no member of one; when `to` is not empty; or when a file cannot be read or written.
    pub fn gather(
        sources: &[SegmentSource],
        to: &Path,
        identity: Identity,
        options: &Options,
    ) -> Result<(), StoreError> {
        Store::gather_in(&Environment::default(), sources, to, identity, options)
    }

    /// [`Store::gather`] on another disk.
    ///
    /// # Errors
    /// As [`Store::gather`].
    pub fn gather_in(
        environment: &Environment,
        sources: &[SegmentSource],
        to: &Path,
        identity: Identity,
        options: &Options,
    ) -> Result<(), StoreError> {
        let mut groups: Vec<GroupId> = sources.iter().flat_map(|source| &source.groups).copied().collect();
        groups.sort_unstable();
        if groups != identity.groups {
            let what = "each group of the new store must be taken from one source, and no other".to_owned();
            return Err(Refusal::Misuse(what).into());
        }
        for source in sources {
            check_source(environment, source, &identity, options)?;
        }
        let target = Directory::new(Arc::clone(&environment.disk), to);
        target.create(&identity)?;
        let seal = identity.incarnation;
        let mut log = Log::create(target.disk(), &target.log(), seal, options.log_file_bytes)?;
        let mut segments = Vec::new();
        for source in sources {
            let store = Store::open_in(environment, &source.store, options.clone())?;
            for &group in &source.groups {
                segments.push(store.give_segment(group, &target, &identity, &mut log)?);
            }
        }
        segments.sort_by_key(|segment| segment.chain.summary.group);
        let (older, active) = log.to_sync();
        older.iter().chain([&active]).try_for_each(|file| file.sync())?;
        let checkpoint = Checkpoint {
            seal,
            replay_from: Log::first_position(),
            log_end: log.end(),
            segments,
            absent: Vec::new(),
            files: Vec::new(),
        };
        checkpoint.write(&target)?;
        Checkpoint::take(&target)?;
        SyncedNote::create(&target, seal, log.end())?;
        target.sync_names()?;
        // Last, and with the folder's other names.
        target.write_identity(identity, seal)
    }

    /// Writes a segment's pages and the records that are not materialized into another store.
    fn give_segment(
        &self,
        group: GroupId,
        target: &Directory,
        identity: &Identity,
        log: &mut Log,
    ) -> Result<CheckpointedSegment, StoreError> {
        let (chain, materialized, pages) = {
            let state = self.lock_to_change()?;
            let hosted = state.segments.get(&group).ok_or(Refusal::NoSegment(group))?;
            (hosted.segment.checkpoint(), Arc::clone(&hosted.materialized), Arc::clone(&hosted.pages))
        };
        let homes = Homes { directory: target, node: identity.node, seal: identity.incarnation };
        let new_pages = homes.pages(group, Stay::SINCE_CREATION);
        let materialized = copy_pages(&pages, &new_pages, &materialized)?;
        let prefix = BatchPrefix { groups: GroupSet::EMPTY.with(group), positions_count: false }.encode();
        let mut above = materialized.lsn;
        loop {
            let tail = self.read_tail(group, above, TAIL_BYTES)?;
            for batch in &tail.batches {
                log.append(EntryKind::Batch, Log::first_position(), &[&prefix, batch])?;
                let records =
                    BatchReader::new(batch).ok().into_iter().flat_map(|(_, reader)| reader.flatten());
                above = records.map(|record| record.span.end).last().unwrap_or(above);
            }
            if !tail.more {
                // What a refill brought so far is as of no state of its own; the new node begins one itself.
                return Ok(CheckpointedSegment {
                    chain,
                    stay: Stay::SINCE_CREATION,
                    materialized: Arc::new(materialized),
                    refilled: None,
                });
            }
        }
    }
}

/// Refuses a source that cannot give what is asked of it, before anything is made.
fn check_source(
    environment: &Environment,
    source: &SegmentSource,
    identity: &Identity,
    options: &Options,
) -> Result<(), StoreError> {
    let directory = Directory::new(Arc::clone(&environment.disk), &source.store);
    let StoredIdentity { identity: original, .. } = directory.read_identity()?;
    let refuse = |what: String| Err(StoreError::directory(&source.store, what));
    let same = (original.volume, original.version, original.placement)
        == (identity.volume, identity.version, identity.placement);
    if !same {
        return refuse("is of another volume than the node that is to get segments of it".to_owned());
    }
    if (original.node, original.incarnation) == (identity.node, identity.incarnation) {
        let what = "a store made of others' segments needs an identity of its own".to_owned();
        return Err(Refusal::Misuse(what).into());
    }
    if let Some(why) = read_renounced(&directory) {
        return refuse(format!("may not vote, and what is made of it would: {why}"));
    }
    let store = Store::open_in(environment, &source.store, options.clone())?;
    for &group in &source.groups {
        match store.standing(group) {
            Standing::Full => {}
            Standing::Absent => return refuse(format!("has no segment of group {group}")),
            Standing::Joining => {
                return refuse(format!("is joining group {group}, and has not everything of it yet"));
            }
        }
        let membership = store.membership(group)?;
        if membership.is_some_and(|stored| !stored.installed().contains(identity.node)) {
            return refuse(format!("knows node {} as no member of group {group}", identity.node));
        }
    }
    Ok(())
}

/// Writes the newest version of every page to the same place in other files, with their seal. Returns the state that names
/// them: pages that could not be read are held as damaged in it.
fn copy_pages(
    from: &PageFiles,
    to: &PageFiles,
    materialized: &MaterializedState,
) -> Result<MaterializedState, StoreError> {
    let mut copied = materialized.clone();
    let mut run = SlotRun::default();
    let keys = |(first, extent)| MaterializedState::pages_of(first, extent);
    for key in materialized.extents.iter().map(|(first, extent)| (first, &**extent)).flat_map(keys) {
        let address = materialized.locate(&key).expect("an extent's pages are located by it");
        let is_damaged = matches!(materialized.held.get(&key), Some(HeldPage::Damaged { .. }));
        let read = if is_damaged { None } else { Some(from.read(&key, address, materialized.lsn)) };
        let page = match read {
            Some(Ok(page)) => page,
            Some(Err(StoreError::Corrupt { place, what })) => {
                hold_as_damaged(&mut copied, key, format!("{place}: {what}"));
                Box::new([0; PAGE_SIZE])
            }
            Some(Err(error)) => return Err(error),
            // Nothing of it is served, but the place must be there.
            None => Box::new([0; PAGE_SIZE]),
        };
        to.write(&mut run, &key, address, materialized.lsn, &page)?;
    }
    to.sync(&mut run)?;
    Ok(copied)
}

fn hold_as_damaged(state: &mut MaterializedState, key: PageKey, found: String) {
    let reason = format!("damaged in the store that it was taken from: {found}");
    state.held.insert(key, HeldPage::Damaged { reason });
}
