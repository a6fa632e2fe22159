//! TLS for every connection between machines: certificates on both sides, TLS 1.3 alone, no async runtime.
//!
//! * [`credentials`]: the files of a part's certificate, read again when they change.
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
//! that expired or an authority that was dropped counts from the next connection on.

pub mod credentials;
mod names;
pub(crate) mod session;
pub(crate) mod stream;
mod words;

pub use credentials::{Credentials, CredentialsError};

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
