//! Serving callers: one thread for each connection.
//!
//! [`acceptor`] is the socket, [`listener`] takes callers from it, [`introduction`] judges who calls, [`session`] reads frames and answers them in order:
//! [`appends`] by way of the store's log, [`requests`] everything else. What callers may cost is bounded: [`places`] says
//! who gets a connection, [`frame_memory`] what large frames may take, [`large_answers`] how many of those are made. Each takes the parts of the node that it needs,
//! and none of them knows the node as a whole.

mod acceptor;
mod appends;
mod ended;
mod frame_memory;
mod introduction;
mod large_answers;
mod listener;
pub(crate) mod places;
mod receiver;
mod replies;
mod requests;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use acceptor::Acceptor;
pub(crate) use appends::AppendPath;
pub(crate) use frame_memory::FrameMemory;
pub(crate) use introduction::Host;
pub(crate) use large_answers::LargeAnswers;
pub(crate) use listener::Listener;
pub(crate) use requests::Requests;
