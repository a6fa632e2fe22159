//! Connecting to a node, and the bytes on a connection: the same for tools, recoveries, drivers and peers, and for the
//! node that accepted.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use borealis_spec::Endpoint;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

/// Longest path of a Unix socket that the system takes: `sun_path` of `struct sockaddr_un` with its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Before connecting again to a node whose queue of callers is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);

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

/// Connects without waiting; [`io::ErrorKind::WouldBlock`] says that the node's queue of callers is full.
pub(crate) fn begin_to_connect(endpoint: &Endpoint) -> io::Result<mio::net::UnixStream> {
    let Endpoint::Unix(path) = endpoint;
    mio::net::UnixStream::connect(SocketName::of(path)?.path())
}

/// A connection whose calls wait.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Stream {
        Stream { socket }
    }
}

impl Stream {
    /// Connects to a node.
    ///
    /// # Errors
    /// When nobody listens there, the caller may not connect, or the node took no caller in time.
    pub fn connect(endpoint: &Endpoint, timeout: Duration) -> io::Result<Stream> {
        let deadline = Instant::now() + timeout;
        loop {
            match begin_to_connect(endpoint) {
                Ok(socket) => {
                    let socket = UnixStream::from(socket);
                    socket.set_nonblocking(false)?;
                    return Ok(Stream { socket });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(QUEUE_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Another handle of the same connection.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(Stream { socket: self.socket.try_clone()? })
    }

    /// How long a read waits for bytes; it then fails with [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// When the system refuses, or the time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// How long a write waits for room; it then fails with [`io::ErrorKind::WouldBlock`].
    ///
    /// # Errors
    /// When the system refuses, or the time is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(timeout)
    }

    /// Reads what is there, without waiting; `None` if nothing is. Zero bytes are the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn read_what_is_there(&mut self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
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
    pub fn write_within(&self, bytes: &[u8], patience: Duration) -> io::Result<usize> {
        let deadline = Instant::now() + patience;
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(0) if !bytes.is_empty() => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => return Ok(count),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)], left) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends the connection in both directions, for all of its handles.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn shutdown(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Both)
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.read(bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
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
            let mut caller = Stream::connect(&Endpoint::Unix(path.clone()), Duration::from_secs(1)).unwrap();
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
        let error = Stream::connect(&endpoint, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let _listener = UnixListener::bind(folder.path().join("3")).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match Stream::connect(&endpoint, Duration::from_millis(20)) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "the queue has no end");
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }
}
