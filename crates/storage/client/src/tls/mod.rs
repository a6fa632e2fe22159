//! TLS for every connection between machines: certificates on both sides, TLS 1.3 alone, no async runtime.
//!
//! * [`credentials`]: the files of a part's certificate, read again when they change.
//! * `revocations`: the certificates that an authority has taken back.
//! * `session`: one connection's TLS without its socket: bytes in, bytes out.
//! * `stream`: a connection whose calls wait, for tools, recoveries, peers and for the node that accepted.
//! * `names`: addresses of hosts, looked up without holding up an event loop.
//! * `words`: what a person is told when a handshake fails.
//!
//! Chains and validity are judged by `rustls-webpki`. Who the other side is stands in its certificate as a URI
//! ([`borealis_spec::identity`]): a caller compares it with the node it meant before it says a word, and a node with
//! what the caller then claims to be.
//!
//! There is no resumption of sessions and no data before the handshake: every connection is judged anew, so a certificate
//! that expired or an authority that was dropped counts from the next connection on. A certificate that was revoked counts for
//! connections that are there, too: nothing that comes on one is taken once the list is known here.

pub mod credentials;
mod der;
mod names;
mod revocations;
pub(crate) mod session;
pub(crate) mod stream;
mod words;

pub use credentials::{Credentials, CredentialsError, EXPIRY_WARNING, expiry_of};

use std::sync::Arc;

use borealis_spec::Endpoint;

/// The way to a node: where it listens, and the certificate to show there.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) credentials: Option<&'a Arc<Credentials>>,
}

impl<'a> Route<'a> {
    /// The way to `endpoint` for a part that has these credentials; without, it reaches sockets alone.
    #[must_use]
    pub fn new(endpoint: &'a Endpoint, credentials: Option<&'a Arc<Credentials>>) -> Route<'a> {
        Route { endpoint, credentials }
    }
}

impl<'a> From<&'a Endpoint> for Route<'a> {
    /// The way to a socket; there is no certificate for TLS.
    fn from(endpoint: &'a Endpoint) -> Route<'a> {
        Route::new(endpoint, None)
    }
}
