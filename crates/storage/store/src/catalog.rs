//! Which redo is where in the log: what tails are read by, and what decides which files may go.

use std::collections::BTreeMap;

use borealis_types::{GroupId, GroupSet, Lsn, MAX_GROUPS, VolumeEpoch};
use serde::{Deserialize, Serialize};

use crate::log::LogPosition;

/// One batch in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryRef {
    /// Of the payload.
    pub position: LogPosition,
    pub length: u32,
    /// The groups whose segments took its records.
    pub groups: GroupSet,
    /// Where its first record starts.
    pub first_start: Lsn,
    /// Where its last record ends.
    pub last_end: Lsn,
}

/// The redo of one group in one file: lowest start and highest end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct GroupRange {
    pub group: GroupId,
    pub first_start: Lsn,
    pub last_end: Lsn,
}

/// What is known about one file.
#[derive(Clone, Default, Debug)]
pub(crate) struct FileEntries {
    /// Its batches in log order; `None` for a file that everything in it is materialized of, and nobody has
    /// read since the last checkpoint.
    pub entries: Option<Vec<EntryRef>>,
    pub ranges: Vec<GroupRange>,
}

/// Every file of the log.
#[derive(Clone, Default, Debug)]
pub(crate) struct Catalog {
    pub files: BTreeMap<u32, FileEntries>,
}

impl Catalog {
    /// Adds a batch that was appended.
    pub(crate) fn push(&mut self, entry: EntryRef) {
        let file = self
            .files
            .entry(entry.position.file())
            .or_insert_with(|| FileEntries { entries: Some(Vec::new()), ranges: Vec::new() });
        file.entries.get_or_insert_default().push(entry);
        for group in entry.groups.iter() {
            match file.ranges.iter_mut().find(|range| range.group == group) {
                Some(range) => {
                    range.first_start = range.first_start.min(entry.first_start);
                    range.last_end = range.last_end.max(entry.last_end);
                }
                None => file.ranges.push(GroupRange {
                    group,
                    first_start: entry.first_start,
                    last_end: entry.last_end,
                }),
            }
        }
    }

    /// The first batch that has a record some segment has not materialized.
    pub(crate) fn first_needed(&self, materialized: impl Fn(GroupId) -> Lsn) -> Option<LogPosition> {
        for file in self.files.values() {
            if !file.ranges.iter().any(|range| range.last_end > materialized(range.group)) {
                continue;
            }
            let entries = file.entries.as_deref().unwrap_or_default();
            let needed = entries
                .iter()
                .find(|entry| entry.groups.iter().any(|group| entry.last_end > materialized(group)));
            if let Some(entry) = needed {
                return Some(entry.position);
            }
        }
        None
    }

    /// About how much memory it takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let entries = |file: &FileEntries| file.entries.as_ref().map_or(0, Vec::capacity);
        self.files.values().map(|file| (entries(file) * size_of::<EntryRef>() + 256) as u64).sum()
    }
}

/// What stands before the redo batch in a batch entry: which groups took the records, and whether the
/// positions in the batch's header count (they do from a writer, and not from a peer).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchPrefix {
    pub groups: GroupSet,
    pub positions_count: bool,
}

/// Bytes of a [`BatchPrefix`].
pub(crate) const BATCH_PREFIX_BYTES: usize = 9;

impl BatchPrefix {
    pub(crate) fn encode(self) -> [u8; BATCH_PREFIX_BYTES] {
        let mut bytes = [0; BATCH_PREFIX_BYTES];
        let mask = self.groups.iter().fold(0u64, |mask, group| mask | 1 << group.0);
        bytes[..8].copy_from_slice(&mask.to_le_bytes());
        bytes[8] = u8::from(self.positions_count);
        bytes
    }

    /// Splits a batch entry's payload.
    pub(crate) fn decode(payload: &[u8]) -> Option<(BatchPrefix, &[u8])> {
        let (mask, rest) = payload.split_first_chunk::<8>()?;
        let (flags, batch) = rest.split_first()?;
        let mask = u64::from_le_bytes(*mask);
        let groups = (0..MAX_GROUPS).filter(|group| mask & 1 << group != 0);
        let groups = groups.fold(GroupSet::EMPTY, |set, group| set.with(GroupId(group)));
        Some((BatchPrefix { groups, positions_count: *flags == 1 }, batch))
    }
}

/// A record's epoch and place, for building tails.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TailKey {
    pub start: Lsn,
    pub epoch: VolumeEpoch,
}
