//! Accepts connections and gives each a thread.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use borealis_client::stream::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;

use super::acceptor::{Accepted, Acceptor};
use super::appends::{AppendPath, Appends};
use super::ended::Ended;
use super::frame_memory::FrameMemory;
use super::introduction::{HELLO_TIMEOUT, Host, introduce};
use super::requests::Requests;
use super::session::Session;
use crate::line_throttle::LineThrottle;
use crate::metrics::{Metrics, add};
use crate::open_connections::{Connection, Listed, OpenConnections, TooMany};

/// After the system could not accept (no descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whether a process of user `caller` may speak to a node of user `own`: the node's own user, and root, who could be
/// any user. The folder of the sockets keeps others out already; this holds if somebody opens it.
fn may_call(caller: Uid, own: Uid) -> bool {
    caller == own || caller.is_root()
}

/// Accepts callers, and serves them.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) host: Host,
    pub(crate) requests: Arc<Requests>,
    pub(crate) append_path: AppendPath,
    pub(crate) connections: Arc<OpenConnections>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) frame_memory: FrameMemory,
    pub(crate) strangers_lines: LineThrottle,
    pub(crate) garbage_lines: LineThrottle,
    pub(crate) refused_lines: LineThrottle,
}

impl Listener {
    /// Accepts connections until `stop` becomes readable or its other end closes.
    pub(crate) fn accept_until(self: &Arc<Self>, listener: &Acceptor, stop: &UnixStream) {
        loop {
            let mut ready = [
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut ready, PollTimeout::NONE).is_err() {
                continue;
            }
            if ready[0].any().unwrap_or(true) {
                return;
            }
            match listener.accept() {
                Ok(accepted) => self.admit(accepted),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    if let Some(suppressed) = self.refused_lines.admit() {
                        tracing::warn!(%error, suppressed, "cannot accept connections");
                    }
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Whoever called by a Unix socket, if it may; and who it is for people.
    fn take_local(&self, socket: UnixStream) -> Option<(Stream, String)> {
        let caller = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
        if !may_call(Uid::from_raw(caller.uid()), Uid::effective()) {
            add(&self.metrics.strangers_refused, 1);
            if let Some(suppressed) = self.strangers_lines.admit() {
                let (process, user) = (caller.pid(), caller.uid());
                tracing::warn!(
                    process,
                    user,
                    suppressed,
                    "a process of another user called and was not answered"
                );
            }
            return None;
        }
        socket.set_nonblocking(false).ok()?;
        Some((Stream::from(socket), format!("process {}", caller.pid())))
    }

    fn admit(self: &Arc<Self>, accepted: Accepted<'_>) {
        let taken = match accepted {
            Accepted::Unix(socket) => self.take_local(socket),
            Accepted::Tls(socket, address, credentials) => {
                // Who it is the handshake tells, in the connection's own thread and a stranger's place.
                Stream::accept(socket, credentials).ok().map(|stream| (stream, address.to_string()))
            }
        };
        let Some((stream, address)) = taken else { return };
        let Ok(sending) = stream.try_clone() else { return };
        let connection = Arc::new(Connection::new(sending, address));
        let listed = match self.connections.list(&connection) {
            Ok(listed) => listed,
            Err(TooMany { open, .. }) => {
                add(&self.metrics.connections_refused, 1);
                if let Some(suppressed) = self.refused_lines.admit() {
                    let address = connection.address();
                    tracing::warn!(address, open, suppressed, "too many connections: one was closed");
                }
                return;
            }
        };
        add(&self.metrics.connections_accepted, 1);
        let listener = Arc::clone(self);
        let spawned = thread::Builder::new().name(format!("connection-{}", listed.id())).spawn(move || {
            // The place is given up when the thread ends, also by a panic.
            listener.serve(&connection, &listed, stream);
        });
        match spawned {
            Ok(thread) => self.connections.keep_thread(thread),
            Err(error) => tracing::warn!(%error, "cannot start a thread for a connection"),
        }
    }

    /// A caller whose handshake failed was none of the fleet, or one whose certificate is not good any more.
    fn note_stranger(&self, connection: &Connection, error: &io::Error) {
        add(&self.metrics.strangers_refused, 1);
        if let Some(suppressed) = self.strangers_lines.admit() {
            let address = connection.address();
            let why = match error.kind() {
                io::ErrorKind::TimedOut => "the handshake took too long".to_owned(),
                io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
                _ => error.to_string(),
            };
            tracing::warn!(address, suppressed, "a caller was not let in: {why}");
        }
    }

    /// Serves a connection until either side ends it.
    fn serve(&self, connection: &Connection, listed: &Listed, stream: Stream) {
        let deadline = Instant::now() + HELLO_TIMEOUT;
        let identity = match stream.shake_hands(deadline) {
            Ok(identity) => identity,
            Err(error) => {
                self.note_stranger(connection, &error);
                connection.close();
                return;
            }
        };
        // It is at work: a stranger who has done nothing gives way before it.
        connection.note_request();
        let introduced = introduce(&self.host, connection, listed, (stream, identity), deadline);
        let result = introduced.and_then(|introduced| match introduced {
            Some((caller, mut receiver)) => {
                let appends = Appends::new(&self.append_path, caller, connection.made_for());
                Session::new(caller, &self.frame_memory, &self.requests, appends, connection)
                    .run(&mut receiver)
            }
            None => Ok(()),
        });
        match result {
            Ok(()) => {}
            Err(Ended::Io(error)) => {
                tracing::debug!(address = %connection.address(), %error, "connection broke");
            }
            Err(ended @ Ended::OtherMembership) => {
                tracing::debug!(address = %connection.address(), "connection closed: {ended}");
            }
            Err(Ended::Garbage(what)) => {
                add(&self.metrics.frames_refused, 1);
                if let Some(suppressed) = self.garbage_lines.admit() {
                    tracing::warn!(address = %connection.address(), suppressed, "connection closed: {what}");
                }
            }
        }
        connection.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_answers_its_own_user_and_root() {
        let (own, other, root) = (Uid::from_raw(26), Uid::from_raw(27), Uid::from_raw(0));
        assert!(may_call(own, own) && may_call(root, own) && may_call(root, root));
        assert!(!may_call(other, own) && !may_call(other, root));
    }
}
