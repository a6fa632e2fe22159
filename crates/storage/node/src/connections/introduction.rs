//! The first frame of a connection: who calls, and whether this is the node that is meant.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_client::handshake::judge_hello;
use borealis_quorum::Promise;
use borealis_store::Store;
use borealis_types::{NodeId, VolumeId};
use borealis_wire::frame::MAX_PAYLOAD_BYTES;
use borealis_wire::message::decode_payload;
use borealis_wire::{Caller, FrameError, Payload, Reply, Request};

use super::ended::Ended;
use super::receiver::Receiver;
use super::session::push_reply;
use crate::open_connections::Connection;
use crate::refusals::Refusals;
use crate::standing::Standing;

/// A caller that has not introduced itself by then is disconnected, however it drips its bytes.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Larger introductions are refused before they are received.
const HELLO_LIMIT_BYTES: usize = 1 << 10;
/// A frame that stops in the middle for this long breaks the connection.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// A caller that does not take its replies for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is asked of the socket at a time: for a writer, and for anyone else.
const WRITER_CHUNK_BYTES: usize = 256 << 10;
const CHUNK_BYTES: usize = 16 << 10;

/// The node that callers must mean.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) standing: Arc<Standing>,
}

impl Host {
    fn answer(&self, hello: (u16, VolumeId, NodeId), caller: Caller) -> Reply {
        if let Err(refusal) = judge_hello(hello, self.volume, self.node) {
            return Reply::Refused(refusal);
        }
        // Whoever comes now counts on what this node says that it has.
        if !matches!(caller, Caller::Peer(_)) {
            self.standing.wait_for_words();
        }
        if matches!(caller, Caller::Writer { .. })
            && let Err(refusal) = self.store.check_takes_redo()
        {
            // It tries again, and sends redo only once it is welcome.
            return Reply::Refused(refusal);
        }
        match self.store.summaries() {
            Ok(segments) => Reply::Welcome { node: self.node, segments },
            // The state of a failed node is still to be had, see `Requests::status`.
            Err(_) if caller == Caller::Client => Reply::Welcome { node: self.node, segments: Vec::new() },
            Err(error) => Reply::Refused(self.refusals.of(&error)),
        }
    }
}

/// Waits for the `Hello` and answers it; returns who calls, and what its requests are received with. `None` when the
/// caller was refused or said nothing.
pub(super) fn introduce(
    host: &Host,
    connection: &Connection,
    stream: TcpStream,
) -> Result<Option<(Caller, Receiver)>, Ended> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut receiver = Receiver::new(stream, HELLO_LIMIT_BYTES, HELLO_LIMIT_BYTES);
    let frame = match receiver.frame_before(Instant::now() + HELLO_TIMEOUT) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(Ended::Garbage("no introduction came in time".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let (request_id, hello) = match decode_payload::<Request>(&frame) {
        Ok(Payload::Message { request_id, message }) => (request_id, message),
        Ok(Payload::Append { .. }) => {
            return Err(Ended::Garbage("an append before the introduction".to_owned()));
        }
        Err(error) => return Err(Ended::Garbage(error.to_string())),
    };
    let Request::Hello { protocol, volume, node, caller } = hello else {
        return Err(Ended::Garbage("a request before the introduction".to_owned()));
    };
    let reply = host.answer((protocol, volume, node), caller);
    let mut frames = Vec::new();
    push_reply(&mut frames, request_id, &reply);
    connection.send(&frames)?;
    if !matches!(reply, Reply::Welcome { .. }) {
        return Ok(None);
    }
    let (writer, chunk_bytes) = match caller {
        Caller::Writer { epoch, writer } => (Some(Promise { epoch, writer }), WRITER_CHUNK_BYTES),
        Caller::Client | Caller::Peer(_) => (None, CHUNK_BYTES),
    };
    connection.introduce(writer);
    receiver.set_limits(chunk_bytes, MAX_PAYLOAD_BYTES);
    receiver.set_timeout(FRAME_TIMEOUT)?;
    Ok(Some((caller, receiver)))
}
