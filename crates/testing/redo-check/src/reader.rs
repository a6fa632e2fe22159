//! Records out of segment files, with bounded memory.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use borealis_types::{Lsn, ServerVersion};
use borealis_wal::Record;
use borealis_wal::page::{WAL_PAGE_BYTES, page_start};
use borealis_wal::record::RECORD_BYTES_MAX;
use borealis_wal::stream::{Incomplete, Next, RecordDecoder, StreamError, WalWindow};

use crate::segments::Segments;

/// How much is read at a time, unless one record needs more.
const WINDOW_BYTES: u64 = 1 << 20;
/// More than the longest record stands on, page headers included.
const WINDOW_BYTES_MAX: u64 = 2 * RECORD_BYTES_MAX as u64;

/// Why reading cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A segment file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The segment file, by the name it was found under.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not this stream's, or no record.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Something is wrong before the end.
    #[error("the WAL is damaged at {at}: {why}, and more WAL follows")]
    Damaged {
        /// The position up to which records could be read.
        at: Lsn,
        /// What is wrong there.
        why: &'static str,
    },
    /// A segment file is missing between others.
    #[error("the segment file with {at} is missing, and later ones are there")]
    Missing {
        /// Position of the missing file's first byte.
        at: Lsn,
    },
    /// The segment files do not have the position to begin at.
    #[error("no record begins at or after {at} in the segment files, which have {first} to {last}")]
    NoStart {
        /// The position that was to be the first.
        at: Lsn,
        /// The first position of the first file.
        first: Lsn,
        /// The end of the last file.
        last: Lsn,
    },
}

/// How a call of [`RecordReader::read`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The receiver wanted no more.
    Stopped,
    /// There is no further record in the files, so far.
    NoMore(Incomplete),
}

/// Reads records one after the other.
pub struct RecordReader {
    /// Where to read. More may be added while reading.
    pub segments: Segments,
    decoder: RecordDecoder,
    /// Records that begin before are passed over.
    first_wanted: Lsn,
    begun: bool,
    buffer: Vec<u8>,
    open_file: Option<(u64, File)>,
}

impl RecordReader {
    /// A reader of the first record that begins at or after `start`, and all after it; without `start`, of all.
    /// All of them were written by a server of this release.
    ///
    /// # Errors
    /// [`ReadError::NoStart`] when no file has that position.
    pub fn new(
        segments: Segments,
        server_version: ServerVersion,
        start: Option<Lsn>,
    ) -> Result<RecordReader, ReadError> {
        let (Some(first), Some(last)) = (segments.files.keys().next(), segments.files.keys().next_back())
        else {
            return Err(ReadError::NoStart {
                at: start.unwrap_or(Lsn::ZERO),
                first: Lsn::ZERO,
                last: Lsn::ZERO,
            });
        };
        let (first, last) = (segments.start_of(*first), segments.start_of(*last + 1));
        let begin = start.map_or(first, page_start);
        if begin < first || begin >= last {
            return Err(ReadError::NoStart { at: begin, first, last });
        }
        let decoder = RecordDecoder::new(server_version, begin, Lsn::ZERO)
            .with_segment_bytes(segments.segment_bytes)
            .with_system_identifier(segments.system_identifier);
        let first_wanted = start.unwrap_or(begin);
        Ok(RecordReader {
            segments,
            decoder,
            first_wanted,
            begun: false,
            buffer: Vec::new(),
            open_file: None,
        })
    }

    /// A reader of the records after `position`, which is where a record ends.
    pub fn after(segments: Segments, server_version: ServerVersion, position: Lsn) -> RecordReader {
        let decoder = RecordDecoder::new(server_version, position, Lsn::ZERO)
            .with_segment_bytes(segments.segment_bytes)
            .with_system_identifier(segments.system_identifier);
        RecordReader {
            segments,
            decoder,
            first_wanted: position,
            begun: true,
            buffer: Vec::new(),
            open_file: None,
        }
    }

    /// The end of the last record read.
    pub fn position(&self) -> Lsn {
        self.decoder.position()
    }

    /// Hands out records until there are no more, or `receive` breaks off.
    ///
    /// # Errors
    /// See [`ReadError`]; or what `receive` returns.
    pub fn read<E: From<ReadError>>(
        &mut self,
        mut receive: impl FnMut(&Record<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Ended, E> {
        let mut window_bytes = WINDOW_BYTES;
        loop {
            let position = self.decoder.position();
            let start = page_start(position);
            let limit = self.limit(start)?;
            let end = limit.min(Lsn(start.0 + window_bytes));
            self.fill(start, end)?;
            let window = WalWindow { start, bytes: &self.buffer };
            if !self.begun {
                self.begun = self.decoder.skip_continuation(&window).map_err(ReadError::from)?.is_some();
            }
            let mut reason = Incomplete { at: end, why: "the segment files end" };
            while self.begun {
                match self.decoder.next(&window).map_err(ReadError::from)? {
                    Next::Record(record) => {
                        if record.span.start >= self.first_wanted && receive(&record)?.is_break() {
                            return Ok(Ended::Stopped);
                        }
                    }
                    Next::Incomplete(incomplete) => {
                        reason = incomplete;
                        break;
                    }
                }
            }
            let at_window_end = reason.at >= end;
            if self.decoder.position() != position {
                window_bytes = WINDOW_BYTES;
            } else if at_window_end && end < limit && window_bytes < WINDOW_BYTES_MAX {
                // The record is longer than the window.
                window_bytes *= 4;
            } else {
                return self.at_end(limit, reason).map_err(E::from);
            }
        }
    }

    /// Where the files that follow one another without a gap end.
    fn limit(&self, start: Lsn) -> Result<Lsn, ReadError> {
        let mut number = self.segments.number_of(start);
        let first = number;
        while self.segments.files.contains_key(&number) {
            number += 1;
        }
        if number == first {
            let at = self.segments.start_of(number);
            if self.segments.files.range(number..).next().is_some() {
                return Err(ReadError::Missing { at });
            }
            // Everything was read to the last byte.
            return Ok(start);
        }
        Ok(self.segments.start_of(number))
    }

    /// What having found no record means.
    fn at_end(&self, limit: Lsn, reason: Incomplete) -> Result<Ended, ReadError> {
        let in_last = self.segments.number_of(Lsn(limit.0.saturating_sub(1)));
        if self.segments.number_of(reason.at) < in_last {
            return Err(ReadError::Damaged { at: reason.at, why: reason.why });
        }
        if self.segments.files.range(in_last + 1..).next().is_some() {
            return Err(ReadError::Missing { at: self.segments.start_of(in_last + 1) });
        }
        Ok(Ended::NoMore(reason))
    }

    /// Reads the bytes from `start` to `end` into the buffer. What a file lacks at its end is zeros, as if not
    /// written yet.
    fn fill(&mut self, start: Lsn, end: Lsn) -> Result<(), ReadError> {
        let length = usize::try_from(end.0 - start.0).unwrap_or(usize::MAX);
        self.buffer.clear();
        self.buffer.resize(length, 0);
        if length as u64 <= WINDOW_BYTES {
            self.buffer.shrink_to(WINDOW_BYTES as usize);
        }
        let segment_bytes = u64::from(self.segments.segment_bytes);
        let mut filled = 0;
        while filled < length {
            let position = start.0 + filled as u64;
            let (number, offset) = (position / segment_bytes, position % segment_bytes);
            let part = (segment_bytes - offset).min((length - filled) as u64) as usize;
            let path = &self.segments.files[&number];
            let failed = |source| ReadError::File { path: path.clone(), source };
            if self.open_file.as_ref().is_none_or(|(open, _)| *open != number) {
                self.open_file = Some((number, File::open(path).map_err(failed)?));
            }
            let (_, file) = self.open_file.as_ref().expect("it was just opened");
            read_what_is_there(file, &mut self.buffer[filled..filled + part], offset).map_err(failed)?;
            filled += part;
        }
        Ok(())
    }
}

fn read_what_is_there(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

const _: () = assert!(WINDOW_BYTES.is_multiple_of(WAL_PAGE_BYTES), "windows are whole pages");

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_wal::ResourceManager;
    use borealis_wal::encode::{RecordBuilder, lay_out};
    use borealis_wal::page::WalLayout;
    use std::collections::BTreeMap;

    const LAYOUT: WalLayout = WalLayout {
        version: borealis_types::PostgresVersion::NEWEST,
        timeline: 1,
        system_identifier: 5,
        segment_bytes: 1 << 20,
    };

    /// Segments 1 on, filled with `count` messages of `message_bytes`; the starts of the records.
    fn write_segments(folder: &std::path::Path, count: usize, message_bytes: usize) -> (Segments, Vec<Lsn>) {
        let segment_bytes = u64::from(LAYOUT.segment_bytes);
        let message = vec![7; message_bytes];
        let mut at = Lsn(segment_bytes);
        let (mut starts, mut wal, mut previous) = (Vec::new(), Vec::new(), Lsn::ZERO);
        for _ in 0..count {
            let record = RecordBuilder::new(ResourceManager::LogicalMessage, 0)
                .previous_start(previous)
                .main_data(&message)
                .finish();
            let (span, bytes) = lay_out(&LAYOUT, &record, at);
            wal.resize((at.0 - segment_bytes) as usize, 0);
            wal.extend_from_slice(&bytes);
            starts.push(span.start);
            previous = span.start;
            at = span.end;
        }
        let mut files = BTreeMap::new();
        for (index, bytes) in wal.chunks(segment_bytes as usize).enumerate() {
            let path = folder.join(format!("segment {index}"));
            std::fs::write(&path, bytes).unwrap();
            files.insert(index as u64 + 1, path);
        }
        (Segments { segment_bytes: LAYOUT.segment_bytes, system_identifier: 5, files }, starts)
    }

    fn read_starts(segments: &Segments, start: Option<Lsn>) -> Result<(Vec<Lsn>, Ended), ReadError> {
        let mut reader = RecordReader::new(segments.clone(), ServerVersion::NEWEST_TESTED, start)?;
        let mut starts = Vec::new();
        let ended = reader.read::<ReadError>(|record| {
            starts.push(record.span.start);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((starts, ended))
    }

    #[test]
    fn every_record_is_handed_out_from_any_start() {
        let folder = tempfile::tempdir().unwrap();
        // Records of 3 MiB, three segments each, so that segments begin in the middle of them.
        let (segments, starts) = write_segments(folder.path(), 4, 3_000_000);
        let (found, ended) = read_starts(&segments, None).unwrap();
        assert_eq!(found, starts);
        assert!(matches!(ended, Ended::NoMore(_)));
        for (index, start) in starts.iter().enumerate() {
            assert_eq!(read_starts(&segments, Some(*start)).unwrap().0, starts[index..]);
            let (found, _) = read_starts(&segments, Some(Lsn(start.0 + 8))).unwrap();
            assert_eq!(found, starts[index + 1..]);
        }
        assert!(matches!(read_starts(&segments, Some(Lsn(5))), Err(ReadError::NoStart { .. })));
        // Of a segment file only what comes after a position is there, but for the header of its page.
        let second = starts[1];
        let path = &segments.files[&segments.number_of(second)];
        let mut bytes = std::fs::read(path).unwrap();
        let offset = (second.0 % u64::from(LAYOUT.segment_bytes)) as usize;
        let page = offset - offset % 8192;
        let header = bytes[page..page + 24].to_vec();
        bytes[..offset].fill(0);
        bytes[page..page + 24].copy_from_slice(&header);
        std::fs::write(path, bytes).unwrap();
        let mut found = Vec::new();
        let ended =
            RecordReader::after(segments, ServerVersion::NEWEST_TESTED, second).read::<ReadError>(|record| {
                found.push(record.span.start);
                Ok(ControlFlow::Continue(()))
            });
        assert!(matches!(ended, Ok(Ended::NoMore(_))));
        assert_eq!(found, starts[1..]);
    }

    #[test]
    fn small_records_are_read_too() {
        let folder = tempfile::tempdir().unwrap();
        let (segments, starts) = write_segments(folder.path(), 30_000, 100);
        assert!(segments.files.len() > 2);
        assert_eq!(read_starts(&segments, None).unwrap().0, starts);
        let mut reader = RecordReader::new(segments, ServerVersion::NEWEST_TESTED, None).unwrap();
        let mut count = 0;
        let ended = reader.read::<ReadError>(|_| {
            count += 1;
            Ok(if count == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        assert!(matches!(ended, Ok(Ended::Stopped)) && count == 5);
    }

    #[test]
    fn gaps_and_damage_are_told_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (mut segments, _) = write_segments(folder.path(), 30_000, 100);
        let second = segments.files.remove(&2).unwrap();
        assert!(matches!(read_starts(&segments, None), Err(ReadError::Missing { .. })));
        let mut bytes = std::fs::read(&second).unwrap();
        bytes[500_000] ^= 1;
        std::fs::write(&second, bytes).unwrap();
        segments.files.insert(2, second);
        let error = read_starts(&segments, None).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
        segments.files.split_off(&3);
        assert!(matches!(read_starts(&segments, None), Ok((_, Ended::NoMore(_)))), "a torn end is an end");
    }
}
