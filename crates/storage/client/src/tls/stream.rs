//! A TLS connection whose calls wait. Reading and sending go on at one time, and it can be ended meanwhile.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use borealis_spec::Identity;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::session::{Received, Session};

/// A host that is gone without a word is noticed after this: silence, then probes.
const KEEPALIVE_IDLE_SECONDS: u32 = 5;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 5;
const KEEPALIVE_PROBES: u32 = 3;
/// Or when it has confirmed nothing that it was sent for so long.
const UNCONFIRMED_MAX_MS: u32 = 20_000;
/// After a handshake that failed, the other side has this long to read why.
const LAST_WORD_MAX: Duration = Duration::from_millis(300);
/// And may go on talking for this much.
const LAST_WORD_BYTES: usize = 64 << 10;

/// Nothing waits for company, and a host that vanished is noticed.
///
/// # Errors
/// When the system refuses.
pub(crate) fn set_options(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    setsockopt(socket, sockopt::TcpUserTimeout, &UNCONFIRMED_MAX_MS)?;
    Ok(())
}

/// Waits until the socket is ready; false if the deadline came first.
pub(crate) fn wait_for(socket: &impl AsFd, flags: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match deadline {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                // The poll counts whole milliseconds, and would not wait for less.
                PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        match poll(&mut [PollFd::new(socket.as_fd(), flags)], timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A connection, shared by its handles. Nobody waits while it holds the lock.
#[derive(Debug)]
pub(crate) struct TlsStream {
    /// Never blocks.
    socket: TcpStream,
    session: Mutex<Session>,
}

impl TlsStream {
    /// A connection whose handshake has not begun.
    ///
    /// # Errors
    /// When the socket cannot be prepared.
    pub(crate) fn new(socket: TcpStream, session: Session) -> io::Result<TlsStream> {
        socket.set_nonblocking(true)?;
        set_options(&socket)?;
        Ok(TlsStream { socket, session: Mutex::new(session) })
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().expect("nothing panics while it holds this lock")
    }

    /// Waits for a connection that was begun, and makes the handshake; says who is at the other end.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at the deadline; or when nobody listens, or the other side is not who it has to be.
    pub(crate) fn shake_hands(&self, deadline: Instant) -> io::Result<Identity> {
        if !wait_for(&self.socket, PollFlags::POLLOUT, Some(deadline))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        loop {
            let (received, wants_write) = {
                let mut session = self.lock();
                let is_sent = session.send(&mut &self.socket)?;
                if let (Some(peer), true) = (session.peer(), is_sent) {
                    return Ok(peer.clone());
                }
                let received = session.receive(&mut &self.socket);
                if received.is_err() {
                    // Its reason, for the other side; it may be gone.
                    let _ = session.send(&mut &self.socket);
                }
                (received, session.wants_write())
            };
            match received {
                Ok(Received::Bytes { .. }) => continue,
                Ok(Received::Nothing) => {}
                Ok(Received::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => {
                    self.leave_time_to_read(deadline);
                    return Err(error);
                }
            }
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, wants_write);
            if !wait_for(&self.socket, flags, Some(deadline))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Closing a socket with unread bytes takes back what the other side was told last, so these are read first.
    fn leave_time_to_read(&self, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + LAST_WORD_MAX);
        let _ = self.socket.shutdown(Shutdown::Write);
        let (mut scratch, mut count) = ([0; 4096], 0);
        while count < LAST_WORD_BYTES
            && wait_for(&self.socket, PollFlags::POLLIN, Some(deadline)).unwrap_or(false)
        {
            match (&self.socket).read(&mut scratch) {
                Ok(0) => return,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    /// Reads what is there, without waiting; `None` if nothing is. Zero bytes are the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) fn read_what_is_there(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        let mut session = self.lock();
        let (count, received) = session.read(&mut &self.socket, bytes)?;
        // New keys are answered with new keys, which travel with what is said next if there is no room now.
        session.send(&mut &self.socket)?;
        Ok(match received {
            Received::Nothing if count == 0 => None,
            Received::Bytes { .. } | Received::Nothing | Received::End => Some(count),
        })
    }

    /// Reads, and waits for something to come.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing came in time, as a socket's own timeout says; another when the
    /// connection breaks.
    pub(crate) fn read(&self, bytes: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(count) = self.read_what_is_there(bytes)? {
                return Ok(count);
            }
            if !wait_for(&self.socket, PollFlags::POLLIN, deadline)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    /// Sends the beginning of `bytes`, as much as fits the session's memory; on return the system has it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when there was no room for it in time; another when the connection breaks. What was
    /// sent in part is lost then: the connection is of no use.
    pub(crate) fn write_within(&self, bytes: &[u8], patience: Option<Duration>) -> io::Result<usize> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut written = 0;
        loop {
            {
                let mut session = self.lock();
                while session.send(&mut &self.socket)? {
                    if written > 0 || bytes.is_empty() {
                        return Ok(written);
                    }
                    written = session.put(&[IoSlice::new(bytes)])?;
                    if written == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                }
            }
            if !wait_for(&self.socket, PollFlags::POLLOUT, deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Ends the connection in both directions.
    ///
    /// # Errors
    /// When it has ended already.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::TcpListener;

    #[test]
    fn nothing_waits_for_company_and_a_host_that_vanished_is_noticed_in_twenty_seconds() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_options(&socket).unwrap();
        assert!(
            getsockopt(&socket, sockopt::TcpNoDelay).unwrap()
                && getsockopt(&socket, sockopt::KeepAlive).unwrap()
        );
        let idle = getsockopt(&socket, sockopt::TcpKeepIdle).unwrap();
        let interval = getsockopt(&socket, sockopt::TcpKeepInterval).unwrap();
        let count = getsockopt(&socket, sockopt::TcpKeepCount).unwrap();
        assert_eq!(idle + interval * count, 20);
        assert_eq!(getsockopt(&socket, sockopt::TcpUserTimeout).unwrap(), 20_000);
    }
}
