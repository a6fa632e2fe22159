//! The checkpoint file: everything a restart needs besides the log from [`Checkpoint::replay_from`] on.
//!
//! It is replaced as a whole (see [`crate::directory`]), after the pages it names and the log it summarizes
//! are durable.

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_quorum::segment::{Segment, SegmentCheckpoint};
use borealis_types::{GroupId, Lsn};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::base::Base;
use crate::catalog::{Catalog, FileEntries, GroupRange};
use crate::directory::{Directory, decode, encode, read_file, replace_file};
use crate::index::RecordRef;
use crate::log::entry::EntryKind;
use crate::log::{LogPosition, ScannedEntry, scan_from};
use crate::state::{self, AdoptEntry, InstallEntry, PositionsEntry, RedoContext, State};

const MAGIC: [u8; 8] = *b"BORCHKP\x01";

/// See the module.
#[derive(Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub incarnation: u128,
    /// Entries before this are not needed to restart.
    pub replay_from: LogPosition,
    /// The chains below are as of here.
    pub log_end: LogPosition,
    pub segments: Vec<CheckpointedSegment>,
    /// Redo in the files before `replay_from`.
    pub files: Vec<(u32, Vec<GroupRange>)>,
}

/// One segment in a checkpoint.
#[derive(Serialize, Deserialize)]
pub(crate) struct CheckpointedSegment {
    pub chain: SegmentCheckpoint,
    #[serde(with = "shared_base")]
    pub base: Arc<Base>,
}

mod shared_base {
    use super::{Arc, Base, Deserialize, Serialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(base: &Arc<Base>, serializer: S) -> Result<S::Ok, S::Error> {
        Base::serialize(base, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Base>, D::Error> {
        Base::deserialize(deserializer).map(Arc::new)
    }
}

impl Checkpoint {
    pub(crate) fn write(&self, directory: &Directory) -> Result<u64, StoreError> {
        let body = encode(self);
        replace_file(&directory.checkpoint(), MAGIC, &body)?;
        Ok(body.len() as u64)
    }

    pub(crate) fn read(directory: &Directory) -> Result<Checkpoint, StoreError> {
        let path = directory.checkpoint();
        decode(&read_file(&path, MAGIC)?, &path)
    }

    /// The catalog of the files before `replay_from`, whose entries nobody has read yet.
    pub(crate) fn old_catalog(&self) -> Catalog {
        let old = self.files.iter().filter(|(number, _)| *number < self.replay_from.file());
        let files =
            old.map(|(number, ranges)| (*number, FileEntries { entries: None, ranges: ranges.clone() }));
        Catalog { files: files.collect() }
    }
}

/// Restores a chain.
pub(crate) fn restore_chain(directory: &Directory, chain: SegmentCheckpoint) -> Result<Segment, StoreError> {
    let place = directory.checkpoint().display().to_string();
    Segment::restore(chain).map_err(|error| StoreError::corrupt(place, error.to_string()))
}

/// Replays the log over a checkpoint. Entries before the checkpoint's own position only say where the records
/// are that are not materialized; those after it also change the chains.
pub(crate) fn replay(
    state: &mut State,
    context: RedoContext<'_>,
    incarnation: u128,
    replay_from: LogPosition,
    log_end: LogPosition,
) -> Result<(), StoreError> {
    let files = state.log.files();
    let mut known: BTreeMap<GroupId, BTreeMap<Lsn, RecordRef>> = BTreeMap::new();
    let mut settled = false;
    scan_from(&files, incarnation, replay_from, &mut |entry| {
        if entry.position < log_end {
            return collect(state, &mut known, &entry);
        }
        if !std::mem::replace(&mut settled, true) {
            settle(state, context, std::mem::take(&mut known))?;
        }
        replay_entry(state, context, &entry)
    })?;
    // Empty if the entries went on after the checkpoint.
    settle(state, context, known)
}

/// Collects an entry from before the checkpoint's position.
fn collect(
    state: &mut State,
    known: &mut BTreeMap<GroupId, BTreeMap<Lsn, RecordRef>>,
    entry: &ScannedEntry,
) -> Result<(), StoreError> {
    if entry.kind != EntryKind::Batch {
        return Ok(());
    }
    let (prefix, header, records) = state::decode_entry(entry.position, &entry.payload)?;
    for record in &records {
        let span = record.reference.span;
        for group in record.groups.iter() {
            let Some(hosted) = state.segments.get(&group) else { continue };
            let admitted = hosted.segment.history().admits(header.volume_epoch, span.end);
            if admitted && span.end > hosted.base.materialized {
                known.entry(group).or_default().insert(span.start, record.reference);
            }
        }
    }
    let spans = records.iter().map(|record| record.reference.span);
    state.catalog_batch(entry.position, entry.payload.len(), prefix.groups, spans);
    Ok(())
}

/// Hands the collected records to the segments.
fn settle(
    state: &mut State,
    context: RedoContext<'_>,
    known: BTreeMap<GroupId, BTreeMap<Lsn, RecordRef>>,
) -> Result<(), StoreError> {
    let files = state.log.files();
    for (group, records) in known {
        if let Some(hosted) = state.segments.get_mut(&group) {
            hosted.pending.extend(records);
        }
        state.index_pending(context, &files, group)?;
    }
    Ok(())
}

/// Applies one entry from after the checkpoint's position.
fn replay_entry(state: &mut State, context: RedoContext<'_>, entry: &ScannedEntry) -> Result<(), StoreError> {
    let files = state.log.files();
    let path = std::path::PathBuf::from(format!("log entry at {:?}", entry.position));
    match entry.kind {
        EntryKind::Batch => state.replay_batch(context, &files, entry.position, &entry.payload),
        EntryKind::Positions => {
            let positions: PositionsEntry = decode(&entry.payload, &path)?;
            state.observe(&positions.into());
            Ok(())
        }
        EntryKind::Fence => {
            let promise = decode(&entry.payload, &path)?;
            for hosted in state.segments.values_mut() {
                // Logged only when every segment could promise; the same promise twice is fine.
                let fenced = hosted.segment.fence(promise);
                fenced.map_err(|error| StoreError::corrupt(path.display().to_string(), error.to_string()))?;
            }
            Ok(())
        }
        EntryKind::Install => {
            let items: Vec<InstallEntry> = decode(&entry.payload, &path)?;
            for item in items {
                let Some(hosted) = state.segments.get_mut(&item.group) else { continue };
                let installed = hosted
                    .segment
                    .install(item.writer, &item.history, item.durable)
                    .map_err(|error| StoreError::corrupt(path.display().to_string(), error.to_string()))?;
                state.after_install(context, &files, item.group, &installed)?;
            }
            Ok(())
        }
        EntryKind::Adopt => {
            let item: AdoptEntry = decode(&entry.payload, &path)?;
            let Some(hosted) = state.segments.get_mut(&item.group) else { return Ok(()) };
            let installed = hosted
                .segment
                .adopt_for_recovery(item.promise, &item.history)
                .map_err(|error| StoreError::corrupt(path.display().to_string(), error.to_string()))?;
            state.after_install(context, &files, item.group, &installed)
        }
    }
}
