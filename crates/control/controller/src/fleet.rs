//! What a controller sees: the answers of one round of questions, with no opinion about them.
//!
//! There is no clock time in it, and so no `now` beside it: whoever tells says how long ago something was, by a clock of its
//! own. A controller that was started a moment ago sees at once what the one before it saw.

use std::collections::BTreeMap;

use borealis_quorum::membership::GroupMembership;
use borealis_types::{AvailabilityZone, InstanceId, NodeId, VolumeId};

use crate::catalog::records::FleetGroup;

/// Who can say when a node was last heard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Observer {
    /// The controller that observes.
    Controller,
    /// The writer of a volume, from acknowledgements.
    Writer(VolumeId, InstanceId),
    /// Another node, from gossip.
    Peer(NodeId),
}

/// What a node said of itself when the controller last asked it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SelfReport {
    /// The identity of its store, as 32 hexadecimal digits.
    pub incarnation: String,
    /// Why it cannot keep its promises any more: a poisoned log, a failed disk. `None` while it can.
    pub broken: Option<String>,
    /// Bytes that segments may still take on its disk.
    pub free_bytes: u64,
}

/// What is known of a node in this round.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NodeObservation {
    /// How many milliseconds ago each observer last heard it, or since when that observer could have: one that began
    /// a second ago has not missed it for longer. An observer that has nothing to do with the node is left out.
    pub heard_ms_ago: BTreeMap<Observer, u64>,
    /// Its answer in this round; `None` if it did not answer the controller.
    pub answer: Option<SelfReport>,
    /// What its host says that makes waiting useless: its folder is gone, it cannot be started. `None` if the host says nothing.
    pub lost: Option<String>,
}

/// How far a member of a group is, as it says itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberProgress {
    /// Its segment is complete to within what is in flight.
    Complete,
    /// It is catching up, by log or by pages. Both numbers are zero while it does not know yet.
    CatchingUp {
        /// Bytes that it has.
        done_bytes: u64,
        /// Bytes that it needs in all.
        total_bytes: u64,
    },
}

/// What is known of a group in this round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupObservation {
    /// The newest membership that any member has installed.
    pub membership: GroupMembership,
    /// Whether a write quorum of it has it installed, so that the next step can be chosen.
    pub is_established: bool,
    /// The members that answered in this round, each with how far it is.
    pub members: BTreeMap<NodeId, MemberProgress>,
    /// What a segment of it takes on a disk.
    pub segment_bytes: u64,
}

/// One round of questions.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Observed {
    /// Every node of the catalog. One that is left out was heard by nobody.
    pub nodes: BTreeMap<NodeId, NodeObservation>,
    /// Every group of every volume of which at least one member answered.
    pub groups: BTreeMap<FleetGroup, GroupObservation>,
    /// Node processes that were started and have not answered yet, by zone.
    pub starting: BTreeMap<AvailabilityZone, usize>,
}
