//! One connection: its thread reads frames, asks the store, and answers.
//!
//! Appends take the shortest way there is: the connection's own thread reads the frame, appends it, makes it
//! durable and acknowledges it, without handing it to anyone. Frames that have already arrived are appended
//! together before one sync, so a busy connection shares the cost of the disk among them; nothing ever waits for
//! more frames to come.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use borealis_client::handshake::judge_hello;
use borealis_quorum::Promise;
use borealis_store::{Origin, Sequence, StoreError};
use borealis_types::GroupSet;
use borealis_wire::frame::{MAX_PAYLOAD_BYTES, frame_header};
use borealis_wire::message::{decode_payload, encode_message};
use borealis_wire::{Caller, FrameError, Payload, Refusal, Reply, Request, SegmentProgress};

use crate::gossip::has_hole;
use crate::metrics::add;
use crate::node::Shared;
use crate::receiver::{Fill, Receiver};
use crate::requests;

/// A caller that has not introduced itself by then is disconnected, however it drips its bytes.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest introduction.
const HELLO_LIMIT_BYTES: usize = 1 << 10;
/// A frame that stops in the middle for this long breaks the connection.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// A caller that does not take its replies for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is asked of the socket at a time: for a writer, and for anyone else.
const WRITER_CHUNK_BYTES: usize = 256 << 10;
const CHUNK_BYTES: usize = 16 << 10;
/// Appends that share one sync stop being collected beyond this, so that the first of them is not kept waiting.
const GROUPED_APPEND_BYTES: usize = 8 << 20;
/// Replies are sent when this much of them has gathered, or when there is nothing more to answer.
const REPLY_GATHER_BYTES: usize = 128 << 10;

/// The sending half of a connection, shared with those who have something to say unasked.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Mutex<TcpStream>,
    address: SocketAddr,
    /// Set by a writer's introduction.
    writer: OnceLock<Promise>,
    is_introduced: AtomicBool,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, address: SocketAddr) -> Connection {
        Connection {
            stream: Mutex::new(stream),
            address,
            writer: OnceLock::new(),
            is_introduced: AtomicBool::new(false),
        }
    }

    /// Whether its caller has said who it is.
    pub(crate) fn is_introduced(&self) -> bool {
        self.is_introduced.load(Ordering::Acquire)
    }

    /// The writer whose connection it is, if it is one's.
    pub(crate) fn writer(&self) -> Option<Promise> {
        self.writer.get().copied()
    }

    /// Ends the connection; its thread notices at once.
    pub(crate) fn close(&self) {
        // An error means that it is closed already.
        let _ = self.stream.lock().expect("nothing panics while it holds this lock").shutdown(Shutdown::Both);
    }

    /// Says unasked that SCLs moved.
    pub(crate) fn push_progress(&self, progress: &[SegmentProgress]) {
        let mut frames = Vec::new();
        push_frame(&mut frames, &encode_message(0, &Reply::Progress(progress.to_vec())));
        if let Err(error) = self.send(&frames) {
            tracing::debug!(address = %self.address, %error, "writer does not take progress");
            self.close();
        }
    }

    fn send(&self, frames: &[u8]) -> io::Result<()> {
        self.stream.lock().expect("nothing panics while it holds this lock").write_all(frames)
    }
}

fn push_frame(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(&frame_header(payload));
    out.extend_from_slice(payload);
}

/// Why a connection ended, if not by the caller's wish.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Garbage(String),
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Ended {
        match error {
            FrameError::Io(error) => Ended::Io(error),
            other => Ended::Garbage(other.to_string()),
        }
    }
}

/// Serves a connection until either side ends it.
pub(crate) fn serve(shared: &Shared, connection: &Arc<Connection>, stream: TcpStream) {
    let result = introduce(shared, connection, stream).and_then(|session| match session {
        Some((mut session, mut receiver)) => session.run(&mut receiver),
        None => Ok(()),
    });
    match result {
        Ok(()) => {}
        Err(Ended::Io(error)) => tracing::debug!(address = %connection.address, %error, "connection broke"),
        Err(Ended::Garbage(what)) => {
            add(&shared.metrics.frames_refused, 1);
            if let Some(suppressed) = shared.garbage_log.admit() {
                tracing::warn!(address = %connection.address, suppressed, "connection closed: {what}");
            }
        }
    }
    connection.close();
}

/// Waits for the `Hello` and answers it. `None` when the caller was refused or said nothing.
fn introduce<'a>(
    shared: &'a Shared,
    connection: &'a Arc<Connection>,
    stream: TcpStream,
) -> Result<Option<(Session<'a>, Receiver)>, Ended> {
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
    let config = &shared.config;
    let reply = match judge_hello((protocol, volume, node), config.volume, config.node) {
        Err(refusal) => Reply::Refused(refusal),
        Ok(()) => match shared.store.summaries() {
            Ok(segments) => Reply::Welcome { node: config.node, segments },
            // The state of a failed node is still to be had, see `requests::status`.
            Err(_) if caller == Caller::Client => Reply::Welcome { node: config.node, segments: Vec::new() },
            Err(error) => Reply::Refused(shared.refusal(&error)),
        },
    };
    let welcome = matches!(reply, Reply::Welcome { .. });
    let mut frames = Vec::new();
    push_frame(&mut frames, &encode_message(request_id, &reply));
    connection.send(&frames)?;
    if !welcome {
        return Ok(None);
    }
    connection.is_introduced.store(true, Ordering::Release);
    let chunk_bytes = match caller {
        Caller::Writer { epoch, writer } => {
            connection.writer.get_or_init(|| Promise { epoch, writer });
            WRITER_CHUNK_BYTES
        }
        Caller::Client | Caller::Peer(_) => CHUNK_BYTES,
    };
    receiver.set_limits(chunk_bytes, MAX_PAYLOAD_BYTES);
    receiver.set_timeout(FRAME_TIMEOUT)?;
    Ok(Some((Session::new(shared, connection, caller), receiver)))
}

/// An append that was taken but is not durable yet.
struct PendingAppend {
    request_id: u64,
    received: Instant,
    outcome: Result<Vec<SegmentProgress>, Refusal>,
}

/// The requests of one introduced caller.
struct Session<'a> {
    shared: &'a Shared,
    connection: &'a Arc<Connection>,
    caller: Caller,
    /// Appends in the order they came, all answered after one sync to `sequence`.
    pending: Vec<PendingAppend>,
    pending_bytes: usize,
    sequence: Option<Sequence>,
    /// The groups that the pending appends concern.
    concerned: GroupSet,
    /// Replies not sent yet.
    out: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, connection: &'a Arc<Connection>, caller: Caller) -> Session<'a> {
        Session {
            shared,
            connection,
            caller,
            pending: Vec::new(),
            pending_bytes: 0,
            sequence: None,
            concerned: GroupSet::EMPTY,
            out: Vec::new(),
        }
    }

    fn run(&mut self, receiver: &mut Receiver) -> Result<(), Ended> {
        loop {
            while let Some(payload) = receiver.next_frame()? {
                self.handle(payload)?;
            }
            if !self.pending.is_empty() && self.pending_bytes < GROUPED_APPEND_BYTES {
                match receiver.poll()? {
                    Fill::Bytes => continue,
                    Fill::Nothing | Fill::End => {}
                }
            }
            self.finish_appends()?;
            self.send_replies()?;
            match receiver.wait()? {
                Fill::Bytes => {}
                Fill::Nothing if receiver.is_mid_frame() => {
                    return Err(Ended::Garbage("a frame stopped in the middle".to_owned()));
                }
                Fill::Nothing => {}
                Fill::End if receiver.is_mid_frame() => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                Fill::End => return Ok(()),
            }
        }
    }

    fn handle(&mut self, payload: &[u8]) -> Result<(), Ended> {
        let received = Instant::now();
        match decode_payload::<Request>(payload) {
            Ok(Payload::Append { request_id, batch }) => {
                self.append(request_id, batch, received);
                if self.pending_bytes >= GROUPED_APPEND_BYTES {
                    self.finish_appends()?;
                }
            }
            Ok(Payload::Message { request_id, message }) => {
                // Answers keep the order of the requests.
                self.finish_appends()?;
                let reply = requests::answer(self.shared, message);
                self.reply(request_id, &reply);
            }
            Err(error) => return Err(Ended::Garbage(error.to_string())),
        }
        if self.out.len() >= REPLY_GATHER_BYTES {
            self.send_replies()?;
        }
        Ok(())
    }

    fn append(&mut self, request_id: u64, batch: &[u8], received: Instant) {
        let metrics = &self.shared.metrics;
        add(&metrics.append_frames, 1);
        add(&metrics.append_bytes, batch.len() as u64);
        let outcome = match self.caller {
            Caller::Writer { epoch, writer } => self.append_from_writer(batch, Promise { epoch, writer }),
            Caller::Client | Caller::Peer(_) => {
                Err(Refusal::Misuse("only a writer may append; say so in the introduction".to_owned()))
            }
        };
        self.pending_bytes += batch.len();
        self.pending.push(PendingAppend { request_id, received, outcome });
    }

    fn append_from_writer(
        &mut self,
        batch: &[u8],
        promise: Promise,
    ) -> Result<Vec<SegmentProgress>, Refusal> {
        match self.shared.store.append(batch, Origin::Writer(promise)) {
            Ok(appended) => {
                self.sequence = self.sequence.max(Some(appended.sequence));
                self.concerned =
                    appended.progress.iter().fold(self.concerned, |set, moved| set.with(moved.group));
                Ok(appended.progress)
            }
            Err(error) => {
                if matches!(error, StoreError::NeedsHistory { .. }) {
                    // A peer has it, if the writer does not bring it itself.
                    self.shared.gossip.wake();
                }
                Err(self.shared.refusal(&error))
            }
        }
    }

    /// Makes the pending appends durable and answers them.
    fn finish_appends(&mut self) -> Result<(), Ended> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let metrics = &self.shared.metrics;
        let synced = match self.sequence.take() {
            Some(sequence) => {
                add(&metrics.append_syncs, 1);
                self.shared.store.sync(sequence).map_err(|error| self.shared.refusal(&error))
            }
            None => Ok(()),
        };
        let mut received = Vec::with_capacity(self.pending.len());
        for pending in std::mem::take(&mut self.pending) {
            // A failed sync says nothing about which entries are safe, so it fails every append that waited for it.
            let reply = match (pending.outcome, &synced) {
                (Ok(progress), Ok(())) => Reply::Appended(progress),
                (Ok(_), Err(refusal)) => Reply::Refused(refusal.clone()),
                (Err(refusal), _) => Reply::Refused(refusal),
            };
            if matches!(reply, Reply::Refused(_)) {
                add(&metrics.append_refused, 1);
            }
            received.push(pending.received);
            self.reply(pending.request_id, &reply);
        }
        let appended_bytes = std::mem::take(&mut self.pending_bytes);
        self.send_replies()?;
        for received in received {
            metrics.acknowledgements.record(received.elapsed());
        }
        let concerned = std::mem::take(&mut self.concerned);
        let has_hole = |group| self.shared.store.with_segment(group, has_hole);
        if concerned.iter().any(|group| has_hole(group).unwrap_or(false)) {
            self.shared.gossip.wake();
        }
        self.shared.background.note_appended(appended_bytes);
        Ok(())
    }

    fn reply(&mut self, request_id: u64, reply: &Reply) {
        let mut payload = encode_message(request_id, reply);
        if payload.len() > MAX_PAYLOAD_BYTES {
            let what =
                format!("the answer has {} bytes, more than a frame holds; ask for less", payload.len());
            payload = encode_message(request_id, &Reply::Refused(Refusal::Misuse(what)));
        }
        push_frame(&mut self.out, &payload);
    }

    fn send_replies(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            self.connection.send(&self.out)?;
            self.out.clear();
            self.out.shrink_to(REPLY_GATHER_BYTES);
        }
        Ok(())
    }
}
