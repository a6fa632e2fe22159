//! Replaying the log over a checkpoint when a store is opened.

use std::collections::BTreeMap;

use borealis_types::{GroupId, GroupSet, Lsn};

use crate::StoreError;
use crate::directory::decode;
use crate::log::entry::EntryKind;
use crate::log::payload::{
    AcceptEntry, AdoptEntry, BaseEntry, InstallEntry, JumpEntry, MembersEntry, PositionsEntry, PrepareEntry,
    decode_entry,
};
use crate::log::position::{LogPosition, RecordRef};
use crate::log::scan::{ScannedEntry, scan_from};
use crate::redo_engine::RedoContext;
use crate::segment::hosted::HostedSegment;
use crate::segment::state::State;
use crate::segment::stay::Homes;

/// The unapplied records of the log before the checkpoint, and where the record before each ends, by their start.
type Collected = BTreeMap<GroupId, BTreeMap<Lsn, (RecordRef, Lsn)>>;

/// Replays the log over a checkpoint. Entries before the checkpoint's `log_end` only say where unapplied
/// records are; the chains in the checkpoint have them already. Entries after it also change the chains.
pub(crate) fn replay(
    state: &mut State,
    context: RedoContext<'_>,
    homes: Homes<'_>,
    replay_from: LogPosition,
    log_end: LogPosition,
) -> Result<(), StoreError> {
    let files = state.log.files();
    let mut known = Collected::new();
    let mut settled = false;
    scan_from(&files, homes.seal, replay_from, &mut |entry| {
        if entry.position < log_end {
            return collect_before_checkpoint(state, &mut known, &entry);
        }
        if !std::mem::replace(&mut settled, true) {
            index_collected(state, context, std::mem::take(&mut known))?;
        }
        replay_entry(state, context, homes, &entry)
    })?;
    if settled { Ok(()) } else { index_collected(state, context, known) }
}

/// Collects the unapplied records of an entry before the checkpoint's `log_end`.
fn collect_before_checkpoint(
    state: &mut State,
    known: &mut Collected,
    entry: &ScannedEntry,
) -> Result<(), StoreError> {
    if entry.kind != EntryKind::Batch {
        return Ok(());
    }
    let (prefix, header, records) = decode_entry(entry.position, &entry.payload)?;
    for record in &records {
        let span = record.reference.span;
        for &(group, previous_end) in &record.previous_ends {
            let hosted = state.segments.get(&group).filter(|hosted| hosted.stay.has(entry.position));
            let Some(hosted) = hosted else { continue };
            let admitted = hosted.segment.history().admits(header.volume_epoch, span.end);
            if admitted && span.end > hosted.materialized.lsn {
                known.entry(group).or_default().insert(span.start, (record.reference, previous_end));
            }
        }
    }
    let spans = records.iter().map(|record| record.reference.span);
    let is_here =
        |group: &GroupId| state.segments.get(group).is_some_and(|hosted| hosted.stay.has(entry.position));
    let groups = prefix.groups.iter().filter(is_here).fold(GroupSet::EMPTY, GroupSet::with);
    state.note_batch(entry.position, entry.payload.len(), groups, spans);
    Ok(())
}

/// Indexes the collected records, as far as their chains reach.
fn index_collected(
    state: &mut State,
    context: RedoContext<'_>,
    mut known: Collected,
) -> Result<(), StoreError> {
    let files = state.log.files();
    let groups: Vec<GroupId> = state.segments.keys().copied().collect();
    for group in groups {
        let records = known.remove(&group).unwrap_or_default();
        if let Some(hosted) = state.segments.get_mut(&group) {
            check_connected(hosted, &records)?;
            hosted.pending.extend(records.into_iter().map(|(start, (reference, _))| (start, reference)));
        }
        state.index_pending(context, &files, group)?;
    }
    Ok(())
}

/// Fails if a record is missing of those that the checkpoint says the segment has: pages made without it would be wrong.
fn check_connected(
    hosted: &HostedSegment,
    records: &BTreeMap<Lsn, (RecordRef, Lsn)>,
) -> Result<(), StoreError> {
    let (group, complete) = (hosted.group(), hosted.segment.segment_complete_lsn());
    let materialized = hosted.materialized.lsn;
    let missing = |from: Lsn, to: Lsn| {
        let what = format!("the log lacks records of group {group} between {from} and {to}");
        Err(StoreError::corrupt("the log".to_owned(), what))
    };
    let mut reached = materialized;
    for (reference, previous_end) in records.values().filter(|(reference, _)| reference.span.end <= complete)
    {
        // The materialized LSN may lie beyond the group's last record before it.
        let follows = *previous_end == reached || (reached == materialized && *previous_end < materialized);
        if !follows {
            return missing(reached, reference.span.start);
        }
        reached = reference.span.end;
    }
    if reached < complete { missing(reached, complete) } else { Ok(()) }
}

/// Replays an entry after the checkpoint's `log_end`.
fn replay_entry(
    state: &mut State,
    context: RedoContext<'_>,
    homes: Homes<'_>,
    entry: &ScannedEntry,
) -> Result<(), StoreError> {
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
        EntryKind::Jump => {
            let JumpEntry { group, point } = decode(&entry.payload, &path)?;
            state.jump(context, &files, group, point)
        }
        EntryKind::Prepare => {
            let PrepareEntry { group, installed, ballot } = decode(&entry.payload, &path)?;
            if let Some(segment) = state.any_segment_mut(group) {
                segment.prepare_membership(installed, ballot);
            }
            Ok(())
        }
        EntryKind::Accept => {
            let AcceptEntry { group, proposed } = decode(&entry.payload, &path)?;
            let Some(segment) = state.any_segment_mut(group) else { return Ok(()) };
            let accepted = segment.accept_membership(&proposed);
            accepted.map_err(|error| StoreError::corrupt(path.display().to_string(), error.to_string()))?;
            Ok(())
        }
        EntryKind::Members => {
            let MembersEntry { group, membership } = decode(&entry.payload, &path)?;
            let outcome = state.install_membership(homes, entry.position, group, &membership);
            outcome.map_err(|error| StoreError::corrupt(path.display().to_string(), error.to_string()))?;
            Ok(())
        }
        EntryKind::Base => {
            let BaseEntry { group, epoch, point } = decode(&entry.payload, &path)?;
            state.take_base(context, &files, group, epoch, point)
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
