//! Replaying the log over a checkpoint when a store is opened.

use std::collections::BTreeMap;

use borealis_types::{GroupId, Lsn};

use crate::StoreError;
use crate::directory::decode;
use crate::log::entry::EntryKind;
use crate::log::payload::{AdoptEntry, InstallEntry, PositionsEntry, decode_entry};
use crate::log::position::{LogPosition, RecordRef};
use crate::log::scan::{ScannedEntry, scan_from};
use crate::redo_engine::RedoContext;
use crate::segment::state::State;

/// Replays the log over a checkpoint. Entries before the checkpoint's `log_end` only say where unapplied
/// records are; the chains in the checkpoint have them already. Entries after it also change the chains.
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
            return collect_before_checkpoint(state, &mut known, &entry);
        }
        if !std::mem::replace(&mut settled, true) {
            index_collected(state, context, std::mem::take(&mut known))?;
        }
        replay_entry(state, context, &entry)
    })?;
    // Nothing is left to index here if entries after the checkpoint were replayed.
    index_collected(state, context, known)
}

/// Collects the unapplied records of an entry before the checkpoint's `log_end`.
fn collect_before_checkpoint(
    state: &mut State,
    known: &mut BTreeMap<GroupId, BTreeMap<Lsn, RecordRef>>,
    entry: &ScannedEntry,
) -> Result<(), StoreError> {
    if entry.kind != EntryKind::Batch {
        return Ok(());
    }
    let (prefix, header, records) = decode_entry(entry.position, &entry.payload)?;
    for record in &records {
        let span = record.reference.span;
        for group in record.groups.iter() {
            let Some(hosted) = state.segments.get(&group) else { continue };
            let admitted = hosted.segment.history().admits(header.volume_epoch, span.end);
            if admitted && span.end > hosted.materialized.lsn {
                known.entry(group).or_default().insert(span.start, record.reference);
            }
        }
    }
    let spans = records.iter().map(|record| record.reference.span);
    state.note_batch(entry.position, entry.payload.len(), prefix.groups, spans);
    Ok(())
}

/// Indexes the collected records, as far as their chains reach.
fn index_collected(
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

/// Replays an entry after the checkpoint's `log_end`.
fn replay_entry(state: &mut State, context: RedoContext<'_>, entry: &ScannedEntry) -> Result<(), StoreError> {
    let files = state.log.files();
    let path = std::path::PathBuf::from(format!("log entry at {:?}", entry.position));
    match entry.kind {
        EntryKind::Void => Ok(()),
        EntryKind::Batch => state.replay_batch(context, &files, entry.position, &entry.payload),
        EntryKind::Positions => {
            let positions: PositionsEntry = decode(&entry.payload, &path)?;
            state.observe(&positions.into());
            Ok(())
        }
        EntryKind::Fence => {
            let promise = decode(&entry.payload, &path)?;
            for hosted in state.segments.values_mut() {
                // A fence was logged only if every segment could promise. The same promise twice is allowed.
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
