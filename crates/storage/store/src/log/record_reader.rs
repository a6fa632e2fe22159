//! Reading records back from the log: one after another where they are far apart, many at once where they are not.

use std::sync::Arc;

use borealis_types::Lsn;

use crate::StoreError;
use crate::log::files::{LogFile, LogFiles};
use crate::log::position::{LogPosition, RecordRef};
use crate::redo_engine::RedoEngine;

/// Longest gap between two records that is read along, because reading it costs less than a second system
/// call.
const GAP_BYTES_MAX: u64 = 2 << 10;
/// Most bytes of the log read by one system call, unless one record is longer.
const RUN_BYTES_MAX: u64 = 256 << 10;

/// Reads records back, several by one system call where they are close together.
pub(crate) struct RecordReader<'a> {
    files: &'a LogFiles,
    /// The file that was read last.
    file: Option<Arc<LogFile>>,
    /// The bytes of the log from `start` on.
    bytes: Vec<u8>,
    start: LogPosition,
}

impl<'a> RecordReader<'a> {
    pub(crate) fn new(files: &'a LogFiles) -> RecordReader<'a> {
        RecordReader { files, file: None, bytes: Vec::new(), start: LogPosition(0) }
    }

    /// The bytes of the first of `steps`, unverified: the caller checks their checksum. The other steps are
    /// read ahead where they are close.
    pub(crate) fn read<K>(&mut self, steps: &[(K, RecordRef)]) -> Result<&[u8], StoreError> {
        let RecordRef { position, length, .. } = steps[0].1;
        let here = |start: LogPosition, bytes: &[u8]| {
            let offset = usize::try_from(position.0.checked_sub(start.0)?).ok()?;
            let end = offset.checked_add(length as usize)?;
            (end <= bytes.len()).then_some(offset..end)
        };
        let range = match here(self.start, &self.bytes) {
            Some(range) => range,
            None => {
                let file = match self.file.take().filter(|file| file.number == position.file()) {
                    Some(file) => file,
                    None => self.files.needed(position.file())?,
                };
                let run_bytes = run_bytes(steps.iter().map(|(_, reference)| reference));
                // If the read fails, the buffer must not be taken for what it was meant to hold.
                self.start = LogPosition(u64::MAX);
                file.read_into(&mut self.bytes, position.offset(), run_bytes as usize)?;
                (self.file, self.start) = (Some(file), position);
                0..length as usize
            }
        };
        Ok(&self.bytes[range])
    }
}

/// How many bytes to read for the first record and those that follow it closely.
fn run_bytes<'r>(mut records: impl Iterator<Item = &'r RecordRef>) -> u64 {
    let Some(first) = records.next() else { return 0 };
    let start = first.position.0;
    let mut end = start + u64::from(first.length);
    for record in records {
        let next_end = record.position.0 + u64::from(record.length);
        let is_near = (end..=end + GAP_BYTES_MAX).contains(&record.position.0);
        // The pieces of a record stand apart, and are read by `assemble`.
        let is_apart = record.part.is_piece() || record.position.file() != first.position.file();
        if is_apart || !is_near || next_end - start > RUN_BYTES_MAX {
            break;
        }
        end = next_end;
    }
    end - start
}

/// Where a piece of a record is.
pub(crate) enum Piece<'b> {
    InLog(RecordRef),
    /// In a batch that is about to be appended: its bytes, and where it starts in the stream.
    Brought(&'b [u8], Lsn),
}

impl Piece<'_> {
    fn length(&self) -> usize {
        match self {
            Piece::InLog(reference) => reference.length as usize,
            Piece::Brought(bytes, _) => bytes.len(),
        }
    }
}

/// Puts a record together from its pieces, which are read back from the log and verified one by one. The record's own
/// checksum is left to the caller, as with a whole one.
///
/// Of a message for logical decoding only the front is read: see [`borealis_wal::piece::without_body`].
pub(crate) fn assemble(files: &LogFiles, pieces: &[Piece<'_>]) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let mut buffer = Vec::new();
    for piece in pieces {
        let (start, place) = match *piece {
            Piece::InLog(RecordRef { position, length, span, .. }) => {
                files.needed(position.file())?.read_into(&mut buffer, position.offset(), length as usize)?;
                (span.start, format!("log file {} at offset {}", position.file(), position.offset()))
            }
            Piece::Brought(_, start) => (start, format!("the piece at {start}")),
        };
        let sealed = if let Piece::Brought(bytes, _) = piece { bytes } else { &buffer[..] };
        let content = borealis_wal::piece::open(sealed, start);
        let content = content.map_err(|error| StoreError::corrupt(place, error.to_string()))?;
        if bytes.is_empty() {
            if let Some(front) = borealis_wal::piece::without_body(content) {
                return Ok(front);
            }
            bytes.reserve_exact(pieces.iter().map(Piece::length).sum());
        }
        bytes.extend_from_slice(content);
    }
    Ok(bytes)
}

/// Reads a record's bytes back from the log and verifies them.
pub(crate) fn read_record(
    files: &LogFiles,
    redo: &dyn RedoEngine,
    reference: &RecordRef,
) -> Result<Vec<u8>, StoreError> {
    let bytes = files.read(reference.position, reference.length as usize)?;
    redo.verify(&bytes, reference.span.start).map_err(|error| {
        let position = reference.position;
        let place = format!("log file {} at offset {}", position.file(), position.offset());
        StoreError::corrupt(place, error.to_string())
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use borealis_types::{Part, RecordSpan};

    use super::*;

    fn record(file: u32, offset: u32, length: u32) -> RecordRef {
        let span = RecordSpan { start: Lsn(u64::from(offset)), end: Lsn(u64::from(offset + length)) };
        RecordRef { span, position: LogPosition::new(file, offset), length, part: Part::Whole }
    }

    fn run(records: &[RecordRef]) -> u64 {
        run_bytes(records.iter())
    }

    #[test]
    fn neighbours_are_read_at_once_and_others_alone() {
        let gap = GAP_BYTES_MAX as u32;
        assert_eq!(run(&[record(1, 100, 50)]), 50);
        assert_eq!(run(&[record(1, 100, 50), record(1, 160, 40), record(1, 200, 10)]), 110);
        assert_eq!(run(&[record(1, 100, 50), record(1, 150 + gap, 10)]), 60 + u64::from(gap));
        assert_eq!(run(&[record(1, 100, 50), record(1, 151 + gap, 10)]), 50, "too far");
        assert_eq!(run(&[record(1, 100, 50), record(2, 160, 10)]), 50, "another file");
        assert_eq!(run(&[record(1, 100, 50), record(1, 40, 10)]), 50, "it came late, and stands before");
    }

    #[test]
    fn a_run_has_an_end_but_a_record_is_always_whole() {
        let records: Vec<RecordRef> = (0..1000).map(|at| record(1, 100 + at * 1000, 1000)).collect();
        assert_eq!(run(&records), RUN_BYTES_MAX / 1000 * 1000);
        assert_eq!(run(&[record(1, 100, 1 << 20), record(1, 100 + (1 << 20), 10)]), 1 << 20);
    }
}
