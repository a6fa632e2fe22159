//! Which nodes hold a group, and how that changes while writes and recoveries go on.
//!
//! A [`GroupMembership`] is one set of six, or two, or four while one or two members are being replaced. Memberships of a
//! group are numbered by [`MembershipEpoch`](borealis_types::MembershipEpoch). The segments themselves store them, and
//! choose the next among themselves ([`MembershipState`]); a controller proposes ([`Change`]). See
//! `docs/decisions/0025-segments-choose-their-membership.md`.
//!
//! # Why it is safe
//!
//! *One membership per epoch.* Two attempts for one epoch meet in two acceptors, and the later one proposes what the earlier
//! may have got chosen.
//!
//! *Nobody acts on two at once.* A segment carries out a request only for the membership it has installed, or the one after
//! it. Once a write quorum of the next membership has it, none is left to the one before: one of the two has all sets
//! of the other.
//!
//! *Nothing is dropped with a member.* What was acknowledged, promised or installed was so at four of the
//! [base](GroupMembership::base). A step that takes the base away waits until every set that stays has all of it at
//! four members ([`Bar`]). Write quorums two steps apart may meet in one member, so promises and histories have to be
//! carried over like records.

mod bar;
#[cfg(test)]
mod bar_tests;
mod change;
#[cfg(test)]
mod change_tests;
mod evidence;
#[cfg(test)]
mod evidence_tests;
#[cfg(test)]
mod sets_tests;

pub use bar::Bar;
pub use change::{Answer, Change, ChangeFailure, ChangeOptions, Command, Event};
pub use evidence::credible_membership;

/// What a change asks of a member.
pub use borealis_types::membership::MembershipRequest as Request;
pub use borealis_types::membership::{
    Accepted, Ballot, Contradiction, GroupMembership, InvalidMembership, InvalidTransition, MembershipState,
    NotAccepted, REPLACEMENTS_MAX, Replacement, Transition,
};
