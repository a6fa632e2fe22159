//! Connecting to a node, and the bytes on a connection: the same for tools, recoveries, drivers and peers, and for the
//! node that accepted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use borealis_spec::{Endpoint, Identity};
use borealis_types::NodeId;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::tls::session::Session;
use crate::tls::stream::{TlsStream, wait_for};
use crate::tls::{Credentials, Route};

/// Longest path of a Unix socket that the system takes: `sun_path` of `struct sockaddr_un` with its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Before connecting again to a node whose queue of callers is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// Listens on a Unix socket that only the process's user and root may open. What an earlier process left there is removed.
///
/// # Errors
/// When the socket cannot be made there.
pub fn listen_for_owner(path: &Path) -> io::Result<UnixListener> {
    let name = SocketName::of(path)?;
    if fs::symlink_metadata(name.path()).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(name.path())?;
    }
    let listener = UnixListener::bind(name.path())?;
    fs::set_permissions(name.path(), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A name for a Unix socket that the system takes, however long its path is. It is good for as long as it lives.
#[derive(Debug)]
pub struct SocketName {
    path: PathBuf,
    /// Open while its number is in `path`.
    _folder: Option<File>,
}

impl SocketName {
    /// The name of the socket at `path`, whose folder must exist. A path that is too long is named by way of its open
    /// folder: `/proc/self/fd/7/3`.
    ///
    /// # Errors
    /// When the folder cannot be opened, or the path has none.
    pub fn of(path: &Path) -> io::Result<SocketName> {
        if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(SocketName { path: path.to_owned(), _folder: None });
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let folder = File::open(folder)?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(SocketName { path, _folder: Some(folder) })
    }

    /// The path to bind or connect to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A connection that was begun without waiting.
#[derive(Debug)]
pub(crate) enum Begun {
    Unix(mio::net::UnixStream),
    /// Still on its way, with the session that will be on it.
    Tls(mio::net::TcpStream, Box<Session>),
}

/// Connects without waiting; [`io::ErrorKind::WouldBlock`] says that the node's queue of callers is full, or that the
/// host's address is being looked up.
pub(crate) fn begin_to_connect(route: Route<'_>, node: NodeId) -> io::Result<Begun> {
    match route.endpoint {
        Endpoint::Unix(path) => mio::net::UnixStream::connect(SocketName::of(path)?.path()).map(Begun::Unix),
        Endpoint::Tls { host, port } => {
            let credentials = route.credentials.ok_or_else(|| {
                io::Error::other(
                    "it is spoken to over TLS, and no certificate is configured here; `borealis fleet certificate` makes one",
                )
            })?;
            let address = credentials.names.address(host, *port)?;
            let session = Session::of_caller(credentials, host, node)?;
            Ok(Begun::Tls(mio::net::TcpStream::connect(address)?, Box::new(session)))
        }
    }
}

/// A connection whose calls wait.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    /// How long a call waits on a connection over TLS; a Unix socket keeps this itself.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tls(Arc<TlsStream>),
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Stream {
        Stream::new(Socket::Unix(socket))
    }
}

impl Stream {
    fn new(socket: Socket) -> Stream {
        Stream { socket, read_timeout: None, write_timeout: None }
    }

    /// Connects to a node; over TLS, to nobody else than this one.
    ///
    /// # Errors
    /// When nobody listens there, the caller may not connect, the node took no caller in time, or one side's certificate
    /// is not what it has to be.
    pub fn connect<'a>(route: impl Into<Route<'a>>, node: NodeId, timeout: Duration) -> io::Result<Stream> {
        let (route, deadline) = (route.into(), Instant::now() + timeout);
        loop {
            match begin_to_connect(route, node) {
                Ok(Begun::Unix(socket)) => {
                    let socket = UnixStream::from(socket);
                    socket.set_nonblocking(false)?;
                    return Ok(Stream::from(socket));
                }
                Ok(Begun::Tls(socket, session)) => {
                    let stream = TlsStream::new(socket.into(), *session)?;
                    stream.shake_hands(deadline)?;
                    return Ok(Stream::new(Socket::Tls(Arc::new(stream))));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(QUEUE_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The node's side of a connection that it accepted. Nothing is read or sent before [`Stream::shake_hands`].
    ///
    /// # Errors
    /// When the socket cannot be prepared.
    pub fn accept(socket: TcpStream, credentials: &Arc<Credentials>) -> io::Result<Stream> {
        let stream = TlsStream::new(socket, Session::of_node(credentials)?)?;
        Ok(Stream::new(Socket::Tls(Arc::new(stream))))
    }

    /// Makes the handshake of a connection that was accepted; says who calls, if it is over TLS.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at the deadline, another when the caller shows no certificate of this fleet. It has been
    /// told why, as far as it listens.
    pub fn shake_hands(&self, deadline: Instant) -> io::Result<Option<Identity>> {
        match &self.socket {
            Socket::Unix(_) => Ok(None),
            Socket::Tls(stream) => stream.shake_hands(deadline).map(Some),
        }
    }

    /// Another handle of the same connection.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match &self.socket {
            Socket::Unix(socket) => Stream::from(socket.try_clone()?),
            Socket::Tls(stream) => Stream::new(Socket::Tls(Arc::clone(stream))),
        })
    }

    /// How long a read waits for bytes; it then fails with [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// When the system refuses, or the time is zero.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if let Socket::Unix(socket) = &self.socket {
            socket.set_read_timeout(timeout)?;
        }
        self.read_timeout = timeout;
        Ok(())
    }

    /// How long a write waits for room; it then fails with [`io::ErrorKind::WouldBlock`] or
    /// [`io::ErrorKind::TimedOut`].
    ///
    /// # Errors
    /// When the system refuses, or the time is zero.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if let Socket::Unix(socket) = &self.socket {
            socket.set_write_timeout(timeout)?;
        }
        self.write_timeout = timeout;
        Ok(())
    }

    /// Reads what is there, without waiting; `None` if nothing is. Zero bytes are the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn read_what_is_there(&mut self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        let socket = match &self.socket {
            Socket::Unix(socket) => socket.as_raw_fd(),
            Socket::Tls(stream) => return stream.read_what_is_there(bytes),
        };
        loop {
            match recv(socket, bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Ok(Some(count)),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes as much of `bytes` as there is room for, once there is some; waits at most `patience` for it. A timeout of
    /// the socket is no such bound: it begins anew with every piece of some ten kilobytes that one write is sent in.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when no room came in time, another when the connection breaks or is ended meanwhile.
    /// Over TLS it is of no use after either.
    pub fn write_within(&self, bytes: &[u8], patience: Duration) -> io::Result<usize> {
        let socket = match &self.socket {
            Socket::Unix(socket) => socket,
            Socket::Tls(stream) => return stream.write_within(bytes, Some(patience)),
        };
        let deadline = Instant::now() + patience;
        loop {
            match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(0) if !bytes.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(count),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            if !wait_for(socket, PollFlags::POLLOUT, Some(deadline))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Ends the connection in both directions, for all of its handles.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn shutdown(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
            Socket::Tls(stream) => stream.shutdown(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Unix(socket) => socket.read(bytes),
            Socket::Tls(stream) => stream.read(bytes, self.read_timeout),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Unix(socket) => socket.write(bytes),
            Socket::Tls(stream) => stream.write_within(bytes, self.write_timeout),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_path_of_any_length_can_be_listened_on_and_connected_to() {
        let folder = tempfile::tempdir().unwrap();
        for depth in [1, 60, 120] {
            let deep = folder.path().join("d".repeat(depth)).join("e".repeat(depth));
            std::fs::create_dir_all(&deep).unwrap();
            let path = deep.join("3");
            let listener = UnixListener::bind(SocketName::of(&path).unwrap().path()).unwrap();
            let mut caller =
                Stream::connect(&Endpoint::Unix(path.clone()), NodeId(3), Duration::from_secs(1)).unwrap();
            let mut accepted = Stream::from(listener.accept().unwrap().0);
            assert_eq!(accepted.read_what_is_there(&mut [0; 8]).unwrap(), None);
            caller.write_all(b"word").unwrap();
            assert_eq!(accepted.read_what_is_there(&mut [0; 8]).unwrap(), Some(4));
            caller.shutdown().unwrap();
            assert_eq!(accepted.read_what_is_there(&mut [0; 8]).unwrap(), Some(0));
            assert!(path.exists());
        }
    }

    #[test]
    fn a_full_queue_is_waited_for_and_nobody_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(folder.path().join("3"));
        let error = Stream::connect(&endpoint, NodeId(3), Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let _listener = UnixListener::bind(folder.path().join("3")).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match Stream::connect(&endpoint, NodeId(3), Duration::from_millis(20)) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "the queue has no end");
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
}
