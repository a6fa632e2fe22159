//! One connection's TLS without its socket: what came is decrypted, what is said is encrypted, and nothing waits.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use borealis_spec::{FleetName, Identity, Role};
use borealis_types::NodeId;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

use super::credentials::{Credentials, identity_of};
use super::words;

/// What is read from the socket at a time.
const CHUNK_BYTES: usize = 32 << 10;
/// And before the other side has shown its certificate.
const HANDSHAKE_CHUNK_BYTES: usize = 4 << 10;

/// What became of an attempt to receive more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// Something came; whether that is all there was.
    Bytes {
        /// The socket is empty, as far as the last read of it says.
        drained: bool,
    },
    /// There is nothing now.
    Nothing,
    /// The other side is done.
    End,
}

/// One connection's TLS.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Connection,
    credentials: Arc<Credentials>,
    /// Of the credentials by which the other side was judged.
    generation: u64,
    /// Who has to be at the other end.
    fleet: FleetName,
    /// And which node, for a caller.
    node: Option<NodeId>,
    /// Who is at the other end; known once the handshake is over.
    peer: Option<Identity>,
    /// What came and was not taken by TLS yet begins at `taken`.
    ciphertext: Vec<u8>,
    taken: usize,
    drained: bool,
    has_ended: bool,
}

impl Session {
    /// The side of a caller that means this node, on this host.
    ///
    /// # Errors
    /// When the host's name is none that a certificate could be valid for.
    pub(crate) fn of_caller(credentials: &Arc<Credentials>, host: &str, node: NodeId) -> io::Result<Session> {
        let (loaded, generation) = credentials.current();
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| failed(format!("`{host}` is no name that a certificate could be valid for")))?;
        let connection = ClientConnection::new(Arc::clone(&loaded.client), name)
            .map_err(|e| failed(words::of_connection(&e)))?;
        let fleet = loaded.identity.fleet.clone();
        Ok(Session::new(connection.into(), credentials, generation, fleet, Some(node)))
    }

    /// The side of the node that was called.
    ///
    /// # Errors
    /// Only if TLS cannot be used at all.
    pub(crate) fn of_node(credentials: &Arc<Credentials>) -> io::Result<Session> {
        let (loaded, generation) = credentials.current();
        let connection = ServerConnection::new(Arc::clone(&loaded.server))
            .map_err(|e| failed(words::of_connection(&e)))?;
        let fleet = loaded.identity.fleet.clone();
        Ok(Session::new(connection.into(), credentials, generation, fleet, None))
    }

    fn new(
        connection: Connection,
        credentials: &Arc<Credentials>,
        generation: u64,
        fleet: FleetName,
        node: Option<NodeId>,
    ) -> Session {
        Session {
            connection,
            credentials: Arc::clone(credentials),
            generation,
            fleet,
            node,
            peer: None,
            ciphertext: Vec::new(),
            taken: 0,
            drained: false,
            has_ended: false,
        }
    }

    /// Who is at the other end, once the handshake is over.
    pub(crate) fn peer(&self) -> Option<&Identity> {
        self.peer.as_ref()
    }

    /// Whether something encrypted waits for the socket.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Sends what is encrypted; false if the socket took less than all.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn send(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Encrypts as much as there is room for; returns how many bytes that were. None before the handshake is over: it is
    /// not known yet who would read them.
    ///
    /// # Errors
    /// When the session has failed before.
    pub(crate) fn put(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.peer.is_none() {
            return Ok(0);
        }
        self.connection.writer().write_vectored(parts)
    }

    /// Takes decrypted bytes; zero if there are none, which alone says nothing about what will come.
    fn take(&mut self, bytes: &mut [u8]) -> usize {
        // An end is known from where the ciphertext came from.
        self.connection.reader().read(bytes).unwrap_or(0)
    }

    /// Decrypts what came before, or one piece of what the socket has.
    ///
    /// # Errors
    /// When the connection breaks, or the other side is not who it has to be. What is left to say to it can be sent.
    pub(crate) fn receive(&mut self, socket: &mut impl Read) -> io::Result<Received> {
        if self.has_ended {
            return Ok(Received::End);
        }
        if self.taken == self.ciphertext.len() {
            match self.fill(socket)? {
                Some(0) => {
                    self.has_ended = true;
                    return match self.peer {
                        Some(_) => Ok(Received::End),
                        None => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                }
                Some(_) => {}
                None => return Ok(Received::Nothing),
            }
        }
        self.judge_again()?;
        self.decrypt()?;
        Ok(Received::Bytes { drained: self.drained && self.taken == self.ciphertext.len() })
    }

    /// Reads from the socket; `None` if it has nothing, zero at its end.
    fn fill(&mut self, socket: &mut impl Read) -> io::Result<Option<usize>> {
        let wanted = if self.peer.is_some() { CHUNK_BYTES } else { HANDSHAKE_CHUNK_BYTES };
        self.ciphertext.resize(wanted, 0);
        self.taken = 0;
        let count = loop {
            match socket.read(&mut self.ciphertext) {
                Ok(count) => break Some(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) => {
                    self.ciphertext.clear();
                    return Err(error);
                }
            }
        };
        self.ciphertext.truncate(count.unwrap_or(0));
        self.drained = self.ciphertext.len() < wanted;
        Ok(count)
    }

    /// Gives TLS of what came until it has something to take, or all of it is given.
    fn decrypt(&mut self) -> io::Result<()> {
        while self.taken < self.ciphertext.len() {
            let count = self.connection.read_tls(&mut &self.ciphertext[self.taken..])?;
            self.taken += count;
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| failed(words::of_connection(&error)))?;
            if self.peer.is_none() && !self.connection.is_handshaking() {
                self.peer = Some(self.identify()?);
                self.judge_again()?;
            }
            if state.peer_has_closed() || count == 0 {
                self.has_ended = true;
                self.taken = self.ciphertext.len();
            }
            if state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Ends a connection whose other side was revoked since its handshake, before anything of what just came is taken. Nothing
    /// else of the other side is judged twice: what expires or is retired goes on until its connection ends by itself.
    fn judge_again(&mut self) -> io::Result<()> {
        let generation = self.credentials.generation();
        if generation == self.generation || self.peer.is_none() {
            return Ok(());
        }
        self.generation = generation;
        let shown = self.connection.peer_certificates().and_then(<[_]>::first);
        if !shown.is_some_and(|certificate| self.credentials.revoke(certificate)) {
            return Ok(());
        }
        self.has_ended = true;
        if let Some(peer) = &self.peer {
            tracing::warn!(%peer, "a connection is ended: the other side's certificate was revoked");
        }
        let revoked = rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked);
        Err(failed(words::of_connection(&revoked)))
    }

    /// Judges whose certificate was shown, whose chain and validity are judged already.
    fn identify(&self) -> io::Result<Identity> {
        let certificates = self.connection.peer_certificates().unwrap_or_default();
        let certificate =
            certificates.first().ok_or_else(|| failed("no certificate was shown".to_owned()))?;
        let identity = identity_of(certificate)
            .map_err(|why| failed(format!("the other side's certificate does not say who it is: {why}")))?;
        if identity.fleet != self.fleet {
            return Err(failed(format!(
                "the other side is {identity}, of another fleet than this one, {}",
                self.fleet
            )));
        }
        match self.node {
            Some(meant) if identity.role != Role::Node(meant) => Err(failed(format!(
                "the certificate there is that of {identity}, where node {meant} was meant; compare the addresses of the \
                 nodes, or give the node its own certificate"
            ))),
            _ => Ok(identity),
        }
    }

    /// Reads decrypted bytes: what is here, or else what the socket has now. [`Received::Bytes`] comes with a count above
    /// zero.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub(crate) fn read(&mut self, socket: &mut impl Read, bytes: &mut [u8]) -> io::Result<(usize, Received)> {
        let mut count = 0;
        loop {
            count += self.take(&mut bytes[count..]);
            let is_pending = self.taken < self.ciphertext.len();
            if count == bytes.len() || (count > 0 && !is_pending) {
                let drained = count < bytes.len() && self.drained && !self.has_ended;
                return Ok((count, Received::Bytes { drained }));
            }
            match self.receive(socket)? {
                Received::Bytes { .. } => {}
                // With a count there was something pending, so neither comes of the socket.
                other => return Ok((count, other)),
            }
        }
    }
}

fn failed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
