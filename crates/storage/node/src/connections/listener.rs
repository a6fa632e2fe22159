//! Accepts connections and gives each a thread.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use borealis_client::stream::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;

use super::appends::{AppendPath, Appends};
use super::ended::Ended;
use super::frame_memory::FrameMemory;
use super::introduction::{Host, introduce};
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
    pub(crate) fn accept_until(self: &Arc<Self>, listener: &UnixListener, stop: &UnixStream) {
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
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    if let Some(suppressed) = self.refused_lines.admit() {
                        tracing::warn!(%error, suppressed, "cannot accept connections");
                    }
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, socket: UnixStream) {
        let Ok(caller) = getsockopt(&socket, sockopt::PeerCredentials) else { return };
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
            return;
        }
        let address = format!("process {}", caller.pid());
        let prepared = socket.set_nonblocking(false).and_then(|()| {
            let stream = Stream::from(socket);
            Ok((stream.try_clone()?, stream))
        });
        let Ok((sending, stream)) = prepared else { return };
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

    /// Serves a connection until either side ends it.
    fn serve(&self, connection: &Connection, listed: &Listed, stream: Stream) {
        let result =
            introduce(&self.host, connection, listed, stream).and_then(|introduced| match introduced {
                Some((caller, mut receiver)) => {
                    let appends = Appends::new(&self.append_path, caller);
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
