//! A non-blocking connection to a storage node.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::rc::Rc;

use borealis_spec::Endpoint;
use borealis_types::invariant;
use borealis_wire::frame::{FRAME_HEADER_BYTES, frame_header};
use borealis_wire::message::encode_message;
use borealis_wire::{BatchFrame, FrameBuffer, FrameError, Request};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

use crate::stream::begin_to_connect;

/// The most requests a peer may leave unread before its connection is given up. Batches do not count: their
/// number is bounded by what may be in flight, a peer that leaves them unread is noticed by its silence, and one
/// alone may be as large as a frame.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// What waits to be written.
#[derive(Debug)]
enum Outgoing {
    Batch(Rc<BatchFrame>),
    Message(Vec<u8>),
}

impl Outgoing {
    fn parts(&self) -> (&[u8], &[u8]) {
        match self {
            Outgoing::Batch(frame) => frame.parts(),
            Outgoing::Message(bytes) => (bytes, &[]),
        }
    }
}

/// One connection. The owner calls [`Connection::flush`] and [`Connection::receive`] whenever the socket may
/// have become ready, and reads frames until there are none.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// The owner's poll, to change what the socket is watched for.
    registry: Registry,
    token: Token,
    /// The poll tells when there is room to write. A Unix socket makes room with every read of its peer, so a writer that
    /// has nothing to write would be woken for each batch that a node takes.
    is_watched_for_room: bool,
    /// The socket is connected, not only being connected.
    established: bool,
    inbound: FrameBuffer,
    outbound: VecDeque<Outgoing>,
    /// Bytes of the requests in `outbound`, batches left out.
    request_bytes: usize,
    /// Bytes of `outbound[0]` that are written.
    written: usize,
}

impl Connection {
    /// Starts to connect; does not wait until it is.
    ///
    /// # Errors
    /// When the system refuses at once.
    pub fn open(address: &Endpoint, registry: &Registry, token: Token) -> io::Result<Connection> {
        let mut stream = begin_to_connect(address)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Connection {
            stream,
            registry: registry.try_clone()?,
            token,
            is_watched_for_room: true,
            established: false,
            inbound: FrameBuffer::default(),
            outbound: VecDeque::new(),
            request_bytes: 0,
            written: 0,
        })
    }

    /// Takes the socket out of the poll.
    pub fn close(mut self, registry: &Registry) {
        // The socket is closed either way; an error here only says that it was gone before.
        let _ = registry.deregister(&mut self.stream);
    }

    /// Queues a request; [`Connection::flush`] writes it.
    pub fn send(&mut self, request_id: u64, request: &Request) {
        let payload = encode_message(request_id, request);
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&frame_header(&payload));
        bytes.extend_from_slice(&payload);
        self.request_bytes += bytes.len();
        self.outbound.push_back(Outgoing::Message(bytes));
    }

    /// Queues a batch behind what is queued already.
    pub fn send_batch(&mut self, frame: Rc<BatchFrame>) {
        self.outbound.push_back(Outgoing::Batch(frame));
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn has_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// When the connection failed, or the peer left more unread than the bound.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.established && !self.check_established()? {
            return Ok(());
        }
        while let Some(front) = self.outbound.front() {
            let (head, tail) = front.parts();
            invariant!(
                "written-bytes-are-of-the-first-frame",
                self.written < head.len() + tail.len(),
                "{} bytes of a frame of {} are written",
                self.written,
                head.len() + tail.len()
            );
            let result = if self.written < head.len() {
                let slices = [IoSlice::new(&head[self.written..]), IoSlice::new(tail)];
                self.stream.write_vectored(&slices)
            } else {
                self.stream.write(&tail[self.written - head.len()..])
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    if self.written == head.len() + tail.len() {
                        if let Outgoing::Message(bytes) = front {
                            invariant!(
                                "unread-requests-are-counted",
                                bytes.len() <= self.request_bytes,
                                "a request of {} bytes was written, {} were counted",
                                bytes.len(),
                                self.request_bytes
                            );
                            self.request_bytes -= bytes.len();
                        }
                        self.written = 0;
                        self.outbound.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.request_bytes > REQUEST_BYTES_MAX {
            return Err(io::Error::other("the node does not read what it is sent"));
        }
        self.watch()
    }

    /// Has the poll tell of room to write if there is something to write, and only then.
    fn watch(&mut self) -> io::Result<()> {
        let has_outbound = self.has_outbound();
        if has_outbound != self.is_watched_for_room {
            let interest = match has_outbound {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            // Room that was made meanwhile is told at once: the poll looks when the interest changes.
            self.registry.reregister(&mut self.stream, self.token, interest)?;
            self.is_watched_for_room = has_outbound;
        }
        Ok(())
    }

    fn check_established(&mut self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.established = true;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what the socket has. `scratch` is only working space. `Ok(false)` means that the peer closed the
    /// connection; frames received before that can still be taken.
    ///
    /// `has_ended`: the event said that the peer closed its side. Without that a short read means that the socket is
    /// empty, and whatever comes later, the end included, is a new event.
    ///
    /// # Errors
    /// When the connection failed.
    pub fn receive(&mut self, scratch: &mut [u8], has_ended: bool) -> io::Result<bool> {
        if !self.established && !self.check_established()? {
            return Ok(true);
        }
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    self.inbound.extend(&scratch[..count]);
                    if count < scratch.len() && !has_ended {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next complete payload, if one is here.
    ///
    /// # Errors
    /// When it fails its checks; the connection is then of no use.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        self.inbound.next_frame()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    /// A connection, what keeps it registered, and its peer's end.
    fn pair() -> (Connection, mio::Poll, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1");
        let listener = UnixListener::bind(&path).unwrap();
        let poll = mio::Poll::new().unwrap();
        let connection = Connection::open(&Endpoint::Unix(path), poll.registry(), Token(0)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        (connection, poll, peer)
    }

    #[test]
    fn batches_as_large_as_a_frame_wait_for_a_slow_peer() {
        let (mut connection, _poll, mut peer) = pair();
        let frame = Rc::new(BatchFrame::new(1, vec![7; 40_000_000]));
        connection.send_batch(frame.clone());
        connection.send_batch(frame.clone());
        connection.flush().unwrap();
        assert!(connection.has_outbound(), "the peer has not read, so the socket cannot have taken all");
        let total = 2 * frame.size_bytes();
        let reader = std::thread::spawn(move || {
            let (mut scratch, mut count) = (vec![0; 1 << 20], 0);
            while count < total {
                count += peer.read(&mut scratch).unwrap();
            }
            count
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while connection.has_outbound() && Instant::now() < deadline {
            connection.flush().unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!connection.has_outbound());
        assert_eq!(reader.join().unwrap(), total);
    }

    #[test]
    fn requests_that_are_never_read_are_not_collected_for_ever() {
        let (mut connection, _poll, _peer) = pair();
        let history = borealis_types::EpochHistory::default();
        let (epoch, writer) = (borealis_types::VolumeEpoch(1), borealis_types::WriterId(1));
        let request = Request::Repair {
            epoch,
            writer,
            group: borealis_types::GroupId(0),
            history,
            batches: vec![vec![0; 1 << 20]],
        };
        let failed = (0..64).any(|id| {
            connection.send(id, &request);
            connection.flush().is_err()
        });
        assert!(failed, "64 MiB of requests are unread");
    }

    #[test]
    #[should_panic(expected = "invariant written-bytes-are-of-the-first-frame is broken")]
    fn a_frame_that_was_written_and_not_removed_is_noticed() {
        let (mut connection, _poll, _peer) = pair();
        connection.send(1, &Request::Status);
        connection.written = connection.request_bytes;
        let _ = connection.flush();
    }

    #[test]
    #[should_panic(expected = "invariant unread-requests-are-counted is broken")]
    fn a_request_that_was_not_counted_is_noticed() {
        let (mut connection, _poll, _peer) = pair();
        connection.send(1, &Request::Status);
        connection.request_bytes = 0;
        let _ = connection.flush();
    }

    #[test]
    fn a_node_that_reads_wakes_nobody_who_has_nothing_to_write() {
        let (mut connection, mut poll, mut peer) = pair();
        let mut events = mio::Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        connection.flush().unwrap();
        poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        for _ in 0..5 {
            connection.send(1, &Request::Status);
            connection.flush().unwrap();
            peer.read_exact(&mut [0; 18]).unwrap();
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            assert!(events.is_empty(), "{events:?}");
        }
        // One that has more to write than there is room for is told when there is.
        connection.send_batch(Rc::new(BatchFrame::new(1, vec![7; 4_000_000])));
        connection.flush().unwrap();
        assert!(connection.has_outbound());
        peer.read_exact(&mut vec![0; 100_000]).unwrap();
        let reader = std::thread::spawn(move || peer.read_exact(&mut vec![0; 3_900_000]));
        while connection.has_outbound() {
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(events.iter().any(mio::event::Event::is_writable), "nobody was told");
            connection.flush().unwrap();
        }
        reader.join().unwrap().unwrap();
    }

    #[test]
    fn an_end_right_behind_the_last_bytes_is_seen() {
        let (mut connection, _poll, mut peer) = pair();
        connection.flush().unwrap();
        peer.write_all(&frame_header(b"last")).unwrap();
        peer.write_all(b"last").unwrap();
        drop(peer);
        let mut scratch = vec![0; 4096];
        // Bytes and end are both here, as one event would announce them.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!connection.receive(&mut scratch, true).unwrap());
        assert_eq!(connection.next_frame().unwrap(), Some(b"last".as_slice()));
    }

    #[test]
    fn an_end_after_a_short_read_is_an_event_of_its_own() {
        let (mut connection, mut poll, mut peer) = pair();
        connection.flush().unwrap();
        peer.write_all(&frame_header(b"last")).unwrap();
        peer.write_all(b"last").unwrap();
        let mut scratch = vec![0; 4096];
        std::thread::sleep(Duration::from_millis(50));
        assert!(connection.receive(&mut scratch, false).unwrap());
        let mut events = mio::Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        drop(peer);
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(events.iter().any(mio::event::Event::is_read_closed), "the end is an event");
        assert!(!connection.receive(&mut scratch, true).unwrap());
    }
}
