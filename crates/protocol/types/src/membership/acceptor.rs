//! What a segment stores of its group's memberships: the one it acts on, and its part in choosing the next.
//!
//! The next membership is chosen by one small Paxos (Lamport, "Paxos Made Simple", 2001) per membership epoch. The
//! acceptors are the members of the membership before, and four of each of its sets are its quorum. So the group needs
//! nobody else to be safe from two controllers, and loses nothing with a catalog.

use serde::{Deserialize, Serialize};

use super::sets::GroupMembership;

/// Orders the attempts to choose one membership.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Above every counter that the proposer has seen.
    pub counter: u64,
    /// A random number of the proposer, so that no two use one ballot.
    pub proposer: u64,
}

/// What a segment accepted for the next membership epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// In which attempt.
    pub ballot: Ballot,
    /// The membership, of the epoch after the installed one.
    pub membership: GroupMembership,
}

/// Why a proposed membership was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAccepted {
    /// A newer attempt was promised.
    #[error("attempt {} of proposer {:x} came before", .promised.counter, .promised.proposer)]
    Promised {
        /// The newest attempt.
        promised: Ballot,
    },
    /// It is not the step after what is installed here.
    #[error("the proposed membership does not follow the installed one")]
    NoStep,
}

/// Two memberships of one epoch: at least one was never chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("another membership of the same epoch is installed already")]
pub struct Contradiction;

/// What a segment stores of its group's memberships, and what it tells of that.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MembershipState {
    installed: GroupMembership,
    promised: Ballot,
    accepted: Option<Accepted>,
}

impl MembershipState {
    /// With this membership, and no part in the next yet.
    #[must_use]
    pub fn new(installed: GroupMembership) -> MembershipState {
        MembershipState { installed, promised: Ballot::default(), accepted: None }
    }

    /// The membership that is acted on. It was chosen.
    #[must_use]
    pub fn installed(&self) -> &GroupMembership {
        &self.installed
    }

    /// The newest attempt for the next epoch: older ones get nothing accepted.
    #[must_use]
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// What was accepted for the next epoch. It need not have been chosen.
    #[must_use]
    pub fn accepted(&self) -> Option<&Accepted> {
        self.accepted.as_ref()
    }

    /// Whether it names this membership for its epoch: installed, or accepted.
    #[must_use]
    pub fn supports(&self, membership: &GroupMembership) -> bool {
        self.installed == *membership
            || self.accepted.as_ref().is_some_and(|accepted| accepted.membership == *membership)
    }

    /// Promises to accept nothing of older attempts. Returns whether that is news to store. The segment that this is the state of
    /// decides whether it may.
    pub fn prepare(&mut self, ballot: Ballot) -> bool {
        let is_newer = ballot > self.promised;
        if is_newer {
            self.promised = ballot;
        }
        is_newer
    }

    /// Accepts a membership for the next epoch. Returns whether that is news to store.
    pub fn accept(&mut self, proposed: &Accepted) -> Result<bool, NotAccepted> {
        if proposed.ballot < self.promised {
            return Err(NotAccepted::Promised { promised: self.promised });
        }
        if self.installed.transition_to(&proposed.membership).is_none() {
            return Err(NotAccepted::NoStep);
        }
        let is_news = self.accepted.as_ref() != Some(proposed);
        self.promised = proposed.ballot;
        self.accepted = Some(proposed.clone());
        Ok(is_news)
    }

    /// Acts on a newer membership, which was chosen, from now on. Returns whether it is newer.
    pub fn install(&mut self, membership: &GroupMembership) -> Result<bool, Contradiction> {
        if membership.epoch() == self.installed.epoch() && *membership != self.installed {
            return Err(Contradiction);
        }
        let is_newer = membership.epoch() > self.installed.epoch();
        if is_newer {
            *self = MembershipState::new(membership.clone());
        }
        Ok(is_newer)
    }

    /// Whether this is what the same segment said later than `earlier`.
    #[must_use]
    pub fn is_after(&self, earlier: &MembershipState) -> bool {
        let key = |state: &MembershipState| {
            (state.installed.epoch(), state.promised, state.accepted.as_ref().map(|accepted| accepted.ballot))
        };
        key(self) > key(earlier)
    }
}
