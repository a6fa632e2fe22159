//! Where each batch stands in the log. Tails are read by it, and it decides which log files can be released.

use std::collections::BTreeMap;

use borealis_types::{GroupId, GroupSet, Lsn};
use serde::{Deserialize, Serialize};

use crate::log::position::LogPosition;

/// A batch in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchLocation {
    /// Where the entry's payload begins.
    pub position: LogPosition,
    pub length: u32,
    /// The groups whose segments took its records.
    pub groups: GroupSet,
    /// Lowest start of any of its records.
    pub first_start: Lsn,
    /// Highest end of any of its records.
    pub last_end: Lsn,
}

/// The range of one group's redo in one log file: lowest start and highest end of its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct GroupRange {
    pub group: GroupId,
    pub first_start: Lsn,
    pub last_end: Lsn,
}

/// What is known about the batches in one log file.
#[derive(Clone, Default, Debug)]
pub(crate) struct FileBatches {
    /// Its batches in log order. `None` when all of its redo is materialized and nobody has read it since the
    /// last checkpoint: keeping them would cost memory for a peer that may never come back.
    pub batches: Option<Vec<BatchLocation>>,
    pub ranges: Vec<GroupRange>,
}

/// The batches of every log file, by the file's number.
#[derive(Clone, Default, Debug)]
pub(crate) struct BatchLocations {
    pub files: BTreeMap<u32, FileBatches>,
}

impl BatchLocations {
    /// Adds a batch that was appended.
    pub(crate) fn push(&mut self, entry: BatchLocation) {
        let file = self
            .files
            .entry(entry.position.file())
            .or_insert_with(|| FileBatches { batches: Some(Vec::new()), ranges: Vec::new() });
        file.batches.get_or_insert_default().push(entry);
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

    /// Nothing in the log is a group's any more.
    pub(crate) fn forget_group(&mut self, group: GroupId) {
        for file in self.files.values_mut() {
            file.ranges.retain(|range| range.group != group);
            for entry in file.batches.iter_mut().flatten() {
                entry.groups = entry.groups.without(group);
            }
        }
    }

    /// The batch whose payload has the byte at a position.
    pub(crate) fn containing(&self, position: LogPosition) -> Option<BatchLocation> {
        let batches = self.files.get(&position.file())?.batches.as_deref()?;
        let holds = |entry: &&BatchLocation| {
            (entry.position.0..entry.position.0 + u64::from(entry.length)).contains(&position.0)
        };
        batches.iter().find(holds).copied()
    }

    /// The first batch with a record that some segment has not materialized.
    pub(crate) fn first_needed(&self, materialized: impl Fn(GroupId) -> Lsn) -> Option<LogPosition> {
        for file in self.files.values() {
            if !file.ranges.iter().any(|range| range.last_end > materialized(range.group)) {
                continue;
            }
            let entries = file.batches.as_deref().unwrap_or_default();
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
        let entries = |file: &FileBatches| file.batches.as_ref().map_or(0, Vec::capacity);
        self.files.values().map(|file| (entries(file) * size_of::<BatchLocation>() + 256) as u64).sum()
    }
}
