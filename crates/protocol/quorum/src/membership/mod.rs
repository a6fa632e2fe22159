//! Which nodes hold a group, and how that changes while writes and recoveries go on.
//!
//! A [`GroupMembership`] is one set of six, or two, or four while one or two members are being replaced. Memberships of a
//! group are numbered by [`MembershipEpoch`](borealis_types::MembershipEpoch); the segments themselves store them.

mod sets;
#[cfg(test)]
mod sets_tests;

pub use sets::{
    GroupMembership, InvalidMembership, InvalidTransition, REPLACEMENTS_MAX, Replacement, Transition,
};
