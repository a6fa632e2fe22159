//! A server that answers `GET /metrics`, and nothing else.
//!
//! One thread serves one caller at a time; each has `CALLER_TIMEOUT` in all, so a caller that hangs keeps the next one waiting
//! for that long and no longer. A request is at most `REQUEST_BYTES_MAX` long, and its connection ends with the answer.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use borealis_client::stream::listen_for_owner;
use borealis_spec::MetricsAddress;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::exposition::CONTENT_TYPE;

/// A request's first line and headers; Prometheus sends some hundred bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// How long one caller may take, from its connection to the end of the answer.
const CALLER_TIMEOUT: Duration = Duration::from_secs(2);
/// After the system could not accept (no descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    /// Dropped to stop: the other end is polled beside the listener.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    address: MetricsAddress,
}

impl MetricsServer {
    /// Listens on `address`, and answers with what `text` returns at that moment. An old socket at the same path is removed.
    ///
    /// # Errors
    /// When the address is taken, or the thread cannot be made.
    pub fn start(
        address: &MetricsAddress,
        text: impl Fn() -> String + Send + 'static,
    ) -> io::Result<MetricsServer> {
        let listener = Listener::bind(address)?;
        let address = listener.address(address)?;
        let (stop, stopped) = UnixStream::pair()?;
        let body = move || listener.serve_until(&stopped, &text);
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(body)?;
        Ok(MetricsServer { stop: Some(stop), thread: Some(thread), address })
    }

    /// Where it listens; with the port that the system chose if that of the address was zero.
    #[must_use]
    pub fn address(&self) -> &MetricsAddress {
        &self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum Caller {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    fn bind(address: &MetricsAddress) -> io::Result<Listener> {
        let listener = match address {
            MetricsAddress::Unix(path) => Listener::Unix(listen_for_owner(path)?),
            MetricsAddress::Loopback(address) => Listener::Tcp(TcpListener::bind(address)?),
        };
        match &listener {
            Listener::Unix(listener) => listener.set_nonblocking(true)?,
            Listener::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        Ok(listener)
    }

    fn address(&self, wanted: &MetricsAddress) -> io::Result<MetricsAddress> {
        match self {
            Listener::Unix(_) => Ok(wanted.clone()),
            Listener::Tcp(listener) => Ok(MetricsAddress::Loopback(listener.local_addr()?)),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Caller> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Caller::Unix(stream))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Caller::Tcp(stream))
            }
        }
    }

    fn serve_until(&self, stopped: &UnixStream, text: &impl Fn() -> String) {
        loop {
            let mut ready = [
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.descriptor(), PollFlags::POLLIN),
            ];
            if poll(&mut ready, PollTimeout::NONE).is_err() {
                continue;
            }
            if ready[0].any().unwrap_or(true) {
                return;
            }
            match self.accept() {
                Ok(mut caller) => {
                    if let Err(error) = answer(&mut caller, Instant::now() + CALLER_TIMEOUT, text) {
                        tracing::debug!(%error, "a caller of the metrics was not answered");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a caller of the metrics");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

impl Caller {
    /// Lets the next read and write take until `deadline`.
    fn allow_until(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self {
            Caller::Unix(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
            Caller::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.allow_until(deadline)?;
        match self {
            Caller::Unix(stream) => stream.read(buffer),
            Caller::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            self.allow_until(deadline)?;
            let written = match self {
                Caller::Unix(stream) => stream.write(bytes),
                Caller::Tcp(stream) => stream.write(bytes),
            }?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

/// Reads one request and answers it.
fn answer(caller: &mut Caller, deadline: Instant, text: &impl Fn() -> String) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    let status = loop {
        if ends_headers(&request) {
            break status_of(&request);
        }
        if request.len() > REQUEST_BYTES_MAX {
            break "431 Request Header Fields Too Large";
        }
        match caller.read(&mut buffer, deadline)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    };
    let (content_type, body) = match status {
        OK => (CONTENT_TYPE, text()),
        _ => ("text/plain; charset=utf-8", format!("{status}: ask with GET for /metrics\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    caller.write(head.as_bytes(), deadline)?;
    caller.write(body.as_bytes(), deadline)
}

const OK: &str = "200 OK";

fn ends_headers(request: &[u8]) -> bool {
    request.windows(4).any(|bytes| bytes == b"\r\n\r\n") || request.windows(2).any(|bytes| bytes == b"\n\n")
}

fn status_of(request: &[u8]) -> &'static str {
    let line = request.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    match (words.next(), words.next()) {
        (Some(version), None) if version.starts_with(b"HTTP/1.") => match (method, path) {
            (b"GET", b"/metrics") => OK,
            (b"GET", _) => "404 Not Found",
            _ => "405 Method Not Allowed",
        },
        _ => "400 Bad Request",
    }
}
