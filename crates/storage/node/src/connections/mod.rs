//! Serving callers: one thread for each connection.
//!
//! [`listener`] accepts, [`introduction`] judges who calls, [`session`] reads frames and answers them in order:
//! [`appends`] by way of the store's log, [`requests`] everything else. Each takes the parts of the node that it needs,
//! and none of them knows the node as a whole.

mod appends;
mod ended;
mod introduction;
mod listener;
mod receiver;
mod requests;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use appends::AppendPath;
pub(crate) use introduction::Host;
pub(crate) use listener::Listener;
pub(crate) use requests::Requests;
