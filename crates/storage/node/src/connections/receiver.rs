//! The receiving half of a connection: bytes from the socket to whole frames, with bounds.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use borealis_types::invariant;
use borealis_wire::frame::FRAME_HEADER_BYTES;
use borealis_wire::{FrameBuffer, FrameError};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// A buffer that grew beyond this for one large frame is given back once the frame was handled.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

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

/// Cuts frames out of what one socket receives.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: TcpStream,
    frames: FrameBuffer,
    chunk: Vec<u8>,
    /// Received, but not part of a frame that was handed out.
    pending_bytes: usize,
    largest_frame_bytes: usize,
    limit_bytes: usize,
}

impl Receiver {
    /// Receives from `stream`, refusing frames with a payload above `limit_bytes`.
    pub(crate) fn new(stream: TcpStream, chunk_bytes: usize, limit_bytes: usize) -> Receiver {
        Receiver {
            stream,
            frames: FrameBuffer::default(),
            chunk: vec![0; chunk_bytes],
            pending_bytes: 0,
            largest_frame_bytes: 0,
            limit_bytes,
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
                Ok(Some(payload))
            }
            None if self.pending_bytes > FRAME_HEADER_BYTES + self.limit_bytes => {
                Err(FrameError::TooLarge(self.pending_bytes))
            }
            None => Ok(None),
        }
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
        loop {
            match recv(self.stream.as_raw_fd(), &mut self.chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Ok(self.take(count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Fill::Nothing),
                Err(error) => return Err(error.into()),
            }
        }
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
