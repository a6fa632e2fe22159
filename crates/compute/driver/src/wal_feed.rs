//! PostgreSQL's log files on the memory file system, as a stream of records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use borealis_instance::untrusted;
use borealis_types::{Lsn, RecordSpan, ServerVersion};
use borealis_wal::Record;
use borealis_wal::page::{WAL_PAGE_BYTES, page_start, segment_file_name};
use borealis_wal::piece::PIECE_BYTES;
use borealis_wal::stream::{Next, NextPiece, Piece, RecordDecoder, StreamError, WalWindow};
use nix::fcntl::OFlag;

/// The folder of segment files in a data directory.
const WAL_FOLDER: &str = "pg_wal";

/// How much is read at a time, unless one record needs more.
const WINDOW_BYTES: u64 = 256 << 10;

/// How much is read at a time at most: enough for the longest record that is not cut, and for several pieces of one that is.
const WINDOW_BYTES_MAX: u64 = 4 << 20;

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
    /// More than any record or piece takes is written after a position, and none begins there.
    #[error(
        "no log record begins at {at}, although the server has written on ({why}): what is in its log is not what it wrote. \
         Nothing from there on was acknowledged; start the instance again"
    )]
    Stuck {
        /// Where a record should begin or go on.
        at: Lsn,
        /// What was missing or wrong there.
        why: &'static str,
    },
}

/// Reads the log of one server.
#[derive(Debug)]
pub struct WalFeed {
    data_directory: PathBuf,
    segment_bytes: u32,
    timeline: u32,
    decoder: RecordDecoder,
    buffer: Vec<u8>,
    /// The decoder stands inside a record that is being cut.
    is_cutting: bool,
    /// There is nothing new before the log is written up to here.
    wanted_until: Lsn,
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

/// What the log is handed out in.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a record is the usual case, and boxing it would allocate")]
pub enum Fragment<'r> {
    /// A whole record.
    Record(Record<'r>),
    /// A piece of one that is too long to be shipped whole.
    Piece(Piece<'r>),
}

/// What the receiver of a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Take the next record too, if there is one.
    More,
    /// Take no more records in this turn: what was taken is sent first.
    Pause,
}

/// Why no more can be had of a window.
enum Drained {
    Paused,
    Incomplete(&'static str),
}

impl WalFeed {
    /// A feed of the records after `last`, which a server of this release writes to segment files in `data_directory`.
    ///
    /// # Panics
    /// If the size is none that segment files can have.
    #[must_use]
    pub fn new(
        server_version: ServerVersion,
        data_directory: &Path,
        segment_bytes: u32,
        timeline: u32,
        last: RecordSpan,
    ) -> WalFeed {
        WalFeed {
            data_directory: data_directory.to_path_buf(),
            segment_bytes,
            timeline,
            decoder: RecordDecoder::new(server_version, last.end, last.start)
                .with_segment_bytes(segment_bytes),
            buffer: Vec::new(),
            is_cutting: false,
            wanted_until: Lsn::ZERO,
            open_file: None,
        }
    }

    /// Hands out every complete record in the bytes up to `written`, in order; of a long record every piece that is complete.
    ///
    /// # Errors
    /// See [`FeedError`]; or what `receive` returns.
    pub fn read<E: From<FeedError>>(
        &mut self,
        written: Lsn,
        mut receive: impl FnMut(Fragment<'_>) -> Result<Flow, E>,
    ) -> Result<Fed, E> {
        let mut window_bytes = WINDOW_BYTES;
        loop {
            let position = self.decoder.position();
            let start = page_start(position);
            if written <= position || written < self.wanted_until {
                return Ok(Fed::Everything);
            }
            if self.is_cutting {
                window_bytes = WINDOW_BYTES_MAX;
            }
            let end = written.min(Lsn(start.0 + window_bytes));
            self.fill(start, end)?;
            let why = match self.drain(start, &mut receive)? {
                Drained::Paused => return Ok(Fed::Paused),
                Drained::Incomplete(why) => why,
            };
            if end == written {
                return Ok(Fed::Everything);
            }
            if self.decoder.position() != position {
                window_bytes = WINDOW_BYTES;
            } else if window_bytes < WINDOW_BYTES_MAX {
                // The record is longer than the window.
                window_bytes *= 4;
            } else {
                return Err(FeedError::Stuck { at: position, why }.into());
            }
        }
    }

    /// Hands out what is complete in the buffer, which begins at `start`.
    fn drain<E: From<FeedError>>(
        &mut self,
        start: Lsn,
        receive: &mut impl FnMut(Fragment<'_>) -> Result<Flow, E>,
    ) -> Result<Drained, E> {
        let window = WalWindow { start, bytes: &self.buffer };
        loop {
            let mut why = "";
            if !self.is_cutting {
                match self.decoder.next(&window).map_err(FeedError::from)? {
                    Next::Record(record) => {
                        if receive(Fragment::Record(record))? == Flow::Pause {
                            return Ok(Drained::Paused);
                        }
                        continue;
                    }
                    Next::Incomplete(reason) => why = reason.why,
                }
            }
            match self.decoder.next_piece(&window, PIECE_BYTES).map_err(FeedError::from)? {
                NextPiece::Piece(piece) => {
                    self.is_cutting = !piece.part.ends_record();
                    self.wanted_until = Lsn::ZERO;
                    if receive(Fragment::Piece(piece))? == Flow::Pause {
                        return Ok(Drained::Paused);
                    }
                }
                NextPiece::Incomplete { reason, until } => {
                    self.is_cutting = true;
                    self.wanted_until = until;
                    return Ok(Drained::Incomplete(reason.why));
                }
                // The record that was being cut was never finished; another may begin where the decoder stands now.
                NextPiece::NotCut if self.is_cutting => {
                    self.is_cutting = false;
                    self.wanted_until = Lsn::ZERO;
                }
                NextPiece::NotCut => return Ok(Drained::Incomplete(why)),
            }
        }
    }

    /// Reads the bytes from `start` to `end` into the buffer.
    fn fill(&mut self, start: Lsn, end: Lsn) -> Result<(), FeedError> {
        let length = usize::try_from(end.0 - start.0).unwrap_or(usize::MAX);
        self.buffer.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            let position = start.0 + filled as u64;
            let segment_bytes = u64::from(self.segment_bytes);
            let (segment, offset) = (position / segment_bytes, position % segment_bytes);
            let part = (segment_bytes - offset).min((length - filled) as u64) as usize;
            let name = Path::new(WAL_FOLDER).join(segment_file_name(
                self.timeline,
                Lsn(position),
                self.segment_bytes,
            ));
            let failed = |source| FeedError::File { path: self.data_directory.join(&name), source };
            if self.open_file.as_ref().is_none_or(|(open, _)| *open != segment) {
                // Not below `pg_wal`: the server's user could put a link in place of the folder above it.
                let file = untrusted::open_regular(&self.data_directory, &name, OFlag::O_RDONLY);
                self.open_file = Some((segment, file.map_err(failed)?));
            }
            let (_, file) = self.open_file.as_ref().expect("it was just opened");
            file.read_exact_at(&mut self.buffer[filled..filled + part], offset).map_err(failed)?;
            filled += part;
        }
        Ok(())
    }
}

const _: () = assert!(WINDOW_BYTES < PIECE_BYTES as u64, "no window has a record whole that is to be cut");
const _: () = assert!(WINDOW_BYTES.is_multiple_of(WAL_PAGE_BYTES), "windows are whole pages");

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_leads_the_reader_out_of_the_memory_directory() {
        let place = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("memory/data/pg_wal")).expect("made");
        fs::create_dir_all(at("elsewhere/pg_wal")).expect("made");
        let name = "pg_wal/000000010000000000000001";
        fs::write(at("elsewhere").join(name), [1; 8192]).expect("written");
        fs::write(at("memory/data").join(name), [2; 8192]).expect("written");
        let begin = Lsn(16 << 20);
        let version = ServerVersion::new(150_000).expect("a release");
        let last = RecordSpan { start: begin, end: begin };
        let fill = || {
            let mut feed = WalFeed::new(version, &at("memory/data"), 16 << 20, 1, last);
            feed.fill(begin, Lsn(begin.0 + 8192)).map(|()| feed.buffer[0])
        };
        assert_eq!(fill().expect("read"), 2);
        fs::rename(at("memory/data/pg_wal"), at("memory/data/before")).expect("moved");
        symlink(at("elsewhere/pg_wal"), at("memory/data/pg_wal")).expect("linked");
        assert!(matches!(fill(), Err(FeedError::File { .. })));
        fs::rename(at("memory/data"), at("memory/before")).expect("moved");
        symlink(at("elsewhere"), at("memory/data")).expect("linked");
        assert!(matches!(fill(), Err(FeedError::File { .. })), "what is above pg_wal is a link");
    }
}
