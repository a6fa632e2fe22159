//! A non-blocking connection to a storage node.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::rc::Rc;

use borealis_types::{NodeId, invariant};
use borealis_wire::frame::{FRAME_HEADER_BYTES, frame_header};
use borealis_wire::message::encode_message;
use borealis_wire::{BatchFrame, FrameBuffer, FrameError, Request};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use crate::stream::{Begun, begin_to_connect};
use crate::tls::Route;
use crate::tls::session::{Received, Session};
use crate::tls::stream::set_options;

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

/// The socket, and what protects what is on it.
#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tls(TcpStream, Box<Session>),
}

impl Socket {
    fn source(&mut self) -> &mut dyn mio::event::Source {
        match self {
            Socket::Unix(socket) => socket,
            Socket::Tls(socket, _) => socket,
        }
    }

    /// Whether the connection is made; an error is why it never will be.
    fn is_connected(&self) -> io::Result<bool> {
        let (error, peer) = match self {
            Socket::Unix(socket) => (socket.take_error()?, socket.peer_addr().map(|_| ())),
            Socket::Tls(socket, _) => (socket.take_error()?, socket.peer_addr().map(|_| ())),
        };
        match (error, peer) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(true),
            (None, Err(error)) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            (None, Err(error)) => Err(error),
        }
    }

    /// Sends the beginning of what both parts are together.
    fn write(&mut self, head: &[u8], tail: &[u8]) -> io::Result<usize> {
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        match self {
            Socket::Unix(socket) if head.is_empty() => socket.write(tail),
            Socket::Unix(socket) => socket.write_vectored(&slices),
            Socket::Tls(socket, session) => {
                if !session.send(socket)? {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                // Before the handshake is over it takes nothing.
                let count = session.put(&slices)?;
                session.send(socket)?;
                if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
            }
        }
    }

    /// Sends what was taken to be sent; false if some of it still waits for room.
    fn settle(&mut self) -> io::Result<bool> {
        match self {
            Socket::Unix(_) => Ok(true),
            Socket::Tls(socket, session) => session.send(socket),
        }
    }

    /// Whether the other side is known, so that something can be said to it.
    fn is_ready(&self) -> bool {
        match self {
            Socket::Unix(_) => true,
            Socket::Tls(_, session) => session.peer().is_some(),
        }
    }

    /// Reads what is there; whether that was all there is, as far as can be told.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<(usize, bool)> {
        match self {
            Socket::Unix(socket) => socket.read(bytes).map(|count| (count, count < bytes.len())),
            Socket::Tls(socket, session) => match session.read(socket, bytes)? {
                (0, Received::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
                (count, received) => Ok((count, received == Received::Bytes { drained: true })),
            },
        }
    }
}

/// One connection. The owner calls [`Connection::flush`] and [`Connection::receive`] whenever the socket may
/// have become ready, and reads frames until there are none.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
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
    /// Starts to connect; does not wait until it is. Over TLS nothing that is queued leaves before this very node has
    /// shown its certificate.
    ///
    /// # Errors
    /// When the system refuses at once. [`io::ErrorKind::WouldBlock`]: it can be tried again in a moment.
    pub fn open<'a>(
        route: impl Into<Route<'a>>,
        node: NodeId,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Connection> {
        let mut socket = match begin_to_connect(route.into(), node)? {
            Begun::Unix(socket) => Socket::Unix(socket),
            Begun::Tls(socket, session) => {
                set_options(&socket)?;
                Socket::Tls(socket, session)
            }
        };
        registry.register(socket.source(), token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Connection {
            socket,
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
        let _ = registry.deregister(self.socket.source());
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
            let head_written = self.written.min(head.len());
            let result = self.socket.write(&head[head_written..], &tail[self.written - head_written..]);
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
        let is_settled = self.socket.settle()?;
        self.watch(!is_settled || (self.has_outbound() && self.socket.is_ready()))
    }

    /// Has the poll tell of room to write if something waits for that alone.
    fn watch(&mut self, for_room: bool) -> io::Result<()> {
        if for_room != self.is_watched_for_room {
            let interest = match for_room {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            // Room that was made meanwhile is told at once: the poll looks when the interest changes.
            self.registry.reregister(self.socket.source(), self.token, interest)?;
            self.is_watched_for_room = for_room;
        }
        Ok(())
    }

    fn check_established(&mut self) -> io::Result<bool> {
        self.established = self.socket.is_connected()?;
        Ok(self.established)
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
        let was_ready = self.socket.is_ready();
        let received = self.receive_all(scratch, has_ended);
        if received.is_err() {
            // Why, for the other side.
            let _ = self.socket.settle();
        } else if !was_ready || !self.socket.settle()? {
            // The handshake goes on, or is over: what waited for that can leave.
            self.flush()?;
        }
        received
    }

    fn receive_all(&mut self, scratch: &mut [u8], has_ended: bool) -> io::Result<bool> {
        loop {
            match self.socket.read(scratch) {
                Ok((0, _)) => return Ok(false),
                Ok((count, drained)) => {
                    self.inbound.extend(&scratch[..count]);
                    if drained && !has_ended {
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
    use borealis_spec::Endpoint;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::{Duration, Instant};

    /// A connection, what keeps it registered, and its peer's end.
    fn pair() -> (Connection, mio::Poll, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1");
        let listener = UnixListener::bind(&path).unwrap();
        let poll = mio::Poll::new().unwrap();
        let connection =
            Connection::open(&Endpoint::Unix(path), NodeId(1), poll.registry(), Token(0)).unwrap();
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
