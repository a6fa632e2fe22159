//! What a controller asks of a member while a step is made.

use serde::{Deserialize, Serialize};

use super::acceptor::{Accepted, Ballot};
use super::sets::GroupMembership;

/// What a member is asked to do. It answers with its state in any case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MembershipRequest {
    /// Nothing.
    Ask,
    /// To promise to accept nothing of older attempts for the membership after this one.
    Prepare {
        /// The membership that is to be followed by another.
        installed: GroupMembership,
        /// The attempt.
        ballot: Ballot,
    },
    /// To accept what is proposed.
    Accept(Accepted),
    /// To act on a membership that was chosen.
    Install(GroupMembership),
}
