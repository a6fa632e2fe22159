//! The receiving half of a connection: bytes from the socket to whole frames, with bounds.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use borealis_client::stream::Stream;
use borealis_types::invariant;
use borealis_wire::frame::FRAME_HEADER_BYTES;
use borealis_wire::{FrameBuffer, FrameError};

use super::ended::Ended;
use super::frame_memory::{FrameMemory, Reserved, UNCOUNTED_BYTES};

/// A buffer that grew beyond this for one large frame is given back once the frame was handled.
const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// From its first byte on, a frame may take this long, however it drips in.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// And a second more for each of these.
const FRAME_BYTES_PER_SECOND: usize = 256 << 10;

/// What became of an attempt to receive more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fill {
    /// At least one byte came.
    Bytes,
    /// None are there now, or none came before the timeout.
    Nothing,
    /// The other side is done.
    End,
}

/// Judges a frame by its length and the beginning of its payload; says why it is not to be received.
pub(super) type Judge<'a> = dyn FnMut(usize, &[u8]) -> Result<(), String> + 'a;

/// Cuts frames out of what one socket receives.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: Stream,
    frames: FrameBuffer,
    chunk: Vec<u8>,
    /// Received, but not part of a frame that was handed out.
    pending_bytes: usize,
    largest_frame_bytes: usize,
    limit_bytes: usize,
    /// When the frame that is being received began.
    began: Option<Instant>,
    /// The frame that is being received was judged: it is not judged for every piece that comes.
    is_judged: bool,
    /// Memory for a large frame that is being received or handled.
    reserved: Option<Reserved>,
}

impl Receiver {
    /// Receives from `stream`, refusing frames with a payload above `limit_bytes`.
    pub(crate) fn new(stream: Stream, chunk_bytes: usize, limit_bytes: usize) -> Receiver {
        Receiver {
            stream,
            frames: FrameBuffer::default(),
            chunk: vec![0; chunk_bytes],
            pending_bytes: 0,
            largest_frame_bytes: 0,
            limit_bytes,
            began: None,
            is_judged: false,
            reserved: None,
        }
    }

    /// Changes the bounds once it is known who the other side is.
    pub(crate) fn set_limits(&mut self, chunk_bytes: usize, limit_bytes: usize) {
        self.chunk = vec![0; chunk_bytes];
        self.limit_bytes = limit_bytes;
    }

    /// Whether a frame has begun to arrive and is not complete.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.pending_bytes > 0
    }

    /// Judges the frame that is being received, as soon as enough of it is there, and finds memory for it if it is large.
    ///
    /// # Errors
    /// When it is not to be received; the connection is then of no use.
    pub(super) fn judge(
        &mut self,
        judged_bytes: usize,
        memory: &FrameMemory,
        holds_promise: &dyn Fn() -> bool,
        judge: &mut Judge<'_>,
    ) -> Result<(), Ended> {
        if self.is_judged {
            return self.check_time();
        }
        let Some((length, begin)) = self.frames.announced() else { return self.check_time() };
        if length > self.limit_bytes {
            return Err(FrameError::TooLarge(length).into());
        }
        if begin.len() < judged_bytes.min(length) {
            return self.check_time();
        }
        judge(length, begin).map_err(Ended::Garbage)?;
        self.is_judged = true;
        if length > UNCOUNTED_BYTES {
            let reserved = memory.reserve(length, holds_promise());
            self.reserved = Some(reserved.ok_or_else(|| {
                Ended::Garbage(format!("no memory came free for a frame of {length} bytes"))
            })?);
        }
        self.check_time()
    }

    fn check_time(&mut self) -> Result<(), Ended> {
        if self.pending_bytes == 0 {
            self.began = None;
            return Ok(());
        }
        let length = self.frames.announced().map_or(0, |(length, _)| length);
        let seconds = (length / FRAME_BYTES_PER_SECOND) as u64;
        let began = *self.began.get_or_insert_with(Instant::now);
        if began.elapsed() > FRAME_TIMEOUT + Duration::from_secs(seconds) {
            return Err(Ended::Garbage("a frame took too long to arrive".to_owned()));
        }
        Ok(())
    }

    /// The next whole frame that was received, if any.
    ///
    /// # Errors
    /// When what was received is no frame, or one over the limit; the connection is then of no use.
    pub(crate) fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        if self.pending_bytes == 0 && self.largest_frame_bytes > KEPT_BUFFER_BYTES {
            self.frames = FrameBuffer::default();
            self.largest_frame_bytes = 0;
        }
        match self.frames.next_frame()? {
            Some(payload) => {
                let frame_bytes = FRAME_HEADER_BYTES + payload.len();
                if payload.len() > self.limit_bytes {
                    return Err(FrameError::TooLarge(payload.len()));
                }
                invariant!(
                    "received-bytes-are-accounted-for",
                    frame_bytes <= self.pending_bytes,
                    "a frame of {frame_bytes} bytes, {} were received",
                    self.pending_bytes
                );
                self.pending_bytes -= frame_bytes;
                self.largest_frame_bytes = self.largest_frame_bytes.max(frame_bytes);
                self.is_judged = false;
                self.began = None;
                Ok(Some(payload))
            }
            None if self.pending_bytes > FRAME_HEADER_BYTES + self.limit_bytes => {
                Err(FrameError::TooLarge(self.pending_bytes))
            }
            None => Ok(None),
        }
    }

    /// The last frame that was handed out was handled: its memory is there for another one.
    pub(crate) fn handled(&mut self) {
        self.reserved = None;
    }

    /// A planted defect: received bytes are counted as handed out.
    #[cfg(test)]
    pub(crate) fn forget_pending(&mut self) {
        self.pending_bytes = 0;
    }

    /// Sets how long [`Receiver::wait`] waits, at least a millisecond.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))
    }

    /// Receives until bytes come, the other side ends, or the timeout has passed.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) fn wait(&mut self) -> io::Result<Fill> {
        loop {
            match self.stream.read(&mut self.chunk) {
                Ok(count) => return Ok(self.take(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(Fill::Nothing);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives what is there already, without waiting.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) fn poll(&mut self) -> io::Result<Fill> {
        let there = self.stream.read_what_is_there(&mut self.chunk)?;
        Ok(there.map_or(Fill::Nothing, |count| self.take(count)))
    }

    fn take(&mut self, count: usize) -> Fill {
        if count == 0 {
            return Fill::End;
        }
        self.frames.extend(&self.chunk[..count]);
        self.pending_bytes += count;
        Fill::Bytes
    }

    /// Receives one frame before `deadline` and returns a copy of it; `None` if the other side sent nothing
    /// and closed.
    ///
    /// # Errors
    /// When the connection breaks, the frame is refused or does not come in time.
    pub(crate) fn frame_before(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            if let Some((length, _)) = self.frames.announced()
                && length > self.limit_bytes
            {
                return Err(FrameError::TooLarge(length));
            }
            if let Some(payload) = self.next_frame()? {
                return Ok(Some(payload.to_vec()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.set_timeout(left)?;
            match self.wait()? {
                Fill::End if self.is_mid_frame() => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Fill::End => return Ok(None),
                Fill::Bytes | Fill::Nothing => {}
            }
        }
    }
}
