//! The connections a node has, how many it accepts, and how they are all ended.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use borealis_quorum::Promise;
use borealis_types::WriterId;
use borealis_wire::SegmentProgress;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::connection::{Connection, serve};
use crate::metrics::add;
use crate::node::Shared;

/// Connections open at one time.
const CONNECTIONS_MAX: usize = 256;
/// Of these, ones whose caller has not said yet who it is: strangers cannot use up all places.
const UNINTRODUCED_MAX: usize = 64;
/// After the system could not accept (no descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All connections of a node.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    open: HashMap<u64, Arc<Connection>>,
    threads: Vec<JoinHandle<()>>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// Tells the writer who holds this promise that SCLs moved without its doing. A promise learned from a
    /// peer does not name the writer; then it is whoever comes in that epoch, as for appends.
    pub(crate) fn push_progress(&self, promise: Promise, progress: &[SegmentProgress]) {
        if progress.is_empty() {
            return;
        }
        let open: Vec<Arc<Connection>> = self.lock().open.values().cloned().collect();
        for connection in open {
            if connection.writer().is_some_and(|writer| {
                writer == promise || (writer.epoch == promise.epoch && promise.writer == WriterId(0))
            }) {
                connection.push_progress(progress);
            }
        }
    }

    /// Ends every connection and waits for their threads.
    pub(crate) fn close_all(&self) {
        let threads = {
            let mut state = self.lock();
            for connection in state.open.values() {
                connection.close();
            }
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            // One that panicked has said so; there is nothing left to do for it.
            let _ = thread.join();
        }
    }
}

/// Removes a connection from the list when its thread ends, however it ends.
struct Registration {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.connections.lock().open.remove(&self.id);
    }
}

/// Accepts connections until `stop` becomes readable or its other end closes.
pub(crate) fn accept_until(shared: &Arc<Shared>, listener: &TcpListener, stop: &UnixStream) {
    loop {
        let mut ready =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::NONE).is_err() {
            continue;
        }
        if ready[0].any().unwrap_or(true) {
            return;
        }
        match listener.accept() {
            Ok((stream, address)) => admit(shared, stream, address),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if let Some(suppressed) = shared.refused_log.admit() {
                    tracing::warn!(%error, suppressed, "cannot accept connections");
                }
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr) {
    let prepared = stream
        .set_nonblocking(false)
        // A caller that vanished without a word is noticed within hours, not never.
        .and_then(|()| Ok(setsockopt(&stream, sockopt::KeepAlive, &true)?))
        .and_then(|()| stream.try_clone());
    let Ok(sending) = prepared else { return };
    let connection = Arc::new(Connection::new(sending, address));
    let mut state = shared.connections.lock();
    state.threads.retain(|thread| !thread.is_finished());
    let unintroduced = state.open.values().filter(|connection| !connection.is_introduced()).count();
    if state.open.len() >= CONNECTIONS_MAX || unintroduced >= UNINTRODUCED_MAX {
        add(&shared.metrics.connections_refused, 1);
        if let Some(suppressed) = shared.refused_log.admit() {
            let open = state.open.len();
            tracing::warn!(%address, open, unintroduced, suppressed, "too many connections: one was closed");
        }
        return;
    }
    add(&shared.metrics.connections_accepted, 1);
    state.last_id += 1;
    let id = state.last_id;
    state.open.insert(id, Arc::clone(&connection));
    drop(state);
    // Its end takes the lock, also when it never becomes a thread.
    let registration = Registration { shared: Arc::clone(shared), id };
    let spawned = thread::Builder::new().name(format!("connection-{id}")).spawn(move || {
        serve(&registration.shared, &connection, stream);
    });
    match spawned {
        Ok(thread) => shared.connections.lock().threads.push(thread),
        Err(error) => tracing::warn!(%error, "cannot start a thread for a connection"),
    }
}
