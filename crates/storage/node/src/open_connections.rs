//! The connections that are open, what is said on them unasked, and how they are all ended.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use borealis_client::stream::Stream;
use borealis_quorum::Promise;
use borealis_types::{GroupId, MembershipEpoch, VolumeEpoch, WriterId, invariant};
use borealis_wire::frame::frame_header;
use borealis_wire::message::encode_message;
use borealis_wire::{Refusal, Reply, SegmentProgress};

use crate::connections::places::{self, CONNECTIONS_MAX, Kind, Occupant, Verdict};

/// A caller has this long to take what it is sent, and a second more for each megabyte: answers wait in memory.
const SEND_MAX: Duration = Duration::from_secs(10);
/// A caller that takes nothing at all for this long is disconnected before.
const STALL_MAX: Duration = Duration::from_secs(5);
const SENT_BYTES_PER_SECOND: usize = 1 << 20;

/// The sending half of a connection, shared with those who have something to say unasked.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Outside of the lock: it is ended while somebody waits for room on it, who then notices at once.
    stream: Stream,
    /// Held by whoever sends, for as long as that may take. Nobody waits for it who holds the list's lock.
    sending: Mutex<()>,
    /// Who it is for people: the process that called.
    address: String,
    /// Set by a writer's introduction.
    writer: OnceLock<Promise>,
    /// Which membership of each group its caller knows, as its introduction says. A group that is not listed is not checked.
    made_for: OnceLock<Vec<(GroupId, MembershipEpoch)>>,
    is_introduced: AtomicBool,
    accepted: Instant,
    /// When its last whole request came, in milliseconds since it was accepted.
    last_request_ms: AtomicU64,
}

impl Connection {
    pub(crate) fn new(stream: Stream, address: String) -> Connection {
        Connection {
            stream,
            sending: Mutex::new(()),
            address,
            writer: OnceLock::new(),
            made_for: OnceLock::new(),
            is_introduced: AtomicBool::new(false),
            accepted: Instant::now(),
            last_request_ms: AtomicU64::new(0),
        }
    }

    /// Notes that a whole request came: the caller is at work.
    pub(crate) fn note_request(&self) {
        let since_ms = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_request_ms.store(since_ms, Ordering::Relaxed);
    }

    fn silent_for(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last_request_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.accepted).saturating_sub(last)
    }

    /// Whether its caller has said who it is.
    pub(crate) fn is_introduced(&self) -> bool {
        self.is_introduced.load(Ordering::Acquire)
    }

    /// Which membership of each group its caller knows, and so which everything is meant for that it asks.
    pub(crate) fn made_for(&self) -> &[(GroupId, MembershipEpoch)] {
        self.made_for.get().map_or(&[], Vec::as_slice)
    }

    /// Whether its caller knows this membership of a group, or a newer one. With an older one it would count what it is told
    /// for members that are none any more.
    fn knows(&self, group: GroupId, epoch: MembershipEpoch) -> bool {
        let listed = self.made_for().iter().find(|(of, _)| *of == group);
        listed.is_none_or(|(_, known)| *known >= epoch)
    }

    /// Notes that the caller has said who it is, the promise it claims if it is a writer, and the memberships it knows.
    pub(crate) fn introduce(&self, writer: Option<Promise>, made_for: Vec<(GroupId, MembershipEpoch)>) {
        let again = self.is_introduced.load(Ordering::Acquire);
        invariant!("connection-introduced-once", !again, "{} introduced itself twice", self.address);
        if let Some(promise) = writer {
            self.writer.get_or_init(|| promise);
        }
        self.made_for.get_or_init(|| made_for);
        self.is_introduced.store(true, Ordering::Release);
    }

    /// Whether it is the connection of the writer who holds `promise`. A promise learned from a peer does not name the
    /// writer; then it is whoever comes in that epoch, as for appends.
    fn is_of_writer(&self, promise: Promise) -> bool {
        self.writer.get().is_some_and(|writer| {
            *writer == promise || (writer.epoch == promise.epoch && promise.writer == WriterId(0))
        })
    }

    /// Whether it is the connection of a writer of an epoch before this one.
    fn is_of_writer_before(&self, epoch: VolumeEpoch) -> bool {
        self.writer.get().is_some_and(|writer| writer.epoch < epoch)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Ends the connection; its thread notices at once, and so does whoever is sending on it. Waits for nobody.
    pub(crate) fn close(&self) {
        // An error means that it is closed already.
        let _ = self.stream.shutdown();
    }

    /// Says unasked that SCLs of the writer who holds `promise` moved.
    fn push_progress(&self, promise: Promise, progress: &[SegmentProgress]) {
        invariant!(
            "progress-goes-to-its-writer",
            self.is_of_writer(promise),
            "progress of {promise:?} was to be told to {:?}",
            self.writer.get()
        );
        let mut frames = Vec::new();
        push_frame(&mut frames, &encode_message(0, &Reply::Progress(progress.to_vec())));
        if let Err(error) = self.send(&frames) {
            tracing::debug!(address = %self.address, %error, "writer does not take progress");
            self.close();
        }
    }

    /// Sends whole frames, one caller of this function at a time.
    ///
    /// # Errors
    /// When the caller does not take them in time, or the connection is gone.
    pub(crate) fn send(&self, frames: &[u8]) -> io::Result<()> {
        let seconds = (frames.len() / SENT_BYTES_PER_SECOND) as u64;
        self.send_within(frames, SEND_MAX + Duration::from_secs(seconds))
    }

    fn send_within(&self, frames: &[u8], limit: Duration) -> io::Result<()> {
        let _alone = self.sending.lock().expect("nothing panics while it holds this lock");
        let deadline = Instant::now() + limit;
        let mut rest = frames;
        while !rest.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let count = self.stream.write_within(rest, left.min(STALL_MAX))?;
            rest = &rest[count..];
        }
        Ok(())
    }
}

/// Adds one frame to what will be sent.
pub(crate) fn push_frame(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(&frame_header(payload));
    out.extend_from_slice(payload);
}

/// All connections of a node.
#[derive(Debug, Default)]
pub(crate) struct OpenConnections {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    open: BTreeMap<u64, Place>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Place {
    connection: Arc<Connection>,
    kind: Kind,
    /// Another one has its place already; its thread is about to end.
    is_given_up: bool,
}

/// There was no place for another connection of this kind.
#[derive(Debug)]
pub(crate) struct TooMany {
    pub(crate) open: usize,
    pub(crate) kind: Kind,
}

impl State {
    /// Makes room for a connection of this kind. `now` is one moment for all: were the clock read for each, whoever is looked
    /// at last would seem to be silent longest.
    fn make_room(&mut self, kind: Kind, now: Instant) -> Result<(), TooMany> {
        let occupants = self.open.iter().filter(|(_, place)| !place.is_given_up).map(|(&id, place)| {
            Occupant { id, kind: place.kind, silent_for: place.connection.silent_for(now) }
        });
        match places::find(kind, occupants) {
            Verdict::Free => Ok(()),
            Verdict::InsteadOf(id) => {
                if let Some(place) = self.open.get_mut(&id) {
                    tracing::debug!(address = %place.connection.address, ?kind, "a silent connection gives way");
                    place.is_given_up = true;
                    place.connection.close();
                }
                Ok(())
            }
            Verdict::Full => Err(TooMany { open: self.open.len(), kind }),
        }
    }
}

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// Lists a connection until what is returned is dropped.
    ///
    /// # Errors
    /// [`TooMany`] when there is no place for it.
    pub(crate) fn list(self: &Arc<Self>, connection: &Arc<Connection>) -> Result<Listed, TooMany> {
        self.list_at(connection, Instant::now())
    }

    fn list_at(self: &Arc<Self>, connection: &Arc<Connection>, now: Instant) -> Result<Listed, TooMany> {
        let mut state = self.lock();
        state.threads.retain(|thread| !thread.is_finished());
        let kind = Kind::Stranger;
        if state.open.len() >= CONNECTIONS_MAX {
            return Err(TooMany { open: state.open.len(), kind });
        }
        state.make_room(kind, now)?;
        state.last_id += 1;
        let id = state.last_id;
        state.open.insert(id, Place { connection: Arc::clone(connection), kind, is_given_up: false });
        Ok(Listed { connections: Arc::clone(self), id })
    }

    /// Keeps the thread of a connection, to be waited for in the end.
    pub(crate) fn keep_thread(&self, thread: JoinHandle<()>) {
        self.lock().threads.push(thread);
    }

    /// Tells the writer who holds this promise that the SCL of a group moved without its doing, if it knows the membership
    /// that the segment acts on.
    pub(crate) fn push_progress(
        &self,
        promise: Promise,
        (group, membership): (GroupId, MembershipEpoch),
        progress: &[SegmentProgress],
    ) {
        if progress.is_empty() {
            return;
        }
        let open: Vec<Arc<Connection>> =
            self.lock().open.values().map(|place| Arc::clone(&place.connection)).collect();
        for connection in open {
            if connection.is_of_writer(promise) && connection.knows(group, membership) {
                connection.push_progress(promise, progress);
            }
        }
    }

    /// Tells every writer of an older epoch, unasked, that this node is promised to a newer one: it may have nothing to
    /// send, and would not hear of it. In a thread of its own, for a writer that does not read must not hold up a fence.
    pub(crate) fn tell_fenced(&self, promised: VolumeEpoch) {
        let state = self.lock();
        let open = state.open.values().map(|place| &place.connection);
        let older: Vec<Arc<Connection>> =
            open.filter(|connection| connection.is_of_writer_before(promised)).cloned().collect();
        drop(state);
        if older.is_empty() {
            return;
        }
        let mut frame = Vec::new();
        push_frame(&mut frame, &encode_message(0, &Reply::Refused(Refusal::Fenced(promised))));
        let tell = move || {
            for connection in older {
                if let Err(error) = connection.send(&frame) {
                    tracing::debug!(address = %connection.address, %error, "a fenced writer does not listen");
                    connection.close();
                }
            }
        };
        // Without the thread it hears of it when it asks.
        let _ = std::thread::Builder::new().name("tell-fenced".to_owned()).spawn(tell);
    }

    /// Ends every connection and waits for their threads.
    pub(crate) fn close_all(&self) {
        let threads = {
            let mut state = self.lock();
            for place in state.open.values() {
                place.connection.close();
            }
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            // One that panicked has said so; there is nothing left to do for it.
            let _ = thread.join();
        }
    }
}

/// A connection's place in the list. It is given up when the connection's thread ends, however it ends.
#[derive(Debug)]
pub(crate) struct Listed {
    connections: Arc<OpenConnections>,
    id: u64,
}

impl Listed {
    /// Identifies the connection among all that this process has had; used to name its thread.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Gives the connection a place among its own kind, now that it is known who calls.
    ///
    /// # Errors
    /// [`TooMany`] when there is none.
    pub(crate) fn introduce(&self, kind: Kind) -> Result<(), TooMany> {
        let mut state = self.connections.lock();
        state.make_room(kind, Instant::now())?;
        if let Some(place) = state.open.get_mut(&self.id) {
            place.kind = kind;
        }
        Ok(())
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let removed = self.connections.lock().open.remove(&self.id);
        // A second panic would end the process without a word about the first.
        if !std::thread::panicking() {
            invariant!(
                "connection-listed-until-it-ends",
                removed.is_some(),
                "connection {} was gone",
                self.id
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{GroupId, Lsn};
    use std::os::unix::net::UnixStream;

    fn connection() -> (Arc<Connection>, UnixStream) {
        let (stream, caller) = UnixStream::pair().unwrap();
        (Arc::new(Connection::new(stream.into(), "a test".to_owned())), caller)
    }

    fn promise(epoch: u64, writer: u64) -> Promise {
        Promise { epoch: VolumeEpoch(epoch), writer: WriterId(writer) }
    }

    #[test]
    fn a_promise_without_a_name_is_of_whoever_writes_in_its_epoch() {
        let (connection, _caller) = connection();
        assert!(!connection.is_of_writer(promise(3, 7)));
        connection.introduce(Some(promise(3, 7)), Vec::new());
        assert!(connection.is_of_writer(promise(3, 7)) && connection.is_of_writer(promise(3, 0)));
        assert!(!connection.is_of_writer(promise(3, 8)) && !connection.is_of_writer(promise(4, 0)));
    }

    #[test]
    fn progress_is_not_for_who_knows_an_older_membership() {
        let (connection, _caller) = connection();
        let (listed, other) = (GroupId(2), GroupId(3));
        connection.introduce(Some(promise(3, 7)), vec![(listed, MembershipEpoch(4))]);
        assert!(connection.knows(listed, MembershipEpoch(3)) && connection.knows(listed, MembershipEpoch(4)));
        assert!(!connection.knows(listed, MembershipEpoch(5)));
        assert!(connection.knows(other, MembershipEpoch(9)), "it is not checked");
    }

    #[test]
    #[should_panic(expected = "invariant progress-goes-to-its-writer is broken")]
    fn progress_for_another_writer_is_not_sent() {
        let (connection, _caller) = connection();
        connection.introduce(Some(promise(3, 7)), Vec::new());
        let progress = SegmentProgress { group: GroupId(0), segment_complete_lsn: Lsn(9) };
        connection.push_progress(promise(4, 7), &[progress]);
    }

    #[test]
    #[should_panic(expected = "invariant connection-introduced-once is broken")]
    fn a_connection_does_not_change_its_caller() {
        let (connection, _caller) = connection();
        connection.introduce(Some(promise(3, 7)), Vec::new());
        connection.introduce(Some(promise(4, 8)), Vec::new());
    }

    #[test]
    fn a_caller_that_reads_a_little_at_a_time_has_no_more_time_for_it() {
        let (connection, mut caller) = connection();
        let reading = std::thread::spawn(move || {
            while io::Read::read(&mut caller, &mut [0; 16 << 10]).is_ok_and(|count| count > 0) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let began = Instant::now();
        let error = connection.send_within(&vec![0; 16 << 20], Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        connection.close();
        reading.join().unwrap();
    }

    #[test]
    fn a_connection_is_ended_while_somebody_waits_to_send_on_it() {
        let (connection, _caller) = connection();
        let sending = std::thread::spawn({
            let connection = Arc::clone(&connection);
            move || connection.send(&vec![0; 16 << 20]).unwrap_err().kind()
        });
        std::thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        connection.close();
        assert_eq!(sending.join().unwrap(), io::ErrorKind::BrokenPipe);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }

    #[test]
    fn a_silent_stranger_gives_way_to_the_next_caller() {
        let connections = Arc::new(OpenConnections::default());
        let began = Instant::now();
        let mut there = Vec::new();
        let refused = loop {
            let (connection, caller) = connection();
            match connections.list_at(&connection, began) {
                Ok(listed) => there.push((listed, caller)),
                Err(refused) => break refused,
            }
        };
        assert_eq!((refused.open, there.len(), refused.kind), (64, 64, Kind::Stranger));
        let (newcomer, _caller) = connection();
        // By then each of them has been silent for long enough.
        let later = newcomer.accepted + Duration::from_millis(100);
        let listed = connections.list_at(&newcomer, later).unwrap();
        let first = &mut there[0].1;
        first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(io::Read::read(first, &mut [0; 1]).unwrap(), 0, "the first was silent longest");
        listed.introduce(Kind::Client).unwrap();
        let (another, _caller) = connection();
        drop(connections.list(&another).unwrap());
    }

    #[test]
    #[should_panic(expected = "invariant connection-listed-until-it-ends is broken")]
    fn a_place_that_was_given_up_twice_is_noticed() {
        let connections = Arc::new(OpenConnections::default());
        let (connection, _caller) = connection();
        let listed = connections.list(&connection).unwrap();
        connections.lock().open.clear();
        drop(listed);
    }
}
