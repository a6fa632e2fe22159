//! PostgreSQL's log files on the memory file system, as a stream of records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use borealis_types::{Lsn, RecordSpan, ServerVersion};
use borealis_wal::Record;
use borealis_wal::page::{WAL_PAGE_BYTES, page_start};
use borealis_wal::stream::{Next, RecordDecoder, StreamError, WalWindow};

/// How much is read at a time, unless one record needs more.
const WINDOW_BYTES: u64 = 256 << 10;

/// The longest record that can be shipped: it must fit into a frame together with its batch's header.
pub const SHIPPED_RECORD_BYTES_MAX: usize = borealis_wire::frame::MAX_PAYLOAD_BYTES - (64 << 10);

/// Why the log cannot be read on. The stream must stop: nothing after this point may be acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A segment file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The WAL segment file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The bytes are not this stream's.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A record is longer than can be shipped.
    #[error("the log record at {at} is longer than the {SHIPPED_RECORD_BYTES_MAX} bytes that can be shipped")]
    TooLong {
        /// Position of the record's first byte.
        at: Lsn,
    },
}

/// Reads the log of one server.
#[derive(Debug)]
pub struct WalFeed {
    directory: PathBuf,
    segment_bytes: u64,
    timeline: u32,
    decoder: RecordDecoder,
    buffer: Vec<u8>,
    open_file: Option<(u64, File)>,
}

/// What a call of [`WalFeed::read`] achieved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fed {
    /// Every record that was complete has been handed out.
    Everything,
    /// The receiver asked for a pause.
    Paused,
}

/// What the receiver of a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Take the next record too, if there is one.
    More,
    /// Take no more records in this turn: what was taken is sent first.
    Pause,
}

impl WalFeed {
    /// A feed of the records after `last`, which a server of this release writes to segment files in `directory`.
    ///
    /// # Panics
    /// If the size is none that segment files can have.
    #[must_use]
    pub fn new(
        server_version: ServerVersion,
        directory: &Path,
        segment_bytes: u32,
        timeline: u32,
        last: RecordSpan,
    ) -> WalFeed {
        WalFeed {
            directory: directory.to_path_buf(),
            segment_bytes: u64::from(segment_bytes),
            timeline,
            decoder: RecordDecoder::new(server_version, last.end, last.start)
                .with_segment_bytes(segment_bytes),
            buffer: Vec::new(),
            open_file: None,
        }
    }

    /// Hands out every complete record in the bytes up to `written`, in order.
    ///
    /// # Errors
    /// See [`FeedError`]; or what `receive` returns.
    pub fn read<E: From<FeedError>>(
        &mut self,
        written: Lsn,
        mut receive: impl FnMut(&Record<'_>) -> Result<Flow, E>,
    ) -> Result<Fed, E> {
        let mut window_bytes = WINDOW_BYTES;
        loop {
            let position = self.decoder.position();
            let start = page_start(position);
            if written <= position {
                return Ok(Fed::Everything);
            }
            let end = written.min(Lsn(start.0 + window_bytes));
            self.fill(start, end)?;
            let window = WalWindow { start, bytes: &self.buffer };
            while let Next::Record(record) = self.decoder.next(&window).map_err(FeedError::from)? {
                if record.bytes.len() > SHIPPED_RECORD_BYTES_MAX {
                    return Err(FeedError::TooLong { at: record.span.start }.into());
                }
                if receive(&record)? == Flow::Pause {
                    return Ok(Fed::Paused);
                }
            }
            if end == written {
                return Ok(Fed::Everything);
            }
            if self.decoder.position() == position {
                // The record is longer than the window, or only its last part is not written yet.
                if window_bytes > 2 * SHIPPED_RECORD_BYTES_MAX as u64 {
                    return Err(FeedError::TooLong { at: position }.into());
                }
                window_bytes *= 4;
            } else {
                window_bytes = WINDOW_BYTES;
            }
        }
    }

    /// Gives memory back that one long record needed.
    pub fn trim(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(WINDOW_BYTES as usize);
    }

    /// Reads the bytes from `start` to `end` into the buffer.
    fn fill(&mut self, start: Lsn, end: Lsn) -> Result<(), FeedError> {
        let length = usize::try_from(end.0 - start.0).unwrap_or(usize::MAX);
        self.buffer.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            let position = start.0 + filled as u64;
            let segment = position / self.segment_bytes;
            let offset = position % self.segment_bytes;
            let part = (self.segment_bytes - offset).min((length - filled) as u64) as usize;
            let path = self.directory.join(self.file_name(segment));
            let failed = |source| FeedError::File { path: path.clone(), source };
            if self.open_file.as_ref().is_none_or(|(open, _)| *open != segment) {
                self.open_file = Some((segment, File::open(&path).map_err(failed)?));
            }
            let (_, file) = self.open_file.as_ref().expect("it was just opened");
            file.read_exact_at(&mut self.buffer[filled..filled + part], offset).map_err(failed)?;
            filled += part;
        }
        Ok(())
    }

    /// `XLogFileName`: time line, then the segment number in two parts.
    fn file_name(&self, segment: u64) -> String {
        let per_id = (1u64 << 32) / self.segment_bytes;
        format!("{:08X}{:08X}{:08X}", self.timeline, segment / per_id, segment % per_id)
    }
}

const _: () = assert!(WINDOW_BYTES.is_multiple_of(WAL_PAGE_BYTES), "windows are whole pages");
