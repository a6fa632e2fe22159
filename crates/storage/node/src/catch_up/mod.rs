//! Filling gaps from peers, without the writer's help (gossip).
//!
//! One thread for each peer ([`exchange`]), which another one keeps ([`keeper`]), compares summaries. Where the peer is ahead it takes what is missing from the
//! peer's log: first the epoch history, so that no record is taken that a recovery truncated, then the records ([`pull`]).
//! Histories, durable points and read points are not taken on one peer's word, but when enough members say the same
//! ([`proof`]); nor are records that are not known to be durable ([`unconfirmed`]). Where no peer's log continues a segment,
//! another thread takes pages instead ([`refill`]). What is damaged here is brought back by another thread ([`mend`]). What the threads learn of the peers, and
//! whom they must not ask again, is in one place ([`known`]).

mod exchange;
mod keeper;
mod known;
mod mend;
mod proof;
mod pull;
mod refill;
mod unconfirmed;

pub(crate) use exchange::CatchUp;
pub(crate) use keeper::Keeper;
pub(crate) use known::{Known, has_hole};
pub(crate) use mend::Mender;
pub(crate) use pull::Puller;
pub(crate) use refill::{Refiller, Refills};
