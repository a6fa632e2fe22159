//! Where a node listens: on a Unix socket, or over TLS. Nothing listens on TCP without it.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use borealis_client::stream::listen_for_owner;
use borealis_client::{Credentials, Endpoint};

/// Takes connections; never waits for one.
#[derive(Debug)]
pub(crate) enum Acceptor {
    Unix(UnixListener),
    Tls(TcpListener, Arc<Credentials>),
}

/// A connection on which nothing was said yet.
#[derive(Debug)]
pub(crate) enum Accepted<'a> {
    Unix(UnixStream),
    Tls(TcpStream, SocketAddr, &'a Arc<Credentials>),
}

impl Acceptor {
    /// Listens. What an earlier process of the node left of a Unix socket is removed: the store is open, so that process
    /// has ended.
    ///
    /// # Errors
    /// When the system refuses, or it would be TLS and there are no credentials.
    pub(crate) fn listen(
        endpoint: &Endpoint,
        credentials: Option<&Arc<Credentials>>,
    ) -> io::Result<Acceptor> {
        match endpoint {
            Endpoint::Unix(path) => {
                let listener = listen_for_owner(path)?;
                listener.set_nonblocking(true)?;
                Ok(Acceptor::Unix(listener))
            }
            Endpoint::Tls { host, port } => {
                let credentials =
                    credentials.ok_or_else(|| io::Error::other("there is no certificate for TLS"))?;
                let listener = TcpListener::bind((host.as_str(), *port))?;
                listener.set_nonblocking(true)?;
                Ok(Acceptor::Tls(listener, Arc::clone(credentials)))
            }
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub(crate) fn accept(&self) -> io::Result<Accepted<'_>> {
        Ok(match self {
            Acceptor::Unix(listener) => Accepted::Unix(listener.accept()?.0),
            Acceptor::Tls(listener, credentials) => {
                let (socket, address) = listener.accept()?;
                Accepted::Tls(socket, address, credentials)
            }
        })
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Acceptor::Unix(listener) => listener.as_fd(),
            Acceptor::Tls(listener, _) => listener.as_fd(),
        }
    }
}
