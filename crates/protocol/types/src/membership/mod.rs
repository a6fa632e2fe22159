//! Which nodes hold a group, and what a segment stores of that: plain data, with the rules that each value keeps by itself. How
//! memberships follow each other safely is the subject of `borealis_quorum::membership`.

mod acceptor;
mod request;
mod sets;

pub use acceptor::{Accepted, Ballot, Contradiction, MembershipState, NotAccepted};
pub use request::MembershipRequest;
pub use sets::{
    GroupMembership, InvalidMembership, InvalidTransition, REPLACEMENTS_MAX, Replacement, Transition,
};
