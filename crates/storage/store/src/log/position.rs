//! Places in the log.

use std::collections::BTreeMap;

use borealis_types::{Part, RecordSpan};
use serde::{Deserialize, Serialize};

/// Bytes before the first entry of a file.
pub(crate) const FILE_HEADER_BYTES: u64 = 64;

/// A byte of the log: the file's number in the high half, the offset in the file in the low half. Positions
/// of later entries are higher.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LogPosition(pub u64);

impl LogPosition {
    pub(crate) fn new(file: u32, offset: u32) -> LogPosition {
        LogPosition(u64::from(file) << 32 | u64::from(offset))
    }

    pub(crate) fn file(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn offset(self) -> u32 {
        (self.0 & 0xFFFF_FFFF) as u32
    }

    /// Where the first entry of the same file is.
    pub(crate) fn file_start(self) -> LogPosition {
        LogPosition::new(self.file(), FILE_HEADER_BYTES as u32)
    }

    /// The position `bytes` further in the same file.
    pub(crate) fn plus(self, bytes: usize) -> LogPosition {
        LogPosition(self.0 + bytes as u64)
    }
}

/// A record in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordRef {
    pub span: RecordSpan,
    /// Where the record's bytes begin.
    pub position: LogPosition,
    pub length: u32,
    /// What part of a record it is. [`Part::First`] in the index stands for a record with all its pieces (see
    /// [`crate::segment::cut_records`]).
    pub part: Part,
}

impl RecordRef {
    /// Notes where the bytes are now, if they were moved.
    pub(crate) fn repoint(&mut self, moved: &BTreeMap<LogPosition, LogPosition>) {
        if let Some(position) = moved.get(&self.position) {
            self.position = *position;
        }
    }
}
