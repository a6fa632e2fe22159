//! Talking to a storage node, for everyone who is not one: drivers, recoveries, tools, and nodes among themselves.
//!
//! * [`handshake`]: what a caller says first, and how the answer is judged. The same for every kind of connection.
//! * [`blocking`]: one request at a time, or a few in a row, with timeouts. For tools, recoveries and peers.
//! * [`memberships`]: who the members of groups are: what is known, what nodes claim, and asking for it.
//! * [`point`]: reads a whole volume as of one point, while it is written to.
//! * [`polled`]: never waits; for the driver's event loop.
//! * [`stream`]: the one way to connect to a node, and the bytes on it.
//! * [`tls`]: certificates and TLS, for connections between machines.
//! * [`verify`]: asks every node of a volume for everything, and names what differs.
//!
//! Nothing here knows how a node stores anything: a driver links this crate, and no storage.
//!
//! Invariant: an answer is only ever taken for the answer to the request it repeats the number of; on the network nothing
//! is said before the other side's certificate was judged.

pub mod blocking;
pub mod handshake;
pub mod memberships;
pub mod point;
pub mod polled;
pub mod stream;
pub mod tls;
pub mod verify;

pub use borealis_spec::Endpoint;

pub use blocking::{ClientError, NodeClient, Timeouts};
pub use memberships::{Learned, Memberships};
pub use tls::{Credentials, CredentialsError, EXPIRY_WARNING, Route, expiry_of};
