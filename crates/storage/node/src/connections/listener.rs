//! Accepts connections and gives each a thread.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::appends::{AppendPath, Appends};
use super::ended::Ended;
use super::introduction::{Host, introduce};
use super::requests::Requests;
use super::session::Session;
use crate::line_throttle::LineThrottle;
use crate::metrics::{Metrics, add};
use crate::open_connections::{Connection, OpenConnections, TooMany};

/// After the system could not accept (no descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts callers, and serves them.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) host: Host,
    pub(crate) requests: Arc<Requests>,
    pub(crate) append_path: AppendPath,
    pub(crate) connections: Arc<OpenConnections>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) garbage_lines: LineThrottle,
    pub(crate) refused_lines: LineThrottle,
}

impl Listener {
    /// Accepts connections until `stop` becomes readable or its other end closes.
    pub(crate) fn accept_until(self: &Arc<Self>, listener: &TcpListener, stop: &UnixStream) {
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
                Ok((stream, address)) => self.admit(stream, address),
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

    fn admit(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let prepared = stream
            .set_nonblocking(false)
            // A caller that vanished without a word is noticed within hours, not never.
            .and_then(|()| Ok(setsockopt(&stream, sockopt::KeepAlive, &true)?))
            .and_then(|()| stream.try_clone());
        let Ok(sending) = prepared else { return };
        let connection = Arc::new(Connection::new(sending, address));
        let listed = match self.connections.list(&connection) {
            Ok(listed) => listed,
            Err(TooMany { open, unintroduced }) => {
                add(&self.metrics.connections_refused, 1);
                if let Some(suppressed) = self.refused_lines.admit() {
                    tracing::warn!(%address, open, unintroduced, suppressed, "too many connections: one was closed");
                }
                return;
            }
        };
        add(&self.metrics.connections_accepted, 1);
        let listener = Arc::clone(self);
        let spawned = thread::Builder::new().name(format!("connection-{}", listed.id())).spawn(move || {
            // Given up when the thread ends, also by a panic.
            let _listed = listed;
            listener.serve(&connection, stream);
        });
        match spawned {
            Ok(thread) => self.connections.keep_thread(thread),
            Err(error) => tracing::warn!(%error, "cannot start a thread for a connection"),
        }
    }

    /// Serves a connection until either side ends it.
    fn serve(&self, connection: &Connection, stream: TcpStream) {
        let result = introduce(&self.host, connection, stream).and_then(|introduced| match introduced {
            Some((caller, mut receiver)) => {
                let appends = Appends::new(&self.append_path, caller);
                Session::new(&self.requests, appends, connection).run(&mut receiver)
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
