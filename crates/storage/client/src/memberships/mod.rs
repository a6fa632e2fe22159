//! Who the members of groups are, for everyone who is not one: what is known, what nodes claim, and when that is believed.
//!
//! The segments themselves store their group's membership (`docs/decisions/0025-segments-choose-their-membership.md`).
//! Whoever knows an older one is refused, and told. [`Memberships`] takes what is told and believes it by the rule that
//! the segments follow ([`borealis_quorum::membership::credible_membership`]); [`learn`] asks.
//!
//! Invariant: a membership replaces another only if it has a higher epoch and enough members say that it is installed. What
//! one node says alone changes nothing but where others are looked for, and who answers there has to show who it is.

mod addresses;
mod known;
mod learn;

pub use addresses::AddressBook;
pub use known::Memberships;
pub use learn::{Learned, learn};
